"""A repository with a model or an adapter, on the Hub or in a folder: its commit, its files, and what must not be loaded."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any


# What is downloaded to decide how to load: all but the weights of a full model, which come last
_SMALL = {".json", ".jinja", ".txt", ".model", ".md", ".yaml", ".png"}
_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"}
_PICKLES = re.compile(r"(pytorch_model|adapter_model|model|consolidated)\b.*\.(bin|pt|pth|ckpt|pkl)")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a Hub repository, and is not a folder's on this machine."""
    return _HUB_ID.fullmatch(name) is not None and name not in (".", "..") and not Path(name).exists()


@dataclass(frozen=True)
class Repository:
    """
    A model's or an adapter's files at one commit.

    Attributes:
        name (`str`):
            Hub id or path, as `from_pretrained` takes it.
        commit (`str` or `None`):
            Commit on the Hub; `None` for a path.
        subfolder (`str`):
            Folder in the repository that the model is in; empty for the root.
        root (`Path`):
            The repository's root on this machine. Of one on the Hub, all files but a full model's weights are there.
        files (`frozenset[str]`):
            Names of all files, from the root.
        is_offline (`bool`):
            Whether the Hub did not answer, and `files` are those which are cached.
    """

    name: str
    commit: str | None
    subfolder: str
    root: Path
    files: frozenset[str]
    is_offline: bool = False

    def __str__(self) -> str:
        place = f"{self.name} at commit {self.commit}" if self.commit else self.name
        return f"{place} in {self.subfolder}" if self.subfolder else place

    @property
    def folder(self) -> Path:
        """Where the model's own files are on this machine."""
        return self.root / self.subfolder

    @property
    def source(self) -> dict[str, Any]:
        """What `from_pretrained` is given."""
        return {
            "pretrained_model_name_or_path": self.name,
            "subfolder": self.subfolder,
            **({"revision": self.commit} if self.commit else {}),
        }

    def names(self, folder: str) -> set[str]:
        """Names of the files that lie directly in a folder of the repository."""
        paths = map(PurePosixPath, self.files)
        return {path.name for path in paths if path.parent == PurePosixPath(folder)}

    def has(self, name: str) -> bool:
        """Whether the model's folder has such a file."""
        return name in self.names(self.subfolder)

    def read_json(self, name: str, folder: str | None = None) -> dict[str, Any]:
        """A JSON file of the model's folder, or of another one; empty if there is none."""
        folder = self.subfolder if folder is None else folder
        if name not in self.names(folder):
            return {}
        content = json.loads((self.root / folder / name).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{name} of {self} is no JSON object: {type(content).__name__}.")
        return content

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter."""
        return self.has("adapter_config.json")

    @property
    def tokenizer_folder(self) -> str | None:
        """The model's folder or the root, whichever has a tokenizer."""
        return next((folder for folder in (self.subfolder, "") if self.names(folder) & _TOKENIZERS), None)

    def check_weights(self) -> None:
        """Says what to pass if there are no safetensors weights here, and refuses an index that names other files."""
        names = self.names(self.subfolder)
        if not _is_model(names):
            raise FileNotFoundError(self._what_is_missing(names))
        index = self.read_json("model.safetensors.index.json")
        for file in set(index.get("weight_map", {}).values()):
            if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", str(file)):
                raise ValueError(
                    f"model.safetensors.index.json of {self} names the file {file!r}; expected safetensors files in the "
                    "same folder. It is not loaded."
                )

    def check_code(self, what_to_pass: str) -> None:
        """Refuses a repository that brings Python code with it."""
        said = None
        if any(file.endswith("custom_generate/generate.py") for file in self.files):
            said = f"{self} has code to generate with (custom_generate/generate.py), which was not run. "
        places = [
            (self.subfolder, "config.json"),
            (self.subfolder, "tokenizer_config.json"),
            ("", "tokenizer_config.json"),
        ]
        for folder, file in places:
            content = self.read_json(file, folder)
            if content.get("auto_map"):
                said = f"{file} of {self} says to run code ({content['auto_map']}), which was not done. "
                said += _own_class(content.get("model_type"))
                break
        if said is not None:
            raise ValueError(f"{said}If you have read that code and want it to run, pass {what_to_pass}.")

    def _what_is_missing(self, names: set[str]) -> str:
        expected = "adapter_model.safetensors" if self.is_adapter else "config.json and model.safetensors"
        said = [f"{self} has no {expected}."]
        if pickles := sorted(name for name in names if _PICKLES.fullmatch(name)):
            said.append(
                f"It has {_listed(pickles)}: pickles run code when they are loaded, so they are not. The Space "
                "safetensors/convert opens a pull request with safetensors: pass its number as "
                "`revision='refs/pr/<number>'`. Or load it where that does no harm, `save_pretrained` it, and pass the folder."
            )
        folders = {str(PurePosixPath(file).parent) for file in self.files} - {self.subfolder, "."}
        if folders := sorted(folder for folder in folders if _is_model(self.names(folder))):
            said.append(f"There are models in its subfolders {_listed(folders)}: pass `subfolder='{folders[0]}'`.")
        if branches := self._other_branches():
            said.append(f"It has other branches, {_listed(branches)}: pass `revision='{branches[0]}'`.")
        if self.is_offline:
            said.append("The Hub was not asked or did not answer: this is about what is cached. Load it online once.")
        if len(said) == 1:
            said.append(f"What it has: {_listed(sorted(self.files)) or 'no file'}.")
        return " ".join(said)

    def _other_branches(self) -> list[str]:
        if self.commit is None or self.is_offline:
            return []
        from huggingface_hub import HfApi

        branches = HfApi().list_repo_refs(self.name).branches
        return sorted(branch.name for branch in branches if branch.target_commit != self.commit)


def find_repository(name: str, revision: str | None = None, subfolder: str | None = None) -> Repository:
    """
    Resolves a name to a commit, and downloads all that is small.

    Args:
        name (`str`):
            Hub id or path.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub; the default branch if `None`.
        subfolder (`str`, *optional*):
            Folder in the repository.

    Returns:
        [`Repository`]: Its commit and files. When the Hub does not answer, those that are cached.

    Raises:
        FileNotFoundError: If there is no such folder, repository or revision.
        PermissionError: If the repository is gated or the token is refused.
        OSError: If the Hub does not answer and nothing is cached.
        ValueError: If a file name leads out of the repository.
    """
    if leads_outside(subfolder or ""):
        raise ValueError(f"`subfolder` is {subfolder!r}; expected a folder inside the repository.")
    subfolder = _parent(f"{subfolder or '.'}/*")
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"`revision` is {revision!r}, but {name} is a folder on this machine and has no revisions."
            )
        files = frozenset(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return Repository(str(path), None, subfolder, path, files)
    if not is_hub_id(name):
        raise FileNotFoundError(f"{name!r} is neither a folder nor a Hub id of the form 'org/name'.")

    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        info = HfApi().model_info(name, revision=revision)
        files = frozenset(file.rfilename for file in info.siblings)
        for file in files:
            if leads_outside(file):
                raise ValueError(
                    f"{name} at commit {info.sha} has a file named {file!r}, which leads out of it. Not loaded."
                )
        wanted = [file for file in files if _parent(file) in ("", subfolder) and _is_small(file)]
        # By branch, not by commit: else the cache would not know offline which commit the branch is at
        root = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if root.name != info.sha:  # pushed to in between
            return find_repository(name, revision, subfolder)
        return Repository(name, info.sha, subfolder, root, files)
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} is gated: accept its conditions on its page, and log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is neither a folder nor a model on the Hub, or it is private: then log in with `hf auth login`, or "
            "set HF_TOKEN, as someone who may read it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} has no revision {revision!r} on the Hub.") from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"{name!r} is neither a folder nor a valid name on the Hub.") from error
    except (OSError, errors.HTTPError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise PermissionError(
                f"The Hub does not give {name} to this login: its token is wrong or may not read it. Log in with "
                "`hf auth login`, or correct or unset HF_TOKEN."
            ) from error
        return _cached_repository(name, revision, subfolder, error)


def _cached_repository(name: str, revision: str | None, subfolder: str, error: Exception) -> Repository:
    from huggingface_hub import errors, snapshot_download

    try:
        # Asks for no file: what is not cached is said where it is needed
        root = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[]))
    except errors.LocalEntryNotFoundError:
        raise OSError(
            f"{name} at revision {revision or 'main'} is not cached, and the Hub does not answer or offline mode is on "
            f"({type(error).__name__}). Load it online once, then it loads offline too."
        ) from error
    files = frozenset(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    return Repository(name, root.name, subfolder, root, files, is_offline=True)


def leads_outside(name: str) -> bool:
    """Whether a file name of a repository leads out of the repository."""
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name


def _parent(file: str) -> str:
    parent = str(PurePosixPath(file).parent)
    return "" if parent == "." else parent


def _is_small(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix in _SMALL or path.name == "adapter_model.safetensors"


def _is_model(names: set[str]) -> bool:
    if "adapter_config.json" in names:
        return "adapter_model.safetensors" in names
    return "config.json" in names and bool(names & {"model.safetensors", "model.safetensors.index.json"})


def _listed(names: list[str], limit: int = 20) -> str:
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _own_class(model_type: str | None) -> str:
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return ""
    return (
        f"transformers has {model_type!r} models itself: a copy of the repository without `auto_map` in that file may load "
        "without the code. "
    )
