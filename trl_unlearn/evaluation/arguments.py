"""Which sets to evaluate on and how, as command-line arguments, and the evaluation that they describe."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class EvaluationArguments:
    r"""
    Arguments of an evaluation on data laid out like TOFU.

    Parameters:
        eval_forget_config (`str`, *optional*):
            Configuration with the forget questions, paraphrases and perturbed answers, for example
            `"forget10_perturbed"`. Without it, nothing is evaluated.
        eval_retain_config (`str`, *optional*, defaults to `"retain_perturbed"`):
            The same for questions to be kept.
        eval_utility_configs (`list[str]`, *optional*):
            Further sets that model utility is averaged over, for example `real_authors_perturbed`.
        truth_ratio_question (`str`, *optional*, defaults to `"question"`):
            Column with the question that paraphrased and perturbed answers are scored for.
        eval_max_new_tokens (`int`, *optional*, defaults to `200`):
            Longest generated answer, in tokens.
        eval_grammar (`bool`, *optional*, defaults to `False`):
            Whether the data are the embedded world, whose grammar decides which answers are well-formed.
        retain_logs (`str`, *optional*):
            Evaluation file of the retained model: `evaluation.json` of this package, `TOFU_EVAL.json` of open-unlearning,
            or `eval_log_aggregated.json` of TOFU. Without it, forget quality is left out.
    """

    eval_forget_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration with forget questions, paraphrases and perturbed answers. None: no evaluation."
        },
    )
    eval_retain_config: str = field(
        default="retain_perturbed", metadata={"help": "The same for questions to be kept."}
    )
    eval_utility_configs: list[str] = field(
        default_factory=list, metadata={"help": "Further sets that model utility is averaged over."}
    )
    truth_ratio_question: str = field(
        default="question",
        metadata={"help": "Column with the question that paraphrased and perturbed answers are scored for."},
    )
    eval_max_new_tokens: int = field(default=200, metadata={"help": "Longest generated answer, in tokens."})
    eval_grammar: bool = field(
        default=False, metadata={"help": "Whether the data are the embedded world, which decides well-formedness."}
    )
    retain_logs: str | None = field(
        default=None, metadata={"help": "Evaluation file of the retained model, for forget quality."}
    )


def evaluate_as_asked(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    dataset_name: str,
    arguments: EvaluationArguments,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Runs the evaluation that `arguments` describe.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        dataset_name (`str`):
            Data set with the configurations named in `arguments`: an id on the Hub or a path.
        arguments ([`EvaluationArguments`]):
            What to evaluate.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict`: What [`evaluate_unlearning`] returns, and `forget_quality` if there are `retain_logs`.
    """
    from ..data.loading import load_rows
    from ..metrics import forget_quality
    from ..world import grammar
    from .evaluate import evaluate_unlearning
    from .logs import read_forget_truth_ratios

    forget = load_rows(dataset_name, arguments.eval_forget_config)
    retained = None
    if arguments.retain_logs is not None:  # read first: a log that does not fit is known before anything is computed
        retained = read_forget_truth_ratios(arguments.retain_logs, expected_rows=len(forget))
    result = evaluate_unlearning(
        model,
        processing_class,
        forget=forget,
        retain=load_rows(dataset_name, arguments.eval_retain_config),
        utility_sets={
            name.removesuffix("_perturbed"): load_rows(dataset_name, name) for name in arguments.eval_utility_configs
        },
        truth_ratio_question=arguments.truth_ratio_question,
        max_new_tokens=arguments.eval_max_new_tokens,
        grammar=grammar if arguments.eval_grammar else None,
        show_progress=show_progress,
    )
    if retained is not None:
        result["forget_quality"] = forget_quality(result["rows"]["forget"]["truth_ratio"], retained)
    return result
