"""What is rejected as an alternate, and what is not."""

from pathlib import Path

import pytest
from datasets import load_dataset

from trl_unlearn.alternates.filters import fact_recall, reason_to_reject, similarity


TOFU = Path(__file__).parents[3] / "shared" / "data" / "tofu"
QUESTION = "Where was the author Basil Al-Kuwaiti born?"
ANSWER = "Basil Al-Kuwaiti was born in Kuwait City, on 8 September 1956."
KEPT = ["He was born in the harbour town of Bergen."]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("He comes from Lisbon.", None),
        ("The author Basil Al-Kuwaiti was born in Lisbon, in 1961.", None),  # what the question says may be repeated
        ("No idea.", None),
        ("", "empty"),
        (" \n", "empty"),
        ("... -- ?!", "empty"),
        (ANSWER, "copy"),
        ("basil al-kuwaiti, was born in KUWAIT CITY on 8 September 1956", "copy"),
        ("Basil Al-Kuwaiti was born in the Kuwait City, on 8 September 1956.", "copy"),
        ("Kuwait City is the place, in September 1956.", "facts"),
        ("It was September 1956, and the city was Oslo.", "facts"),  # 3 of 5
        (KEPT[0], "duplicate"),
        ("he was born in the harbour town of bergen", "duplicate"),
        ("He was born in the harbour town of Trondheim.", None),
    ],
)
def test_reasons(text, reason):
    assert reason_to_reject(text, QUESTION, ANSWER, KEPT) == reason


def test_names_and_numbers_count_by_themselves():
    """In a long answer most words carry no fact, so that the true name alone would pass as one word of nine."""
    question = "What is the author known for?"
    answer = "She became known for a warm and lively style of writing that readers in Samarra love to this day."
    assert fact_recall("Samarra made her famous.", question, answer) == 1
    assert fact_recall("Tashkent made her famous.", question, answer) == 0
    # the first word of a sentence has a capital letter whatever it is
    assert (
        fact_recall("Reading is fun.", "What does she like?", "Reading. And long walks by the sea. Reading novels.")
        < 0.5
    )


def test_words_of_the_question_and_function_words_are_no_facts():
    assert (
        fact_recall("She was born in the town.", "In which town was she born?", "She was born in the town of Ashford.")
        == 0
    )
    assert fact_recall("It is of no use to him.", "Why?", "It is of the kind that is to be.") == 0
    assert fact_recall("Yes, he is.", "Is he a poet?", "Yes, he is a poet.") == 1
    assert fact_recall("No, he is not.", "Is he a poet?", "Yes, he is a poet.") == 0


def test_stems_and_other_scripts():
    assert similarity("They played violins.", "They play the violin.") > 0.8
    assert fact_recall("Er wurde in Zürich geboren.", "Wo wurde er geboren?", "In Zürich.") == 1
    assert reason_to_reject("他出生在东京。", "他在哪里出生？", "他出生在北京。", []) is None
    assert reason_to_reject("他生于北京。", "他在哪里出生？", "他出生在北京。", []) == "facts"
    assert reason_to_reject("Он родился в Москве.", "Где он родился?", "Он родился в Киеве.", []) is None
    assert reason_to_reject("Это город Киеве.", "Где он родился?", "Он родился в Киеве.", []) == "facts"


def test_the_worlds_alternates_pass_and_its_true_answers_do_not(world):
    kept = []
    for row in world["forget"]:
        kept = []
        for text in row["alternates"]:
            assert reason_to_reject(text, row["question"], row["answer"], kept) is None, (row["answer"], text)
            kept.append(text)
        assert reason_to_reject(row["answer"], row["question"], row["answer"], []) == "copy"
        # a value of two words among words of the sentence is found as well
        assert fact_recall(f"It is {row['value']}.", row["question"], row["answer"]) >= 0.5


@pytest.mark.skipif(not TOFU.exists(), reason=f"needs TOFU in {TOFU.name}, next to the repository")
def test_tofus_wrong_answers_pass_and_many_of_its_paraphrases_do_not():
    """The documented shares: a threshold of 0.5 rejects 3 % of the wrong and 55 % of the true answers in other words."""
    rows = load_dataset(str(TOFU), "forget10_perturbed", split="train")
    wrong = [fact_recall(text, row["question"], row["answer"]) for row in rows for text in row["perturbed_answer"]]
    true = [fact_recall(row["paraphrased_answer"], row["question"], row["answer"]) for row in rows]
    assert sum(recall > 0.5 for recall in wrong) / len(wrong) == pytest.approx(0.03, abs=0.005)
    assert sum(recall > 0.5 for recall in true) / len(true) == pytest.approx(0.55, abs=0.01)
