"""What cannot be trained on is refused before training, by a message that names it; what is doubtful is said once."""

import logging
import re

import pytest
import torch
from datasets import Dataset
from factory import TRAINERS, make_trainer
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import SFTConfig

from trl_unlearn import (
    AltPOConfig,
    NPOConfig,
    SimNPOConfig,
    UnlearningConfig,
    UnlearningTrainer,
)


# Loading it would fail: what is refused with this model is refused before a model is loaded
NO_MODEL = "nobody/no-such-model"


@pytest.fixture(params=TRAINERS)
def method(request):
    return request.param


@pytest.fixture
def make(forget_rows, retain_rows, tokenizer, tmp_path):
    """Makes a trainer of a method on four forget rows, with whatever is given instead."""

    def make(method, model, config=None, **arguments):
        options = {"max_steps": 1, "learning_rate": 1e-2, "warmup_epochs": 0.0, **(config or {})}
        rows = {"train_dataset": forget_rows.select(range(4)), "retain_dataset": retain_rows}
        return make_trainer(method, model, tmp_path, options, **{**rows, "processing_class": tokenizer, **arguments})

    return make


def warnings_of(caplog, part):
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


# ---------------------------------------------------------------- data sets


def test_a_forget_set_is_required(method, make):
    with pytest.raises(ValueError, match="`train_dataset` is required: it is the forget set"):
        make(method, NO_MODEL, train_dataset=None)


def test_a_retain_set_is_required_where_it_has_weight(method, make):
    with pytest.raises(ValueError, match="`retain_weight` is 2.0 but there is no `retain_dataset`.*retain_weight=0.0"):
        make(method, NO_MODEL, {"retain_weight": 2.0}, retain_dataset=None)


def test_no_retain_set_is_needed_without_weight(method, make, model):
    trainer = make(method, model, {"retain_weight": 0.0}, retain_dataset=None)
    trainer.train()
    logs = trainer.state.log_history[0]
    # transformers 4 rounds the loss it logs to four digits
    assert logs["loss"] == pytest.approx(trainer.args.forget_weight * logs["forget_loss"], rel=1e-5, abs=5e-5)
    assert not any("retain" in name for name in logs)


def test_a_retain_set_without_weight_is_not_read(make, model):
    trainer = make("npo", model, {"retain_weight": 0.0}, retain_dataset=Dataset.from_dict({"nonsense": [1]}))
    assert trainer.train_dataset.retain is None


@pytest.mark.parametrize("part", ["train_dataset", "retain_dataset"])
def test_streams_and_empty_sets_are_refused(part, method, make, forget_rows):
    name = {"train_dataset": "forget", "retain_dataset": "retain"}[part]
    with pytest.raises(TypeError, match=f"The {name} set is an `IterableDataset`.*Dataset.from_generator"):
        make(method, NO_MODEL, **{part: forget_rows.to_iterable_dataset()})
    with pytest.raises(ValueError, match=f"The {name} set is empty"):
        make(method, NO_MODEL, **{part: forget_rows.select([])})
    with pytest.raises(TypeError, match=rf"The {name} set must be a `datasets\.Dataset`, got `list`"):
        make(method, NO_MODEL, **{part: forget_rows.to_list()})


@pytest.mark.parametrize("named", [False, True])
def test_evaluation_sets_are_checked_as_well(named, make, model, forget_rows):
    stream, empty = forget_rows.to_iterable_dataset(), forget_rows.select([])
    name = "forget_few" if named else "eval"
    with pytest.raises(TypeError, match=f"The {name} set is an `IterableDataset`"):
        make("npo", model, eval_dataset={name: stream} if named else stream)
    with pytest.raises(ValueError, match=f"The {name} set is empty"):
        make("npo", model, eval_dataset={name: empty} if named else empty)


@pytest.mark.parametrize("part", ["train_dataset", "retain_dataset"])
def test_missing_columns_are_named(part, make, model, retain_rows):
    name = {"train_dataset": "forget", "retain_dataset": "retain"}[part]
    with pytest.raises(ValueError, match=rf"The {name} set has the columns \['answer', 'query'\]. Accepted are"):
        make("npo", model, **{part: retain_rows.rename_column("question", "query")})


def test_bad_rows_are_named(make, model, retain_rows):
    rows = retain_rows.to_list()
    rows[3] = {"question": rows[3]["question"], "answer": " "}
    with pytest.raises(ValueError, match="Row 3 of the retain set, column `answer`: .* is empty"):
        make("npo", model, retain_dataset=Dataset.from_list(rows))
    rows[3] = {"question": "why " * 100, "answer": "So."}
    with pytest.raises(ValueError, match=r"Row 3 of the forget set.* fills `max_length` \(64\)"):
        make("npo", model, {"max_length": 64}, train_dataset=Dataset.from_list(rows))


def test_altpo_needs_alternates(make, model, retain_rows):
    with pytest.raises(ValueError, match="The forget set has no alternate answers, which AltPO needs"):
        make("altpo", model, train_dataset=retain_rows)
    for method in ("npo", "simnpo"):
        assert make(method, model, train_dataset=retain_rows).train_dataset.alternate is None


def test_altpo_refuses_alternates_that_are_the_answer(make, model, forget_rows):
    rows = forget_rows.to_list()
    for index in (2, 5):
        rows[index] = rows[index] | {"alternates": [rows[index]["answer"], "Something else."]}
    problem = "2 alternate answers of the forget set equal the answer to forget (first in row 2)"
    with pytest.raises(ValueError, match=re.escape(problem)):
        make("altpo", model, train_dataset=Dataset.from_list(rows))


def test_altpo_names_the_row_of_the_set_that_was_given(make, model, forget_rows):
    """Not the row among the alternates, of which there are several for each question."""
    rows = forget_rows.to_list()
    rows[2] = rows[2] | {"question": "why " * 100}
    with pytest.raises(ValueError, match=r"Row 2 of the forget set, column `question`: .* fills `max_length` \(64\)"):
        make("altpo", model, {"max_length": 64}, train_dataset=Dataset.from_list(rows))


@pytest.mark.parametrize("as_messages", [False, True], ids=["same_columns", "messages"])
def test_forget_rows_in_the_retain_set_are_counted_in_one_warning(
    as_messages, method, make, model, forget_rows, retain_rows, caplog
):
    """They are found by their tokens, whichever way they are written."""
    both = [{key: row[key] for key in ("question", "answer")} for row in forget_rows.select([1, 3, 7])]
    retain = retain_rows.to_list() + both  # of these three, two are among the four forget rows
    if as_messages:
        retain = [
            {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
            for r in retain
        ]
    make(method, model, retain_dataset=Dataset.from_list(retain))
    (warning,) = warnings_of(caplog, "stand in the retain set too")
    assert warning.startswith("2 of 4 rows of the forget set")
    caplog.clear()
    make(method, model)
    assert not warnings_of(caplog, "stand in the retain set too")


def test_the_warning_reaches_people_who_set_up_no_logging(make, model, forget_rows, capfd):
    """Without any handler, Python prints warnings on the standard error stream; nothing in between may swallow it."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        make("npo", model, retain_dataset=forget_rows.select_columns(["question", "answer"]))
    finally:
        root.handlers = handlers
    assert capfd.readouterr().err.count("4 of 4 rows of the forget set stand in the retain set too") == 1


# ---------------------------------------------------------------- options, tokenizers, models


def test_options_of_another_method_are_refused(method, make, tmp_path):
    trainer_class, config_class = TRAINERS[method]
    others = {SFTConfig, UnlearningConfig, NPOConfig, SimNPOConfig, AltPOConfig} - {config_class}
    for other in [*others, TrainingArguments]:
        problem = f"must be a `{config_class.__name__}` for `{trainer_class.__name__}`, got `{other.__name__}`"
        with pytest.raises(TypeError, match=problem):
            make(method, NO_MODEL, args=other(str(tmp_path), bf16=False))


def test_without_options_the_defaults_are_the_methods(method, make, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the output directory is named after model and method
    trainer = make(method, model, args=None)
    assert type(trainer.args) is TRAINERS[method][1]
    assert trainer.args.output_dir.endswith(f"-{trainer._name}")


def test_the_base_class_has_no_loss(model, tokenizer, forget_rows, retain_rows, tmp_path):
    trainer = UnlearningTrainer(
        model,
        args=UnlearningConfig(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True),
        train_dataset=forget_rows,
        retain_dataset=retain_rows,
        processing_class=tokenizer,
    )
    with pytest.raises(NotImplementedError, match="`UnlearningTrainer` must implement `forget_loss`"):
        trainer.train()


def test_a_tokenizer_without_eos_is_refused(method, make, model, tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="The tokenizer has no EOS token"):
        make(method, model)


def test_eos_can_be_given_as_an_option(make, model, tokenizer):
    tokenizer.eos_token = None
    trainer = make("npo", model, {"eos_token": "<|eos|>"})
    assert trainer.train_dataset.forget[0]["labels"][-1] == tokenizer.convert_tokens_to_ids("<|eos|>")


def test_the_model_cannot_be_its_own_reference(method, make, model):
    with pytest.raises(ValueError, match="`model` and `ref_model` are the same object"):
        make(method, model, ref_model=model)


def prompt_learning_configs():
    return [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
    ]


@pytest.mark.parametrize("config", prompt_learning_configs(), ids=lambda config: type(config).__name__)
def test_virtual_tokens_are_refused(config, method, make):
    with pytest.raises(ValueError, match=f"`{type(config).__name__}` prepends virtual tokens.*LoRA"):
        make(method, NO_MODEL, peft_config=config)


@pytest.mark.parametrize("config", prompt_learning_configs(), ids=lambda config: type(config).__name__)
def test_virtual_tokens_of_a_given_adapter_are_refused(config, make, model):
    with pytest.raises(ValueError, match="virtual tokens"):
        make("npo", get_peft_model(model, config))


@pytest.mark.parametrize("given", [False, True], ids=["new", "given"])
def test_an_adapter_on_the_lm_head_is_refused(given, method, make, model):
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="Applying a PEFT adapter to `lm_head` is not supported"):
        if given:
            make(method, get_peft_model(model, config))
        else:
            make(method, model, peft_config=config)


@pytest.mark.parametrize("given", [False, True], ids=["new", "given"])
def test_a_head_trained_beside_an_adapter_is_not_the_references(given, make, model, model_dir, retain_rows):
    """`modules_to_save=["lm_head"]` trains a copy of the head; the KL is from the head as it was."""
    reference = AutoModelForCausalLM.from_pretrained(model_dir)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    trainer = make(
        "npo",
        get_peft_model(model, config) if given else model,
        {"max_steps": 5, "retain_loss_type": "kl"},
        peft_config=None if given else config,
    )
    trainer.train()
    kls = []
    for row in trainer.train_dataset.retain.select(range(8)):
        ids, predicts = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:]) != -100
        with torch.no_grad():
            logps = [log_softmax(m(ids).logits[0, :-1][predicts], -1) for m in (trainer.model.eval(), reference)]
        kls.append(kl_div(*logps, reduction="none", log_target=True).sum(-1))
    retain_kl = trainer.evaluate({"retain": retain_rows.select(range(8))})["eval_retain_loss"]
    assert retain_kl == pytest.approx(torch.cat(kls).mean().item(), rel=1e-3)


@pytest.mark.parametrize("uses_kl", [False, True], ids=["nll", "kl"])
def test_simnpo_says_that_it_ignores_a_reference(uses_kl, make, model, model_dir, caplog):
    reference = AutoModelForCausalLM.from_pretrained(model_dir)
    trainer = make("simnpo", model, {"retain_loss_type": "kl" if uses_kl else "nll"}, ref_model=reference)
    warnings = warnings_of(caplog, "`ref_model` is ignored")
    if uses_kl:
        assert not warnings and trainer.ref_model is reference
    else:
        assert warnings == ["SimNPO with `retain_loss_type='nll'` uses no reference: `ref_model` is ignored."]
        assert trainer.ref_model is None
    trainer.train()


# ---------------------------------------------------------------- evaluation of a new set after training

NEW_SET = "was passed to `evaluate` after training has changed the model, and no reference is left to score it"


@pytest.mark.parametrize("method", ["npo", "altpo"])
@pytest.mark.parametrize("adapter", ["none", "given"])
def test_a_new_forget_set_has_no_reference_after_training(adapter, method, make, model, lora_config, forget_rows):
    if adapter == "given":
        model = get_peft_model(model, lora_config)
    known, new = forget_rows.select(range(4, 8)), forget_rows.select(range(8, 12))
    trainer = make(method, model, eval_dataset={"forget_known": known})
    before = trainer.evaluate({"forget_new": new})
    assert "eval_forget_new_loss" in before  # the untrained model is its own reference
    trainer.train()
    with pytest.raises(ValueError, match=f"The forget_new set {NEW_SET}.*`eval_dataset`.*`ref_model`"):
        trainer.evaluate({"forget_new": new})
    with pytest.raises(ValueError, match=f"The eval set {NEW_SET}"):
        trainer.evaluate(new)
    # What needs no new reference goes on working
    assert trainer.evaluate()["eval_forget_known_rewards/forget"] != 0
    assert trainer.evaluate({"retain": known})["eval_retain_loss"] > 0
    trainer.train()


@pytest.mark.parametrize("way", ["new_adapter", "ref_model", "resident", "grad_ascent", "simnpo"])
def test_a_new_forget_set_is_evaluated_where_its_reference_is_left(
    way, make, model, model_dir, lora_config, forget_rows
):
    """With the numbers it would have had if it had been known from the beginning."""
    new = forget_rows.select(range(8, 12))
    method = "simnpo" if way == "simnpo" else "npo"
    config = {
        "resident": {"precompute_ref_log_probs": False},
        "grad_ascent": {"forget_loss_type": "grad_ascent"},
    }.get(way)
    metrics = []
    for eval_dataset in (new, None):
        trainer = make(
            method,
            AutoModelForCausalLM.from_pretrained(model_dir),
            config,
            eval_dataset=eval_dataset,
            ref_model=model if way == "ref_model" else None,
            peft_config=lora_config if way == "new_adapter" else None,
        )
        trainer.train()
        metrics.append(trainer.evaluate(None if eval_dataset is not None else new))
    known, late = (
        {name: value for name, value in values.items() if not re.search("runtime|per_second", name)}
        for values in metrics
    )
    assert late == pytest.approx(known, rel=1e-6, abs=1e-7)
    if way in ("new_adapter", "ref_model", "resident"):
        assert abs(known["eval_rewards/forget"]) > 1e-4


def test_a_reference_given_by_name_is_refused(make, model):
    with pytest.raises(TypeError, match="`ref_model` must be a model, got `str`.*from_pretrained"):
        make("npo", model, ref_model="someone/some-model")
