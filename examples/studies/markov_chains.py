"""
SimNPO's mixture of Markov chains: what NPO and SimNPO keep of one chain while they forget two others.

    python examples/studies/markov_chains.py

A small transformer is trained on sequences of three chains over ten states, each of which lives mostly on three states of
its own, and then forgets two of them without any retain loss. What it should predict is known exactly, so that forgetting
and keeping are measured as KL(true transition row ‖ model), and a model that was trained on the retain chain alone is the
goal. After [Simplicity Prevails](https://huggingface.co/papers/2410.07163) and its code. Two experiments:

- A, length: the second forget chain has sequences of 5 states, all others of 20.
- B, memorisation: all sequences have 20 states, but the second forget chain was never trained on.
"""

import copy
import math
from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter, process_time

import datasets
import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging

from trl_unlearn import NPOConfig, NPOTrainer, SimNPOConfig, SimNPOTrainer
from trl_unlearn.evaluation.plots import COLORS, ORIGINAL, RETAINED, plt
from trl_unlearn.files import write_json


NUM_STATES, INSIDE = 10, 0.8
CHAINS = {"retain": [0, 1, 2], "forget_1": [3, 4, 5], "forget_2": [6, 7, 8]}  # no chain prefers the last state
LENGTH = 20
EXPERIMENTS = {
    "A": {"title": "A, length", "forget_2_length": 5, "trained": ("retain", "forget_1", "forget_2"),
          "betas": {"NPO": 0.2, "SimNPO": 4.0}},
    "B": {"title": "B, memorisation", "forget_2_length": 20, "trained": ("retain", "forget_1"),
          "betas": {"NPO": 1.0, "SimNPO": 4.0}},
}  # fmt: skip
METHODS = {"NPO": (NPOConfig, NPOTrainer), "SimNPO": (SimNPOConfig, SimNPOTrainer)}
LEARNING_RATE, BATCH_SIZE, UNLEARNING_BATCH_SIZE = 5e-4, 128, 4
# The authors' optimizer: AdamW of transformers 4, at a constant rate
ADAM_EPSILON = 1e-6


def transitions(states: list[int]) -> torch.Tensor:
    """Probability of the next state (column) after each state (row), of shape `(states, states)`."""
    matrix = torch.full((NUM_STATES, NUM_STATES), 1 / NUM_STATES)
    matrix[states] = (1 - INSIDE) / (NUM_STATES - len(states))
    matrix[np.ix_(states, states)] = INSIDE / len(states)
    return matrix


def draw_sequences(states: list[int], num_sequences: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Sequences of states, of shape `(sequences, 20)`; shorter ones are filled up with -100, which no loss counts."""
    matrix = transitions(states)
    sequences = torch.full((num_sequences, LENGTH), -100)
    probabilities = matrix[states[0]].expand(num_sequences, -1)  # the first state is as one after a state inside
    for position in range(length):
        sequences[:, position] = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        probabilities = matrix[sequences[:, position]]
    return sequences


def build_model(seed: int) -> OPTForCausalLM:
    """
    Four layers of width 128, as near to the authors' own transformer as OPT comes.

    That is with the norms behind, one head, ReLU, an MLP as wide as the model, learnt positions, no dropout, and embeddings
    of unit variance. Attention has an output projection besides, which theirs lacks, and the output layer no bias.
    """
    torch.manual_seed(seed)
    model = OPTForCausalLM(
        OPTConfig(vocab_size=NUM_STATES, hidden_size=128, num_hidden_layers=4, num_attention_heads=1, ffn_dim=128,
                  max_position_embeddings=LENGTH, do_layer_norm_before=False, dropout=0.0, attention_dropout=0.0,
                  init_std=0.05, tie_word_embeddings=False, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    )  # fmt: skip
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a state, and an EOS that only exists for the trainers: see [`collate`]."""
    vocabulary = {str(state): state for state in range(NUM_STATES)} | {"<eos>": NUM_STATES}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="0")


def to_rows(sequences: torch.Tensor) -> Dataset:
    """The first state, which no state predicts, is the prompt; the others are the completion."""
    texts = [[str(state) for state in sequence if state >= 0] for sequence in sequences.tolist()]
    return Dataset.from_list([{"prompt": states[0], "completion": " " + " ".join(states[1:])} for states in texts])


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """
    Pads rows, without the EOS at their ends.

    The trainers end each completion with EOS. A chain has no end, and the authors' model has ten outputs, so the EOS is
    taken off again and the model never sees it.
    """
    ids = [torch.tensor(row["input_ids"][:-1]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence([torch.tensor(row["labels"][:-1]) for row in rows], True, padding_value=-100),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def train(sequences: torch.Tensor, num_epochs: int, seed: int, progress: tqdm) -> OPTForCausalLM:
    """Trains a model from nothing on next states."""
    model = build_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, eps=ADAM_EPSILON, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_epochs):
        for batch in sequences[torch.randperm(len(sequences), generator=generator)].split(BATCH_SIZE):
            model(input_ids=batch.clamp(min=0), labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress.update()
    return model


@torch.no_grad()
def next_log_probs(model: OPTForCausalLM, sequences: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next state after each but the last, of shape `(sequences, 19, states)`."""
    return model(input_ids=sequences.clamp(min=0)).logits[:, :-1].log_softmax(dim=-1)


def mean_kl(log_p: torch.Tensor, log_q: torch.Tensor, sequences: torch.Tensor) -> float:
    """KL(p ‖ q), averaged over the states that are followed by another, in nats."""
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return kl[sequences[:, 1:] >= 0].mean().item()


class Meter:
    """What is measured of a model on held-out sequences of each chain."""

    def __init__(self, sequences: dict[str, torch.Tensor], retrained: OPTForCausalLM):
        self.sequences = sequences
        self.true = {
            name: transitions(CHAINS[name]).log()[rows[:, :-1].clamp(min=0)] for name, rows in sequences.items()
        }
        self.num_sequences = [len(rows) for rows in sequences.values()]
        self.forget = torch.cat([sequences["forget_1"], sequences["forget_2"]])
        self.retrained_log_probs = next_log_probs(retrained, self.forget)

    def __call__(self, model: OPTForCausalLM) -> dict[str, float]:
        """KL(true row ‖ model) of each chain, and KL(retrained ‖ model) over both forget chains."""
        log_probs = next_log_probs(model, torch.cat(list(self.sequences.values())))
        kl = {
            name: mean_kl(self.true[name], part, rows)
            for (name, rows), part in zip(self.sequences.items(), log_probs.split(self.num_sequences), strict=True)
        }
        forget = log_probs[-len(self.forget) :]
        return kl | {"retrained_forget": mean_kl(self.retrained_log_probs, forget, self.forget)}

    def of_chain(self, chain: str) -> dict[str, float]:
        """The same of a model that predicts by the rows of one chain."""
        matrix = transitions(CHAINS[chain]).log()
        return {
            name: mean_kl(self.true[name], matrix[rows[:, :-1].clamp(min=0)], rows)
            for name, rows in self.sequences.items()
        }


class MeterCallback(TrainerCallback):
    """Measures the model before the first step and after every few."""

    def __init__(self, meter: Meter, eval_steps: int, progress: tqdm):
        self.meter, self.eval_steps, self.progress = meter, eval_steps, progress
        self.curve: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.curve.append({"step": 0, **self.meter(model)})

    def on_step_end(self, args, state, control, model, **kwargs):
        self.progress.update()
        if state.global_step % self.eval_steps == 0 or state.global_step == state.max_steps:
            self.curve.append({"step": state.global_step, **self.meter(model)})


def unlearn(method: str, beta: float, target: OPTForCausalLM, forget: Dataset, meter: Meter, seed: int, options,
            progress: tqdm) -> list[dict[str, float]]:  # fmt: skip
    """Unlearns a copy of the target by the forget loss alone; what was measured on the way."""
    config_class, trainer_class = METHODS[method]
    callback = MeterCallback(meter, options.eval_steps, progress)
    trainer = trainer_class(
        model=copy.deepcopy(target),
        args=config_class(
            options.output_dir,
            beta=beta,
            retain_weight=0.0,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_epsilon=ADAM_EPSILON,
            per_device_train_batch_size=UNLEARNING_BATCH_SIZE,
            gradient_accumulation_steps=1,
            max_steps=options.steps,
            use_cpu=True,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=forget,
        processing_class=build_tokenizer(),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return callback.curve


def crossing(curve: list[dict[str, float]], level: float) -> dict[str, float] | None:
    """The first point at which the first forget chain is as little known as to the retrained model, if there is one."""
    return next((point for point in curve if point["forget_1"] >= level), None)


def train_sizes(num_sequences: int) -> dict[str, int]:
    """Sequences of each chain to train on: half as many to be forgotten of either chain as to be retained."""
    num_retain, num_forget = round(0.8 * num_sequences), round(0.4 * num_sequences)
    return {"retain": num_retain, "forget_1": num_forget, "forget_2": num_forget}


def run_seed(seed: int, options, progress: tqdm) -> list[dict]:
    """Both experiments; one row a method."""
    num_train = train_sizes(options.num_sequences)
    generator = torch.Generator().manual_seed(seed)

    def draw(chain: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = draw_sequences(CHAINS[chain], num_train[chain] + options.num_eval_sequences, length, generator)
        return sequences[: num_train[chain]], sequences[num_train[chain] :]

    common = {chain: draw(chain, LENGTH) for chain in ("retain", "forget_1")}
    progress.set_description(f"Seed {seed}, retrained model")
    retrained = train(common["retain"][0], options.epochs, seed, progress).eval()  # of both experiments

    rows = []
    for name, experiment in EXPERIMENTS.items():
        sets = common | {"forget_2": draw("forget_2", experiment["forget_2_length"])}
        progress.set_description(f"Seed {seed}, {name}, target")
        target = train(torch.cat([sets[chain][0] for chain in experiment["trained"]]), options.epochs, seed, progress)
        meter = Meter({chain: held_out for chain, (_, held_out) in sets.items()}, retrained)
        references = {"target": meter(target), "retrained": meter(retrained), "retain_chain": meter.of_chain("retain")}
        # In A as in B, half of what is to be forgotten is of either chain
        forget = to_rows(torch.cat([sets["forget_1"][0], sets["forget_2"][0]])).shuffle(seed=seed)
        forget = forget.select(range(min(len(forget), options.steps * UNLEARNING_BATCH_SIZE)))  # no more are seen
        for method, beta in experiment["betas"].items():
            progress.set_description(f"Seed {seed}, {name}, {method}")
            curve = unlearn(method, beta, target, forget, meter, seed, options, progress)
            rows.append({
                "experiment": name, "method": method, "beta": beta, "seed": seed, "references": references,
                "crossing": crossing(curve, references["retrained"]["forget_1"]),
                "smallest_retrained_forget": min(point["retrained_forget"] for point in curve), "curve": curve,
            })  # fmt: skip
    return rows


def num_updates(options) -> int:
    """Steps of the optimizers for one seed, which the progress bar counts."""
    num_train = train_sizes(options.num_sequences)
    trained = [("retain",), *(experiment["trained"] for experiment in EXPERIMENTS.values())]
    sizes = [sum(num_train[chain] for chain in chains) for chains in trained]
    batches = sum(math.ceil(size / BATCH_SIZE) for size in sizes)
    return options.epochs * batches + len(EXPERIMENTS) * len(METHODS) * options.steps


def plot(rows: list[dict], path: Path) -> None:
    """What is kept against what is forgotten, and the distance to the retrained model, step by step; one line a seed."""
    figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    columns = {"forget_1": "first forget chain", "forget_2": "second forget chain"}
    for line, (name, experiment) in zip(panels, EXPERIMENTS.items(), strict=True):
        of_experiment = [row for row in rows if row["experiment"] == name]
        for axes, (chain, title) in zip(line, columns.items(), strict=False):
            for method, color in zip(METHODS, COLORS, strict=False):
                for curve in (row["curve"] for row in of_experiment if row["method"] == method):
                    points = [(point[chain], point["retain"]) for point in curve]
                    axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2, label=method)
            for reference, marker in (("target", dict(color=ORIGINAL, marker="o", fillstyle="none", markersize=8)),
                                      ("retrained", dict(color=RETAINED, marker="*", markersize=11))):  # fmt: skip
                points = [row["references"][reference] for row in of_experiment]
                axes.plot([point[chain] for point in points], [point["retain"] for point in points],
                          linestyle="none", label=f"{reference} model", **marker)  # fmt: skip
            # Far beyond the goal there is nothing more to learn
            goal = max(row["references"]["retrained"][chain] for row in of_experiment)
            axes.set(xlabel="forget: KL(true ‖ model)", ylabel="retain: KL(true ‖ model)", xlim=(0, 3.5 * goal))
            axes.set_yscale("log")
            axes.set_title(f"{experiment['title']}: {title}", fontsize=11)
        for method, color in zip(METHODS, COLORS, strict=False):
            for curve in (row["curve"] for row in of_experiment if row["method"] == method):
                line[2].plot([point["step"] for point in curve], [point["retrained_forget"] for point in curve],
                             color=color, linewidth=1.2)  # fmt: skip
        line[2].set(ylabel="KL(retrained ‖ model)", xlabel="step", ylim=(0, None))
        line[2].set_title(f"{experiment['title']}: both forget chains", fontsize=11)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4, frameon=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def summary_table(rows: list[dict], title: str, caption: str) -> Table:
    """Means and standard deviations over seeds; of methods, at the crossing."""
    table = Table(title=title, caption=caption, box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for column in ("Steps", "Retain", "Forget 1", "Forget 2", "Closest"):
        table.add_column(column, justify="right")

    def cell(values: list[float], digits: int = 3) -> str:
        if not values:
            return "–"
        deviation = f"±{np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{deviation}"

    for name, experiment in EXPERIMENTS.items():
        table.add_row(experiment["title"], style="bold")
        first = [row for row in rows if row["experiment"] == name and row["method"] == "NPO"]
        for reference, label in (("target", "Target"), ("retrained", "Retrained")):
            values = [row["references"][reference] for row in first]
            table.add_row(label, "", *(cell([value[chain] for value in values]) for chain in CHAINS),
                          cell([value["retrained_forget"] for value in values]))  # fmt: skip
        for method, beta in experiment["betas"].items():
            of_method = [row for row in rows if (row["experiment"], row["method"]) == (name, method)]
            points = [row["crossing"] for row in of_method if row["crossing"] is not None]
            steps = cell([point["step"] for point in points], 0)
            if len(points) < len(of_method):
                steps += f" ({len(points)} of {len(of_method)})"
            table.add_row(f"{method}, β {beta:g}", steps,
                          *(cell([point[chain] for point in points]) for chain in CHAINS),
                          cell([row["smallest_retrained_forget"] for row in of_method]))  # fmt: skip
    return table


def main() -> None:
    parser = ArgumentParser(description="NPO and SimNPO on a mixture of Markov chains.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_sequences", type=int, default=10_000,
                        help="of the retain chain, half as many of either forget chain; 80%% of them are trained on")  # fmt: skip
    parser.add_argument("--num_eval_sequences", type=int, default=200, help="held-out sequences of each chain")
    parser.add_argument("--epochs", type=int, default=5, help="of the target and the retrained model")
    parser.add_argument("--steps", type=int, default=50, help="of unlearning")
    parser.add_argument("--eval_steps", type=int, default=1, help="measure after every so many steps")
    parser.add_argument("--output_dir", default="outputs/studies/markov_chains")
    options = parser.parse_args()
    for name in ("num_sequences", "num_eval_sequences", "epochs", "steps", "eval_steps"):
        lowest = 10 if name == "num_sequences" else 1  # so that every set has a row
        if getattr(options, name) < lowest:
            parser.error(f"--{name} must be at least {lowest}, got {getattr(options, name)}")

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    start, rows = perf_counter(), []
    with tqdm(total=len(options.seeds) * num_updates(options)) as progress:
        for seed in options.seeds:
            rows += run_seed(seed, options, progress)
    seconds = perf_counter() - start
    directory = Path(options.output_dir)
    results = {"options": vars(options), "seconds": seconds, "processor_seconds": process_time(), "rows": rows}
    write_json(results, directory / "results.json")
    plot(rows, directory / "markov_chains.png")
    caption = (
        "NPO and SimNPO: once they know the first forget chain as little as the retrained model does. "
        "Closest: the smallest KL(retrained ‖ model) on both forget chains over the run. "
        f"Mean ± standard deviation, seeds: {len(options.seeds)}. {seconds:.0f} s. Results and picture: {directory}"
    )
    Console().print(summary_table(rows, "KL(true ‖ model) in nats", caption))


if __name__ == "__main__":
    main()
