"""Which sets to evaluate on and how, as command-line arguments."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class EvaluationArguments:
    r"""
    Arguments of an evaluation. Each but `retain_logs` and `retain_model` starts with `eval_` in recipes and training
    commands; `trl-unlearn evaluate` also knows them without, as `--benchmark`.

    Parameters:
        > Parameters that control what is evaluated

        eval_benchmark (`str`, *optional*):
            `"tofu"`, `"muse"`, `"wmdp"`, `"world"` (the embedded world), or `"custom"` for rows of one's own, which is also
            what `eval_forget_data` alone means. Without it, nothing is evaluated.
        eval_dataset (`str`, *optional*):
            The benchmark's data: an id on the Hub, or a folder in the same layout (`--dataset_path`). Defaults to
            `locuslab/TOFU`, `muse-bench/MUSE-News` or `-Books`, and in training to `dataset_name`.
        eval_dataset_revision (`str`, *optional*):
            Branch, tag or commit of the data.
        eval_splits (`list[str]`, *optional*):
            TOFU: forget splits, `forget10` by default; nested ones are scored once. MUSE: `News` (default), `Books`. WMDP:
            tasks of lm-eval, `wmdp_bio wmdp_cyber mmlu` by default. The world: `forget`.
        eval_forget_data (`str`, *optional*):
            Rows of one's own to be forgotten: a file (`.jsonl`, `.csv`, `.parquet`), a folder, or `id[:config[:split]]` on
            the Hub, with columns as for training and maybe `paraphrased_answer` and `perturbed_answer`.
        eval_retain_data (`str`, *optional*):
            The same for what is to be kept.
        eval_holdout_data (`str`, *optional*):
            The same for rows like the forget set's that no model has seen, for membership inference, and in training for
            `eval_select unseen`. TOFU's and the world's are used if there is a configuration `holdout…` of the split.
        eval_extra_metrics (`list[str]`, *optional*):
            Metrics that cost more: `min_k_plus_plus`, `gradnorm`, `self_confidence`, `text_cleanness`.

        > Parameters that control how

        eval_compat (`str`, *optional*):
            `"open-unlearning"` or `"tofu"` reproduces that evaluator where it differs.
        eval_max_new_tokens (`int`, *optional*):
            Longest generated answer, in tokens. Defaults to 200, and to 32 for the world.
        eval_question_answer_template (`str`, *optional*):
            Text around questions and answers, instead of the chat template.
        eval_system_prompt (`str`, *optional*):
            First message of every chat.
        eval_chat_template_kwargs (`dict` or `str`, *optional*):
            What the chat template is given beside the messages, as `{"date_string": "10 Apr 2025"}`.
        eval_truth_ratio_question (`str`, *optional*):
            Column with the question that paraphrased and perturbed answers reply to. Defaults to `"question"`, and to
            `"paraphrased_question"` for the world.
        eval_max_batch_tokens (`int`, *optional*):
            Size of a scoring batch in tokens: 2,048 on a CPU and 16,384 on an accelerator by default. It is halved as often
            as a batch does not fit in memory.
        eval_batch_size (`int`, *optional*, defaults to `8`):
            Batch size of lm-eval.

        > Parameters that control what it is compared with

        retain_logs (`str`, *optional*):
            Evaluation of the retained model: `evaluation.json` of this package, `TOFU_EVAL.json` of open-unlearning, or
            `eval_log_aggregated.json` of TOFU; a local file, `org/name:path` in a data set on the Hub, or `auto` for the
            published targets of TOFU and MUSE.
        retain_model (`str`, *optional*):
            The retained model itself, which is then evaluated first.
    """

    eval_benchmark: Literal["tofu", "muse", "wmdp", "world", "custom"] | None = field(
        default=None,
        metadata={"help": "What to evaluate on. None: nothing.", "aliases": ["--benchmark"]},
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "The benchmark's data: an id on the Hub, or a folder in the same layout.",
            "aliases": ["--dataset_path"],
        },
    )
    eval_dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the data.", "aliases": ["--dataset_revision"]}
    )
    eval_splits: list[str] = field(
        default_factory=list,
        metadata={
            "help": "TOFU: forget splits (forget10). MUSE: News, Books. WMDP: tasks of lm-eval.",
            "aliases": ["--splits"],
        },
    )
    eval_forget_data: str | None = field(
        default=None,
        metadata={
            "help": "Rows of one's own to be forgotten: a file, a folder or id[:config[:split]].",
            "aliases": ["--forget_data"],
        },
    )
    eval_retain_data: str | None = field(
        default=None, metadata={"help": "The same for what is to be kept.", "aliases": ["--retain_data"]}
    )
    eval_holdout_data: str | None = field(
        default=None,
        metadata={
            "help": "The same for rows that no model has seen, for membership inference.",
            "aliases": ["--holdout_data"],
        },
    )
    eval_extra_metrics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Metrics that cost more: min_k_plus_plus, gradnorm, self_confidence, text_cleanness.",
            "aliases": ["--extra_metrics"],
        },
    )
    eval_compat: Literal["open-unlearning", "tofu"] | None = field(
        default=None,
        metadata={"help": "Evaluator to be reproduced where it differs.", "aliases": ["--compat"]},
    )
    eval_max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest generated answer, in tokens: 200, and 32 for the world.",
            "aliases": ["--max_new_tokens"],
        },
    )
    eval_question_answer_template: str | None = field(
        default=None, metadata={"help": "Text around questions and answers, instead of the chat template."}
    )
    eval_system_prompt: str | None = field(
        default=None, metadata={"help": "First message of every chat.", "aliases": ["--system_prompt"]}
    )
    eval_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What the chat template is given beside the messages, as JSON.",
            "aliases": ["--chat_template_kwargs"],
        },
    )
    eval_truth_ratio_question: Literal["question", "paraphrased_question"] | None = field(
        default=None,
        metadata={
            "help": "Column with the question that paraphrased and perturbed answers reply to.",
            "aliases": ["--truth_ratio_question"],
        },
    )
    eval_max_batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Size of a scoring batch in tokens.", "aliases": ["--max_batch_tokens"]},
    )
    eval_batch_size: int = field(
        default=8, metadata={"help": "Batch size of lm-eval.", "aliases": ["--lm_eval_batch_size"]}
    )
    retain_logs: str | None = field(
        default=None,
        metadata={"help": "Evaluation of the retained model: a file, org/name:path on the Hub, or auto."},
    )
    retain_model: str | None = field(default=None, metadata={"help": "The retained model, to be evaluated first."})

    def __post_init__(self):
        if self.eval_benchmark is None and self.eval_forget_data is not None:
            self.eval_benchmark = "custom"
        if self.eval_benchmark == "custom" and self.eval_forget_data is None:
            raise ValueError("Rows of one's own need `--forget_data`: a file, a folder, or id[:config[:split]].")
        if self.eval_benchmark not in (None, "custom") and self.eval_forget_data is not None:
            raise ValueError(
                f"`--forget_data` is for rows of one's own, and `--benchmark {self.eval_benchmark}` has its own data. Give "
                "one of them."
            )
        if self.retain_logs is not None and self.retain_model is not None:
            raise ValueError("Give `--retain_logs` or `--retain_model`, not both.")
        if isinstance(self.eval_chat_template_kwargs, str):
            import json

            self.eval_chat_template_kwargs = json.loads(self.eval_chat_template_kwargs)
