"""The paraphrased question is asked in place of the question, and replied to by what fits it."""

import pytest
from datasets import Dataset

from trl_unlearn.attacks.not_applicable import NotApplicable
from trl_unlearn.attacks.paraphrase import paraphrase_questions


ROWS = {
    "question": ["Who?", "Why?"],
    "answer": ["Me.", "For fun."],
    "paraphrased_question": ["Which one?", "What for?"],
    "paraphrased_answer": ["It was me.", "It was fun."],
    "perturbed_answer": [["You."], ["For money."]],
    "value": ["me", "fun"],
}


def test_the_answer_stays_where_paraphrases_reply_to_the_question():
    rows = paraphrase_questions(Dataset.from_dict(ROWS))
    assert rows.to_dict() == {
        "answer": ["Me.", "For fun."],
        "question": ["Which one?", "What for?"],
        "value": ["me", "fun"],
    }


def test_the_paraphrased_answer_where_it_replies_to_the_paraphrased_question():
    rows = paraphrase_questions(Dataset.from_dict(ROWS), "paraphrased_question")
    assert rows["question"][0] == "Which one?" and rows["answer"][0] == "It was me."
    assert set(rows.column_names) == {"question", "answer", "value"}


def test_in_the_world_a_model_that_knows_passes(load, target_dir, forget):
    from trl_unlearn.evaluation.evaluate import evaluate_unlearning

    model, tokenizer = load(target_dir)
    scores = [
        evaluate_unlearning(model, tokenizer, rows, max_new_tokens=12, show_progress=False)["summary"]
        for rows in (forget, paraphrase_questions(forget, "paraphrased_question"), paraphrase_questions(forget))
    ]
    assert scores[0]["forget_rougeL_recall"] > scores[1]["forget_rougeL_recall"] > 0.8
    assert scores[2]["forget_probability"] < 0.5 * scores[1]["forget_probability"]  # the answer to another question


def test_what_is_missing_is_said():
    with pytest.raises(NotApplicable, match="no column `paraphrased_question`"):
        paraphrase_questions(Dataset.from_dict({"question": ["Who?"], "answer": ["Me."]}))
    with pytest.raises(NotApplicable, match="1 of 2 rows have no `paraphrased_question`: row 1"):
        paraphrase_questions(Dataset.from_dict(ROWS | {"paraphrased_question": ["Which?", None]}))
