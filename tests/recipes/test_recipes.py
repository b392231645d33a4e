"""Every recipe: its options exist, its commands name what is there, its columns resolve, and it trains."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

import trl_unlearn
from trl_unlearn.data.encoding import encode_prompt_completion
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked, evaluate_retained
from trl_unlearn.evaluation.retain_reference import published_retain_logs
from trl_unlearn.files import write_json
from trl_unlearn.scripts.alternates import AlternatesScriptArguments
from trl_unlearn.scripts.parsing import RecipeParser
from trl_unlearn.scripts.unlearn import UnlearningScriptArguments, load_training_sets, run


REPOSITORY = Path(trl_unlearn.__file__).parents[1]
FILES = sorted((REPOSITORY / "recipes").glob("*/*/*.yaml"))
RECIPES = [path for path in FILES if path.stem != "alternates"]
METHODS = {"npo": "NPO", "simnpo": "SimNPO", "altpo": "AltPO"}


def name_of(recipe: Path) -> str:
    return str(recipe.relative_to(REPOSITORY / "recipes").with_suffix(""))


def script_of(recipe: Path) -> str:
    """The baselines gradient ascent and gradient difference are options of NPO."""
    stem = recipe.stem.removesuffix("_lora")
    return stem if stem in (*METHODS, "alternates") else "npo"


def parse(recipe: Path, *flags: str):
    if recipe.stem == "alternates":
        classes = AlternatesScriptArguments
    else:
        config_class = getattr(trl_unlearn, f"{METHODS[script_of(recipe)]}Config")
        classes = (UnlearningScriptArguments, config_class, ModelConfig)
    return RecipeParser(classes).parse(["--config", str(recipe), *flags])


def header_of(recipe: Path) -> list[str]:
    """The lines of the first comment, those that end with a backslash joined with the next one."""
    lines = []
    for line in recipe.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def effective_batch(recipe: Path, flags: list[str], num_processes: int) -> int:
    training_args = parse(recipe, *flags)[1]
    return training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps * num_processes


@pytest.mark.parametrize("recipe", FILES, ids=name_of)
def test_options_are_those_of_the_command(recipe, in_the_repository):
    given = yaml.safe_load(recipe.read_text())
    parsed = parse(recipe)
    for key, value in given.items():
        holder = next(holder for holder in parsed if hasattr(holder, key))
        parsed_value = getattr(holder, key)  # a list of one may have become that one
        assert parsed_value == value or [parsed_value] == value or key == "report_to", key
    assert "chat_template_path" not in given or Path(given["chat_template_path"]).is_file()


@pytest.mark.parametrize("recipe", FILES, ids=name_of)
def test_header_says_how_to_run_it(recipe, in_the_repository):
    path, batches, launched = str(recipe.relative_to(REPOSITORY)), set(), 0
    for line in header_of(recipe):
        words = shlex.split(line) if line.startswith(("accelerate launch", "trl-unlearn", "--")) else []
        if line.startswith("accelerate launch"):
            launched += 1
            split = words.index("-m")
            launcher, module, script = words[2:split], words[split + 1], words[split + 2 :]
            options = dict(zip(launcher[::2], launcher[1::2], strict=True))
            assert Path(options["--config_file"]).is_file()
            assert module == f"trl_unlearn.scripts.{script_of(recipe)}" and importlib.util.find_spec(module)
            assert script[:2] == ["--config", path]
            if recipe.stem != "alternates":
                batches.add(effective_batch(recipe, script[2:], int(options.get("--num_processes", 1))))
        elif words[:1] == ["trl-unlearn"]:
            assert Path(words[words.index("--config") + 1]).is_file()
        elif words:
            parse(recipe, *words)  # flags alone: another split or corpus
    assert launched == (1 if name_of(recipe).startswith(("world", "tofu/llama-2m")) else 2)
    assert recipe.stem == "alternates" or len(batches) == 1, "the batch differs between one GPU and many"


def overrides(recipe: Path, families, hub, output_dir: Path) -> list[str]:
    """Paths in place of what is on the Hub."""
    given, folder = yaml.safe_load(recipe.read_text()), name_of(recipe)
    family = next(
        family
        for start, family in {
            "tofu/llama-2m": "world", "world": "world", "tofu/llama-3": "llama-3", "tofu": "llama-2", "muse": "llama-2-bare",
            "wmdp": "zephyr",
        }.items()
        if folder.startswith(start)
    )  # fmt: skip
    flags = ["--model_name_or_path", families[family], "--output_dir", str(output_dir), "--max_steps", "2"]
    flags += ["--dataset_name", hub["world" if family == "world" else given["dataset_name"]], "--use_cpu", "true"]
    if "retain_dataset_name" in given:
        flags += ["--retain_dataset_name", hub[given["retain_dataset_name"]]]
    if "alternates_dataset_name" in given:
        flags += ["--alternates_dataset_name", hub["alternates"]]
    if "tokenizer_name_or_path" in given:
        flags += ["--tokenizer_name_or_path", families["llama-2-tokenizer"]]
    if ":" in given.get("forget_split", ""):
        flags += ["--forget_split", "train[:3]"]
    return flags


def train(recipe: Path, flags: list[str], with_evaluation: bool = False) -> None:
    script_args, training_args, model_args = parse(recipe, *flags)
    if not with_evaluation:
        script_args.eval_benchmark = script_args.retain_logs = None
    run(getattr(trl_unlearn, f"{METHODS[script_of(recipe)]}Trainer"), script_args, training_args, model_args)


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_two_steps_on_a_small_model_of_the_family(recipe, families, hub, in_the_repository, tmp_path):
    flags = overrides(recipe, families, hub, tmp_path)
    train(recipe, [*flags, "--eval_strategy", "no"])
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    if recipe.stem.endswith("_lora"):
        after = load_file(tmp_path / "adapter_model.safetensors")
        still = [name for name, tensor in after.items() if "lora_B" in name and not tensor.any()]
        assert any("lora_B" in name for name in after)
    else:
        before = load_file(Path(flags[1]) / "model.safetensors")
        after = load_file(tmp_path / "model.safetensors")
        still = [name for name, tensor in after.items() if tensor.equal(before[name])]
    assert not still, "these did not move"
    AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "tofu/llama-3.2-1b-instruct/npo",
        "muse/llama-2-7b-news/npo",
        pytest.param("wmdp/zephyr-7b-beta/npo", marks=pytest.mark.slow),
    ],
)
def test_evaluation_of_a_benchmark(name, families, hub, in_the_repository, tmp_path):
    """The model that training starts from, evaluated by itself, is what training reports before its first step."""
    recipe = REPOSITORY / "recipes" / f"{name}.yaml"
    flags = [*overrides(recipe, families, hub, tmp_path / "run"), "--eval_max_new_tokens", "4"]
    if name.startswith("muse"):
        flags += ["--eval_dataset", hub["muse-bench/MUSE-News"]]
    if name.startswith("wmdp"):
        pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")
        flags += ["--eval_dataset", hub["cais/wmdp"], "--eval_splits", "wmdp_bio"]  # MMLU is on the Hub only
    script_args, training_args, _ = parse(recipe, *flags)
    script_args.retain_logs = None
    model = AutoModelForCausalLM.from_pretrained(flags[1], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(script_args.tokenizer_name_or_path or flags[1])
    if training_args.chat_template_path is not None:
        tokenizer.chat_template = Path(training_args.chat_template_path).read_text()
    result = evaluate_as_asked(model, tokenizer, script_args, dataset_name=script_args.dataset_name)
    write_json(result, tmp_path / "retained.json")
    if not name.startswith("wmdp"):
        flags += ["--retain_logs", str(tmp_path / "retained.json")]
    train(recipe, flags, with_evaluation=True)
    evaluations = json.loads((tmp_path / "run" / "_evaluation" / "evaluations.json").read_text())
    assert [evaluations[index]["step"] for index in (0, -1)] == [0, 2]
    assert evaluations[0]["summary"].keys() >= result["summary"].keys()
    for metric, value in result["summary"].items():
        if metric != "privleak":  # against the retained model, which this is
            assert evaluations[0]["summary"][metric] == pytest.approx(value, rel=1e-5), metric
    if name.startswith("tofu"):
        assert evaluations[0]["forget_quality"]["p_value"] == pytest.approx(1)


@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if yaml.safe_load(path.read_text()).get("retain_logs") == "auto"], ids=name_of
)
def test_retained_model_is_found_for_every_split(recipe, in_the_repository):
    splits = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90", "News": "News", "Books": "Books"}
    for split, retained in splits.items():
        if name_of(recipe).startswith("tofu") != split.startswith("forget"):
            continue
        script_args, _, model_args = parse(recipe, "--eval_splits", split)
        if name_of(recipe).startswith("muse") and split not in model_args.model_name_or_path:
            continue
        file = published_retain_logs(model_args.model_name_or_path, split)
        assert retained in file
        # Tests are offline: the error names the file that was looked for
        with pytest.raises(OSError, match=re.escape(file)):
            evaluate_retained(script_args, model_name=model_args.model_name_or_path)


def test_prompts_of_llama_3_are_those_of_the_targets(families, in_the_repository):
    """open-unlearning's: Llama 3's format with a system message and a date, BOS once, the answer ended by the turn's end."""
    tokenizer = AutoTokenizer.from_pretrained(families["llama-3"])
    own_template = tokenizer.chat_template
    turns = [[{"role": "user", "content": " Who is it? "}], [{"role": "assistant", "content": "They are nobody."}]]
    theirs = [{"role": "system", "content": "You are a helpful assistant."}, *turns[0]]
    prompt_ids, answer_ids = encode_prompt_completion(theirs, turns[1], tokenizer, {"date_string": "10 Apr 2025"})
    tokenizer.chat_template = Path("recipes/tofu/llama-3_chat_template.jinja").read_text()
    assert encode_prompt_completion(*turns, tokenizer) == (prompt_ids, answer_ids)
    assert encode_prompt_completion(theirs, turns[1], tokenizer) == (prompt_ids, answer_ids)
    assert tokenizer.decode(prompt_ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 10 Apr 2025\n\nYou are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Who is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenizer.decode(answer_ids) == "They are nobody.<|eot_id|>"
    assert own_template != tokenizer.chat_template


def test_prompts_of_llama_2_are_those_of_tofu(families, in_the_repository):
    """TOFU's authors tokenize one text, with BOS, and add EOS behind it."""
    tokenizer = AutoTokenizer.from_pretrained(families["llama-2"])
    question, answer = "[INST] Who is it? [/INST]", "They are nobody."
    theirs = [*tokenizer(question + answer)["input_ids"], tokenizer.eos_token_id]
    tokenizer.chat_template = Path("recipes/tofu/llama-2_chat_template.jinja").read_text()
    turns = [[{"role": "user", "content": "Who is it?"}], [{"role": "assistant", "content": answer}]]
    prompt_ids, answer_ids = encode_prompt_completion(*turns, tokenizer)
    assert prompt_ids + answer_ids == theirs
    assert prompt_ids == tokenizer(question)["input_ids"]


def test_documents_that_are_none_are_left_out(hub, in_the_repository):
    recipe = REPOSITORY / "recipes" / "wmdp" / "zephyr-7b-beta" / "simnpo.yaml"
    flags = ["--dataset_name", hub["cais/wmdp-bio-forget-corpus"], "--retain_dataset_name", hub["Salesforce/wikitext"]]
    script_args, *_ = parse(recipe, *flags, "--forget_split", "train")
    forget, retain = load_training_sets(script_args)
    assert len(forget) == 6 and len(retain) == 4
    assert min(map(len, retain["text"])) > 50
    script_args.min_document_length = 0
    assert len(load_training_sets(script_args)[1]) == 12


def test_documents_name_what_is_there():
    readme = (REPOSITORY / "recipes" / "README.md").read_text()
    missing = {recipe.parent.name for recipe in FILES if f"{recipe.parent.name}`" not in readme}
    assert not missing
    index = (REPOSITORY / "docs" / "paper_index.md").read_text()
    named = re.findall(r"`((?:tofu|muse|wmdp|world)/[\w./*-]+\.yaml)`", index)
    assert len(named) >= 10
    assert [name for name in named if not list((REPOSITORY / "recipes").glob(name))] == []
    links = re.findall(r"\]\((\.\./[\w./]+|[\w/]+\.md)\)", index)
    assert [link for link in links if not (REPOSITORY / "docs" / link).exists()] == []
