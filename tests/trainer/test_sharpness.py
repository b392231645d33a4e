"""Sharpness-aware forgetting, against gradients put together by hand from trainers whose weights were moved."""

import pytest
import torch
from factory import make_trainer
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, MixtralConfig, TrainerCallback


RESIDENT = {"precompute_ref_log_probs": False}
CASES = {  # method, options, whether an adapter is trained
    "simnpo": ("simnpo", {}, False),
    "simnpo-lora": ("simnpo", {}, True),
    "npo": ("npo", {}, False),
    "npo-lora-resident-kl": ("npo", RESIDENT | {"retain_loss_type": "kl"}, True),
    "altpo-resident": ("altpo", RESIDENT, False),
    "token-mean": ("npo", {"forget_loss_type": "grad_ascent"}, False),
    "checkpointed": ("simnpo", {"gradient_checkpointing": True}, False),
}


class KeepGradients(TrainerCallback):
    """The gradients that the optimizer is given, of each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.detach().clone() for n, p in model.named_parameters() if p.requires_grad})


@pytest.fixture
def gradients_of(model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    """Gradients of the steps of a run on eight forget rows that moves nothing, and its logs."""

    def run(method="simnpo", shift=None, peft_config=None, model=None, **options):
        torch.manual_seed(0)
        keep = KeepGradients()
        trainer = make_trainer(
            method,
            AutoModelForCausalLM.from_pretrained(model or model_dir, dtype="auto"),
            tmp_path,
            {
                "max_steps": 1, "per_device_train_batch_size": 8, "pairing": "fixed", "learning_rate": 0.0, "beta": 1.0,
                "forget_weight": 0.7, "retain_normalization": "optimizer_batch", **options,
            },
            train_dataset=forget_rows.select(range(8)),
            retain_dataset=retain_rows,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[keep],
        )  # fmt: skip
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                parameter += (shift or {}).get(name, 0.0)
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
        for name, parameter in trainer.model.named_parameters():  # to the bit where they were
            assert torch.equal(parameter, before[name]), name
        return keep.steps, trainer.state.log_history[:-1]

    return run


def norm(gradients):
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


def assert_same(found, expected, tolerance=1e-5):
    size = norm(expected)
    assert size > 1e-3
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-4, atol=float(tolerance * size), msg=name)


def by_hand(gradients_of, rho, method="simnpo", of_forget=None, **options):
    """The forget gradient from a distance of rho up its slope, and all others from where the weights are."""
    alone = options | {"retain_weight": 0.0, "retain_loss_type": "nll"} | (of_forget or {})
    (plain,), _ = gradients_of(method, **alone)
    shift = {name: rho * gradient / norm(plain) for name, gradient in plain.items()}
    (from_there,), _ = gradients_of(method, shift=shift, **alone)
    moved = {name: from_there[name] - plain[name] for name in plain}
    assert norm(moved) > 0.01 * norm(plain)  # it does make a difference
    (others,), _ = gradients_of(method, **options | {"forget_weight": 0.0})
    return {name: others[name] + from_there[name] for name in others}


@pytest.mark.parametrize("case", CASES)
def test_the_forget_gradient_is_that_of_the_moved_weights(case, gradients_of, lora_config):
    method, options, adapter = CASES[case]
    options = options | {"peft_config": lora_config if adapter else None}
    (found,), _ = gradients_of(method, forget_sharpness=0.3, **options)
    assert_same(found, by_hand(gradients_of, 0.3, method, **options))
    assert all("lora" in name for name in found) == adapter


def test_rows_at_the_floor_are_judged_there(gradients_of):
    """Between the probabilities of the rows, so that some are pushed and others are not."""
    _, (log,) = gradients_of(forget_floor=0.12)
    assert 0 < log["forgotten"] < 1
    (found,), _ = gradients_of(forget_floor=0.12, forget_sharpness=0.3)
    assert_same(found, by_hand(gradients_of, 0.3, forget_floor=0.12))


def test_routers_are_balanced_where_the_weights_are(gradients_of, tokenizer, tmp_path):
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, output_router_logits=True, router_aux_loss_coef=0.5,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mixtral")
    options = {"model": tmp_path / "mixtral"}
    (found,), _ = gradients_of(forget_sharpness=0.3, router_aux_loss_coef=0.5, **options)
    without = {"router_aux_loss_coef": 0.0}
    expected = by_hand(gradients_of, 0.3, of_forget=without, router_aux_loss_coef=0.5, **options)
    assert_same(found, expected)


def test_it_is_clipped_with_the_others(gradients_of):
    (whole,), _ = gradients_of(forget_sharpness=0.3)
    size = norm(whole)
    (found,), (log,) = gradients_of(forget_sharpness=0.3, max_grad_norm=float(size) / 2)
    assert log["grad_norm"] == pytest.approx(float(size), rel=1e-5)
    assert_same(found, {name: gradient / 2 for name, gradient in whole.items()})


@pytest.mark.parametrize(("case", "first", "size"), [("npo-lora-resident-kl", 6, 1), ("altpo-resident", 30, 10)])
def test_any_split_into_micro_batches_gives_the_same(case, first, size, gradients_of, lora_config):
    """Of two steps, of which the second is an epoch's last and has fewer micro-batches, of 8 or 40 pairs."""
    method, options, adapter = CASES[case]
    options = options | {"forget_sharpness": 0.3, "max_steps": 2, "peft_config": lora_config if adapter else None}
    whole, _ = gradients_of(method, per_device_train_batch_size=first, **options)
    assert norm({name: whole[0][name] - whole[1][name] for name in whole[0]}) > 0.1 * norm(whole[0])
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": first // size}
    found, _ = gradients_of(method, **split, **options)
    for of_split, of_whole in zip(found, whole, strict=True):
        assert_same(of_split, of_whole)


def test_what_is_logged_is_of_the_weights_as_they_are(gradients_of):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    logs = [gradients_of("npo", forget_sharpness=rho, **options)[1] for rho in (0.0, 0.3)]
    plain, sharp = ([{n: v for n, v in log.items() if n != "grad_norm"} for log in of_run] for of_run in logs)
    assert len(plain) == 4 and {"loss", "forget_loss", "retain_loss", "num_tokens"} <= plain[0].keys()
    for found, expected in zip(sharp, plain, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_resumed_run_goes_the_same_way(model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    """With dropout, too: the extra passes take their random numbers where they took them before."""

    def train(resume=None):
        torch.manual_seed(0)
        trainer = make_trainer(
            "simnpo",
            AutoModelForCausalLM.from_pretrained(model_dir),
            tmp_path,
            {
                "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps",
                "save_steps": 2, "forget_sharpness": 0.3, "disable_dropout": False,
            },
            train_dataset=forget_rows.select(range(11)),
            retain_dataset=retain_rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}

    whole = train()
    resumed = train(str(tmp_path / "checkpoint-2"))
    for name in whole:
        assert torch.equal(resumed[name], whole[name]), name


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"fp16": True}, "`fp16=True`"),
        ({"padding_free": True}, "`padding_free=True`"),
        ({"optim": "galore_adamw_layerwise"}, "`optim='galore_adamw_layerwise'`"),
    ],
)
def test_refused_options(option, message, gradients_of):
    with pytest.raises(ValueError, match=f"`forget_sharpness` is not supported with {message}.*Leave either out"):
        gradients_of(forget_sharpness=0.1, **option)


def test_weights_that_are_too_coarse_are_refused(gradients_of, model, tokenizer, tmp_path):
    model.bfloat16().save_pretrained(tmp_path / "bf16")
    with pytest.raises(ValueError, match="trained weights in 16 bits.*dtype='float32'"):
        gradients_of(forget_sharpness=0.1, model=tmp_path / "bf16")
