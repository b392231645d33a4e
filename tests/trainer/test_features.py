"""Options of TRL, transformers and peft that change how a model is run: they must not change what is learnt."""

import pytest
import torch
from factory import make_trainer


STEPS = 3


@pytest.fixture
def train(model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    """Trains for three steps with NPO; returns the trainer, after checking which parameters have moved."""

    def train(model=None, still=(), arguments=None, **options):
        arguments = {"train_dataset": forget_rows, "retain_dataset": retain_rows, **(arguments or {})}
        options = {"max_steps": STEPS, "learning_rate": 1e-2, "warmup_epochs": 0.0, **options}
        trainer = make_trainer(
            "npo", model or model_dir, tmp_path, options, **{"processing_class": tokenizer, **arguments}
        )
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        assert any(parameter.requires_grad for parameter in trainer.model.parameters())
        trainer.train()
        for name, parameter in trainer.model.named_parameters():
            moves = parameter.requires_grad and not any(part in name for part in still)
            assert torch.equal(parameter, before[name]) is not moves, name
        return trainer

    return train


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ---------------------------------------------------------------- torch.compile


@pytest.fixture
def dynamo_counters(monkeypatch):
    """Of what is compiled from here on. With transformers 4, the option stays in this variable for the whole process."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    reset()
    counters.clear()
    yield counters
    reset()


@pytest.mark.parametrize(
    ("lora", "options"),
    [
        (False, {}),
        (True, {"retain_loss_type": "kl"}),
        pytest.param(True, {"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=["full", "lora-kl", "lora-checkpointing"],
)
def test_compiled_layers_train_alike(lora, options, train, lora_config, dynamo_counters, monkeypatch):
    """Batches of changing shape are compiled twice, once as they are and once for any shape, and no more."""
    arguments = {"peft_config": lora_config} if lora else {}
    options = {"max_steps": 5, **options}
    expected = train(arguments=arguments, **options)
    assert not dynamo_counters["stats"]
    compiled = train(arguments=arguments, torch_compile=True, torch_compile_backend="eager", **options)
    assert logged(compiled) == pytest.approx(logged(expected), rel=1e-5)
    for name, parameter in expected.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], parameter)
    assert not dynamo_counters["graph_break"]
    graphs = dynamo_counters["stats"]["unique_graphs"]
    # Those of the adapter's first layer, whose input has no gradient, and of the reference, which needs none, are others
    assert 2 <= graphs <= (6 if lora else 2)


def test_a_model_without_named_layers_is_not_compiled(train, model, dynamo_counters):
    model._no_split_modules = None
    with pytest.raises(ValueError, match="`torch_compile`.*`LlamaForCausalLM` does not tell"):
        train(model, torch_compile=True, torch_compile_backend="eager")
