"""Finds the evaluation file of the retained model: on this machine, on the Hub, or the published one of a known model."""

import hashlib
import re
from pathlib import Path, PurePosixPath


PUBLISHED_DATASET = "open-unlearning/eval"
# Their results are not released in versions and no commit of theirs is documented, so the newest one is taken and the
# commit that it turned out to be is recorded. `open-unlearning/eval@<commit>:<path>` repeats it.
PUBLISHED_REVISION = "main"

_RETAINED = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
_HUB_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?:(?P<file>.+)")
_TOFU_MODEL = re.compile(r"tofu_(?P<model>.+?)_(?:full|retain\d\d|forget\d\d)")
_TOFU_AUTHORS_MODEL = "tofu_ft_llama2-7b"
_MUSE_MODEL = re.compile(r"muse_(?P<model>.+?)_(?P<split>News|Books)")
_MUSE_AUTHORS_MODEL = re.compile(r"MUSE-(?P<split>News|Books)")  # muse-bench/MUSE-News_target
_BY_HAND = (
    "Evaluate the retained model with `trl-unlearn evaluate` and give its evaluation.json with `--retain_logs`; also "
    "accepted are a file of a Hub data set, written `org/name:path/in/it.json`, or no `--retain_logs` at all, which leaves "
    "out what compares with the retained model."
)


def resolve_retain_logs(value: str, model_name: str, split: str | None) -> tuple[Path, dict[str, str | None]]:
    """
    The file that `--retain_logs` means, downloaded if it is on the Hub.

    Args:
        value (`str`):
            A local file; a file of a data set on the Hub, `"org/name:path/in/repo.json"` or
            `"org/name@revision:path/in/repo.json"`; or `"auto"`, for the file which open-unlearning has published for the
            retained model of a TOFU or MUSE target.
        model_name (`str`):
            The evaluated model, or for an adapter or a local folder the target it was unlearned from, for example
            `"open-unlearning/tofu_Llama-3.2-1B-Instruct_full"` or `"muse-bench/MUSE-News_target"`. Only `"auto"` needs it.
        split (`str`, *optional*):
            `"forget01"`, `"forget05"` or `"forget10"` of TOFU, `"News"` or `"Books"` of MUSE. If `None`, it is taken from
            the model's name.

    Returns:
        `tuple[Path, dict]`: The file, and `name`, `revision` (the commit, `None` for a local file) and `sha256` of it to
        record with the results. Of a local file, the name is that without its folders, which are nobody else's business.

    Raises:
        FileNotFoundError: If `value` is neither a file nor a file on the Hub.
        ValueError: If `"auto"` finds no published retained model for the name and split.
        OSError: If the Hub cannot be reached, or does not have or does not give the file.

    Example:

    ```python
    >>> resolve_retain_logs("auto", "open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "forget10")[1]["name"]
    'open-unlearning/eval:tofu_Llama-3.2-1B-Instruct_retain90/TOFU_EVAL.json'
    ```
    """
    if value == "auto":
        return _download(PUBLISHED_DATASET, PUBLISHED_REVISION, published_retain_logs(model_name, split))
    path = Path(value)
    if path.is_file():
        return path, {"name": path.name, "revision": None, "sha256": _sha256(path)}
    on_hub = _HUB_FILE.fullmatch(value)
    if on_hub is None:
        raise FileNotFoundError(f"The retained model's evaluation {value} is not a file. {_BY_HAND}")
    return _download(on_hub["repository"], on_hub["revision"] or "main", on_hub["file"])


def published_retain_logs(model_name: str, split: str | None) -> str:
    """
    Path, in the Hub data set `open-unlearning/eval`, of the evaluation of the retained model that belongs to a target.

    Args:
        model_name (`str`):
            As for [`resolve_retain_logs`].
        split (`str`, *optional*):
            As for [`resolve_retain_logs`].

    Returns:
        `str`: The path, for example `"tofu_Llama-3.2-1B-Instruct_retain90/TOFU_EVAL.json"`.

    Raises:
        ValueError: If the name is not that of a published target or the split is unknown.
    """
    if (tofu := _TOFU_MODEL.search(model_name)) or _TOFU_AUTHORS_MODEL in model_name:
        # TOFU's authors published no retained model in this form; open-unlearning's of the same architecture stands in.
        model = tofu["model"] if tofu else "Llama-2-7b-chat-hf"
        named = re.search(r"forget\d\d", model_name)
        split = split or (named and named[0])
        if split in _RETAINED:
            return f"tofu_{model}_{_RETAINED[split]}/TOFU_EVAL.json"
        expected = "one of " + ", ".join(_RETAINED)
    elif muse := _MUSE_MODEL.search(model_name) or _MUSE_AUTHORS_MODEL.search(model_name):
        # MUSE's authors name no architecture; open-unlearning's files on their models say Llama-2-7b-hf.
        model = muse.groupdict().get("model", "Llama-2-7b-hf")
        split = split or muse["split"]
        if split in ("News", "Books"):
            return f"muse_{model}_{split}_retrain/MUSE_EVAL.json"
        expected = "News or Books"
    else:
        raise ValueError(
            f"`--retain_logs auto` knows the retained models of open-unlearning's targets, and {model_name!r} is not named "
            f"like one (`tofu_<model>_full`, `tofu_ft_llama2-7b`, `muse_<model>_<News or Books>`, "
            f"`MUSE-<News or Books>_target`). {_BY_HAND}"
        )
    raise ValueError(
        f"`--retain_logs auto` has no retained model of {model_name!r} for the split {split!r}; expected {expected}. "
        f"{_BY_HAND}"
    )


def _download(repository: str, revision: str, file: str) -> tuple[Path, dict[str, str | None]]:
    from huggingface_hub import errors, hf_hub_download

    try:
        path = Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except (OSError, ValueError, errors.HTTPError) as error:
        # The most specific first. The clients' own messages are left out: they can hold the URL of a mirror with its
        # password.
        reasons = {
            errors.GatedRepoError: "it is gated: accept its conditions on its page and log in with `hf auth login`",
            errors.RepositoryNotFoundError: "there is no such data set, or it is private and needs a login that can read it",
            errors.RevisionNotFoundError: "it has no such revision",
            errors.LocalEntryNotFoundError: "the Hub does not answer, or offline mode is on, and the file is not cached",
            errors.EntryNotFoundError: "it has no such file",
            errors.HFValidationError: "that is not a valid name on the Hub",
        }
        status = getattr(getattr(error, "response", None), "status_code", None)
        other = f"{type(error).__name__}" + ("" if status is None else f", status {status}")
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), other)
        raise OSError(
            f"The retained model's evaluation could not be had from the Hub. Looked for {file} in the data set {repository} "
            f"at revision {revision}: {reason}. {_BY_HAND}"
        ) from None
    # .../snapshots/<commit>/<path in the repository>, also for a file that was cached before
    commit = path.parents[len(PurePosixPath(file).parts) - 1].name
    return path, {"name": f"{repository}:{file}", "revision": commit, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
