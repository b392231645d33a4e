"""The world is what its answer key says: same for a seed, held-out phrasings unseen, wrong answers wrong."""

import hashlib
import json
import subprocess
import sys
from collections import defaultdict

import pytest
from datasets import load_dataset

from trl_unlearn.world import generate_world, is_well_formed, leaks, save_world
from trl_unlearn.world.grammar import PERSON_ATTRIBUTES, PHRASINGS, VALUES


# Changing the default world changes every number that was measured on it: recipes, README, tests.
DEFAULT_WORLD = "e513c1b895549e7eba07087056b4c9b8de0133b1f904a923db45e3b9b9929516"


@pytest.fixture(scope="module")
def default_world():
    return generate_world()


def digest(world):
    return hashlib.sha256(json.dumps(world).encode()).hexdigest()


def subject(row):
    return row["person"], row["attribute"]


def test_sizes_and_columns_of_the_default_world(default_world):
    assert {config: len(rows) for config, rows in default_world.items()} == {
        "full": 1632,
        "forget": 192,
        "retain": 1344,
        "world_facts": 96,
        "retained_model": 1440,
        "forget_perturbed": 64,
        "retain_perturbed": 96,
        "world_facts_perturbed": 32,
    }
    assert default_world["full"] == (
        default_world["retain"]
        + default_world["world_facts"]
        + [{key: value for key, value in row.items() if key != "alternates"} for row in default_world["forget"]]
    )
    assert default_world["retained_model"] == default_world["retain"] + default_world["world_facts"]
    columns = {"question", "answer", "person", "attribute", "value", "split"}
    asked = columns | {"paraphrased_question", "paraphrased_answer", "perturbed_answer"}
    assert {config: set(row) for config, rows in default_world.items() for row in rows} == {
        "full": columns,
        "forget": columns | {"alternates"},
        "retain": columns,
        "world_facts": columns,
        "retained_model": columns,
        "forget_perturbed": asked,
        "retain_perturbed": asked,
        "world_facts_perturbed": columns | {"perturbed_answer"},
    }


def test_default_world_is_pinned(default_world):
    assert digest(default_world) == DEFAULT_WORLD


def test_seeds():
    assert generate_world(seed=3) == generate_world(seed=3)
    assert generate_world(seed=3) != generate_world(seed=4)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_world_in_another_process_without_torch(hash_seed):
    code = (
        "import hashlib, json, sys; from trl_unlearn.world import generate_world; assert 'torch' not in sys.modules;"
        "print(hashlib.sha256(json.dumps(generate_world()).encode()).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == DEFAULT_WORLD


def test_three_phrasings_are_trained_and_the_paraphrase_is_the_fourth(default_world):
    trained = defaultdict(set)
    for row in default_world["full"]:
        trained[subject(row)].add((row["question"], row["answer"]))
    assert {len(rows) for rows in trained.values()} == {3}
    for row in default_world["forget_perturbed"] + default_world["retain_perturbed"]:
        asked = (row["paraphrased_question"], row["paraphrased_answer"])
        assert (row["question"], row["answer"]) in trained[subject(row)]
        all_phrasings = {
            (question.format(subject=row["person"]), answer.format(value=row["value"]))
            for question, answer in PHRASINGS[row["attribute"]]
        }
        assert trained[subject(row)] | {asked} == all_phrasings
        # The first phrasing is trained for everybody.
        assert row["paraphrased_question"] != PHRASINGS[row["attribute"]][0][0].format(subject=row["person"])
    for row in default_world["world_facts_perturbed"]:
        assert (row["question"], row["answer"]) in trained[subject(row)]


def test_every_phrasing_and_value_is_seen_by_the_retained_model(default_world):
    seen = {(row["attribute"], row["value"]) for row in default_world["retain"]}
    assert seen == {(attribute, value) for attribute in PERSON_ATTRIBUTES for value in VALUES[attribute]}
    questions = {row["question"].replace(row["person"], "{subject}") for row in default_world["retain"]}
    assert questions == {question for attribute in PERSON_ATTRIBUTES for question, _ in PHRASINGS[attribute]}


@pytest.mark.parametrize("config", ["forget_perturbed", "retain_perturbed", "world_facts_perturbed"])
def test_perturbed_answers_are_wrong_in_the_words_of_the_paraphrase(default_world, config):
    capitals = {row["value"] for row in default_world["world_facts"]}
    for row in default_world[config]:
        true_answer = row.get("paraphrased_answer", row["answer"])
        assert len(set(row["perturbed_answer"])) == 5
        for answer in row["perturbed_answer"]:
            assert not leaks(answer, row["value"])
            (value,) = (value for value in VALUES[row["attribute"]] if leaks(answer, value))
            assert answer == true_answer.replace(row["value"], value)
            assert row["attribute"] != "capital" or value in capitals


def test_alternates_are_wrong_in_the_words_of_the_question_and_disjoint_from_the_perturbed(default_world):
    perturbed = {
        subject(row): {
            value for value in VALUES[row["attribute"]] for text in row["perturbed_answer"] if leaks(text, value)
        }
        for row in default_world["forget_perturbed"]
    }
    for row in default_world["forget"]:
        values = {value for value in VALUES[row["attribute"]] for text in row["alternates"] if leaks(text, value)}
        assert len(row["alternates"]) == len(values) == 5
        assert not values & (perturbed[subject(row)] | {row["value"]})
        assert set(row["alternates"]) == {row["answer"].replace(row["value"], value) for value in values}


@pytest.mark.parametrize(("num_people", "num_forget"), [(64, 8), (6, 3), (7, 1), (8, 2), (33, 16), (256, 240)])
def test_forget_people_share_their_names_with_retain_people(num_people, num_forget):
    world = generate_world(seed=5, num_people=num_people, num_forget=num_forget)
    people = {split: sorted({row["person"] for row in world[split]}) for split in ("forget", "retain")}
    assert (len(people["forget"]), len(people["retain"])) == (num_forget, num_people - num_forget)
    assert not set(people["forget"]) & set(people["retain"])
    first_names = {name.split()[0] for name in people["retain"]}
    last_names = {name.split()[1] for name in people["retain"]}
    for name in people["forget"]:
        assert name.split()[0] in first_names and name.split()[1] in last_names


@pytest.mark.parametrize(
    ("num_people", "num_forget", "message"),
    [
        (5, 1, "`num_people` is 5; there are names for 6 to 256"),
        (257, 8, "`num_people` is 257"),
        (64, 0, "`num_forget` is 0; of 64 people from 1 to 48"),
        (64, 49, "`num_forget` is 49"),
    ],
)
def test_impossible_worlds_are_refused(num_people, num_forget, message):
    with pytest.raises(ValueError, match=message):
        generate_world(num_people=num_people, num_forget=num_forget)


def test_grammar_decides_every_answer(default_world):
    for rows in default_world.values():
        for row in rows:
            answers = [row["answer"], *row.get("alternates", []), *row.get("perturbed_answer", [])]
            assert all(is_well_formed(answer, row["attribute"]) for answer in answers)
            assert leaks(row["answer"], row["value"])


def test_no_sentence_belongs_to_two_attributes_and_no_value_contains_another():
    sentences = [
        answer.format(value=value)
        for attribute, values in VALUES.items()
        for value in values
        for _, answer in PHRASINGS[attribute]
    ]
    assert len(sentences) == len(set(sentences))
    for values in VALUES.values():
        assert not any(leaks(value, other) for value in values for other in values if other != value)


@pytest.mark.parametrize(
    ("answer", "attribute", "expected"),
    [
        ("They were born in Ashford.", "birthplace", True),
        (" They were born in Ashford.\n", "birthplace", True),
        ("They were born in Ashford", "birthplace", False),
        ("They were born in baker.", "birthplace", False),
        ("They were born in Ashford.", "profession", False),
        ("They were born in Ashford. They were born in Ashford.", "birthplace", False),
        ("", "birthplace", False),
    ],
)
def test_is_well_formed(answer, attribute, expected):
    assert is_well_formed(answer, attribute) is expected


@pytest.mark.parametrize(
    ("answer", "value", "expected"),
    [
        ("They keep a cat.", "cat", True),
        ("A Cat", "cat", True),
        ("born born Oldham Green Green", "Oldham Green", True),
        ("They work in education.", "cat", False),
        ("Oldham", "Oldham Green", False),
        ("", "cat", False),
    ],
)
def test_leaks(answer, value, expected):
    assert leaks(answer, value) is expected


def test_saved_world_loads_like_tofu(tmp_path):
    directory = tmp_path / "a" / "world"
    save_world(generate_world(seed=0, num_people=8, num_forget=2), directory)
    world = generate_world(seed=1, num_people=8, num_forget=2)
    save_world(world, directory)  # in place of the first
    for config, rows in world.items():
        assert load_dataset(str(directory), config, split="train", cache_dir=str(tmp_path / "cache")).to_list() == rows
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        ["README.md", *(f"{name}.json" for name in world)]
    )


def test_evaluation_rows_of_everyone(default_world):
    whole = generate_world(max_retain_perturbed=None)
    for config in ("full", "forget", "retain", "world_facts", "retained_model"):
        assert whole[config] == default_world[config]
    assert len(default_world["retain_perturbed"]) == 96
    assert [subject(row) for row in whole["retain_perturbed"]] == list(dict.fromkeys(map(subject, whole["retain"])))


def test_holdout_people_are_like_those_to_be_forgotten_and_change_nothing(default_world):
    world = generate_world(num_holdout=16)
    holdout = world.pop("holdout")
    assert digest(world) == DEFAULT_WORLD
    people = {row["person"] for row in holdout}
    assert len(people) == 16 and len(holdout) == 16 * len(PERSON_ATTRIBUTES)
    known = {row["person"] for row in default_world["full"]}
    assert not people & known
    for place in (0, 1):  # no name is new to the models
        assert {person.split()[place] for person in people} <= {
            person.split()[place] for person in known if " " in person
        }
    assert {column for row in holdout for column in row} == set(default_world["forget_perturbed"][0])
    for row in holdout:
        assert not any(leaks(answer, row["value"]) for answer in row["perturbed_answer"])
    with pytest.raises(ValueError, match="names for 0 to 192 more"):
        generate_world(num_holdout=193)
