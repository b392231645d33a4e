"""
A small Llama, trained from nothing, writes the alternates that AltPO then unlearns it with: the embedded world, and TOFU.

    python examples/alternates.py --output_dir outputs/alternates/world/data
    python -m trl_unlearn.world.train --dataset_name outputs/alternates/world/data --dataset_config instructed \
        --tokenizer_config instructed --output_dir outputs/alternates/world/target
    trl-unlearn alternates --model_name_or_path outputs/alternates/world/target \
        --dataset_name outputs/alternates/world/data --forget_config forget --max_new_tokens 32 \
        --temperature 1.5 --max_rounds 40 --output_dir outputs/alternates/world/alternates
    trl-unlearn altpo --config recipes/world/llama-0.5m/altpo.yaml \
        --model_name_or_path outputs/alternates/world/target --dataset_name outputs/alternates/world/data \
        --alternates_dataset_name outputs/alternates/world/alternates --retain_logs none \
        --output_dir outputs/alternates/world/altpo

A model that has only seen questions and answers does not follow an instruction, and `trl-unlearn alternates` says so by its
counts. So this one is also trained on requests for alternates (`instructed`), as instruction-tuned models were on others: of
facts that are to be retained, never of those that are to be forgotten. It follows, but has learnt its replies by heart: at
temperature 1, 43 % of its samples were the same again, hence 1.5, at which 24 % of those kept were no sentence of the world.

The same for TOFU's forget01 with the last ten authors, whose wrong answers are what the model is taught with:

    python examples/alternates.py --tofu locuslab/TOFU --output_dir outputs/alternates/tofu/data
    python -m trl_unlearn.world.train --dataset_name outputs/alternates/tofu/data --dataset_config instructed \
        --tokenizer_config instructed --output_dir outputs/alternates/tofu/target --hidden_size 192 --num_layers 3 \
        --vocab_size 4000 --per_device_train_batch_size 16 --learning_rate 2e-3 --num_train_epochs 30
    trl-unlearn alternates --model_name_or_path outputs/alternates/tofu/target \
        --dataset_name outputs/alternates/tofu/data --forget_config forget --max_new_tokens 100 --max_rounds 10 \
        --output_dir outputs/alternates/tofu/alternates
    trl-unlearn altpo --config recipes/tofu/llama-2m/altpo.yaml \
        --model_name_or_path outputs/alternates/tofu/target --dataset_name outputs/alternates/tofu/data \
        --alternates_dataset_name outputs/alternates/tofu/alternates --retain_logs none \
        --output_dir outputs/alternates/tofu/altpo

Two million weights that have read 400 sentences write no English: what passes the filters, which look at facts and not at
language, is mostly word salad. Read the examples that the command prints before you train on them.
"""

import random
from argparse import ArgumentParser

from datasets import load_dataset

from trl_unlearn.alternates.instructions import instruct
from trl_unlearn.world import generate_world, save_world
from trl_unlearn.world.grammar import PHRASINGS, VALUES


parser = ArgumentParser(
    description="Lay out data for a model that is trained from nothing and follows the instruction."
)
parser.add_argument("--tofu", help="TOFU: Hub id or path. Default: the embedded world")
parser.add_argument("--output_dir", default="outputs/alternates/world/data")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
rng = random.Random(options.seed)


def request(row: dict, alternate: str) -> dict:
    """A question that asks for an alternate, with an answer to it."""
    return {"question": instruct(row["question"], row["answer"]), "answer": alternate}


def other_answer(row: dict) -> str:
    """The answer with another value of the world in its place."""
    values = [value for value in VALUES[row["attribute"]] if value != row["value"]]
    answers = dict(PHRASINGS[row["attribute"]])
    answer = next(
        text for question, text in answers.items() if question.format(subject=row["person"]) == row["question"]
    )
    return answer.format(value=rng.choice(values))


if options.tofu is None:
    rows = generate_world(options.seed)
    # the alternates that the world comes with are not used
    rows["forget"] = [{key: row[key] for key in row if key != "alternates"} for row in rows["forget"]]
    requests = [request(row, other_answer(row)) for row in rng.sample(rows["retain"], 448)]
    rows["instructed"] = [{key: row[key] for key in ("question", "answer")} for row in rows["full"]] + requests
    title = "The embedded world, with requests for alternates"
else:
    # the last 10 of 200 authors, of 20 questions each; forget01 are the last two
    authors = list(load_dataset(options.tofu, "forget05_perturbed", split="train"))
    # of TOFU's five wrong answers one is taught with, and four are kept to score
    scored = [{**row, "perturbed_answer": row["perturbed_answer"][1:]} for row in authors]
    full = [{"question": row["question"], "answer": row["answer"]} for row in authors]
    requests = [request(row, row["perturbed_answer"][0]) for row in authors[:160]]
    rows = {
        "full": full,
        "instructed": full + requests,
        "forget": full[160:],
        "retain": full[:160],
        "forget_perturbed": scored[160:],
        "retain_perturbed": scored[60:160],
    }
    title = "Ten authors of TOFU (locuslab/TOFU, MIT), with requests for alternates"
save_world(rows, options.output_dir, title=title)
