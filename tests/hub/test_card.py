"""The page of a model: what it says, that nothing can break it, and what of an older page survives."""

import ast
import json
import math
import re

import huggingface_hub
import pytest
import yaml
from example_run import NUMBERS, SECRET_TEXT, evaluation, run
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from trl_unlearn.hub.card import BEGIN, END, build_card, eval_results_yaml, save_card
from trl_unlearn.hub.results import collect_results


REPO = "me/base-NPO"
HOSTILE = (
    "</code></td>|x|`` ` ```\n---\n````\n# Out of the fence\n```\nlicense: evil\n\n# Heading\n\n- item\n1. item\n> quote\n"
    "| a | b |\n| - | - |\n~~~\n[link](https://evil.example/x) ![i](https://evil.example/i.png) www.evil.example\n"
    "<script>alert(1)</script> <img src=x onerror=y> <!-- trl-unlearn: end --> {{ card_data }} {% for %} $$x$$ \\"
    "\u2028\x00 !!python/object:os.system *b* _i_ &amp; me@evil.example \"' {0} %s"
)


def card_of(repo_id=REPO, existing=None, files=(), **changes):
    return build_card(collect_results(**run(**changes)), repo_id, existing, files)


def blocks(text):
    """The structure of a page: its blocks, and what is not text in its lines."""
    body = re.sub(r"^---\n.*?\n---\n", "", text, count=1, flags=re.S)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    return tokens, [(token.type, token.tag) for token in tokens]


def python_blocks(card):
    return [token.content for token in blocks(str(card))[0] if token.type == "fence" and token.info == "python"]


# ------------------------------------------------------------------ metadata


def test_every_number_comes_back(tmp_path):
    save_card(card_of(), tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    there = {result.metric_type: result.metric_value for result in data.eval_results}
    assert there == NUMBERS | {
        "forget_quality_p_value": 1e-200,
        "forget_quality_log10_p_value": -200.0,
        "forget_quality_statistic": 0.5,
    }
    assert all(type(value) in (int, float) and math.isfinite(value) for value in there.values())
    assert data.model_name == "base-NPO"


def test_results_are_grouped_by_the_rows_they_are_of():
    data = card_of().data
    groups = {
        (group["dataset"]["type"], group["dataset"].get("config"), group["dataset"].get("split")): (
            group["dataset"].get("revision"),
            [metric["type"] for metric in group["metrics"]],
        )
        for group in data.to_dict()["model-index"][0]["results"]
    }
    assert groups == {
        ("locuslab/TOFU", "forget10_perturbed", "train"): (
            "a" * 40,
            [
                "forget_probability",
                "forget_rougeL_recall",
                "leaked",
                "forget_quality_log10_p_value",
                "forget_quality_p_value",
                "forget_quality_statistic",
            ],
        ),
        ("locuslab/TOFU", "retain_perturbed", "train"): ("a" * 40, ["retain_probability"]),
        ("locuslab/TOFU", "real_authors_perturbed", "train"): ("a" * 40, ["real_authors_rougeL_recall"]),
        ("locuslab/TOFU", None, None): ("a" * 40, ["model_utility", "privleak"]),
    }
    result = data.eval_results[0]
    assert result.metric_name == "Forget probability (the nearer to the retained model the better)"
    assert result.metric_args == {"n": 400, "low": pytest.approx(0.28), "high": 0.33}


def test_private_rows_go_by_the_name_of_their_set():
    data = {name: {"dataset": "data", "config": name, "split": "train", "n": 4} for name in ("forget", "retain")}
    results = card_of(evaluations={"after": evaluation(benchmark="custom", data=data)}).data.eval_results
    assert {(result.dataset_type, result.dataset_config) for result in results} == {
        ("custom", "forget"), ("custom", "retain"), ("custom", None)
    }  # fmt: skip


def test_metadata_of_an_adapter():
    data = card_of().data.to_dict()
    del data["model-index"]
    assert data == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "llama3.2",
        "datasets": ["locuslab/TOFU"],
        "metrics": ["forget_quality", "probability", "rouge", "model_utility", "privleak", "leaked"],
        "tags": ["unlearning", "machine-unlearning", "trl", "trl-unlearn", "npo", "tofu", "lora"],
    }


@pytest.mark.parametrize("adapter", [None, {"type": "LORA", "r": 8, "merged": True}])
def test_metadata_of_full_and_merged_weights(adapter):
    card = card_of(adapter=adapter)
    assert (card.data.base_model_relation, card.data.library_name) == ("finetune", "transformers")
    assert "lora" not in card.data.tags
    assert "AutoPeft" not in card.text and "adapter can be taken off" not in card.text
    assert ("merged into the weights" in card.text) == (adapter is not None)


def test_a_licence_is_never_invented(caplog):
    import transformers

    transformers.utils.logging.enable_propagation()
    try:
        card = card_of(base_model={"name": "org/base"})
        assert card.data.license is None and "licence of the base model is not known" in caplog.text
        caplog.clear()
        card = card_of(base_model={"name": "org/base"}, existing="---\nlicense: mit\n---\n")
        assert card.data.license == "mit" and not caplog.text
    finally:
        transformers.utils.logging.disable_propagation()


# ------------------------------------------------------------------ the page


def test_the_table_has_directions_rows_and_intervals():
    text = card_of().text
    assert "| Metric | | n | Before | After | Retained |" in text
    assert "| Forget quality, log10 p | ↑ | 400 | -200.00 | -200.00 | – |" in text
    assert "| Forget quality, D | ↓ | 400 | 0.500 | 0.500 | – |" in text
    assert "| Forget probability | → | 400 | 0.900<br><sub>[0.280, 0.330]</sub> | 0.300<br>" in text
    assert "→ the nearer to the retained model the better" in text
    assert "over-forgetting" in text and "D = 0.500, p = 1e-200, log10 p = -200.00, n = 400 and 400. They can." in text


def test_parts_with_content():
    card = card_of(files=["unlearning.png", "unlearn_recipe.yaml"])
    assert "# base-NPO\n" in card.text
    assert "revision `cccccccccccc`" in card.text and "https://huggingface.co/papers/2404.05868" in card.text
    assert (
        "- Forget: [locuslab/TOFU](https://huggingface.co/datasets/locuslab/TOFU), configuration `forget10`"
        in card.text
    )
    assert "- Retain: private, 3,600 rows" in card.text
    assert "```text\n1 · mean[−2/β" in card.text and "| `beta` | `0.1` |" in card.text
    assert "](unlearning.png)" in card.text and "[recipe](unlearn_recipe.yaml)" in card.text
    assert "| 10 | 1 | 0.5 | 0.3 | 1.5 |" in card.text  # step, epoch, utility, forget probability, loss
    assert "1 min 23 s" in card.text and "1.00 GiB" in card.text
    assert "```bibtex\n@inproceedings{zhang2024negative," in card.text


def test_attacks_beside_the_models_without():
    text = card_of().text
    assert "| Attack | Model | Forget quality, log10 p | Model utility | Forget prob. |" in text
    assert "| No attack | Before | -200.0 | 0.600 | 0.900 |" in text
    # the highest after a step: not the start, nor the end
    assert "| Relearn, held out | After | – | – | 0.625 |" in text
    assert "| Quantize, 4 bits | After | – | 0.250 | – |" in text
    assert "- Relearn: share `0.2`, steps `5, 50`, learning rate `1e-05`." in text
    assert "- Quantize: some&#95;quantizer." in text
    assert "- Left out: relearn (retain) (there is no retain set in LOCAL&#95;PATH)." in text
    assert "## Attacks" not in card_of(evaluations={"after": evaluation(attacks={})}).text


def test_parts_without_content_do_not_appear():
    card = build_card(collect_results(method={"name": "NPO"}))
    assert re.findall("^#+ .*", card.text, flags=re.M) == ["# unlearned-NPO", "## Limits"]
    assert "**Not evaluated**" in card.text
    assert card.data.eval_results is None and "model-index" not in str(card)
    assert not re.search(r"\bNone\b|null|\n\n\n", str(card))
    assert "unlearning.png" not in card_of().text and "[recipe]" not in card_of().text
    assert "## Use" not in card_of(repo_id=None).text


def test_long_histories_are_thinned():
    history = [{"step": step, "eval_model_utility": step / 1000} for step in range(0, 1000, 10)]
    text = card_of(history=history).text
    assert len(re.findall(r"^\| \d+ \| 0", text, flags=re.M)) == 12
    assert "| 0 | 0 |" in text and "| 990 | 0.99 |" in text and "88 more steps" in text


@pytest.mark.parametrize("adapter", [None, {"type": "LORA"}])
@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("the tokenizer's chat template", "inputs = tokenizer.apply_chat_template("),
        (
            "Q: {question}\nA: {answer}",
            r'inputs = tokenizer("Q: Who wrote the play Hamlet?\nA:", return_tensors="pt")',
        ),
        (None, "if tokenizer.chat_template is None:"),
    ],
)
def test_snippets_are_python(adapter, template, line):
    card = card_of(adapter=adapter, evaluations={"after": evaluation(prompt={"template": template})})
    own, plain = python_blocks(card)
    ast.parse(own), ast.parse(plain)
    assert line in own.splitlines() and f'load_unlearned("{REPO}")' in own
    assert f'ModelForCausalLM.from_pretrained("{REPO}")' in plain


@pytest.mark.parametrize("template", ["the tokenizer's chat template", "Q: {question}\nA: {answer}", None])
def test_snippets_run(template, model, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # a folder of the repository's name stands in for it
    model.save_pretrained(REPO)
    tokenizer.save_pretrained(REPO)
    card = card_of(adapter=None, evaluations={"after": evaluation(prompt={"template": template})})
    own, plain = python_blocks(card)
    exec(own, {})
    assert capsys.readouterr().out.strip()
    names = {}
    exec(plain, names)
    assert names["model"].config.model_type == "llama" and names["tokenizer"].vocab_size > 0


def test_a_repository_needs_its_namespace():
    with pytest.raises(ValueError, match="expected the namespace too, as 'me/model'"):
        card_of(repo_id="model")
    with pytest.raises(ValueError):
        card_of(repo_id='me/x") or evil("')


# ------------------------------------------------------------------ hostile texts


def hostile(value, path=()):
    """Every text of a tree replaced by the hostile one, and every name that is not one of ours."""
    if isinstance(value, dict):
        return {key: hostile(part, (*path, key)) for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part, path) for part in value]
    return HOSTILE if isinstance(value, str) else value


def test_no_text_can_break_the_page():
    benign, arguments = run(), hostile(run())
    arguments["evaluations"]["after"]["benchmark"] = HOSTILE
    # nothing in the sentence or the lists stays a link: the same page with names that are not on the Hub
    benign["base_model"] = {"name": None, "revision": "c" * 40}
    for name in ("forget", "retain"):
        benign["data"][name] |= {"private": True}
    for result in benign["evaluations"].values():
        for source in result["data"].values():
            source["dataset"] = "local"
    card = build_card(collect_results(**arguments), REPO)
    plain = build_card(collect_results(**benign), REPO)
    tokens, structure = blocks(str(card))
    assert structure == blocks(str(plain))[1]
    children = [child for token in tokens for child in token.children or []]
    links = {child.attrs["href"] for child in children if child.type == "link_open"}
    assert all(link.startswith("https://github.com/trl-unlearn/") for link in links)
    assert not [child for child in children if child.type in ("image", "em_open", "strong_open", "s_open")]
    assert {child.content for child in children if child.type == "html_inline"} == {
        "<br>", "<sub>", "</sub>", "<code>", "</code>"
    }  # fmt: skip
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [BEGIN, END]
    # the first block of metadata is the only one, and plain
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), flags=re.S)[1])
    assert "license" not in data and "base_model" not in data and "datasets" not in data
    for block in python_blocks(card):
        ast.parse(block)
    assert "evil" not in "".join(python_blocks(card))
    assert str(ModelCard(str(card))) == str(card)
    # nor can one end the generated block early, which a new push would then double
    assert str(build_card(collect_results(**arguments), REPO, existing=str(card))) == str(card)


@pytest.mark.parametrize("key", ["hyperparameters", "versions", "seeds"])
def test_no_name_can_break_the_page(key):
    card = card_of(**{key: {HOSTILE: 1, "b": HOSTILE}})
    assert blocks(str(card))[1] == blocks(str(card_of(**{key: {"a": 1, "b": "c"}})))[1]


def test_no_metric_or_set_can_break_the_page():
    def renamed(name):
        made = evaluation(summary={name: 0.5}, missing={name: name}, intervals={}, data={name: {"n": 3}})
        return card_of(evaluations={"after": made}, history=[{"step": step, name: 0.5} for step in (0, 1)])

    card = renamed(HOSTILE)
    assert blocks(str(card))[1] == blocks(str(renamed("mine")))[1]
    assert [type(result.metric_value) for result in card.data.eval_results] == [float] * 4
    assert "evil.example" in card.data.eval_results[0].metric_type  # quoted, not lost


def test_a_hostile_older_card_stays_what_it_was():
    existing = f"---\nlanguage: en\ncard_data: x\ntemplate_str: z\nbegin: w\n---\n{HOSTILE}"
    card = card_of(existing=existing)
    assert card.text.count(BEGIN) == 1 and card.text.rstrip().endswith(HOSTILE.strip().splitlines()[-1])
    assert card.data.language == "en"


# ------------------------------------------------------------------ nothing private


def test_nothing_private_is_on_the_page(tmp_path):
    arguments = run()
    arguments["hyperparameters"]["output_dir"] = "/home/jane/npo"
    arguments["hyperparameters"]["hub_token"] = "hf_" + "x" * 34
    arguments["eval_results"] = {"benchmark": "org/benchmark", "task_id": "model_utility"}
    results = collect_results(**arguments)
    for text in (str(build_card(results, REPO)), *eval_results_yaml(results).values()):
        for private in (SECRET_TEXT, "/home", "jane", "hf_x", "hf_A"):
            assert private not in text


# ------------------------------------------------------------------ older cards


def test_hand_written_parts_survive_a_new_push():
    first = card_of()
    edited = str(first).replace(BEGIN, f"Read this first.\n\n{BEGIN}").replace("# base-NPO", "# My title")
    edited = edited.replace("license: llama3.2", "license: mit\nlanguage:\n- en\nextra_gated_prompt: Be kind.")
    edited += "\n## Thanks\n\nTo *all*.\n"
    changed = run()["evaluations"] | {"after": evaluation(summary={"model_utility": 0.25})}
    card = card_of(existing=edited, evaluations=changed)
    assert card.text.strip().startswith(f"Read this first.\n\n{BEGIN}\n\n# base-NPO\n")
    assert card.text.endswith(f"{END}\n\n## Thanks\n\nTo *all*.\n")
    assert card.data.language == ["en"] and card.data.extra_gated_prompt == "Be kind."
    assert card.data.license == "llama3.2"  # the base's, which is known
    assert {result.metric_type: result.metric_value for result in card.data.eval_results}["model_utility"] == 0.25
    assert "forget_rougeL_recall" not in str(card)
    # and nothing grows or moves when it is done again
    assert str(card_of(existing=str(card), evaluations=changed)) == str(card)
    assert str(card_of(existing=str(card).replace("\n", "\r\n"), evaluations=changed)) == str(card)


def test_results_that_are_no_longer_there_leave_the_card():
    card = card_of(existing=str(card_of()), evaluations={})
    assert "model-index" not in str(card) and "**Not evaluated**" in card.text


def test_a_card_without_our_lines_stands_below():
    card = card_of(existing="\ufeff---\nlanguage: de\n---\n# Mine\n\nText.\n")
    assert card.text.endswith(f"{END}\n\n# Mine\n\nText.\n") and card.data.language == "de"


def test_what_peft_makes_of_a_card_is_undone(tmp_path, model, lora_config):
    from peft import get_peft_model

    model = get_peft_model(model, lora_config)
    model.save_pretrained(tmp_path)  # its empty template
    stock = (tmp_path / "README.md").read_text()
    assert "[More Information Needed]" in stock
    card = card_of(existing=stock)
    assert str(card) == str(card_of())
    save_card(card, tmp_path)
    model.save_pretrained(tmp_path)  # changes tags and base, and adds to the end
    changed = (tmp_path / "README.md").read_text()
    assert changed != str(card)
    assert str(card_of(existing=changed)) == str(card)


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("---\na: [\n---\ntext", "metadata of the older card cannot be read"),
        ("---\nself: 1\n---\ntext", "metadata of the older card cannot be read"),
        ("---\n1: a\n---\ntext", "metadata of the older card cannot be read"),
        ("---\n- a\n---\ntext", "metadata of the older card cannot be read"),
        (f"---\na: b\n---\n{BEGIN}\ntext", "not clear what was written by hand"),
    ],
)
def test_an_older_card_that_cannot_be_read(existing, message):
    with pytest.raises(ValueError, match=message):
        card_of(existing=existing)


# ------------------------------------------------------------------ .eval_results


needs_entries = pytest.mark.skipif(
    not hasattr(huggingface_hub, "EvalResultEntry"), reason="this huggingface_hub has no `.eval_results/`"
)


@needs_entries
def test_entries_for_leaderboards():
    results = collect_results(**run(eval_results={"benchmark": "locuslab/TOFU", "task_id": "model_utility"}))
    ((name, text),) = eval_results_yaml(results).items()
    assert name == ".eval_results/TOFU-model_utility.yaml"
    (entry,) = huggingface_hub.parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("locuslab/TOFU", "model_utility", 0.5)
    assert entry.dataset_revision == "a" * 40
    results["eval_results"] |= {"task_id": "forget", "metric": "forget_quality_log10_p_value"}
    assert "value: -200.0" in eval_results_yaml(results)[".eval_results/TOFU-forget.yaml"]


@needs_entries
@pytest.mark.parametrize(
    ("task", "message"),
    [("forget10", "Add `metric`: one of forget_probability"), ("forget_probability", "ranks the highest first")],
)
def test_entries_that_would_be_wrong(task, message):
    results = collect_results(**run(eval_results={"benchmark": "locuslab/TOFU", "task_id": task}))
    with pytest.raises(ValueError, match=message):
        eval_results_yaml(results)


@pytest.mark.skipif(hasattr(huggingface_hub, "EvalResultEntry"), reason="this huggingface_hub has `.eval_results/`")
def test_a_client_without_entries_writes_none():
    results = collect_results(**run(eval_results={"benchmark": "locuslab/TOFU", "task_id": "model_utility"}))
    assert eval_results_yaml(results) == {}


def test_no_entries_unless_configured_and_evaluated():
    assert eval_results_yaml(collect_results(**run())) == {}
    configured = {"benchmark": "locuslab/TOFU", "task_id": "model_utility"}
    assert eval_results_yaml(collect_results(**run(eval_results=configured, evaluations={}))) == {}


def test_the_card_is_made_from_the_file_alone():
    results = collect_results(**run())
    assert str(build_card(json.loads(json.dumps(results)), REPO)) == str(build_card(results, REPO))
