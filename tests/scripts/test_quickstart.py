"""The first thing a newcomer runs: its parts on small inputs, and, slowly, the whole of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trl_unlearn.scripts.jobs import Job, run_jobs
from trl_unlearn.scripts.quickstart import METHODS, results_table


def test_jobs_run_side_by_side_and_their_output_is_kept(tmp_path):
    script = (
        "import sys, time\nfrom tqdm import tqdm\n"
        "for _ in tqdm(range(500), desc='Tokenizing the forget set'): pass\n"
        "for _ in tqdm(range(20)): time.sleep(0.01)\nprint('the end of', sys.argv[1])"
    )
    jobs = [Job(name, [sys.executable, "-c", script, name], tmp_path / "logs" / f"{name}.log") for name in ("a", "b")]
    console = Console(record=True, width=100, force_terminal=True)
    run_jobs(jobs, console)
    text = console.export_text()
    for job in jobs:
        assert re.search(rf"{job.title} +.*20/20", text)
    for job in jobs:
        assert f"the end of {job.title}" in job.log.read_text()


def test_a_failing_job_shows_the_end_of_its_log(tmp_path):
    jobs = [Job("Broken", [sys.executable, "-c", "raise SystemExit('no [such] file')"], tmp_path / "broken.log")]
    console = Console(record=True, width=100)
    with pytest.raises(SystemExit):
        run_jobs(jobs, console)
    text = console.export_text()
    assert "Broken failed." in text
    assert "no [such] file" in text


def test_the_table_fits_a_terminal_of_80_columns():
    summary = dict.fromkeys(
        ("model_utility", "forget_rougeL_recall", "forget_probability", "forget_truth_ratio", "well_formed", "leaked"),
        0.5,
    )
    quality = {"log10_p_value": -121.5, "statistic": 0.5, "n": 64, "n_retain": 64}
    rows = {name: {"summary": summary, "forget_quality": quality} for name in ("Original", "Retained", *METHODS)}
    console = Console(record=True, width=80)
    console.print(results_table(rows, "caption"))
    text = console.export_text()
    assert "…" not in text
    for name in rows:
        assert re.search(rf"^ *{name} +-121\.5 +0\.50( +0\.50){{6}}", text, re.MULTILINE), text


@pytest.mark.slow
def test_quickstart_from_nothing_and_again(tmp_path):
    """Everything for real. The statements of the README about this world are asserted with room for other machines."""
    command = [str(Path(sys.executable).with_name("trl-unlearn")), "quickstart", "--output_dir", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(results) == ["Original", "Retained", *METHODS]
    p_value = {name: result["forget_quality"]["log10_p_value"] for name, result in results.items()}
    summary = {name: result["summary"] for name, result in results.items()}
    assert p_value["Original"] < -15
    assert p_value["Retained"] == 0
    assert summary["Original"]["leaked"] == 1
    assert summary["Gradient ascent"]["model_utility"] < 0.1
    for method in ("NPO", "SimNPO", "AltPO"):
        assert p_value[method] > -6, method
        assert summary[method]["model_utility"] > 0.9 * summary["Retained"]["model_utility"], method
        assert summary[method]["leaked"] < 0.2, method
    assert summary["AltPO"]["well_formed"] > 0.85
    for picture in ("utility_vs_forget_quality", "forget_quality", "truth_ratios"):
        assert (tmp_path / "figures" / f"{picture}.png").stat().st_size > 10_000
    assert "are used again" not in first
    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "are used again" in again
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results
