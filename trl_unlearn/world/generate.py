"""
A small unlearning problem with an exact answer key: invented people, some of whom are to be forgotten.

Each fact is trained in three of four phrasings and asked in the one held out. With a single phrasing a tiny model
memorises the sentence and not the fact: ROUGE is perfect, and the truth ratio of the paraphrase is that of a coin.
"""

import hashlib
import json
import random
from pathlib import Path

from ..files import write_text
from .grammar import COUNTRIES, FIRST_NAMES, LAST_NAMES, PERSON_ATTRIBUTES, PHRASINGS, VALUES


_NUM_WRONG = 5  # perturbed answers, and alternates, of each fact


def generate_world(
    seed: int = 0,
    num_people: int = 64,
    num_forget: int = 8,
    max_retain_perturbed: int | None = 96,
    num_holdout: int = 0,
) -> dict[str, list[dict]]:
    """
    Generates a world.

    Forget people share each of their names with retain people, so that the two cannot be told apart by a name's tokens.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of all random draws.
        num_people (`int`, *optional*, defaults to `64`):
            Number of people, with 8 facts each, from 6 to 256. The number of countries follows: one for two people, from
            6 to 32.
        num_forget (`int`, *optional*, defaults to `8`):
            How many of the people are to be forgotten.
        max_retain_perturbed (`int`, *optional*, defaults to `96`):
            Largest number of rows of `retain_perturbed`; with `None`, it has all facts, so that an evaluation can be made for
            whomever of the people. The rows to train on do not depend on it.
        num_holdout (`int`, *optional*, defaults to `0`):
            Number of further people, whom no model is trained on. Nothing else depends on it.

    Returns:
        `dict[str, list[dict]]`: Rows by configuration, with the names and columns of TOFU and the columns `person`,
        `attribute`, `value` and `split` in addition:

        - `full`: every training row, the forget rows last. What the target is trained on.
        - `forget`: the rows to be forgotten, with 5 `alternates` each, in the words of the row's own question.
        - `retain`: the rows of the other people.
        - `world_facts`: the rows of the countries' capitals.
        - `retained_model`: retain and world facts. What the retained model is trained on.
        - `forget_perturbed`, `retain_perturbed`: one row per fact (of the retain facts a sample): `question` and
          `answer` as trained, `paraphrased_question` and `paraphrased_answer` in the phrasing that was held out, 5
          wrong `perturbed_answer` in that phrasing, none with the value of an alternate.
        - `world_facts_perturbed`: the same for the capitals, whose phrasings are all trained: no paraphrase.
        - `holdout`, if there are such people: the same for them, whose names are made of retain people's as well.

    Example:

    ```python
    >>> world = generate_world(seed=0)
    >>> len(world["forget"]), len(world["retain"])
    (192, 1344)
    ```
    """
    rng = random.Random(seed)
    names = _draw_names(rng, num_people, num_forget, num_holdout)
    facts = {
        "forget": _draw_facts(rng, "forget", names[:num_forget]),
        "retain": _draw_facts(rng, "retain", names[num_forget:num_people]),
        "world_facts": [],
    }
    num_countries = min(max(num_people // 2, _NUM_WRONG + 1), len(COUNTRIES))
    capitals = rng.sample(VALUES["capital"], num_countries)
    for country, capital in zip(rng.sample(COUNTRIES, num_countries), capitals, strict=True):
        facts["world_facts"].append(
            _draw_fact(rng, "world_facts", country, "capital", capital, capitals, held_out=None)
        )

    forget, retain, world_facts = ([row for fact in facts[split] for row in _training_rows(fact)] for split in facts)
    num_perturbed = min(max_retain_perturbed or len(facts["retain"]), len(facts["retain"]))
    sampled = sorted(rng.sample(range(len(facts["retain"])), num_perturbed))
    world = {
        "full": retain + world_facts + forget,
        "forget": [
            row | {"alternates": [_answer(fact, value, phrasing) for value in fact["alternates"]]}
            for fact in facts["forget"]
            for row, phrasing in zip(_training_rows(fact), fact["trained"], strict=True)
        ],
        "retain": retain,
        "world_facts": world_facts,
        "retained_model": retain + world_facts,
        "forget_perturbed": [_perturbed_row(rng, fact) for fact in facts["forget"]],
        "retain_perturbed": [_perturbed_row(rng, facts["retain"][index]) for index in sampled],
        "world_facts_perturbed": [_perturbed_row(rng, fact) for fact in facts["world_facts"]],
    }
    if num_holdout > 0:
        world["holdout"] = [_perturbed_row(rng, fact) for fact in _draw_facts(rng, "holdout", names[num_people:])]
    return world


def save_world(
    world: dict[str, list[dict]],
    directory: str | Path,
    title: str = "The embedded world: invented people, made by trl_unlearn.world",
) -> None:
    """
    Writes a world as `datasets.load_dataset(directory, "forget", split="train")` reads it, laid out like
    `locuslab/TOFU`.

    No file is ever half-written, and the README, without which nothing can be loaded, comes last.

    Args:
        world (`dict[str, list[dict]]`):
            What [`generate_world`] returned.
        directory (`str` or `Path`):
            Folder to write to; it is made if need be.
        title (`str`, *optional*):
            Title of the data set.
    """
    directory = Path(directory)
    readme = ["---", "configs:"]
    for config, rows in world.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(text, directory / f"{config}.json")
        # datasets caches a local folder by its name and this metadata alone (seen with datasets 5.2): without the hash,
        # another world in a folder of the same name would be read as the first.
        digest = hashlib.sha256(text.encode()).hexdigest()
        readme += [f"- config_name: {config}", f"  data_files: {config}.json", f"  description: sha256 {digest}"]
        if config == "full":
            readme.append("  default: true")
    readme += ["---", "", f"# {title}", ""]
    write_text("\n".join(readme), directory / "README.md")


def _draw_names(rng: random.Random, num_people: int, num_forget: int, num_holdout: int) -> list[str]:
    """
    First names go round against last names, so that each name is used equally often and no full name twice. The forget
    people stand first, before the last full round, in which every name of theirs comes again with a retain person. The
    holdout people go on after it.
    """
    round_size = min(len(FIRST_NAMES), num_people // 2)
    if not 6 <= num_people <= len(FIRST_NAMES) * len(LAST_NAMES):
        raise ValueError(
            f"`num_people` is {num_people}; there are names for 6 to {len(FIRST_NAMES) * len(LAST_NAMES)} people."
        )
    most_forget = round_size * (num_people // round_size - 1)
    if not 0 < num_forget <= most_forget:
        raise ValueError(
            f"`num_forget` is {num_forget}; of {num_people} people from 1 to {most_forget} can be forgotten, so that "
            "others share each of their names."
        )
    if not 0 <= num_holdout <= round_size**2 - num_people:
        raise ValueError(
            f"`num_holdout` is {num_holdout}; beside {num_people} people there are names for 0 to "
            f"{round_size**2 - num_people} more of the same names."
        )
    first_names, last_names = rng.sample(FIRST_NAMES, round_size), rng.sample(LAST_NAMES, round_size)
    rounds = [(index // round_size, index % round_size) for index in range(num_people + num_holdout)]
    return [f"{first_names[place]} {last_names[(place + turn) % round_size]}" for turn, place in rounds]


def _deal(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """
    Every value about equally often, in random order. Among retain people a value that nobody has would be one that the
    retained model never saw; forget people are dealt theirs apart, so that these are no rarer among the others.
    """
    rounds, rest = divmod(count, len(values))
    dealt = list(values) * rounds + rng.sample(values, rest)
    rng.shuffle(dealt)
    return dealt


def _draw_facts(rng: random.Random, split: str, people: list[str]) -> list[dict]:
    values = {attribute: _deal(rng, VALUES[attribute], len(people)) for attribute in PERSON_ATTRIBUTES}
    facts = []
    for index, person in enumerate(people):
        for attribute in PERSON_ATTRIBUTES:
            held_out = rng.randrange(1, len(PHRASINGS[attribute]))
            value = values[attribute][index]
            facts.append(_draw_fact(rng, split, person, attribute, value, VALUES[attribute], held_out))
    return facts


def _draw_fact(
    rng: random.Random,
    split: str,
    subject: str,
    attribute: str,
    value: str,
    values: list[str] | tuple[str, ...],
    held_out: int | None,
) -> dict:
    wrong = rng.sample([other for other in values if other != value], min(2 * _NUM_WRONG, len(values) - 1))
    trained = [phrasing for phrasing in range(len(PHRASINGS[attribute])) if phrasing != held_out]
    return {
        "columns": {"person": subject, "attribute": attribute, "value": value, "split": split},
        "trained": trained,
        "held_out": held_out,
        "perturbed": wrong[:_NUM_WRONG],
        "alternates": wrong[_NUM_WRONG:],
    }


def _question(fact: dict, phrasing: int) -> str:
    return PHRASINGS[fact["columns"]["attribute"]][phrasing][0].format(subject=fact["columns"]["person"])


def _answer(fact: dict, value: str, phrasing: int) -> str:
    return PHRASINGS[fact["columns"]["attribute"]][phrasing][1].format(value=value)


def _trained_row(fact: dict, phrasing: int) -> dict:
    answer = _answer(fact, fact["columns"]["value"], phrasing)
    return {"question": _question(fact, phrasing), "answer": answer} | fact["columns"]


def _training_rows(fact: dict) -> list[dict]:
    return [_trained_row(fact, phrasing) for phrasing in fact["trained"]]


def _perturbed_row(rng: random.Random, fact: dict) -> dict:
    trained, held_out = rng.choice(fact["trained"]), fact["held_out"]
    row = _trained_row(fact, trained)
    if held_out is None:
        return row | {"perturbed_answer": [_answer(fact, value, trained) for value in fact["perturbed"]]}
    return row | {
        "paraphrased_question": _question(fact, held_out),
        "paraphrased_answer": _answer(fact, fact["columns"]["value"], held_out),
        "perturbed_answer": [_answer(fact, value, held_out) for value in fact["perturbed"]],
    }
