"""Where the recipes that come with the package lie: in the wheel, or beside the package in a checkout."""

from pathlib import Path


def recipe_path(name: str) -> Path:
    """
    Path of a recipe that is part of the package.

    Args:
        name (`str`):
            Name below `recipes/`, for example `"world/llama-0.5m/npo.yaml"`.
    """
    package = Path(__file__).parent
    for directory in (package / "recipe_files", package.parent / "recipes"):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"There is no recipe {name!r} in this installation of trl-unlearn.")
