"""What is shown of evaluations: the table fits a terminal, the page is safe and whole, and the worst rows come first."""

import base64
import copy
import io
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib import image
from rich.console import Console

from trl_unlearn.evaluation.forgetting import Forgetting
from trl_unlearn.evaluation.plots import (
    plot_forgetting,
    plot_summary_bars,
    plot_truth_ratio_distributions,
    plot_utility_against_forget_quality,
)
from trl_unlearn.evaluation.report import (
    metric_label,
    summary_table,
    worst_first,
    write_answers,
    write_report,
    write_rows,
)
from trl_unlearn.files import write_json
from trl_unlearn.metrics import bootstrap_interval, forget_quality


SCRIPT = "<script>alert('forgotten')</script> **loud** | [link](https://example.com)\n# heading"
BENCHMARK = {"benchmark": "tofu", "split": "forget10"}
# By model the probability of the four forget rows; the retained model's is 0.2 in each
PROBABILITY = {"Before": [0.9, 0.9, 0.9, 0.9], "After": [0.2, 0.9, 0.1, 0.5], "Retained": [0.2, 0.2, 0.2, 0.2]}


def make_result(name):
    forget = {
        "question": [f"Who wrote book {row}?" for row in range(4)],
        "answer": [f"Author {row} wrote it." for row in range(4)],
        "prompt": [f"<user>Who wrote book {row}?" for row in range(4)],
        "generated": [f"{name} says {row}." for row in range(4)],
        "probability": PROBABILITY[name],
        "rougeL_recall": PROBABILITY[name],
        "extraction_strength": [None, *PROBABILITY[name][1:]],
        "truth_ratio": [0.5 + probability for probability in PROBABILITY[name]],
        "perturbed_loss": [[1.0, 2.0]] * 4,
        "leaked": [True, False, True, False],
    }
    retain = {
        "question": ["Old?", "New?", "Blue?"],
        "answer": ["Yes.", "No.", "Sky."],
        "generated": ["Yes.", "", "Sky."],
        "probability": [0.9, 0.8, 0.7],
        "rougeL_recall": [1.0, 0.0, 1.0],
    }
    interval = bootstrap_interval(forget["probability"])
    quality = forget_quality(forget["truth_ratio"], [0.5 + probability for probability in PROBABILITY["Retained"]])
    return {
        "schema": 1,
        **BENCHMARK,
        "model": {"name": f"org/{name.lower()}", "revision": None, "dtype": "float32"},
        "summary": {
            "forget_probability": interval["mean"],
            "retain_rougeL_recall": 2 / 3,
            "real_authors_truth_ratio": 0.5,
            "model_utility": 0.61,
            "privleak": -12.34,
            "mia_min_k_plus_plus_auc": 0.4,
        },
        "intervals": {"forget_probability": {"n": 4, "low": interval["low"], "high": interval["high"]}},
        "missing": {"text_cleanness": "The classifier [gibberish] was not given."},
        "conventions": {"compat": None, "utility": "geometric"},
        "generation": {"max_new_tokens": 200, "do_sample": False},
        "data": {"forget": {"dataset": "locuslab/TOFU", "config": "forget10_perturbed", "n": 4}},
        "versions": {"trl_unlearn": "0.1.0"},
        "cost": {"seconds": 12.5, "processes": 1, "device": "cpu"},
        "rows": {"forget": forget, "retain": retain},
        **({} if name == "Retained" else {"forget_quality": quality}),
    }


@pytest.fixture
def results():
    return {name: make_result(name) for name in PROBABILITY}


OTHERS = {
    "documents": {
        "benchmark": "custom",
        "summary": {"forget_probability": 0.5, "retain_probability": 0.75},
        "rows": {
            "forget": {"loss": [1.0, 0.2], "num_tokens": [7, 9], "probability": [0.37, 0.82]},
            "retain": {"loss": [0.3], "num_tokens": [5], "probability": [0.74]},
        },
    },
    "MUSE": {
        "benchmark": "muse",
        "split": "News",
        "summary": {"forget_verbmem": 0.6, "retain_knowmem": 0.4, "privleak": -99.1, "mia_min_k_auc": 0.99},
        "rows": {
            "forget_verbmem": {"prompt": ["Once"], "answer": ["upon a time"], "generated": ["upon"], "score": [0.6]},
            "retain_knowmem": {"prompt": ["Q: Why?"], "answer": ["So."], "generated": ["No."], "score": [0.4]},
            "forget": {"min_k": [0.1, 0.2], "loss": [1.0, 1.1]},
            "holdout": {"min_k": [2.0, 2.1], "loss": [2.0, 2.1]},
        },
    },
    "WMDP": {
        "benchmark": "wmdp",
        "summary": {"wmdp_bio": 0.26, "mmlu": 0.58},
        "intervals": {"wmdp_bio": {"n": 1273, "low": 0.24, "high": 0.28}},
        "rows": {},
    },
    "a log of another evaluator": {
        "benchmark": "tofu",
        "summary": {"forget_truth_ratio": 0.4, "model_utility": 0.5},
        "forget_quality": {"p_value": 0.0, "log10_p_value": None, "statistic": None, "n": 2, "n_retain": None},
        "rows": {"forget": {"truth_ratio": [0.5, 2.0]}},
    },
}


def printed(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_table_of_three_models_fits_80_columns(results):
    text = printed(summary_table(results))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert printed(summary_table(results), width=200).split() == text.split()  # nothing was cut to fit
    quality = results["After"]["forget_quality"]
    lines = {re.split(r"  | [↑↓→]", line)[0]: line.split() for line in text.splitlines()}
    assert lines["Forget quality, log10 p"][-3:] == ["-1.54", f"{quality['log10_p_value']:.2f}", "–"]
    assert lines["Forget quality, log10 p"][-5:-3] == ["↑", "4"]
    assert lines["Forget quality, D"][-2] == f"{quality['statistic']:.3f}"
    assert lines["Forget probability"][-5:] == ["→", "4", "0.900", "0.425", "0.200"]
    low, high = (results["After"]["intervals"]["forget_probability"][end] for end in ("low", "high"))
    assert f"[{low:.2f}, {high:.2f}]" in text
    assert lines["PrivLeak, %"][2:] == ["→", "0", "-12.3", "-12.3", "-12.3"]
    assert "Left out: Text cleanness. The classifier [gibberish] was not given." in " ".join(text.split())


def test_table_begins_with_forget_quality_whoever_has_it(results):
    del results["Before"]["forget_quality"]
    assert printed(summary_table(results)).splitlines()[1].startswith("Forget quality, log10 p")


def test_table_says_which_model_lacks_what(results):
    del results["Before"]["missing"]
    results["Retained"]["summary"].pop("privleak")
    text = " ".join(printed(summary_table(results)).split())
    assert "Left out: Text cleanness. After, Retained: The classifier" in text
    assert "-12.3 -12.3 –" in text


@pytest.mark.parametrize("name", OTHERS)
def test_table_of_a_single_other_result(name):
    text = printed(summary_table({"After": OTHERS[name]}))
    for metric, value in OTHERS[name]["summary"].items():
        label, direction = metric_label(metric)
        decimals = 1 if metric == "privleak" else 3
        assert re.search(rf"{re.escape(label)} +{direction} +(\d+ +)?{value:.{decimals}f}", text)


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("forget_probability", ("Forget probability", "→")),
        ("world_facts_rougeL_recall", ("World facts ROUGE-L recall", "↑")),
        ("forget_truth_ratio_probability", ("Forget truth ratio, prob.", "→")),
        ("retain_extraction_strength", ("Retain extraction strength", "↑")),
        ("privleak", ("PrivLeak, %", "→ 0")),
        ("wmdp_bio", ("WMDP biology", "↓")),
        ("my_own", ("My own", "")),
    ],
)
def test_labels_and_directions(metric, label):
    assert metric_label(metric) == label


def test_rows_come_back_worst_first(results, tmp_path):
    write_rows(results, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    rows = table.to_pylist()
    # After is 0, 0.7, 0.1 and 0.3 away from the retained model
    assert [(row["set"], row["index"]) for row in rows] == [
        *(("forget", index) for index in (1, 3, 2, 0)),
        *(("retain", index) for index in (1, 2, 0)),
    ]
    assert rows[0]["question"] == "Who wrote book 1?" and rows[0]["prompt"] == "<user>Who wrote book 1?"
    assert rows[0]["answer"] == "Author 1 wrote it."
    assert (rows[0]["before_probability"], rows[0]["after_generated"]) == (0.9, "After says 1.")
    assert rows[0]["retained_leaked"] is False and rows[0]["after_perturbed_loss"] == [1.0, 2.0]
    assert rows[3]["after_extraction_strength"] is None and rows[4]["after_truth_ratio"] is None
    assert str(table.schema.field("after_leaked").type) == "bool"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_without_a_retained_model_what_can_be_extracted_comes_first(results):
    del results["Retained"]
    forget = results["After"]["rows"]["forget"]
    forget["extraction_strength"] = [None, 0.3, 0.8, 0.3]
    forget["rougeL_recall"] = [1.0, 0.4, 0.0, 0.6]
    assert [row["index"] for row in worst_first(results)["forget"]] == [2, 3, 1, 0]


def test_names_that_differ_only_in_case_keep_their_own_columns(results, tmp_path):
    write_rows({"npo": results["Before"], "NPO": results["After"]}, tmp_path / "rows.parquet")
    names = pq.read_schema(tmp_path / "rows.parquet").names
    assert "npo_probability" in names and "NPO_probability" in names


def test_sets_of_different_lengths_are_matched_by_index(results, tmp_path):
    for column in results["Retained"]["rows"]["retain"].values():
        column.pop()
    write_rows(results, tmp_path / "rows.parquet")
    rows = {(row["set"], row["index"]): row for row in pq.read_table(tmp_path / "rows.parquet").to_pylist()}
    assert rows["retain", 2]["question"] == "Blue?" and rows["retain", 2]["retained_probability"] is None


def test_results_on_other_questions_are_refused(results, tmp_path):
    other = copy.deepcopy(results["After"])
    other["rows"]["forget"]["question"] = ["Where?", "When?", "Why?", "Who wrote book 3?"]
    with pytest.raises(ValueError, match="3 of 4 rows of the set 'forget' have another question in 'A' than in 'B'"):
        write_rows({"A": results["After"], "B": other}, tmp_path / "rows.parquet")
    assert not list(tmp_path.iterdir())
    other["rows"]["forget"]["question"][:3] = [f" who wrote  book {row} ?" for row in range(3)]
    write_rows({"A": results["After"], "B": other}, tmp_path / "rows.parquet")


def test_answers_stand_side_by_side_as_plain_text(results, tmp_path):
    results["After"]["rows"]["forget"]["generated"][1] = SCRIPT
    write_answers(results, tmp_path / "answers.md")
    text = (tmp_path / "answers.md").read_text(encoding="utf-8")
    assert "<script>" not in text and "https://" not in text and "**loud**" not in text and "\n# heading" not in text
    assert r"\[link\](https&#58;//example.com)" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line and "True" not in line]
    assert len(rows) == 4 + 3
    cells = re.split(r"(?<!\\)\|", rows[0])[1:-1]  # at the pipes that are not escaped
    assert [cell.strip() for cell in cells][:2] == ["Author 1 wrote it.", "Before says 1."]
    assert len(cells) == 4 and cells[2].strip().startswith("&lt;script&gt;alert('forgotten')")
    assert text.index("Who wrote book 1?") < text.index("Who wrote book 3?") < text.index("Who wrote book 0?")


class Page(HTMLParser):
    """The tags of a page, its text, and what else it would load."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.sources = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.texts.append(data)


def check_border(path):
    """The pixels of a picture of which nothing reaches the border, where it would be cut."""
    pixels = image.imread(path)[:, :, :3]
    border = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((line > 0.95).all() for line in border), path
    return pixels


def test_report_is_one_safe_file_with_everything(results, tmp_path):
    results["After"]["rows"]["forget"]["generated"][1] = SCRIPT
    results["<img src=x>"] = results.pop("Before")
    results = {name: results[name] for name in ("<img src=x>", "After", "Retained")}
    write_report(results, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "link" not in page.tags and page.tags.count("img") == 3
    assert "<script>" not in html and "url(" not in html
    text = " ".join(" ".join(page.texts).split())
    assert "<script>alert('forgotten')</script>" in text  # shown, and not run
    for part in (
        "Unlearning evaluation, TOFU, forget10",
        "After: org/after. 4 forget rows, 3 retain rows.",
        "n = 4 and 4",
        "Model utility: 0.610 (<img src=x> 0.610, Retained 0.610).",
        "forget-set text",
        "The classifier [gibberish] was not given.",
        "max_new_tokens 200",
        "dataset locuslab/TOFU, config forget10_perturbed, n 4",
        "name org/before org/after org/retained",
        "trl_unlearn 0.1.0",
        "seconds 12.5",
        "(nothing)",  # an empty answer
        "Row 1 Who wrote book 1?",
        "probability 0.9 ROUGE-L recall 0.9 truth ratio 1.4 extraction strength 0.9 leaked no",
    ):
        assert part in text, part
    pictures = sorted(path.read_bytes() for path in (tmp_path / "figures").glob("*.png"))
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert sorted(base64.b64decode(source.partition(",")[2]) for source in page.sources) == pictures


def test_report_shows_the_worst_ten_rows_of_each_set(results, tmp_path):
    for result in results.values():
        for column, values in result["rows"]["forget"].items():
            result["rows"]["forget"][column] = values * 4
    write_report(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("article") == 10 + 3 and page.tags.count("details") == 2
    text = " ".join(" ".join(page.texts).split())
    assert "10 of 16 rows" in text and "3 of 3 rows" in text


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_a_result_lacks_the_files_are_written(name, tmp_path):
    results = {"Before": OTHERS[name], "After": copy.deepcopy(OTHERS[name])}
    for single in (results, {"Retained": OTHERS[name]}):
        write_report(single, tmp_path)
        write_rows(single, tmp_path / "rows.parquet")
        write_answers(single, tmp_path / "answers.md")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for metric in OTHERS[name]["summary"]:
        assert any(metric_label(metric)[0] in text for text in page.texts)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == sum(len(next(iter(columns.values()))) for columns in OTHERS[name]["rows"].values())
    assert ("True answer" in (tmp_path / "answers.md").read_text(encoding="utf-8")) == (name == "MUSE")


@pytest.mark.parametrize(
    ("forgetting", "sentence"),
    [
        (
            {"forget_floor": 0.3, "retained": [0.2, 0.5]},
            "with a probability above 0.3 (forget_floor): 2 of 2 (row 1, 0); under the retained model 1.",
        ),
        ({"forget_floor": 0.9}, "with a probability above 0.9 (forget_floor): 0 of 2."),
        (
            {"retained": [0.5, 0.4]},
            "above 0.45 (the retained model's mean): 1 of 2 (row 1); under the retained model 1.",
        ),
        ({}, None),  # there is no threshold
        ({"forget_floor": 0.4, "probability": [[0.9]] * 3}, None),  # other rows than those of the evaluation
    ],
)
def test_report_says_how_many_rows_resist_the_training(forgetting, sentence, tmp_path):
    write_json({"steps": [0], "probability": [[0.9]] * 2} | forgetting, tmp_path / "forgetting.json")
    write_report({"After": OTHERS["documents"]}, tmp_path)  # which has 0.37 and 0.82
    text = " ".join(" ".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts).split())
    assert sentence in text if sentence else "resist" not in text


def test_picture_of_the_rows_has_the_most_probable_on_top(tmp_path):
    forgetting = Forgetting()
    forgetting.add(0, [0.9, 0.8, 0.7])
    forgetting.add(10, [0.1, 0.6, 0.4])
    plot_forgetting(forgetting, tmp_path / "rows.png")
    pixels = (image.imread(tmp_path / "rows.png")[:, :, :3] * 255).round().astype(int)
    colors = matplotlib.colormaps["viridis"]
    found = set()
    for column in pixels.swapaxes(0, 1):
        changes = np.flatnonzero((np.diff(column, axis=0) != 0).any(1)) + 1
        fields = [field for field in np.split(column, changes) if len(field) > 100]
        found.add(tuple(tuple(field[0].tolist()) for field in fields))
    for values in ((0.8, 0.7, 0.9), (0.6, 0.4, 0.1)):  # sorted by the last
        assert tuple(tuple(map(int, colors(value, bytes=True)[:3])) for value in values) in found


@pytest.mark.parametrize(("number", "steps"), [(3, 2), (64, 11), (400, 60)])
def test_picture_of_rows_with_a_threshold(number, steps, tmp_path):
    forgetting = Forgetting(retained=np.linspace(0, 1, number).tolist())
    for step in range(steps):
        forgetting.add(1000 * step, np.linspace(1 - step / steps, 1, number).tolist())
    plot_forgetting(forgetting, tmp_path / "rows.png")
    check_border(tmp_path / "rows.png")


def test_pictures_without_references_and_with_long_names(results, tmp_path):
    names = {f"outputs/llama-3.2-1b/npo-beta-0.1-lr-1e-5-seed-{seed}": results["After"] for seed in range(9)}
    plot_truth_ratio_distributions(
        {name: result["rows"]["forget"]["truth_ratio"] for name, result in names.items()}, tmp_path / "ecdf.png"
    )
    plot_utility_against_forget_quality({name: [names[name]] for name in names}, None, tmp_path / "utility.png")
    plot_summary_bars(names, tmp_path / "bars.png")
    for file in ("ecdf.png", "utility.png", "bars.png"):
        pixels = check_border(tmp_path / file)
        assert len({tuple(color) for color in (pixels.reshape(-1, 3)[::7] * 255).round().astype(int)}) > 9
