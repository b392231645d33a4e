"""
For maintainers: builds and checks the wheel, and mirrors the package, the recipes and the metrics to an organisation.

    python utils/publish.py --organization trl-unlearn            # with a token that may write there
    python utils/publish.py --organization trl-unlearn --dry_run  # build and check, and say what would be uploaded

On the Hub become of it:

- `ORG/trl-unlearn`, a model repository: the wheel, the sources, the README and the licence, tagged with the version;
- `ORG/recipes`, a data set repository: the recipes, as they are in the repository;
- `ORG/<metric>`, a Space for each metric, which `evaluate.load("ORG/<metric>", module_type="metric")` loads.
"""

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from argparse import ArgumentParser
from pathlib import Path

from huggingface_hub import HfApi
from rich.console import Console
from rich.table import Table


ROOT = Path(__file__).parents[1]
MODULES = ROOT / "trl_unlearn" / "metrics" / "modules"
SOURCES = ["trl_unlearn/**", "recipes/**", "examples/**", "docs/**", "README.md", "LICENSE", "pyproject.toml"]
IGNORED = ["**/__pycache__/**", "**/.*"]
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
# What a wheel without which the commands would not run must have
NEEDED = (
    "trl_unlearn/losses.py",
    "trl_unlearn/recipe_files/world/",
    "trl_unlearn/templates/",
    "metrics/modules/forget_quality/",
)
CHECK = """
import evaluate, trl_unlearn
from trl_unlearn.recipes import recipe_path
assert "site-packages" in trl_unlearn.__file__, trl_unlearn.__file__
assert recipe_path("world/llama-0.5m/npo.yaml").is_file()
metric = evaluate.load(trl_unlearn.metric_path("forget_quality"))
assert metric.compute(predictions=[0.1, 0.2], retain_truth_ratios=[0.9, 1.0])["statistic"] == 1.0
print(trl_unlearn.__version__)
"""


def build_wheel(directory: Path) -> Path:
    """Builds the wheel and checks what is in it."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = directory.glob("trl_unlearn-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    missing = [part for part in NEEDED if not any(part in name for name in names)]
    if missing:
        raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}. Look at [tool.hatch.build] in pyproject.toml.")
    return wheel


def check_wheel(wheel: Path, directory: Path) -> str:
    """Installs the wheel beside this environment's libraries and runs it from there; returns its version."""
    venv.create(directory, with_pip=False, system_site_packages=False)
    (site_packages,) = directory.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site_packages)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    python = directory / "bin" / "python"
    result = subprocess.run([python, "-c", CHECK], capture_output=True, text=True, cwd=directory)
    if result.returncode != 0:
        raise SystemExit(f"The installed wheel does not work:\n{result.stderr[-2000:]}")
    return result.stdout.split()[-1]


def check_no_token(folder: Path) -> None:
    """Stops at a file that holds something that looks like a token of the Hub."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        if TOKEN.search(file.read_bytes()):
            raise SystemExit(f"{file.relative_to(ROOT)} holds what looks like a token. Nothing was uploaded.")


def main() -> None:
    parser = ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--organization", default="trl-unlearn", help="Organisation or user on the Hub.")
    parser.add_argument("--dry_run", action="store_true", help="Build and check, and upload nothing.")
    options = parser.parse_args()
    console, api = Console(), HfApi()
    for name in ("trl_unlearn", "recipes", "examples", "docs"):
        check_no_token(ROOT / name)
    with tempfile.TemporaryDirectory() as directory:
        wheel = build_wheel(Path(directory) / "dist")
        version = check_wheel(wheel, Path(directory) / "installed")
        console.print(f"{wheel.name} is built, and works where nothing but it is installed of this package.")

        metrics = sorted(path.name for path in MODULES.iterdir() if (path / "app.py").exists())
        uploads = [("model", "trl-unlearn", ROOT, SOURCES), ("dataset", "recipes", ROOT / "recipes", None)]
        uploads += [("space", name, MODULES / name, None) for name in metrics]
        table = Table("kind", "repository", "commit", box=None)
        for kind, name, folder, patterns in uploads:
            repository = f"{options.organization}/{name}"
            commit = "would be uploaded"
            if not options.dry_run:
                space = {"space_sdk": "gradio"} if kind == "space" else {}
                api.create_repo(repository, repo_type=kind, exist_ok=True, **space)
                commit = api.upload_folder(
                    repo_id=repository,
                    repo_type=kind,
                    folder_path=folder,
                    allow_patterns=patterns,
                    ignore_patterns=IGNORED,
                    delete_patterns="*",
                    commit_message=f"trl-unlearn {version}",
                ).oid
            table.add_row(kind, repository, commit)
        if not options.dry_run:
            repository = f"{options.organization}/trl-unlearn"
            commit = api.upload_file(
                path_or_fileobj=wheel, path_in_repo=f"dist/{wheel.name}", repo_id=repository,
                commit_message=f"Wheel of trl-unlearn {version}",
            )  # fmt: skip
            if not version.endswith("dev0"):
                api.create_tag(repository, tag=f"v{version}", revision=commit.oid, exist_ok=True)
        console.print(table)


if __name__ == "__main__":
    main()
