"""The trainers as their users meet them: what they log, evaluate, save and load, and what they leave alone."""

import json

import pytest
import torch
from datasets import Dataset
from factory import make_trainer
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_unlearn import NPOConfig, NPOTrainer
from trl_unlearn.trainer import chunked_head, scoring


def make(
    method,
    model,
    tokenizer,
    forget,
    retain,
    output_dir,
    peft_config=None,
    callbacks=None,
    eval_dataset=None,
    **options,
):
    return make_trainer(
        method,
        model,
        output_dir,
        options,
        train_dataset=forget,
        retain_dataset=retain,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=callbacks,
    )


@pytest.mark.parametrize("method", ["npo", "simnpo", "altpo"])
def test_logged_metrics(method, model, tokenizer, forget_rows, retain_rows, tmp_path):
    trainer = make(method, model, tokenizer, forget_rows, retain_rows, tmp_path)
    trainer.train()
    logs = trainer.state.log_history[1]
    expected = {"loss", "forget_loss", "retain_loss", "logps/forget", "logps/retain", "forget_weights", "num_tokens"}
    expected |= {"rewards/forget"} if method != "simnpo" else set()
    if method == "altpo":
        expected |= {"logps/alternate", "rewards/alternate", "rewards/margins", "rewards/accuracies"}
    assert expected <= logs.keys()
    unexpected = {key for key in logs if key.startswith(("logps/", "rewards/", "lengths/", "retain_"))} - expected
    assert not unexpected
    assert all(isinstance(value, int | float) for value in logs.values())
    json.dumps(trainer.state.log_history)
    if method == "altpo":
        margin = logs["rewards/alternate"] - logs["rewards/forget"]
        assert logs["rewards/margins"] == pytest.approx(margin, abs=1e-6)


def test_logs_average_over_the_steps_between_them(model, model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    options = {"learning_rate": 0.0, "num_train_epochs": 1, "max_steps": -1}
    each = make("simnpo", model, tokenizer, forget_rows, retain_rows, tmp_path, **options)
    each.train()
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    whole = make("simnpo", model, tokenizer, forget_rows, retain_rows, tmp_path, logging_steps=3, **options)
    whole.train()
    single = [entry["forget_loss"] for entry in each.state.log_history if "forget_loss" in entry]
    assert len(single) == 3
    assert whole.state.log_history[0]["forget_loss"] == pytest.approx(sum(single) / 3, rel=1e-6)
    assert whole.state.log_history[0]["num_tokens"] == each.state.log_history[2]["num_tokens"]


@pytest.mark.parametrize("method", ["npo", "simnpo", "altpo"])
def test_evaluate_reports_forget_and_retain_apart(method, model, tokenizer, forget_rows, retain_rows, tmp_path):
    """On sets of uneven size, the exact loss of each whole set and not an average over batches."""
    forget, retain = forget_rows.select(range(5)), retain_rows.select(range(7))
    trainer = make(
        method,
        model,
        tokenizer,
        forget,
        retain,
        tmp_path,
        per_device_eval_batch_size=3,
        eval_dataset={"forget": forget, "retain": retain},
    )
    metrics = trainer.evaluate()
    assert {
        "eval_forget_loss",
        "eval_forget_logps/forget",
        "eval_retain_loss",
        "eval_retain_logps/retain",
    } <= metrics.keys()
    assert metrics["eval_retain_loss"] == pytest.approx(-metrics["eval_retain_logps/retain"], rel=1e-6)
    assert not any("retain" in key for key in metrics if key.startswith("eval_forget_"))
    whole = trainer.evaluate({"forget_again": forget, "other": retain}, metric_key_prefix="test")
    assert whole["test_forget_again_loss"] == pytest.approx(metrics["eval_forget_loss"], rel=1e-5)
    assert whole["test_other_loss"] == pytest.approx(metrics["eval_retain_loss"], rel=1e-5)
    for name in ("forget", "forget_train"):
        again = trainer.evaluate({name: forget})
        assert again[f"eval_{name}_loss"] == pytest.approx(metrics["eval_forget_loss"], rel=1e-5)
    assert "eval_train_logps/retain" in trainer.evaluate({"train": forget})  # a name like any other
    single = trainer.evaluate(forget)
    assert single["eval_loss"] == pytest.approx(metrics["eval_forget_loss"], rel=1e-5)


def test_evaluation_during_training_and_the_best_checkpoint(model, tokenizer, forget_rows, retain_rows, tmp_path):
    trainer = make(
        "npo",
        model,
        tokenizer,
        forget_rows,
        retain_rows,
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        learning_rate=1e-2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_forget_loss",
        greater_is_better=False,
        eval_dataset={"forget": forget_rows, "retain": retain_rows},
    )
    trainer.train()
    losses = [entry["eval_forget_loss"] for entry in trainer.state.log_history if "eval_forget_loss" in entry]
    assert len(losses) == 3
    assert trainer.evaluate()["eval_forget_loss"] == pytest.approx(min(losses), rel=1e-5)


class CountForwards(TrainerCallback):
    """Counts forwards of the model, and modules that look like a second one."""

    def __init__(self):
        self.per_step, self.forwards = [], 0

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.register_forward_pre_hook(lambda *_: setattr(self, "forwards", self.forwards + 1))

    def on_step_end(self, args, state, control, **kwargs):
        self.per_step.append(self.forwards)
        self.forwards = 0


@pytest.mark.parametrize(
    ("method", "options", "forwards"),
    [
        ("simnpo", {}, 1),
        ("npo", {}, 1),
        ("altpo", {}, 1),
        ("npo", {"forget_loss_type": "grad_ascent"}, 1),
        ("npo", {"precompute_ref_log_probs": False}, 2),
        ("simnpo", {"retain_loss_type": "kl"}, 2),
    ],
    ids=str,
)
def test_how_often_a_step_runs_the_model(
    method, options, forwards, model, tokenizer, lora_config, forget_rows, retain_rows, tmp_path
):
    """With an adapter the reference is the model itself, so that each of its forwards is counted."""
    counter = CountForwards()
    trainer = make(
        method,
        model,
        tokenizer,
        forget_rows,
        retain_rows,
        tmp_path,
        peft_config=lora_config,
        callbacks=[counter],
        **options,
    )
    assert trainer.ref_model is None
    trainer.train()
    assert counter.per_step == [forwards] * 2


@pytest.mark.parametrize("retain_loss_type", ["nll", "kl"])
def test_only_label_positions_reach_the_lm_head(
    retain_loss_type, model, tokenizer, forget_rows, retain_rows, tmp_path, monkeypatch
):
    """And with the KL retain loss, the labels of retain rows, which are only logged, need no gradient."""
    scored = []

    def nll(head, hidden_states, labels):
        losses = chunked_head.chunked_nll(head, hidden_states, labels)
        scored.append((len(labels), losses.requires_grad))
        return losses

    monkeypatch.setattr(scoring, "chunked_nll", nll)
    trainer = make("simnpo", model, tokenizer, forget_rows, retain_rows, tmp_path, retain_loss_type=retain_loss_type)
    batch = trainer.data_collator([trainer.train_dataset[(i, i)] for i in range(4)])
    trainer.compute_loss(trainer.model, dict(batch))
    num_labels = [int((rows != -100).sum()) for rows in (batch["labels"], batch["labels"][4:])]
    assert num_labels[0] < batch["labels"].numel() / 2
    ungraded = num_labels[1] if retain_loss_type == "kl" else 0
    reference = [(num_labels[1], False), (0, False)] if retain_loss_type == "kl" else []
    assert scored == [*reference, (num_labels[0] - ungraded, True), (ungraded, False)]


def test_buckets_have_less_padding_and_the_same_pairs(model, tokenizer, forget_rows, retain_rows, tmp_path):
    epochs = {}
    for bucket_by_length in (False, True):
        trainer = make(
            "npo", model, tokenizer, forget_rows, retain_rows, tmp_path,
            bucket_by_length=bucket_by_length, per_device_train_batch_size=2,
        )  # fmt: skip
        batches = list(trainer.get_train_dataloader())
        rows = sorted(
            tuple(ids[mask.bool()].tolist())
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        )
        epochs[bucket_by_length] = rows, sum(batch["input_ids"].numel() for batch in batches)
    assert epochs[True][0] == epochs[False][0]
    assert epochs[True][1] < epochs[False][1]


def test_data_workers_bf16_and_dropping_the_last_batch(model, tokenizer, forget_rows, retain_rows, tmp_path):
    """Options of TrainingArguments that could come between the pairs and the model."""
    losses = []
    for options in (
        {},
        {"dataloader_num_workers": 2},
        {"dataloader_drop_last": True},
        {"bf16": True, "use_cpu": True},
    ):
        trainer = make(
            "npo", model, tokenizer, forget_rows, retain_rows, tmp_path, learning_rate=0.0, max_steps=1, **options
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == losses[0] == losses[2]
    assert losses[3] == pytest.approx(losses[0], rel=2e-2)
    assert losses[3] != losses[0]


def test_simnpo_never_loads_a_reference(model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    """One model is in memory: as many parameters as the checkpoint, and no precomputed column."""
    import gc

    gc.collect()
    before = {id(module) for module in gc.get_objects() if isinstance(module, torch.nn.Embedding)}
    trainer = make("simnpo", model_dir, tokenizer, forget_rows, retain_rows, tmp_path)
    trainer.train()
    embeddings = [
        module for module in gc.get_objects() if isinstance(module, torch.nn.Embedding) and id(module) not in before
    ]
    assert len(embeddings) == 1
    assert trainer.train_dataset.forget.column_names == ["input_ids", "labels"]


def test_a_given_adapter_is_trained_against_its_frozen_copy_which_is_not_saved(
    model, tokenizer, lora_config, forget_rows, retain_rows, tmp_path
):
    from peft import PeftModel, get_peft_model

    peft_model = get_peft_model(model, lora_config)
    trainer = make(
        "npo", peft_model, tokenizer, forget_rows, retain_rows, tmp_path, precompute_ref_log_probs=False,
        save_strategy="steps", save_steps=1, save_total_limit=5,
    )  # fmt: skip
    assert set(trainer.model.peft_config) == {"default", "ref"}
    trainer.train()
    trainer.save_model()
    for directory in (tmp_path, tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        assert (directory / "adapter_model.safetensors").exists()
        assert not (directory / "ref").exists()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.config._name_or_path), tmp_path)
    trained = {n: p for n, p in trainer.model.named_parameters() if ".default." in n}
    assert trained
    for name, parameter in loaded.named_parameters():
        if ".default." in name:
            assert torch.equal(parameter, trained[name])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_saved_model_loads_with_transformers_and_peft_alone(
    lora, model_dir, tokenizer, lora_config, forget_rows, retain_rows, tmp_path
):
    trainer = make(
        "simnpo",
        model_dir,
        tokenizer,
        forget_rows,
        retain_rows,
        tmp_path,
        peft_config=lora_config if lora else None,
        learning_rate=1e-2,
    )
    trainer.train()
    trainer.save_model()
    ids = torch.tensor([tokenizer("Who is it?")["input_ids"]])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits)
        original = AutoModelForCausalLM.from_pretrained(model_dir)(ids).logits
    assert not torch.allclose(original, loaded(ids).logits, atol=1e-4)
    output = loaded.generate(ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(output, trainer.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("method", ["npo", "simnpo", "altpo"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_model_card(method, lora, model, tokenizer, lora_config, forget_rows, retain_rows, tmp_path):
    model.config._name_or_path = "someone/some-base"
    trainer = make(
        method, model, tokenizer, forget_rows, retain_rows, tmp_path, peft_config=lora_config if lora else None
    )
    trainer.create_model_card(dataset_name="locuslab/TOFU", tags="custom")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "someone/some-base"
    assert card.data.library_name == ("peft" if lora else "transformers")
    assert card.data.to_dict()["base_model_relation"] == ("adapter" if lora else "finetune")
    assert card.data.datasets == ["locuslab/TOFU"]
    assert {"unlearning", "trl", method, "custom"} <= set(card.data.tags)
    assert ("lora" in card.data.tags) is lora
    assert f"https://huggingface.co/papers/{trainer._paper['id']}" in card.text
    assert trainer._paper["citation"] in card.text
    assert "None" not in card.content


def test_model_card_of_a_local_base_and_data_names_no_path(model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    trainer = make("npo", model_dir, tokenizer, forget_rows, retain_rows, tmp_path)
    trainer.create_model_card(dataset_name=str(tmp_path))
    content = (tmp_path / "README.md").read_text()
    assert model_dir not in content
    assert str(tmp_path) not in content
    assert forget_rows[0]["answer"] not in content


def test_gradient_checkpointing_trains_the_adapter_alike(
    model_dir, tokenizer, lora_config, forget_rows, retain_rows, tmp_path
):
    losses = {}
    for checkpointing in (False, True):
        trainer = make(
            "npo", model_dir, tokenizer, forget_rows, retain_rows, tmp_path, peft_config=lora_config,
            gradient_checkpointing=checkpointing, learning_rate=1e-2, max_steps=3, precompute_ref_log_probs=False,
        )  # fmt: skip
        trainer.train()
        losses[checkpointing] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[True][0] != pytest.approx(losses[True][-1], rel=1e-3)


def test_mixture_of_experts_adds_its_router_loss(tokenizer, forget_rows, retain_rows, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5,
        )
    )  # fmt: skip
    trainer = make("npo", model, tokenizer, forget_rows, retain_rows, tmp_path)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["aux_loss"] > 0
    expected = logs["forget_loss"] + logs["retain_loss"] + 0.5 * logs["aux_loss"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


def test_documents_are_trained_in_windows(model, tokenizer, tmp_path):
    documents = Dataset.from_dict({"text": ["They live in a small town by the sea. " * 20, "A short one."]})
    trainer = make("simnpo", model, tokenizer, documents, documents, tmp_path, max_length=32)
    lengths = [len(ids) for ids in trainer.train_dataset.forget["input_ids"]]
    assert max(lengths) == 32
    assert len(lengths) > 5
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["loss"]))


def test_a_user_can_go_without_a_retain_set_and_with_defaults(model, tokenizer, forget_rows, tmp_path):
    trainer = NPOTrainer(
        model,
        args=NPOConfig(str(tmp_path), retain_weight=0.0, max_steps=1, logging_steps=1, report_to="none"),
        train_dataset=forget_rows,
        processing_class=tokenizer,
    )
    trainer.train()
    assert "retain_loss" not in trainer.state.log_history[0]
    default = NPOTrainer(
        model_id := model, train_dataset=forget_rows, retain_dataset=forget_rows, processing_class=tokenizer
    )
    assert default.args.output_dir.endswith("-NPO")
    assert default.args.beta == 0.1 and model_id is default.model
