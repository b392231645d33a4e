"""The page of an unlearned model on the Hub, made from its results; hand-written parts of an older page survive."""

import math
import re
from collections.abc import Collection
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub import __version__ as hub_version
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..attacks.report import attack_notes, attack_rows, left_out
from ..evaluation.report import DIRECTIONS, SET_METRICS, metric_label, missing_metrics, summary_rows
from ..files import write_text
from .markdown import as_code, as_markdown, as_number, as_text, fence, python_string, slug
from .recipe import RECIPE_FILE
from .results import collect_results


logger = logging.get_logger(__name__)

PICTURE_FILE = "unlearning.png"
BEGIN = (
    "<!-- trl-unlearn: begin. What stands between this line and the one that ends it is made again at every push; write "
    "above or below. -->"
)
END = "<!-- trl-unlearn: end -->"

_HOMEPAGE = "https://github.com/trl-unlearn/trl-unlearn"
_TAGS = ("unlearning", "machine-unlearning", "trl", "trl-unlearn")
_BENCHMARKS = {"tofu": "TOFU", "muse": "MUSE", "wmdp": "WMDP", "world": "Embedded world", "custom": "Own data"}
# Metadata that is made again; the licence is kept where the base's is not known.
_OWN_KEYS = {
    "base_model", "base_model_relation", "library_name", "pipeline_tag", "datasets", "metrics", "tags", "eval_results",
    "model_name", "model-index",
}  # fmt: skip
_LOG10_LEVEL = math.log10(0.05)
# Rows of the forget set, though not called after it.
_FORGET_METRICS = ("well_formed", "leaked")
# Columns of the history where there are more, in this order.
_HISTORY = (
    "forget_quality", "log10_forget_quality", "model_utility", "forget_probability", "forget_rougeL_recall",
    "forget_extraction_strength", "loss",
)  # fmt: skip


def build_card(
    results: dict[str, Any], repo_id: str | None = None, existing: str | None = None, files: Collection[str] = ()
) -> ModelCard:
    """
    The model card of a run.

    Args:
        results (`dict`):
            What [`~hub.results.collect_results`] or [`~hub.results.load_results`] returned.
        repo_id (`str`, *optional*):
            `"namespace/name"` of the repository. Without it, the card has no snippet.
        existing (`str`, *optional*):
            Text of an older card. What stands above and below its generated block, and metadata that is not generated,
            are kept. The card that PEFT writes into every folder is not.
        files (`Collection[str]`, *optional*):
            Names of the files beside the card. `unlearning.png` is shown, and `unlearn_recipe.yaml` linked, if they are
            among them.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card. Everything in it that comes from models, data or users is escaped.

    Raises:
        ValueError: If `repo_id` has no namespace, or the metadata or markers of the older card cannot be read.

    Example:

    ```python
    >>> card = build_card(load_results("npo"), "me/Llama-3.2-1B-tofu-forget10-NPO", files=os.listdir("npo"))
    >>> card.data.eval_results[0].metric_value
    0.61
    ```
    """
    if repo_id is not None:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise ValueError(f"`repo_id` is {repo_id!r}; expected the namespace too, as 'me/{repo_id}'.")
    results = collect_results(**{key: value for key, value in results.items() if key != "schema"})
    extra, above, below = hand_written(existing)
    title = repo_id.split("/")[1] if repo_id else _name(results)
    card = ModelCard.from_template(
        _metadata(results, title, extra),
        template_str=_template(),
        **_body(results, title, repo_id, files),
        md=as_markdown,
        fence=fence,
        begin=BEGIN,
        end=END,
    )
    for key, value in extra.items():
        if key not in _OWN_KEYS and card.data.get(key) is None:
            card.data[key] = value
    block = re.sub(r"\n{3,}", "\n\n", card.text).strip()
    text = "\n\n".join(part for part in (above, block, below) if part)
    return ModelCard(f"---\n{card.data.to_yaml()}\n---\n\n{text}\n")


def save_card(card: ModelCard, directory: str | Path) -> None:
    """
    Writes `README.md`.

    Args:
        card ([`~huggingface_hub.ModelCard`]):
            Card.
        directory (`str` or `Path`):
            Folder of the model, after the model has been saved there: PEFT changes a card at every save.
    """
    write_text(str(card), Path(directory) / "README.md")


def eval_results_yaml(results: dict[str, Any]) -> dict[str, str]:
    """
    The files in `.eval_results/` with which a number appears on a benchmark's leaderboard on the Hub.

    Args:
        results (`dict`):
            What [`~hub.results.collect_results`] returned. Its `eval_results` names `benchmark` and `task_id`, and with
            `metric` the number, which is otherwise the one that is called like the task.

    Returns:
        `dict[str, str]`: By path in the repository, the text. Empty if no benchmark is configured, if the model has not been
        evaluated, or if the installed huggingface_hub does not have this format (then with a warning).

    Raises:
        ValueError: If the evaluation does not have the metric, or less of it is better.
    """
    configured, after = results["eval_results"], results["evaluations"]["after"]
    if not configured or after is None:
        return {}
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        logger.warning_once(
            f"huggingface_hub {hub_version} does not write `.eval_results/`, so that there will be no entry for "
            f"{configured['benchmark']}. Install a newer one."
        )
        return {}
    values = {f"forget_quality_{name}": value for name, value in after.get("forget_quality", {}).items()}
    values = after["summary"] | values
    metric = configured.get("metric") or configured["task_id"]
    if metric not in values:
        raise ValueError(
            f"`eval_results` names the metric {metric!r}, which the evaluation does not have. Add `metric`: one of "
            f"{', '.join(values)}."
        )
    if metric_label(metric)[1] != "↑" and metric not in ("forget_quality_p_value", "forget_quality_log10_p_value"):
        raise ValueError(
            f"A leaderboard ranks the highest first, and of {metric!r} that is not the best. Choose another `metric`."
        )
    benchmark, task = configured["benchmark"], configured["task_id"]
    revisions = {source["revision"] for source in after["data"].values() if source["dataset"] == benchmark} - {None}
    entry = EvalResultEntry(
        dataset_id=benchmark,
        task_id=task,
        value=values[metric],
        dataset_revision=revisions.pop() if len(revisions) == 1 else None,
        notes=metric_label(metric)[0],
    )
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
    return {f".eval_results/{slug(benchmark.split('/')[-1])}-{slug(task)}.yaml": text}


# ------------------------------------------------------------------ metadata


def _metadata(results: dict[str, Any], title: str, extra: dict[str, Any]) -> ModelCardData:
    base, after = results["base_model"], results["evaluations"]["after"]
    licence = base["license"] if re.fullmatch(r"[a-z0-9][\w.-]*", str(base["license"])) and base["license"] else None
    if licence is None and extra.get("license") is None:
        logger.warning(
            "The licence of the base model is not known, so that the card has none. Add `license:` to the card: it is kept."
        )
    tags = [*_TAGS, slug(results["method"]["name"]).lower()]
    if after is not None and after.get("benchmark") not in (None, "custom"):
        tags.append(slug(after["benchmark"]).lower())
    if _is_adapter(results):
        tags.append(_adapter_tag(results))
    datasets = [source["dataset"] for source in results["data"].values() if source and source["dataset"]]
    return ModelCardData(
        base_model=base["name"],
        base_model_relation=base["name"] and ("adapter" if _is_adapter(results) else "finetune"),
        library_name="peft" if _is_adapter(results) else "transformers",
        pipeline_tag="text-generation",
        license=licence,
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=_metric_families(after) if after else None,
        tags=tags,
        eval_results=_eval_results(after) or None if after else None,
        model_name=title if after and _eval_results(after) else None,
    )


def _eval_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    values = [(metric, value, metric_label(metric)) for metric, value in evaluation["summary"].items()]
    quality = evaluation.get("forget_quality", {})
    for name, label in {
        "log10_p_value": metric_label("forget_quality"),
        "p_value": ("Forget quality, p", "↑"),
        "statistic": metric_label("forget_quality_statistic"),
    }.items():
        if name in quality:
            values.append((f"forget_quality_{name}", quality[name], label))
    results = []
    for metric, value, (label, direction) in values:
        source = _source(metric, evaluation)
        benchmark = evaluation.get("benchmark") or "custom"
        name = _BENCHMARKS.get(benchmark, benchmark)
        if metric.startswith("forget_quality_"):
            arguments = {key: quality[key] for key in ("n", "n_retain") if key in quality}
        else:
            arguments = evaluation["intervals"].get(metric)
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=source["dataset"] or benchmark,
                dataset_name=f"{name}, {source['config']}" if source["config"] else name,
                dataset_config=source["config"],
                dataset_split=source["split"],
                dataset_revision=source["revision"],
                metric_type=metric,
                metric_value=value,
                metric_name=f"{label} ({DIRECTIONS[direction]})" if direction else label,
                metric_args=arguments or None,
            )
        )
    return results


def _source(metric: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The rows that a metric is of; of one over several sets, what these have in common."""
    sets = evaluation["data"]
    name = "forget" if metric in _FORGET_METRICS or metric.startswith("forget_quality") else metric
    names = [known for known in sets if name == known or name.startswith(f"{known}_")]
    if names:
        name = max(names, key=len)
        # a set without a name on the Hub goes by the name it has in the evaluation
        return sets[name] if sets[name]["dataset"] else {**sets[name], "config": name}
    common = {}
    for key in ("dataset", "revision"):
        values = {source[key] for source in sets.values()}
        common[key] = values.pop() if len(values) == 1 else None
    return {**common, "config": None, "split": None}


def _metric_families(evaluation: dict[str, Any]) -> list[str]:
    """The metrics by the names that they have for any set."""
    families = ["forget_quality"] if "forget_quality" in evaluation else []
    for metric in evaluation["summary"]:
        if metric.startswith(("wmdp", "mmlu")):
            families.append("accuracy")
        else:
            families.append(next((suffix for suffix in SET_METRICS if metric.endswith(f"_{suffix}")), metric))
    return list(dict.fromkeys("rouge" if family.startswith("rouge") else family for family in families))


# ------------------------------------------------------------------ the page


def _body(results: dict[str, Any], title: str, repo_id: str | None, files: Collection[str]) -> dict[str, Any]:
    """What the template shows, escaped unless it is a number or goes through `md` or `fence` there."""
    evaluations = {name: result for name, result in results["evaluations"].items() if result is not None}
    after, method, adapter = evaluations.get("after"), results["method"], results["adapter"]
    paper = method["paper"] or {}
    return {
        "title": title,
        "sentence": _sentence(results),
        "table": _table(evaluations) if after else None,
        "evaluation": _evaluation(after, evaluations.get("retained")) if after else None,
        "attacks": _attacks(evaluations) if after and after.get("attacks") else None,
        "requests": _requests(results["requests"]) if results["requests"] else None,
        "repo_id": repo_id,
        "question": _question(after or evaluations.get("before")),
        "is_adapter": _is_adapter(results),
        "data": [
            (name.capitalize(), _describe_source(source)) for name, source in results["data"].items() if source is not None
        ],
        "objective": method["objective"],
        "adapter": adapter and "Adapter: " + _settings({key: part for key, part in adapter.items() if key != "merged"}),
        "hyperparameters": [(as_code(name), as_code(as_text(value))) for name, value in results["hyperparameters"].items()],
        "seeds": "Seeds: " + _settings(seeds) + "."
        if (seeds := {key: seed for key, seed in results["seeds"].items() if seed is not None})
        else None,
        "history": _history(results["history"]),
        "has_picture": PICTURE_FILE in files,
        "has_recipe": RECIPE_FILE in files,
        "run": _run(results["run"]),
        "command": results["run"].get("command"),
        "versions": ", ".join(as_code(f"{name} {as_text(number)}") for name, number in results["versions"].items()),
        "citation": paper.get("citation"),
    }  # fmt: skip


def _sentence(results: dict[str, Any]) -> str:
    base, method, paper = results["base_model"], results["method"], results["method"]["paper"] or {}
    model = f"[{base['name']}](https://huggingface.co/{base['name']})" if base["name"] else "a language model"
    if base["name"] and base["revision"]:
        model += f" (revision {as_code(as_text(base['revision'])[:12])})"
    forget = results["data"]["forget"]
    if forget is None:
        what = "a set of examples"
    elif forget["dataset"]:
        what = _describe_source({**forget, "n": None, "split": None, "revision": None})
    else:
        what = f"a private set of {forget['n']:,} rows" if isinstance(forget.get("n"), int) else "a private set"
    way = as_markdown(method["name"])
    if re.fullmatch(r"\d{4}\.\d{4,5}", as_text(paper.get("id"))):
        way += f" ([{as_markdown(paper.get('title') or paper['id'])}](https://huggingface.co/papers/{paper['id']}))"
    if _is_adapter(results):
        kind = as_text(results["adapter"].get("type") or "")
        kind = "LoRA" if kind.upper() == "LORA" else kind
        made = f"An adapter{f' ({as_markdown(kind)})' if kind else ''} that makes {model} forget {what}"
    else:
        made = f"A copy of {model} that was made to forget {what}"
        if results["adapter"]:
            made += ", with the adapter that does so merged into the weights"
    return f"{made}, by {way}, with [trl-unlearn]({_HOMEPAGE})."


def _table(evaluations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shown = {name.capitalize(): {**result, "rows": {}} for name, result in evaluations.items()}
    rows = summary_rows(shown)
    for row in rows:  # with as many digits as the value: there is room for them here
        intervals = [result["intervals"].get(row["metric"]) for result in evaluations.values()]
        digits = 1 if row["metric"] == "privleak" else 3
        row["cells"] = [
            (value, f"[{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]" if interval else "")
            for (value, _), interval in zip(row["cells"], intervals, strict=True)
        ]
    used = {row["direction"] for row in rows}
    legend = [f"{sign} {meaning}" for sign, meaning in DIRECTIONS.items() if sign in used]
    if any(result["intervals"] for result in evaluations.values()):
        legend.append("[ ] 95 % interval over the rows, n of them")
    notes = []
    if "→" in used:
        notes.append(
            "The retained model was trained without the forget set. Values of the forget set that lie beyond its, on the "
            "other side from before, are over-forgetting, and not better."
        )
    if quality := evaluations["after"].get("forget_quality"):
        p = f"{quality['p_value']:.3g}" if "p_value" in quality else f"10^{quality['log10_p_value']:.1f}"
        of = " and ".join(f"{quality[key]:,.0f}" for key in ("n", "n_retain") if key in quality)
        notes.append(
            "Forget quality asks whether the truth ratios of the forget rows can be told from the retained model's "
            f"(Kolmogorov-Smirnov): D = {quality['statistic']:.3f}, p = {p}, log10 p = {quality['log10_p_value']:.2f}"
            + (f", n = {of}" if of else "")
            + (
                ". They can."
                if quality["log10_p_value"] < _LOG10_LEVEL
                else ". At this n and at the level of 5 % they cannot."
            )
        )
    notes += [
        f"Left out: {as_markdown(label)} ({as_markdown(reason)})."
        for label, reason in missing_metrics({"": evaluations["after"]})
    ]
    return {"models": list(shown), "rows": rows, "legend": legend, "notes": notes}


def _evaluation(after: dict[str, Any], retained: dict[str, Any] | None) -> list[tuple[str, str]]:
    """On which rows and how the numbers came about."""
    lines = [
        (f"Rows, {as_markdown(name.replace('_', ' '))}", _describe_source(source))
        for name, source in after["data"].items()
    ]
    for label, settings in {
        "Conventions": after.get("conventions"),
        "Prompt": after.get("prompt"),
        "Generation": after.get("generation"),
    }.items():
        if settings := {name: value for name, value in (settings or {}).items() if value is not None}:
            lines.append((label, _settings(settings)))
    model = (retained or {}).get("model") or after.get("retain_reference") or {}
    if name := model.get("name"):
        revision = f", revision {as_code(as_text(model['revision']))}" if model.get("revision") else ""
        lines.append(("Retained model", as_code(as_text(name)) + revision))
    return lines


def _attacks(evaluations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table of the attacks, and how they were made."""
    attacks = evaluations["after"]["attacks"]
    headings, rows = attack_rows(attacks, evaluations)
    notes = [as_markdown(note) for note in attack_notes(attacks)]
    for name, attack in attacks.items():
        quantizers = {
            part["quantizer"] for parts in attack["results"].values() for part in parts if "quantizer" in part
        }
        made = [_settings(attack["settings"])] if attack["settings"] and not quantizers else []
        made += [as_markdown(quantizer) for quantizer in sorted(quantizers)]
        if made:
            notes.append(f"{as_markdown(name.capitalize())}: {'; '.join(made)}.")
    notes += [f"Left out: {as_markdown(label)} ({as_markdown(reason)})." for label, reason in left_out(attacks)]
    return {"headings": headings, "rows": rows, "notes": notes}


def _requests(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of the deletion requests, with a column for each metric and moment that there is."""
    moments = {"before": "before", "after": "after", "last": "after the last request"}
    columns = [
        (moment, metric)
        for metric in dict.fromkeys(metric for request in requests for metric in request["after"])
        for moment in (moments if metric.startswith("forget") else ("after",))
    ]
    labels = [f"{metric_label(metric)[0]}, {moments[moment]}" for moment, metric in columns]
    named = any("name" in request for request in requests)
    rows = []
    for request in requests:
        rows.append(
            [
                as_number(request["number"]),
                *([as_markdown(as_text(request.get("name", "")))] if named else []),
                as_markdown(as_text(request["date"])[:16].replace("T", " ")),
                as_markdown(as_text(request["method"])),
                as_number(request["n"]),
                as_code(as_text(request["sha256"])[:16]),
                as_markdown(as_text(request["state"])),
                *(as_number(request[moment].get(metric)) for moment, metric in columns),
            ]
        )
    return {
        "labels": ["Name"] * named + ["When (UTC)", "Method", "Rows", "SHA-256", "State", *labels],
        "rows": rows,
        "undone": any(request["state"] == "undone" for request in requests),
    }


def _question(evaluation: dict[str, Any] | None) -> str:
    """The lines of the snippet that make `inputs`, as the model was prompted when it was evaluated."""
    template = ((evaluation or {}).get("prompt") or {}).get("template")
    question = "Who wrote the play Hamlet?"
    chat = (
        f'messages = [{{"role": "user", "content": {python_string(question)}}}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"\n'
        ")"
    )
    if template == "the tokenizer's chat template":
        return chat
    if isinstance(template, str) and "{question}" in template:
        text = template.split("{answer}")[0].rstrip(" ").replace("{question}", question)
        return f'inputs = tokenizer({python_string(text)}, return_tensors="pt")'
    chat = "\n".join(f"    {line}" for line in chat.splitlines())
    return (
        f'if tokenizer.chat_template is None:\n    inputs = tokenizer({python_string(question)}, return_tensors="pt")\n'
        f"else:\n{chat}"
    )


def _history(history: list[dict[str, float]]) -> dict[str, Any] | None:
    """A table of at most six columns and about twelve steps, the first and the last among them."""
    entries = [
        {name.removeprefix("eval_"): value for name, value in entry.items() if name.removeprefix("eval_") not in entry}
        | {name: value for name, value in entry.items() if not name.startswith("eval_")}
        for entry in history
    ]
    entries = [entry for entry in entries if entry.keys() - {"step", "epoch"}]
    there = dict.fromkeys(name for entry in entries for name in entry)
    preferred = [name for name in _HISTORY if name in there]
    evaluated = [entry for entry in entries if entry.keys() & set(preferred) - {"loss"}]
    entries = evaluated if len(evaluated) > 1 else entries
    columns = (preferred or [name for name in there if name not in ("step", "epoch")])[:6]
    if len(entries) < 2:
        return None
    count = min(len(entries), 12)
    chosen = sorted({round(index * (len(entries) - 1) / (count - 1)) for index in range(count)})
    names = ["epoch"] if "epoch" in there else []
    return {
        "labels": [*map(str.capitalize, names), *(_history_label(column) for column in columns)],
        "rows": [
            [as_number(entries[index].get(name)) for name in ("step", *names, *columns)] for index in chosen
        ],
        "left_out": len(entries) - len(chosen),
    }  # fmt: skip


def _history_label(name: str) -> str:
    label, direction = metric_label(name.replace("log10_forget_quality", "forget_quality"))
    return f"{label} {direction}" if direction else label


def _run(run: dict[str, Any]) -> str | None:
    parts = []
    if run.get("hardware"):
        parts.append(as_markdown(run["hardware"]))
    if isinstance(run.get("processes"), int):
        parts.append(f"{run['processes']} process{'es' if run['processes'] != 1 else ''}")
    if isinstance(seconds := run.get("seconds"), int | float):
        hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
        parts.append(
            f"{hours} h {minutes} min"
            if hours
            else f"{minutes} min {seconds % 60:.0f} s"
            if minutes
            else f"{seconds:.1f} s"
        )
    if isinstance(peak := run.get("peak_memory_bytes"), int | float):
        parts.append(f"at most {peak / 2**30:.2f} GiB of memory")
    return ", ".join(parts) + "." if parts else None


def _describe_source(source: dict[str, Any]) -> str:
    rows = f"{source['n']:,} rows" if isinstance(source.get("n"), int) else None
    if source["dataset"] is None:
        return f"private, {rows}" if rows else "private"
    parts = [f"[{source['dataset']}](https://huggingface.co/datasets/{source['dataset']})"]
    for key, label in {"config": "configuration", "split": "split", "revision": "revision"}.items():
        if source.get(key):
            parts.append(f"{label} {as_code(as_text(source[key])[: 12 if key == 'revision' else None])}")
    return ", ".join([*parts, *([rows] if rows else [])])


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{as_markdown(name.replace('_', ' '))} {as_code(as_text(value))}" for name, value in settings.items()
    )


# ------------------------------------------------------------------ older cards


def hand_written(existing: str | None) -> tuple[dict[str, Any], str, str]:
    """Of an older card: its metadata, and what stands above and below the generated block."""
    if not existing or not existing.strip():
        return {}, "", ""
    try:
        card = ModelCard(existing.lstrip("\ufeff").replace("\r\n", "\n"), ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"The metadata of the older card cannot be read ({error}). Mend the lines between the two `---` at the top of its "
            "README.md, or delete it."
        ) from None
    text = card.text
    if "# Model Card for Model ID" in text and BEGIN not in text:
        return {}, "", ""  # PEFT's, which nobody has filled in
    extra = {key: value for key, value in card.data.to_dict().items() if value == value}  # NaN is not
    above, begin, rest = text.partition(BEGIN)
    if not begin:
        return extra, "", text.strip()
    _, end, below = rest.partition(END)
    if not end:
        raise ValueError(
            f"The older card has the line {BEGIN!r}, but not {END!r} after it, so that it is not clear what was written by hand. "
            "Put that line back into its README.md, or delete both."
        )
    # PEFT adds this at every save
    below = re.sub(r"\n*### Framework versions\n+(- PEFT [^\n]*\n*)+$", "", below)
    return extra, above.strip(), below.strip()


def _name(results: dict[str, Any]) -> str:
    """What to call a model that has no repository yet."""
    return f"{slug((results['base_model']['name'] or 'unlearned').split('/')[-1])}-{slug(results['method']['name'])}"


def _is_adapter(results: dict[str, Any]) -> bool:
    return bool(results["adapter"]) and not results["adapter"].get("merged")


def _adapter_tag(results: dict[str, Any]) -> str:
    return slug(as_text(results["adapter"].get("type") or "adapter")).lower()


def _template() -> str:
    """The template. A line with a tag alone leaves no line behind: a template of the client cannot be told to."""
    text = package_files("trl_unlearn").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    return re.sub(r"^(\{%[^\n]*%\})\n", r"\1", text, flags=re.MULTILINE)
