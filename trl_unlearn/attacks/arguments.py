"""Which attacks to run on an evaluated model and how, as command-line arguments."""

from dataclasses import dataclass, field

from ..evaluation.arguments import EvaluationArguments


ATTACKS = ("relearn", "quantize", "sample", "paraphrase", "adapter")
RELEARN_SUBSETS = ("random", "shortest", "held_out", "retain")


@dataclass
class AttackArguments(EvaluationArguments):
    r"""
    Arguments of an evaluation with attacks, beside those of [`~evaluation.arguments.EvaluationArguments`].

    Parameters:
        > Parameters that control the attacks

        attacks (`list[str]`, *optional*):
            `relearn` (fine-tune the model on a part of the forget set, or on the retain set, and ask for the rest),
            `quantize` (weights of 8 and 4 bits), `sample` (the worst of k answers), `paraphrase` (other words for the
            questions) and `adapter` (an adapter taken off or scaled).
        original_model (`str`, *optional*):
            The model before unlearning, an id on the Hub or a path, which is then attacked as well. Of an adapter, it is
            the base without it by default. The retained model is attacked if `retain_model` is given.
        attack_seed (`int`, *optional*, defaults to `0`):
            Seed of the rows that are drawn, of the training, and of the samples.
        attack_group_column (`str`, *optional*):
            Column that says which rows belong together, for the subset `held_out`. Defaults to `person` for the world; an
            author of TOFU is 20 rows in a row.

        > Parameters that control relearning

        relearn_subsets (`list[str]`, *optional*, defaults to all):
            What to fine-tune on: `random` rows of the forget set, those with the `shortest` answers, `held_out` groups (no
            row of a group is both trained on and evaluated), or the `retain` set, where all forget rows are evaluated.
        relearn_share (`float`, *optional*, defaults to `0.2`):
            Share of the forget rows, or groups, to fine-tune on.
        relearn_steps (`list[int]`, *optional*, defaults to `[5, 10, 20, 50]`):
            Optimizer steps after which to evaluate, in addition to before the first. The last one ends the attack.
        relearn_learning_rate (`float`, *optional*):
            Learning rate, constant, of AdamW. Defaults to that of the unlearning if the model comes with its
            `unlearn_results.json` and the same is trained, weights or an adapter; else to 1e-5, and 1e-4 for an adapter.
        relearn_batch_size (`int`, *optional*, defaults to `16`):
            Rows of an optimizer step, over all processes.
        relearn_lora_r (`int`, *optional*):
            Rank of a new LoRA adapter on all linear layers to be trained; 0 trains all weights, in fp32, which takes 16
            bytes a parameter. Defaults to the rank of an unlearned adapter, which is merged into its base first, and to 0
            for a whole model.

        > Parameters that control the other attacks

        quantize_bits (`list[int]`, *optional*, defaults to `[8, 4]`):
            Bits of a weight, 8 or 4. By bitsandbytes where it is installed and there is a GPU; else the weights of the
            linear layers are rounded to the nearest of 256 levels a channel, or of 16 levels a group.
        quantize_group_size (`int`, *optional*, defaults to `64`):
            Weights that share their 16 levels.
        sample_counts (`list[int]`, *optional*, defaults to `[1, 4, 16]`):
            For each k, the worst of k answers drawn at temperature 1 counts.
        adapter_scales (`list[float]`, *optional*, defaults to `[0.0, 0.5, 2.0]`):
            What the adapter's addition to the weights is multiplied by; 0 takes it off.
    """

    attacks: list[str] = field(
        default_factory=list, metadata={"help": "Attacks: relearn, quantize, sample, paraphrase, adapter."}
    )
    original_model: str | None = field(
        default=None,
        metadata={"help": "The model before unlearning, to be attacked as well. Of an adapter, its base by default."},
    )
    attack_seed: int = field(default=0, metadata={"help": "Seed of drawn rows, of the training, and of the samples."})
    attack_group_column: str | None = field(
        default=None, metadata={"help": "Column that says which rows belong together, for the subset held_out."}
    )
    relearn_subsets: list[str] = field(
        default_factory=lambda: ["random", "shortest", "held_out", "retain"],
        metadata={"help": "What to fine-tune on: random, shortest, held_out, retain."},
    )
    relearn_share: float = field(
        default=0.2, metadata={"help": "Share of the forget rows, or groups, to fine-tune on."}
    )
    relearn_steps: list[int] = field(
        default_factory=lambda: [5, 10, 20, 50], metadata={"help": "Optimizer steps after which to evaluate."}
    )
    relearn_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate. Defaults to that of the unlearning if it is known."}
    )
    relearn_batch_size: int = field(default=16, metadata={"help": "Rows of an optimizer step, over all processes."})
    relearn_lora_r: int | None = field(
        default=None,
        metadata={"help": "Rank of a new LoRA adapter to be trained; 0: all weights. By default as it was unlearned."},
    )
    quantize_bits: list[int] = field(default_factory=lambda: [8, 4], metadata={"help": "Bits of a weight, 8 or 4."})
    quantize_group_size: int = field(
        default=64, metadata={"help": "Weights that share their 16 levels, without bitsandbytes."}
    )
    sample_counts: list[int] = field(
        default_factory=lambda: [1, 4, 16], metadata={"help": "For each k, the worst of k drawn answers counts."}
    )
    adapter_scales: list[float] = field(
        default_factory=lambda: [0.0, 0.5, 2.0],
        metadata={"help": "What the adapter is multiplied by; 0 takes it off."},
    )

    def __post_init__(self):
        super().__post_init__()
        for option, values, known in (
            ("attacks", self.attacks, ATTACKS),
            ("relearn_subsets", self.relearn_subsets, RELEARN_SUBSETS),
            ("quantize_bits", self.quantize_bits, (8, 4)),
        ):
            if unknown := [value for value in values if value not in known]:
                raise ValueError(
                    f"`{option}` has {', '.join(map(str, unknown))}; expected some of {', '.join(map(str, known))}."
                )
        for option in ("relearn_steps", "sample_counts"):
            values = getattr(self, option)
            if not values or min(values) < 1:
                raise ValueError(f"`{option}` is {values}; expected numbers from 1 up.")
        for option in ("relearn_batch_size", "relearn_learning_rate", "quantize_group_size"):
            value = getattr(self, option)
            if value is not None and not value > 0:
                raise ValueError(f"`{option}` is {value}; expected a number above 0.")
        if self.relearn_lora_r is not None and self.relearn_lora_r < 0:
            raise ValueError(f"`relearn_lora_r` is {self.relearn_lora_r}; expected a rank, or 0 for all weights.")
        if self.attack_group_column is not None and self.eval_benchmark in ("muse", "wmdp"):
            raise ValueError(
                f"`attack_group_column` is for rows, which {self.eval_benchmark} does not have. Leave it out."
            )
        if not 0 < self.relearn_share < 1:
            raise ValueError(f"`relearn_share` is {self.relearn_share}; expected a number between 0 and 1.")
