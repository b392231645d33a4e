"""The forget questions in other words, which unlearning has not seen."""

from datasets import Dataset

from .not_applicable import NotApplicable


def paraphrase_questions(forget: Dataset, truth_ratio_question: str = "question") -> Dataset:
    """
    A forget set that asks its paraphrased questions.

    Args:
        forget ([`~datasets.Dataset`]):
            Forget set with the columns `question`, `answer` and `paraphrased_question`, and maybe others.
        truth_ratio_question (`str`, *optional*, defaults to `"question"`):
            Column with the question that `paraphrased_answer` replies to. If that is `paraphrased_question`, as in the
            embedded world, the paraphrased answer is the true one here.

    Returns:
        [`~datasets.Dataset`]: The same rows, without truth ratios.

    Raises:
        NotApplicable: If there are no paraphrased questions.
    """
    if not {"question", "paraphrased_question"} <= set(forget.column_names):
        raise NotApplicable("the forget set has no column `paraphrased_question` beside `question`")
    if missing := [index for index, text in enumerate(forget["paraphrased_question"]) if not (text or "").strip()]:
        raise NotApplicable(f"{len(missing)} of {len(forget)} rows have no `paraphrased_question`: row {missing[0]}")
    renamed = {"paraphrased_question": "question"}
    if truth_ratio_question == "paraphrased_question" and "paraphrased_answer" in forget.column_names:
        renamed["paraphrased_answer"] = "answer"
    replaced = [*renamed.values(), "perturbed_answer", "paraphrased_answer"]
    kept = forget.remove_columns(
        [column for column in replaced if column in forget.column_names and column not in renamed]
    )
    return kept.rename_columns(renamed)
