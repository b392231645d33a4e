"""Pushes a saved run to the Hub: only what is meant to be published, and all of it stays on disk when that fails."""

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from ..evaluation.results import EVALUATION_DIR
from ..files import write_text
from ..ledger.ledger import LEDGER_FILE
from .card import BEGIN, END, build_card, eval_results_yaml, hand_written, save_card
from .markdown import fence
from .repository import is_hub_id
from .results import TOKEN, load_results


logger = logging.get_logger(__name__)


FORGET_EXAMPLES = "forget_examples.md"
# All that is ever published. Not among it: checkpoints, optimizers, `training_args.bin`, evaluations with their rows.
PUBLISHED = (
    "README.md",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "unlearn_recipe.yaml",
    "unlearn_results.json",
    "unlearning.png",
    ".eval_results/*.yaml",
)
_BINARY = (".safetensors", ".png")
# Words of a language, among which "/usr/local" may well be one
_VOCABULARIES = {
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tekken.json",
}
_LOCAL_PATH = re.compile(
    r"""(?:^|(?<=[\s"'`=(\[,>]))(?:file://|~/|[A-Za-z]:\\{1,2}(?=\w)|/(?!path/to/)(?=[\w.@+-]+/[\w.@+-]))[^\s"'`),\]<]*""",
    re.MULTILINE,
)
_TRIES, _PATIENCE, _LONGEST_WAIT = 4, 20.0, 30.0  # seconds


RepoType = Literal["model", "dataset"]


class PushError(RuntimeError):
    """What is wrong, where everything lies, and the command that pushes it."""


class Target(NamedTuple):
    """
    A repository that can be pushed to.

    Args:
        repo_id (`str`):
            Id with its namespace.
        commit (`str` or `None`):
            Commit that its branch is at, if it was looked at.
        card (`str` or `None`):
            Text of its card.
    """

    repo_id: str
    commit: str | None
    card: str | None


def check_push(
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    base_model: str | None = None,
    create: bool = True,
    repo_type: RepoType = "model",
) -> Target:
    """
    Makes sure that a push will be possible: before hours of training, and again before the push.

    Creates the repository and the branch if they are missing. That the token may write is tried with the first step of an
    upload, which changes nothing.

    Args:
        repo_id (`str`):
            Repository; without a namespace, it is the token's user's.
        private (`bool`, *optional*):
            What the repository must be; with `None`, what it is, or what is usual for a new one.
        revision (`str`, *optional*):
            Branch. Defaults to the main one.
        token (`str`, *optional*):
            Token. Defaults to that of the login.
        base_model (`str`, *optional*):
            What an adapter will name as its base.
        create (`bool`, *optional*, defaults to `True`):
            Whether to create and try the repository. Without, only the token and the base are looked at, nothing on the Hub
            is changed, and the target has no commit.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.

    Returns:
        [`Target`]: The repository, the commit that its branch is at, and its card.

    Raises:
        PushError: If it is not possible; the message says what to do.
    """
    try:
        if base_model is not None and not is_hub_id(base_model):
            raise PushError(_local_base(base_model))
        token = token or get_token()
        if token is None:
            raise PushError(
                "there is no token. Log in with `hf auth login`, or set HF_TOKEN to a token that may write "
                "(https://huggingface.co/settings/tokens)."
            )
        api = HfApi(token=token)
        if not create:
            return Target(_with_namespace(repo_id, _check_token(api)), None, None)
        return _check_repository(api, repo_id, private, revision, repo_type)
    except PushError as error:
        raise PushError(f"It cannot be pushed to {repo_id}: {error}") from None
    except Exception as error:
        raise PushError(f"It cannot be pushed to {repo_id}: {_reason(error, token)}") from error


def push_folder(
    directory: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    include_forget_examples: bool = False,
    parent_commit: str | None = None,
    commit_message: str = "Push with trl-unlearn",
) -> CommitInfo:
    """
    Pushes what a run has left in a folder, and nothing that is not meant to be published.

    Args:
        directory (`str` or `Path`):
            Folder with the weights of an adapter or a model in safetensors, and what goes with them. See `PUBLISHED` for
            all that is looked at.
        repo_id (`str`):
            Repository, made if it is not there; without a namespace, it is the token's user's.
        private (`bool`, *optional*):
            What the repository must be; with `None`, what it is, or what is usual for a new one.
        revision (`str`, *optional*):
            Branch, made if it is not there. Defaults to the main one.
        token (`str`, *optional*):
            Token. Defaults to that of the login.
        include_forget_examples (`bool`, *optional*, defaults to `False`):
            Whether to publish a few forget rows with the model's answers, from the evaluation in the folder.
        parent_commit (`str`, *optional*):
            Commit that the branch must still be at. Defaults to the one it is at now.
        commit_message (`str`, *optional*, defaults to `"Push with trl-unlearn"`):
            Title of the commit.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit.

    Raises:
        PushError: If it fails, for whatever reason. All files are still there, and the message has the command that pushes
        them.

    Example:

    ```python
    >>> push_folder("outputs/simnpo", "me/Llama-3.2-1B-TOFU-forget10-SimNPO-lora", private=True)
    ```
    """
    directory = Path(directory)
    _check_no_request(directory.resolve())
    token = token or get_token()
    try:
        if include_forget_examples:
            _write_forget_examples(directory)
        check_folder(directory, include_forget_examples, token)
        target = check_push(repo_id, private, revision, token)
        api = HfApi(token=token)
        commit = parent_commit or target.commit
        _update_card(directory, target)
        files = check_folder(directory, include_forget_examples, token)
        stale = _stale_weights(api, target, files)
        additions = [CommitOperationAdd(file, str(directory / file)) for file in files]
        _retry(lambda: api.preupload_lfs_files(target.repo_id, additions, revision=revision))
        return _commit(api, target.repo_id, additions, stale, commit_message, revision, commit)
    except Exception as error:
        options = [*(["--private"] if private else []), *(["--revision", revision] if revision else [])]
        options += ["--include-forget-examples"] if include_forget_examples else []
        raise PushError(
            f"{_reason(error, token)}\nNothing is lost: everything is in {directory.resolve()}. To push it again:\n"
            f"    {push_command(directory, repo_id, *options)}"
        ) from (None if isinstance(error, PushError) else error)


def push_dataset(
    directory: str | Path, files: list[str], repo_id: str, private: bool, commit_message: str
) -> CommitInfo:
    """
    Pushes files of a folder as a data set.

    Args:
        directory (`str` or `Path`):
            Folder.
        files (`list[str]`):
            Names of the files in it.
        repo_id (`str`):
            Repository, made if it is not there; without a namespace, it is the token's user's.
        private (`bool`):
            What the repository must be.
        commit_message (`str`):
            Title of the commit.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit.

    Raises:
        PushError: If it fails, for whatever reason.
    """
    token = get_token()
    try:
        target = check_push(repo_id, private, token=token, repo_type="dataset")
        api = HfApi(token=token)
        additions = [CommitOperationAdd(file, str(Path(directory) / file)) for file in files]
        _retry(lambda: api.preupload_lfs_files(target.repo_id, additions, repo_type="dataset"))
        return _commit(api, target.repo_id, additions, [], commit_message, None, target.commit, "dataset")
    except Exception as error:
        raise PushError(
            f"{_reason(error, token)}\nNothing is lost: everything is in {Path(directory).resolve()}."
        ) from (None if isinstance(error, PushError) else error)


def push_command(directory: str | Path, repo_id: str, *options: str) -> str:
    """The command that pushes a folder."""
    return shlex.join(["trl-unlearn", "push", str(Path(directory).resolve()), repo_id, *options])


def check_folder(directory: Path, include_forget_examples: bool = False, token: str | None = None) -> list[str]:
    """
    Lists what is published of a folder, and refuses what must not be.

    Args:
        directory (`Path`):
            Folder.
        include_forget_examples (`bool`, *optional*, defaults to `False`):
            Whether `forget_examples.md` is published.
        token (`str`, *optional*):
            Token that must stand in none of the files.

    Returns:
        `list[str]`: Names of the files.

    Raises:
        PushError: If there are no weights or incomplete ones, a token or a local path in a file, or an adapter whose base
        is a local path.
    """
    patterns = [*PUBLISHED, *([FORGET_EXAMPLES] if include_forget_examples else [])]
    paths = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    files = sorted(path.relative_to(directory).as_posix() for path in paths)
    _check_weights(directory, files)
    if "adapter_config.json" in files:
        base = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not base or not is_hub_id(base):
            raise PushError(_local_base(base))
    for file in files:
        if not file.endswith(_BINARY):
            _check_text(directory, file, token)
    return files


def _check_no_request(directory: Path) -> None:
    for folder in (directory, *directory.parents):
        if folder.name.startswith("request-") and (folder.parent / LEDGER_FILE).is_file():
            raise PushError(
                f"{directory} belongs to one request of a ledger, and what its card says is true only together with all "
                "earlier ones. Push what merges them:\n"
                f"    {shlex.join(['trl-unlearn', 'ledger', 'merge', 'merged', '--ledger', str(folder.parent), '--adapter'])}"
            )


def _check_weights(directory: Path, files: list[str]) -> None:
    weights = [file for file in files if file.endswith(".safetensors")]
    for index in [file for file in files if file.endswith(".safetensors.index.json")]:
        content = json.loads((directory / index).read_text(encoding="utf-8"))
        weights += [file for file in set(content["weight_map"].values()) if file not in files]
    if not weights:
        raise PushError(f"there are no weights (*.safetensors) in {directory}. Is it the output directory of a run?")
    for file in weights:
        if not (directory / file).exists() or not _is_whole(directory / file):
            checkpoint = last_checkpoint(directory)
            raise PushError(
                f"{file} is missing or incomplete: saving it was interrupted. Save again"
                + (f", or push a checkpoint: {checkpoint}." if checkpoint else ".")
            )


def last_checkpoint(directory: str | Path) -> Path | None:
    """The checkpoint in a run's folder that was saved last; `None` if there is none."""
    return max(Path(directory).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if path.stat().st_size < 8 + length:
            return False
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _check_text(directory: Path, file: str, token: str | None) -> None:
    text = (directory / file).read_text(encoding="utf-8", errors="replace")
    found = TOKEN.search(text)
    start = found.start() if found else text.find(token) if token else -1
    if start >= 0:
        line = text.count("\n", 0, start) + 1
        raise PushError(
            f"there is a token in line {line} of {directory / file}. Remove it; and if that file was ever published, "
            "revoke the token: https://huggingface.co/settings/tokens."
        )
    found = None if Path(file).name in _VOCABULARIES else _LOCAL_PATH.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise PushError(
            f"there is a path of this machine in line {line} of {directory / file}: {found[0]!r}. It tells others "
            "something about you and nothing about the model. Remove it."
        )


def _local_base(base: str | None) -> str:
    return (
        f"the adapter's base is {base!r}, which is no id on the Hub, so that nobody else could load the adapter. Name the "
        "repository that has the same weights: `hub_base_model_id` in the config, `--base_model org/name` of "
        "`trl-unlearn push`. If there is none, push the base first, or merge the adapter into it with `trl-unlearn merge` "
        "and push the result."
    )


# The Hub


def _check_token(api: HfApi) -> dict[str, Any]:
    """Who the token belongs to; an error if it may not write."""
    try:
        user = _retry(api.whoami)
    except Exception as error:
        if _status(error) in (401, 403):
            raise PushError(
                "the Hub does not know the token: it is mistyped, revoked or expired. Log in again with `hf auth login`, or "
                "set HF_TOKEN to a valid one (https://huggingface.co/settings/tokens)."
            ) from error
        raise
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PushError(
            f"the token of {user['name']} may only read. Make one that may write: "
            "https://huggingface.co/settings/tokens."
        )
    return user


def _with_namespace(repo_id: str, user: dict[str, Any]) -> str:
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def _check_repository(
    api: HfApi, repo_id: str, private: bool | None, revision: str | None, repo_type: RepoType
) -> Target:
    user = _check_token(api)
    repo_id = _with_namespace(repo_id, user)
    try:
        kind = {"repo_type": repo_type}
        _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True, **kind))
        info = _retry(lambda: api.repo_info(repo_id, **kind))
        if private is not None and info.private is not private:
            there, wanted = ("private", "public") if info.private else ("public", "private")
            raise PushError(
                f"{repo_id} exists and is {there}, and you asked for a {wanted} one. Give another name, or make it "
                f"{wanted} yourself: {_page(api, repo_id, repo_type)}/settings."
            )
        # The first step of an upload takes the right to write, and changes nothing
        _retry(lambda: api.preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"?")], **kind))
        if revision not in (None, "main"):
            _retry(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True, **kind))
    except HfHubHTTPError as error:
        if _status(error) in (401, 403, 404):
            names = ", ".join([user["name"], *(organization["name"] for organization in user.get("orgs", ()))])
            raise PushError(
                f"the token of {user['name']} may not write to {repo_id} ({_status(error)}). It belongs to: "
                f"{names}. Give a name in one of these, or a token with the right to write there."
            ) from error
        raise
    commit = _retry(lambda: api.repo_info(repo_id, revision=revision, **kind)).sha
    try:
        path = _retry(lambda: api.hf_hub_download(repo_id, "README.md", revision=commit, **kind))
    except EntryNotFoundError:
        return Target(repo_id, commit, None)
    return Target(repo_id, commit, Path(path).read_text(encoding="utf-8"))


def base_license(base_model: str, revision: str | None = None, token: str | None = None) -> str | None:
    """The licence that a model's card on the Hub names; `None` if it names none or does not answer."""
    try:
        card = HfApi(token=token).model_info(base_model, revision=revision).card_data
    except Exception:  # a licence is worth asking for, and no reason to stop
        return None
    return card.get("license") if card else None


def _stale_weights(api: HfApi, target: Target, files: list[str]) -> list[CommitOperationDelete]:
    """Shards of an earlier push, which would be loaded with or instead of the new ones, are taken away in the same commit."""
    there = set(_retry(lambda: api.list_repo_files(target.repo_id, revision=target.commit)))
    weights = {file for file in there if re.fullmatch(r"[^/]+\.safetensors(\.index\.json)?", file)}
    kinds = ["an adapter" if "adapter_config.json" in names else "a whole model" for names in (there, files)]
    if weights and kinds[0] != kinds[1]:
        raise PushError(
            f"{target.repo_id} has {kinds[0]}, and this is {kinds[1]}: both in one place would load as neither. Give another "
            "name, or a branch of its own that you have emptied."
        )
    return [CommitOperationDelete(file) for file in sorted(weights - set(files))]


def _commit(
    api: HfApi,
    repo_id: str,
    additions: list[CommitOperationAdd],
    stale: list[CommitOperationDelete],
    message: str,
    revision: str | None,
    parent_commit: str,
    repo_type: RepoType = "model",
) -> CommitInfo:
    def commit() -> CommitInfo:
        try:
            return api.create_commit(
                repo_id,
                [*additions, *stale],
                commit_message=message,
                revision=revision,
                parent_commit=parent_commit,
                repo_type=repo_type,
            )
        except Exception as error:
            # The answer to a commit that was made may have been lost
            head = _head_with(api, repo_id, additions, revision, repo_type)
            if head is not None:
                url = f"{_page(api, repo_id, repo_type)}/commit/{head}"
                return CommitInfo(commit_url=url, commit_message=message, commit_description="", oid=head)
            if _status(error) == 412:
                raise PushError(
                    f"somebody else has pushed to {repo_id} since this run started. Look at what is there: "
                    f"{_page(api, repo_id, repo_type)}/commits/{revision or 'main'}. The command below pushes on top of it; another "
                    "name keeps both."
                ) from error
            raise

    return _retry(commit)


def _page(api: HfApi, repo_id: str, repo_type: RepoType) -> str:
    return f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def _head_with(
    api: HfApi, repo_id: str, additions: list[CommitOperationAdd], revision: str | None, repo_type: RepoType
) -> str | None:
    """The commit that the branch is at, if it has just these contents."""
    paths = [operation.path_in_repo for operation in additions]
    try:
        head = api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha
        infos = api.get_paths_info(repo_id, paths, revision=head, repo_type=repo_type)
        there = {file.path: file for file in infos}
        is_same = len(there) == len(paths) and all(_is_same(file, there[file.path_in_repo]) for file in additions)
    except Exception:  # then the first error is the one to be told
        return None
    return head if is_same else None


def _is_same(operation: CommitOperationAdd, there: RepoFile) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as file:
        content = file.read()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _retry(call: Callable[[], Any]) -> Any:
    """
    Calls again when the Hub is busy or the connection breaks, for some seconds.

    The client does this for uploads, but neither when it creates a repository nor when it commits.
    """
    start = time.monotonic()
    for number in range(1, _TRIES + 1):
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or number == _TRIES or time.monotonic() - start > _PATIENCE:
                raise
            wait = 2.0 ** (number - 1)
            response = getattr(error, "response", None)
            if response is not None and re.fullmatch(r"\d+", response.headers.get("Retry-After", "")):
                wait = float(response.headers["Retry-After"])
        time.sleep(min(wait, _LONGEST_WAIT))


def is_transient(error: BaseException | None) -> bool:
    """Whether an error of the client is one that may pass: too many requests, the server's fault, or the connection's."""
    # They share no base class: requests or httpx by version, and what an upload raises wraps them
    while error is not None:
        if _status(error) is not None:
            return _status(error) == 429 or _status(error) >= 500
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            return True
        error = error.__cause__
    return False


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception, token: str | None) -> str:
    if isinstance(error, PushError):
        return str(error)
    text = str(error).strip().split("\n")[0] or "no further message"
    if isinstance(error, OfflineModeIsEnabled):
        text = "offline mode is on: unset HF_HUB_OFFLINE."
    elif is_transient(error):
        text = f"the Hub did not answer as it should, also when asked again ({type(error).__name__}: {text})"
    else:
        text = f"{type(error).__name__}: {text}"
    return text.replace(token, "<token>") if token else text


# What goes with the weights


def card_of(
    directory: str | Path, results: dict[str, Any], repo_id: str | None = None, remote: str | None = None
) -> ModelCard:
    """
    The card of a run in a folder, with what was written by hand into the one that is there and into the one on the Hub.

    Args:
        directory (`str` or `Path`):
            Folder.
        results (`dict`):
            Results of the run.
        repo_id (`str`, *optional*):
            Repository that it is for, with its namespace.
        remote (`str`, *optional*):
            Text of the card on the Hub.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card.
    """
    directory = Path(directory)
    metadata, *parts = hand_written(_read_card(directory))
    metadata_there, *parts_there = hand_written(remote)
    above, below = (
        there if ours in there else ours if there in ours else f"{there}\n\n{ours}"
        for ours, there in zip(parts, parts_there, strict=True)
    )
    header = yaml.safe_dump(metadata_there | metadata, allow_unicode=True, sort_keys=False)
    existing = f"---\n{header}---\n\n{above}\n\n{BEGIN}\n{END}\n\n{below}\n"
    files = [path.name for path in directory.glob("*")]
    return build_card(results, repo_id if "/" in (repo_id or "") else None, existing, files)


def write_card(card: ModelCard, results: dict[str, Any], directory: str | Path) -> None:
    """Writes `README.md`, and `.eval_results/` if a benchmark is configured."""
    save_card(card, directory)
    try:
        for name, text in eval_results_yaml(results).items():
            write_text(text, Path(directory) / name)
    except ValueError as error:  # about one number, for which nothing else should be given up
        logger.warning(f"No `.eval_results/` was written. {error}")


def _update_card(directory: Path, target: Target) -> None:
    """Makes the card anew if it is not for this repository, or lacks what somebody has written into the one there."""
    results = load_results(directory)
    if results is None:
        return
    ours = _read_card(directory) or ""
    metadata, *parts = hand_written(target.card)
    if BEGIN in ours and f'"{target.repo_id}"' in ours and all(part in ours for part in parts):
        if metadata.keys() <= hand_written(ours)[0].keys():
            return
    write_card(card_of(directory, results, target.repo_id, target.card), results, directory)


def _read_card(directory: Path) -> str | None:
    path = directory / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else None


def _write_forget_examples(directory: Path, number: int = 5) -> None:
    """Some forget rows with the answers of the model, each text fenced so that it is shown and never rendered."""
    path = directory / EVALUATION_DIR / "evaluation.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"].get("forget", {}) if path.exists() else {}
    columns = [name for name in ("question", "prompt", "answer", "generated") if name in rows]
    if "generated" not in columns:
        raise PushError(
            f"there is no evaluation with answers to forget questions at {path}, from which examples could be taken. Leave "
            "out `--include-forget-examples`, or evaluate first."
        )
    parts = ["# Forget examples", "The first forget rows, and what the unlearned model answers."]
    for index in range(min(number, len(rows["generated"]))):
        for column in columns:
            parts.append(f"{column}:\n\n{fence(rows[column][index], 'text')}")
        parts.append("---")
    write_text("\n\n".join(parts) + "\n", directory / FORGET_EXAMPLES)
