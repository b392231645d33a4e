"""Options of TRL, transformers and peft that change how a model is run: they must not change what is learnt."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import torch
from factory import make_trainer
from trl import ModelConfig

from trl_unlearn import NPOConfig, NPOTrainer
from trl_unlearn.scripts.unlearn import adapter_of
from trl_unlearn.world import save_world


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


# ---------------------------------------------------------------- number formats


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_bf16_trains_nearly_alike(weights, train):
    """Autocast over fp32 weights, and bf16 weights: within the rounding of bf16, whose numbers have three digits."""
    expected = train()
    trainer = train(bf16=True, use_cpu=True, model_init_kwargs={"dtype": weights})
    assert trainer.model.dtype == getattr(torch, weights)
    assert logged(trainer) == pytest.approx(logged(expected), rel=3e-2)
    assert logged(trainer) != pytest.approx(logged(expected), rel=1e-6)


@pytest.fixture
def quantization_config():
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def quantized_model(model_dir, quantization_config):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model_dir, quantization_config=quantization_config, dtype=torch.float32
    )


def nll(model, tokenizer, rows):
    """Negative log-likelihood per token of the answers, row by row."""
    sums, count = 0.0, 0
    for row in rows:
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        start, ids = (
            tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in (prompt, whole)
        )
        with torch.no_grad():
            logps = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].log_softmax(-1)
        token_logps = logps.gather(-1, ids[0, 1:, None])[start.size(1) - 1 :]
        sums, count = sums - token_logps.sum().item(), count + len(token_logps)
    return sums / count


def test_qlora(
    quantization_config, quantized_model, model_dir, tokenizer, lora_config, forget_rows, retain_rows, train, tmp_path
):
    """The quantized model with its adapter switched off is the reference; the adapter is saved and loads again."""
    from peft import PeftModel

    forget, retain = forget_rows.select(range(4)), retain_rows.select(range(4))
    arguments = {"train_dataset": forget, "retain_dataset": retain, "peft_config": lora_config}
    losses = []
    for precompute in (True, False):
        trainer = train(
            arguments={**arguments, "quantization_config": quantization_config},
            precompute_ref_log_probs=precompute,
            gradient_checkpointing=precompute,
        )
        assert trainer.ref_model is None
        losses.append(logged(trainer))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert logged(trainer, "retain_loss")[0] == pytest.approx(nll(quantized_model, tokenizer, retain), rel=1e-5)
    assert logged(trainer, "rewards/forget")[0] == pytest.approx(0, abs=1e-5)
    # The same on weights that are not quantized is something else
    assert losses[0][0] != pytest.approx(logged(train(arguments=arguments))[0], rel=1e-4)

    trainer.save_model()
    loaded = PeftModel.from_pretrained(quantized_model, tmp_path)
    trained = trainer.evaluate({"retain": retain})["eval_retain_loss"]
    assert nll(loaded.eval(), tokenizer, retain) == pytest.approx(trained, rel=1e-5)


def test_small_steps_move_adapters_of_quantized_models(
    quantization_config, model_dir, tokenizer, lora_config, forget_rows, retain_rows, tmp_path
):
    """The papers' learning rate of 1e-5: on weights in bf16, most of such steps are rounded away."""
    trainer = make_trainer(
        "npo",
        model_dir,
        tmp_path,
        {"learning_rate": 1e-5, "warmup_epochs": 0.0},
        train_dataset=forget_rows,
        retain_dataset=retain_rows,
        processing_class=tokenizer,
        peft_config=lora_config,
        quantization_config=quantization_config,
    )
    adapter = {name: parameter for name, parameter in trainer.model.named_parameters() if "lora_A" in name}
    before = {name: parameter.detach().clone() for name, parameter in adapter.items()}
    trainer.train()
    for name, parameter in adapter.items():
        assert (parameter != before[name]).float().mean() > 0.9, name


def test_quantized_weights_are_not_trained_themselves(quantization_config, train):
    with pytest.raises(ValueError, match="attach trainable adapters"):
        train(arguments={"quantization_config": quantization_config})


@pytest.mark.parametrize(
    ("given", "expected"), [("q_proj", {"q_proj"}), ("all-linear", "all-linear"), (".*_proj", ".*_proj")]
)
def test_one_module_is_a_name_and_not_a_pattern(given, expected):
    model_args = ModelConfig(use_peft=True, lora_target_modules=[given])
    assert adapter_of(model_args).target_modules == expected


@pytest.mark.slow
def test_qlora_from_the_command_line(quantization_config, world, model_dir, tmp_path):
    from safetensors.torch import load_file

    save_world({name: rows[:8] for name, rows in world.items()}, tmp_path / "data")
    flags = {"model_name_or_path": model_dir, "dataset_name": tmp_path / "data", "output_dir": tmp_path / "run"}
    flags |= {"forget_config": "forget", "retain_config": "retain", "max_steps": 3, "learning_rate": 1e-3}
    flags |= {"lora_r": 4, "lora_target_modules": "all-linear", "report_to": "none", "warmup_epochs": 0}
    command = [sys.executable, "-m", "trl_unlearn.scripts.npo", "--load_in_4bit", "--use_peft"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert adapter and all(tensor.abs().max() > 0 for tensor in adapter.values())  # `lora_B` starts at zero
    assert "load_in_4bit: true" in (tmp_path / "run" / "unlearn_recipe.yaml").read_text()


# ---------------------------------------------------------------- kernels


def test_liger_is_refused_where_it_cannot_run(tmp_path):
    with pytest.raises(ValueError, match="`use_liger_kernel=True` needs the package `liger-kernel` and a GPU.*'cpu'"):
        NPOConfig(str(tmp_path), use_liger_kernel=True, use_cpu=True)


@pytest.mark.parametrize(
    "options",
    [{"use_kernels": True}, {"attn_implementation": "kernels-community/flash-attn2"}],
    ids=["kernels", "attention"],
)
def test_kernels_of_the_hub_are_refused_where_they_cannot_be_loaded(options, train, monkeypatch):
    """Transformers' own messages, before anything is computed."""
    monkeypatch.setattr(NPOTrainer, "_precompute_ref_logps", None)
    with pytest.raises((ValueError, ImportError), match="(?i)kernels"):
        train(model_init_kwargs=options)


# ---------------------------------------------------------------- architectures


def mixture_of_experts(name, vocab_size, coefficient):
    import transformers

    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "router_aux_loss_coef": coefficient}
    sizes |= {"pad_token_id": None, "output_router_logits": True}
    if name == "Mixtral":
        sizes |= {"num_local_experts": 4}
    else:
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
        sizes |= {"decoder_sparse_step": 1}
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes))


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe"])
def test_router_loss_of_mixtures_of_experts(name, train, tokenizer, forget_rows, retain_rows):
    """It is that of the model's own forward, has its coefficient, and its gradient reaches the routers."""
    rows = {"train_dataset": forget_rows.select(range(4)), "retain_dataset": retain_rows.select(range(4))}
    trainer = train(mixture_of_experts(name, len(tokenizer), 0.5), arguments=rows, learning_rate=1e-3)
    logs = trainer.state.log_history[0]
    expected = logs["forget_loss"] + logs["retain_loss"] + 0.5 * logs["aux_loss"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-4)

    batch = trainer.data_collator([trainer.train_dataset[(i, i)] for i in range(4)])
    untrained = mixture_of_experts(name, len(tokenizer), 0.5)
    with torch.no_grad():
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        aux_loss = untrained(**inputs, output_router_logits=True).aux_loss
    assert logs["aux_loss"] == pytest.approx(aux_loss.item(), rel=1e-5)

    gradients = []
    for coefficient in (0.0, 0.5, 1.0):
        trainer.router_aux_loss_coef = coefficient
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        gradients.append(torch.cat([p.grad.flatten() for n, p in trainer.model.named_parameters() if ".gate." in n]))
    assert (gradients[1] - gradients[0]).norm() > 1e-3
    torch.testing.assert_close(gradients[2] - gradients[0], 2 * (gradients[1] - gradients[0]), rtol=1e-3, atol=1e-6)


def test_a_router_without_coefficient_adds_nothing(train, tokenizer):
    trainer = train(mixture_of_experts("Mixtral", len(tokenizer), 0.5), router_aux_loss_coef=0.0, learning_rate=1e-3)
    logs = trainer.state.log_history[0]
    assert "aux_loss" not in logs
    assert logs["loss"] == pytest.approx(logs["forget_loss"] + logs["retain_loss"], rel=1e-4)


def vision_language_model(name, tokenizer):
    """A small model that has never seen anything, and how its vision parts are called."""
    import transformers

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer) + 4, "pad_token_id": tokenizer.pad_token_id}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    if name == "Llava":
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision),
            text_config=transformers.LlamaConfig(**text),
            image_token_index=len(tokenizer),
        )
    elif name == "Gemma3":
        text |= {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_implementation": "eager"}
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=len(tokenizer)
        )
    else:
        text |= {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
        vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1}
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=len(tokenizer))
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), ("vision", "visual", "projector")


@pytest.mark.parametrize("name", ["Llava", "Gemma3", "Qwen2VL"])
@pytest.mark.parametrize("retain_loss_type", ["nll", "kl"])
def test_vision_language_models_on_text(name, retain_loss_type, train, tokenizer, forget_rows, retain_rows):
    """The losses are those of the plain model, and what sees images stays as it is."""
    rows = {"train_dataset": forget_rows.select(range(4)), "retain_dataset": retain_rows.select(range(4))}
    model, vision = vision_language_model(name, tokenizer)
    expected = nll(model.eval(), tokenizer, rows["retain_dataset"])
    trainer = train(model, vision, rows, retain_loss_type=retain_loss_type)
    if retain_loss_type == "nll":
        assert logged(trainer, "retain_loss")[0] == pytest.approx(expected, rel=1e-5)
    else:
        assert logged(trainer, "retain_loss")[0] == pytest.approx(0, abs=1e-6)
        assert logged(trainer, "retain_loss")[-1] > 1e-3
    assert logged(trainer, "logps/retain")[0] == pytest.approx(-expected, rel=1e-5)


def test_a_processors_chat_template_is_the_one_used(train, tokenizer, tmp_path):
    from transformers import CLIPImageProcessor, LlavaProcessor

    template, tokenizer.chat_template = tokenizer.chat_template, None
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    tokenizer.image_token = "<image>"
    processor = LlavaProcessor(images, tokenizer, patch_size=14, chat_template=template)
    model, vision = vision_language_model("Llava", tokenizer)
    trainer = train(model, vision, {"processing_class": processor})
    assert "<|assistant|>" in tokenizer.decode(trainer.train_dataset.forget[0]["input_ids"])


def test_padding_free_rows_of_vision_language_models_are_refused(train, tokenizer):
    """Seen with Qwen2-VL, whose positions have three parts: rows of one batch attended to each other."""
    model, _ = vision_language_model("Qwen2VL", tokenizer)
    with pytest.raises(ValueError, match="`padding_free=True` is not supported for `Qwen2VLForConditionalGeneration`"):
        train(model, padding_free=True)


def test_a_chat_template_that_leaves_out_text_is_refused(train, tokenizer):
    """As templates for messages made of parts do, which find none in a text."""
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: "
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="leaves out messages that are plain text: it wrote 'user: <|eos|>assistant"):
        train()


# ---------------------------------------------------------------- trackers


SECRETS = {"hub_token": "hf_oneSecretToken", "model_init_kwargs": {"token": "hf_anotherSecretToken"}}


def check_no_secrets(content, forget_rows):
    assert b"SecretToken" not in content
    for row in forget_rows:
        assert row["question"].encode() not in content and row["answer"].encode() not in content


def test_tensorboard_gets_the_metrics_and_no_secrets(train, forget_rows, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = train(report_to="tensorboard", **SECRETS)
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    for name in ("loss", "forget_loss", "retain_loss", "logps/forget", "rewards/forget", "num_tokens"):
        values = [event.value for event in events.Scalars(f"train/{name}")]
        assert values == pytest.approx(logged(trainer, name), rel=1e-6)
    assert b"precompute_ref_log_probs" in file.read_bytes()
    check_no_secrets(file.read_bytes(), forget_rows)


@pytest.fixture
def trackio(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return pytest.importorskip("trackio")


def test_trackio_gets_the_metrics_and_no_secrets(trackio, train, forget_rows, tmp_path):
    trainer = train(report_to="trackio", project="forgetting", run_name="first", **SECRETS)
    trainer.accelerator.end_training()
    database = tmp_path / "trackio" / "forgetting.db"
    with closing(sqlite3.connect(database)) as connection:
        rows = [json.loads(metrics) for (metrics,) in connection.execute("SELECT metrics FROM metrics ORDER BY id")]
        ((config,),) = connection.execute("SELECT config FROM configs")
    for name in ("loss", "forget_loss", "retain_loss", "logps/forget", "rewards/forget", "num_tokens"):
        values = [row[f"train/{name}"] for row in rows if f"train/{name}" in row]
        assert values == pytest.approx(logged(trainer, name), rel=1e-6)
    assert json.loads(config)["beta"] == 0.3
    check_no_secrets(database.read_bytes(), forget_rows)


def test_logs_are_published_by_trackio_only_if_asked(tmp_path):
    """Transformers 4 would log to a Space at once, and 5 publish the log with every push: neither is asked for here."""
    config = NPOConfig(str(tmp_path), report_to="none")
    assert config.trackio_space_id is None
    assert getattr(config, "trackio_static_space_id", False) is False
    named = NPOConfig(str(tmp_path), report_to="none", trackio_space_id="someone/logs")
    assert named.trackio_space_id == "someone/logs"
