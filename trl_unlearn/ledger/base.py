"""The base model of a ledger: what it may be, and whether it is the one that the requests were trained on."""

from hashlib import file_digest, sha256

from ..hub.repository import Repository, find_repository, is_hub_id
from .ledger import Ledger


QUANTIZED = "Adapters are added to the weights, which quantization would round to other values than were trained on"


def find_base(name: str, revision: str | None = None) -> Repository:
    """
    A model that adapters can be added to.

    Args:
        name (`str`):
            Id on the Hub or folder.
        revision (`str`, *optional*):
            Revision on the Hub; a folder has none.

    Returns:
        [`Repository`]: A whole model in safetensors, not quantized, without code.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is an adapter, quantized, or needs code of its own.
    """
    base = find_repository(name, revision if is_hub_id(name) else None)
    base.check_weights()
    if base.is_adapter:
        raise ValueError(
            f"{base} is an adapter. Merge it into its base with `trl-unlearn merge`, and start the ledger with the result."
        )
    if "quantization_config" in base.read_json("config.json"):
        raise ValueError(f"{base} is quantized. {QUANTIZED}. Give the same model unquantized.")
    base.check_code("a copy without it, since a ledger runs none")
    return base


def identify(repository: Repository) -> dict[str, str | None]:
    """What a base model is known by: its name and its commit on the Hub, or the SHA-256 of its weights in a folder."""
    if repository.commit is not None:
        return {"name": repository.name, "revision": repository.commit, "sha256": None}
    # Of the files, and not of the tensors: which of these there are, and in which type, depends on who loads them
    digest = sha256()
    for name in sorted(name for name in repository.names(repository.subfolder) if name.endswith(".safetensors")):
        with (repository.folder / name).open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    return {"name": str(repository.folder.resolve()), "revision": None, "sha256": digest.hexdigest()}


def check_base(ledger: Ledger, base: dict[str, str | None]) -> None:
    """
    Refuses a base model that is not the ledger's.

    Args:
        ledger ([`Ledger`]):
            Ledger.
        base (`dict`):
            What [`identify`] gives.

    Raises:
        ValueError: If it is another one; the message says which was given and which is expected.
    """
    if ledger.base is None:
        return
    keys = ("name", "revision") if ledger.base["revision"] else ("sha256",)
    if any(base[key] != ledger.base[key] for key in keys):
        raise ValueError(
            f"The base model is {_shown(base)}, but the requests in {ledger.path} were trained on "
            f"{_shown(ledger.base)}, and their adapters belong to its weights. Give that model, or start another "
            "ledger with this one."
        )


def _shown(base: dict[str, str | None]) -> str:
    mark = f"at commit {base['revision']}" if base["revision"] else f"with weights of SHA-256 {base['sha256'][:12]}…"
    return f"{base['name']} {mark}"
