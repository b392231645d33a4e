"""The options that all unlearning trainers share."""

import copy
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from transformers.utils import is_liger_kernel_available, is_torch_bf16_gpu_available
from trl import SFTConfig

from ..data.encoding import DEFAULT_QUESTION_ANSWER_TEMPLATE


_TOKENS = {"hub_token", "push_to_hub_token"}


@dataclass
class UnlearningConfig(SFTConfig):
    r"""
    Configuration class for the [`UnlearningTrainer`], the base of [`NPOConfig`], [`SimNPOConfig`] and [`AltPOConfig`].

    This class includes only the parameters that are specific to unlearning. For a full list of training arguments, see
    [`~transformers.TrainingArguments`] and [`~trl.SFTConfig`]. The loss is

    $$L = \texttt{forget\_weight} \cdot \frac{1}{n} \sum_i \ell_i + \texttt{retain\_weight} \cdot R$$

    where \\( \ell_i \\) is the forget loss of one sequence and \\( R \\) the retain loss.

    Parameters:
        > Parameters that control the reference model

        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in the model and reference model.
        precompute_ref_log_probs (`bool`, *optional*, defaults to `True`):
            Whether to compute the reference log-probabilities of the forget (and alternate) rows once, before training.
            The forget set is small, and no second model stays in memory. Without effect where the loss needs no
            reference. `retain_loss_type="kl"` still needs the reference during training, for the retain rows.
        precompute_ref_batch_size (`int`, *optional*):
            Batch size per device of that computation, in rows. If `None`, four times `per_device_train_batch_size`: no
            gradients are kept.

        cache_ref_hidden_states (`bool`, *optional*, defaults to `False`):
            Whether `retain_loss_type="kl"` reads the reference's hidden states at the retain completion tokens from disk,
            where they are written once before training, into `_reference` of the output directory. No reference but its LM
            head then stays in memory, and none is run. It takes hidden size × 2 or 4 bytes for each completion token of the
            retain rows that training will come to, and is worth it where that is less than a model. Not for models that
            are sharded.

        > Parameters that control the data

        max_length (`int` or `None`, *optional*, defaults to `1024`):
            Longest row in tokens. Completions are cut there; documents (`text` rows) are cut in windows of this length.
        question_answer_template (`str`, *optional*, defaults to `"Question: {question}\nAnswer: {answer}"`):
            How `question`/`answer` rows are written when the tokenizer has no chat template.
        pairing (`str`, *optional*, defaults to `"fresh"`):
            Which retain row comes with a forget row. `"fresh"`: another one each time, walking through the retain set
            without replacement across epochs. `"fixed"`: the same one in every epoch, as in the NPO and SimNPO authors'
            code.
        bucket_by_length (`bool`, *optional*, defaults to `False`):
            Whether pairs of about the same length come in one batch, which then has less padding: on TOFU a fifth fewer
            tokens in batches of 8 pairs. The pairs of an epoch and the loss of each row stay the same, but which rows share
            a step becomes less random.

        > Parameters that control the loss

        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature of the forget loss. Must be positive.
        forget_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the forget loss. `npo_coeff` in the NPO and SimNPO repositories, `gamma` in open-unlearning.
        forget_floor (`float`, *optional*):
            Probability per token (geometric mean over the answer) at or below which a forget row counts as forgotten, and is
            not pushed any further while it stays there. Sensible is what a model gives to an answer that it has never
            seen, such as that of a holdout set: less is over-forgetting, which costs utility and can itself be seen.
            If `None`, every row is pushed to the end.
        forget_sharpness (`float`, *optional*, defaults to `0.0`):
            Radius ρ of sharpness-aware forgetting ([Fan et al., 2025](https://huggingface.co/papers/2502.05374)). If positive,
            the forget gradient is taken where the trained weights (of an adapter, its own) are moved by ρ, in the L2 norm over
            all of them, along the normalised forget gradient, so that the forget loss is low around the weights, too. All else,
            and what is logged, is from where the weights are; `forget_floor` judges a row where its gradient is taken. A step
            has two more passes over its forget rows, and keeps the trained weights twice. Its authors take 0.01 with NPO on 7B
            models, the study in `examples/studies` 0.08 with NPO on a small one. Not for models that are sharded.
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the retain loss. `grad_diff_coeff` or `KL_coeff` in the NPO and SimNPO repositories, `alpha` in
            open-unlearning, λ in the SimNPO paper. With `0.0` no retain set is needed, and none is read.
        retain_loss_type (`str`, *optional*, defaults to `"nll"`):
            Retain loss, per completion token, in nats. Possible values are:

            - `"nll"`: negative log-likelihood of the retain completions.
            - `"kl"`: KL(reference ‖ model) of the next-token distributions at the retain completion tokens. Needs a
              reference during training.
            - `"kl_all_positions"`: the same averaged over *all* positions of the batch, prompts and padding included, as
              the authors of NPO and SimNPO compute it. Its value depends on the padding. For reproduction only.
        retain_normalization (`str`, *optional*, defaults to `"micro_batch"`):
            What the sum of the retain loss over tokens is divided by. `"micro_batch"`: the completion tokens of the
            micro-batch, as in the papers' code; the average over micro-batches then depends a little on how rows of
            different lengths are split between accumulation steps and processes. `"optimizer_batch"`: the tokens of the
            whole optimizer batch, so that any split gives the same gradient.
        warmup_epochs (`float`, *optional*, defaults to `1.0`):
            Length of the linear warm-up in epochs, at most half of the training. Used when `warmup_steps` is `0`.

        > Parameters that control what is published

        hub_base_model_id (`str`, *optional*):
            Id on the Hub of the model that is unlearned, if it was loaded from a path. An adapter needs one: it is
            published as a change of that model.
        eval_results_benchmark (`str`, *optional*):
            Id of a data set on the Hub's list of benchmarks, for which a result is written into `.eval_results/` too. No
            unlearning benchmark is on that list yet.
        eval_results_task_id (`str`, *optional*):
            Name of the task in that benchmark, which is also the metric that is reported.

    A token (`hub_token`) is used by this process and never written anywhere: `repr` masks it, and pickles (such as
    `training_args.bin`) are made without it. Where processes are started by pickling, log in with `hf auth login` instead.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`], after the papers' TOFU recipes:
    > - `learning_rate`: Defaults to `1e-5` instead of `2e-5`.
    > - `num_train_epochs`: Defaults to `10` instead of `3`.
    > - `per_device_train_batch_size`, `gradient_accumulation_steps`: Default to `8` and `4` instead of `8` and `1`, an
    >   effective batch of 32 on one device.
    > - `weight_decay`: Defaults to `0.01` instead of `0.0`.
    > - `max_grad_norm`: Defaults to `0.0` (no clipping) instead of `1.0`.
    > - `bf16`: Defaults to `True` where the device supports it and `fp16` is not set, and to `False` elsewhere.
    > - `hub_strategy`: Defaults to `"end"` instead of `"every_save"`: a repository's history would keep every half-unlearned
    >   checkpoint. `"every_save"` pushes those too, by the same list of files; `"checkpoint"` and `"all_checkpoints"`, which
    >   publish optimizers and pickles, are refused.
    > - `trackio_space_id`, `trackio_static_space_id`: Default to `None` and `False`, so that `report_to="trackio"` writes to
    >   this machine only. Name a Space to publish the log there, with the options and their paths.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(
        default=10.0, metadata={"help": "Number of epochs; an epoch is one pass over the forget set."}
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Forget rows per device and step; as many retain rows come with them."}
    )
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Number of batches whose gradients are added up before an optimizer step."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Norm to which gradients are clipped. With 0, they are not."}
    )

    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "When to push with `push_to_hub`: at the 'end', or in the background at 'every_save' as well.",
        },
    )

    trackio_space_id: str | None = field(
        default=None,
        metadata={"help": "Space of the Hub that `report_to='trackio'` logs to. If unset, logs stay on this machine."},
    )

    # Parameters that control the reference model
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether to disable dropout in the model and reference model."}
    )
    precompute_ref_log_probs: bool = field(
        default=True,
        metadata={
            "help": "Whether to compute the reference log-probabilities of the forget (and alternate) rows once, before "
            "training, so that no second model stays in memory."
        },
    )
    precompute_ref_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Batch size per device of that computation, in rows. If unset, four times "
            "`per_device_train_batch_size`."
        },
    )

    cache_ref_hidden_states: bool = field(
        default=False,
        metadata={
            "help": "Whether the 'kl' retain loss reads the reference's hidden states from disk, where they are written once "
            "before training, so that no second model stays in memory."
        },
    )

    # Parameters that control the data
    question_answer_template: str = field(
        default=DEFAULT_QUESTION_ANSWER_TEMPLATE,
        metadata={"help": "How question/answer rows are written when the tokenizer has no chat template."},
    )
    pairing: str = field(
        default="fresh",
        metadata={
            "help": "Which retain row comes with a forget row: 'fresh', another one each time, or 'fixed', the same one "
            "in every epoch.",
            "choices": ["fresh", "fixed"],
        },
    )

    bucket_by_length: bool = field(
        default=False,
        metadata={
            "help": "Whether pairs of about the same length come in one batch, which then has less padding. The pairs of an "
            "epoch stay the same."
        },
    )

    # Parameters that control the loss
    beta: float = field(default=0.1, metadata={"help": "Inverse temperature of the forget loss. Must be positive."})
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the forget loss."})
    forget_floor: float | None = field(
        default=None,
        metadata={"help": "Probability per token at or below which a forget row is not pushed any further."},
    )
    forget_sharpness: float = field(
        default=0.0,
        metadata={
            "help": "Distance that the weights are moved along the normalised forget gradient to take the forget gradient there. "
            "With 0, it is taken where they are."
        },
    )
    retain_weight: float = field(
        default=1.0, metadata={"help": "Weight of the retain loss. With 0, no retain set is needed."}
    )
    retain_loss_type: str = field(
        default="nll",
        metadata={
            "help": "Retain loss: 'nll', 'kl' (from the reference, at completion tokens), or 'kl_all_positions' (as the "
            "authors of NPO and SimNPO compute it, for reproduction only).",
            "choices": ["nll", "kl", "kl_all_positions"],
        },
    )
    retain_normalization: str = field(
        default="micro_batch",
        metadata={
            "help": "Divide the retain loss by the completion tokens of the 'micro_batch', as the papers' code does, or "
            "of the whole 'optimizer_batch', which does not depend on the split into micro-batches.",
            "choices": ["micro_batch", "optimizer_batch"],
        },
    )
    warmup_epochs: float = field(
        default=1.0,
        metadata={
            "help": "Length of the linear warm-up in epochs, at most half of the training. Used when `warmup_steps` is 0."
        },
    )

    # Parameters that control what is published
    hub_base_model_id: str | None = field(
        default=None,
        metadata={"help": "Id on the Hub of the model that is unlearned, if it was loaded from a path."},
    )
    eval_results_benchmark: str | None = field(
        default=None,
        metadata={"help": "Data set on the Hub's list of benchmarks, for which `.eval_results/` is written."},
    )
    eval_results_task_id: str | None = field(
        default=None, metadata={"help": "Name of the task in that benchmark, and of the metric that is reported."}
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__repr__ = UnlearningConfig.__repr__  # else its dataclass would make one that prints tokens

    def __post_init__(self):
        if self.bf16 is None:
            # TRL's default raises on a machine without bf16, where a newcomer's first run must not fail.
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        super().__post_init__()
        if getattr(self, "trackio_static_space_id", False) is None:
            self.trackio_static_space_id = False  # with `None`, transformers 5 would publish the log with every push

        if not self.beta > 0:
            raise ValueError(f"`beta` must be positive, got {self.beta}. The papers use 0.05 to 5.5.")
        for name in ("forget_weight", "forget_sharpness", "retain_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.forget_floor is not None and not 0 < self.forget_floor < 1:
            raise ValueError(f"`forget_floor` is a probability between 0 and 1, got {self.forget_floor}.")
        if self.forget_weight == 0 and self.retain_weight == 0:
            raise ValueError("`forget_weight` and `retain_weight` are both 0, so there is nothing to train.")
        for name in ("retain_loss_type", "retain_normalization", "pairing"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"`max_length` must be at least 2 (a prompt and a completion token), got {self.max_length}."
            )
        template = self.question_answer_template
        if [template.count(part) for part in ("{question}", "{answer}")] != [1, 1] or (
            template.index("{question}") > template.index("{answer}")
        ):
            raise ValueError(
                f"`question_answer_template` must contain {{question}} once and then {{answer}} once, got {template!r}."
            )
        if self.precompute_ref_batch_size is not None and self.precompute_ref_batch_size < 1:
            raise ValueError(f"`precompute_ref_batch_size` must be positive, got {self.precompute_ref_batch_size}.")
        if self.cache_ref_hidden_states and (self.retain_loss_type != "kl" or self.retain_weight == 0):
            raise ValueError(
                "`cache_ref_hidden_states=True` is for `retain_loss_type='kl'` with a `retain_weight`, got "
                f"{self.retain_loss_type!r} and {self.retain_weight}. Other losses need no hidden states of the reference."
            )
        if self.warmup_epochs < 0:
            raise ValueError(f"`warmup_epochs` must not be negative, got {self.warmup_epochs}.")
        if self.hub_strategy not in ("end", "every_save"):
            raise ValueError(
                f"`hub_strategy={str(getattr(self.hub_strategy, 'value', self.hub_strategy))!r}` publishes the states of "
                "optimizers and pickles, from which what was unlearned may be read. Use 'end', or 'every_save' to push the "
                "weights of each checkpoint."
            )
        if (self.eval_results_benchmark is None) != (self.eval_results_task_id is None):
            raise ValueError("Give `eval_results_benchmark` and `eval_results_task_id` together, or neither.")
        if self.retain_loss_type == "kl_all_positions" and self.padding_free:
            raise ValueError(
                "`retain_loss_type='kl_all_positions'` averages over padding, which `padding_free=True` removes. Use "
                "`retain_loss_type='kl'`."
            )
        if self.use_liger_kernel and (self.device.type == "cpu" or not is_liger_kernel_available()):
            raise ValueError(
                f"`use_liger_kernel=True` needs the package `liger-kernel` and a GPU; the device is '{self.device.type}'. Leave "
                "it out."
            )
        # Inherited options that would change which tokens are scored, or be silently without effect.
        for name, supported in {
            "packing": (False,),
            "eval_packing": (None, False),
            "shuffle_dataset": (False,),
            "completion_only_loss": (None,),
            "assistant_only_loss": (False,),
            "dataset_text_field": ("text",),
            "dataset_kwargs": (None,),
            "loss_type": ("nll",),
            "truncation_mode": ("keep_start",),
            "label_smoothing_factor": (0.0,),
            "train_sampling_strategy": ("random",),  # in transformers 5; `group_by_length` before
            "group_by_length": (False,),
        }.items():
            if getattr(self, name, supported[0]) not in supported:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` is not supported for unlearning: completions of whole sequences are "
                    f"scored, in an order that pairs forget and retain rows. Leave it at {supported[0]!r}."
                )

    def get_warmup_steps(self, num_training_steps: int) -> int:
        if self.warmup_steps:
            return super().get_warmup_steps(num_training_steps)
        return ceil(num_training_steps * min(self.warmup_epochs / max(self.num_train_epochs, 1e-9), 0.5))

    def __repr__(self) -> str:
        options = "".join(f"{name}={value},\n" for name, value in sorted(self.to_dict().items()))
        return f"{type(self).__name__}(\n{options})"

    __str__ = __repr__

    def to_dict(self) -> dict[str, Any]:
        """The options as they are given to trackers, with tokens masked."""
        options = super().to_dict()
        options["model_init_kwargs"] = _masked(options.get("model_init_kwargs"), "<TOKEN>")
        return options

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | dict.fromkeys(_TOKENS & self.__dict__.keys())
        state["model_init_kwargs"] = _masked(self.model_init_kwargs, None)
        return state

    # Without these two, a copy would be made as a pickle is
    def __copy__(self) -> "UnlearningConfig":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> "UnlearningConfig":
        other = memo[id(self)] = object.__new__(type(self))
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other


def _masked(options: dict[str, Any] | None, mask: str | None) -> dict[str, Any] | None:
    return options and {key: mask if key in ("token", "use_auth_token") else value for key, value in options.items()}
