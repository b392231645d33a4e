"""Memory as `trl-unlearn estimate` gives it: against hand computations, and against what the allocator counts in a real run."""

import gc
import json
import zlib
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import transformers
import trl.kernels.chunked_divergence
import trl.trainer.utils
from packaging.version import Version
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig

from trl_unlearn import AltPOConfig, AltPOTrainer, NPOConfig, NPOTrainer
from trl_unlearn.data.loading import load_rows
from trl_unlearn.estimation.timing import GPUS


LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "down_proj"]


@pytest.fixture
def parameters(model_dir) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in AutoModelForCausalLM.from_pretrained(model_dir).named_parameters()}


@pytest.fixture
def num_parameters(parameters) -> int:
    return sum(shape.numel() for shape in parameters.values())


@pytest.fixture
def num_adapter(parameters) -> int:
    return sum(4 * sum(shape) for name, shape in parameters.items() if "q_proj" in name or "down_proj" in name)


def test_full_training_holds_what_is_computed_by_hand(estimated, num_parameters, parameters, recipe):
    result = estimated()
    memory = result["memory"]
    buffers = memory["weights"] - 4 * num_parameters
    assert 0 <= buffers < 1000  # rotary frequencies
    assert memory["gradients"] == 4 * num_parameters
    # two moments in fp32, and the number of the step for each tensor
    assert memory["optimizer"] == 8 * num_parameters + 4 * len(parameters)
    assert memory["reference"] == 0  # precomputed
    held = sum(memory[part] for part in ("weights", "gradients", "optimizer", "overhead"))
    assert held < memory["total"] == pytest.approx(sum(memory.values()) - memory["total"])
    run = result["run"]
    assert (run["parameters"], run["pairs"], run["pairs_per_step"], run["steps"]) == (num_parameters, 24, 8, 30)
    # 6 operations a parameter and token, of which embeddings and the head's skipped positions do none
    ideal = 6 * num_parameters * run["mean_tokens_per_micro_batch"]
    assert 0.5 * ideal < run["flops_per_micro_batch"] < 1.5 * ideal
    assert result["time"]["step"] == pytest.approx(2 * run["flops_per_micro_batch"] / 1e12)
    assert not Path(recipe).with_name("run").exists()


def test_adapters_train_only_themselves(estimated, num_parameters, num_adapter):
    memory = estimated(*LORA)["memory"]
    assert memory["gradients"] == 4 * num_adapter
    assert 8 * num_adapter <= memory["optimizer"] < 8 * num_adapter + 100
    assert 0 <= memory["weights"] - 4 * (num_parameters + num_adapter) < 1000
    # switched off, the adapter leaves the reference
    assert estimated(*LORA, "--retain_loss_type", "kl")["memory"]["reference"] == 0


@pytest.mark.parametrize(
    ("flags", "resident"),
    [
        (["--precompute_ref_log_probs", "false"], True),
        (["--retain_loss_type", "kl"], True),
        (["--method", "simnpo", "--precompute_ref_log_probs", "false"], False),
    ],
)
def test_reference_is_resident_only_where_it_must(flags, resident, estimated, num_parameters):
    reference = estimated(*flags)["memory"]["reference"]
    assert 0 <= reference - 4 * num_parameters < 1000 if resident else reference == 0


def test_of_a_cached_reference_its_head_stays(estimated, parameters):
    kl = ["--retain_loss_type", "kl", "--cache_ref_hidden_states", "true"]
    cached = estimated(*kl)
    assert cached["memory"]["reference"] == 4 * parameters["model.embed_tokens.weight"].numel()
    share, of_forget_rows = (each["time"]["reference"] / each["time"]["micro_batch"] for each in (cached, estimated()))
    assert share == pytest.approx(2 * of_forget_rows)  # as many retain rows
    assert estimated(*LORA, *kl)["memory"]["reference"] == 0  # not trained, it is the model's own


def test_mixture_of_experts(estimated, tmp_path):
    """Each token meets two of four experts, whose weights all count."""
    config = MixtralConfig(
        architectures=["MixtralForCausalLM"], vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    if Version(transformers.__version__) < Version("5.0.0"):
        with pytest.raises(SystemExit, match="MixtralForCausalLM.*depend on the data.*Use transformers 5"):
            estimated("--model_name_or_path", str(tmp_path), "--tokens_per_row", "20")
        return
    result = estimated("--model_name_or_path", str(tmp_path), "--tokens_per_row", "20")
    attention, expert = 4 * 32 * 32, 3 * 32 * 64
    layer = attention + 4 * expert + 4 * 32 + 2 * 32  # with router and norms
    assert result["run"]["parameters"] == 2 * layer + 2 * 500 * 32 + 32
    used = 2 * (attention + 2 * expert + 4 * 32) + 500 * 32
    flops = 6 * used * result["run"]["mean_tokens_per_micro_batch"]
    assert 0.9 * flops < result["run"]["flops_per_micro_batch"] < 1.5 * flops


def test_optimizers(estimated, parameters, num_parameters):
    assert estimated("--optim", "sgd")["memory"]["optimizer"] == 0
    factored = sum(sum(shape) if len(shape) == 2 else shape.numel() for shape in parameters.values())
    adafactor = estimated("--optim", "adafactor")["memory"]["optimizer"]
    assert 4 * factored <= adafactor <= 4 * factored + 8 * len(parameters)
    # one byte and a 64th of one, but fp32 in embeddings and below 4096 elements
    in_8_bits = sum(s.numel() for n, s in parameters.items() if s.numel() >= 4096 and "embed" not in n)
    expected = 2 * (in_8_bits * (1 + 4 / 256) + 4 * (num_parameters - in_8_bits))
    assert in_8_bits == 0 or expected != 8 * num_parameters
    assert estimated("--optim", "adamw_8bit")["memory"]["optimizer"] == pytest.approx(expected)
    assert estimated("--optim", "paged_adamw_32bit")["memory"]["optimizer"] == 0


def test_activations_follow_batch_and_checkpointing(estimated):
    of_2 = estimated("--tokens_per_row", "64", "--per_device_train_batch_size", "2")["memory"]
    of_4 = estimated("--tokens_per_row", "64")["memory"]
    checkpointed = estimated("--tokens_per_row", "64", "--gradient_checkpointing", "true")["memory"]
    assert of_4["activations"] == pytest.approx(2 * of_2["activations"], rel=0.02)
    assert checkpointed["activations"] < 0.9 * of_4["activations"]
    assert checkpointed["total"] < of_4["total"]


def test_sharding_divides(estimated, num_parameters, tmp_path):
    one = estimated()["memory"]

    def sharded(text):
        config = tmp_path / f"{zlib.crc32(text.encode())}.yaml"
        config.write_text(text)
        return estimated("--accelerate_config", str(config), "--num_processes", "8")

    ddp = sharded("distributed_type: MULTI_GPU")["memory"]
    assert ddp["gradients"] == one["gradients"] == ddp["communication"]
    fsdp = sharded("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: true}")
    for part in ("gradients", "optimizer"):
        assert fsdp["memory"][part] == pytest.approx(one[part] / 8)
    assert fsdp["memory"]["weights"] == pytest.approx(4 * num_parameters / 8, abs=1000)
    assert fsdp["memory"]["activations"] == pytest.approx(one["activations"], rel=0.2)
    assert (fsdp["run"]["devices"], fsdp["run"]["pairs_per_step"]) == (8, 64)
    stages = {2: ["optimizer", "gradients"], 3: ["optimizer", "gradients", "weights"]}
    for stage, parts in stages.items():
        zero = sharded(f"distributed_type: DEEPSPEED\ndeepspeed_config: {{zero_stage: {stage}}}")["memory"]
        # fp32: weights and their gradients, and of the optimizer a copy of the weights beside the two moments
        whole = {"weights": 4 * num_parameters, "gradients": 4 * num_parameters, "optimizer": 12 * num_parameters}
        for part, num_bytes in whole.items():
            assert zero[part] == pytest.approx(num_bytes / (8 if part in parts else 1), abs=1000)


def test_16_bits(estimated, num_parameters):
    """Weights stay as they are loaded; what is sharded computes in 16 bits, beside fp32."""
    autocast = estimated("--gpu", "A100-80GB")
    assert autocast["memory"]["gradients"] == 4 * num_parameters
    plain = estimated("--gpu", "A100-80GB", "--bf16", "false")
    assert autocast["memory"]["activations"] < plain["memory"]["activations"]
    bf16 = estimated("--dtype", "bfloat16")["memory"]
    assert (bf16["gradients"], bf16["weights"]) == (2 * num_parameters, pytest.approx(2 * num_parameters, abs=1000))
    assert autocast["verdict"]["device_memory"] == GPUS["A100-80GB"].memory_gib * 2**30
    assert any("A100-80GB" in line and "data sheet" in line for line in autocast["assumptions"])


def test_quantized_weights(estimated, parameters, num_parameters, num_adapter):
    linear = sum(shape.numel() for name, shape in parameters.items() if "proj" in name)
    memory = estimated(*LORA, "--load_in_4bit", "true", "--dtype", "bfloat16")["memory"]
    expected = linear * (0.5 + 4 / 64) + 2 * (num_parameters - linear) + 4 * num_adapter
    assert memory["weights"] == pytest.approx(expected, abs=1000)
    assert memory["gradients"] == 4 * num_adapter  # the trainer keeps such adapters in fp32
    largest = max(shape.numel() for name, shape in parameters.items() if "proj" in name)
    assert memory["dequantized"] == 2 * largest


@pytest.mark.parametrize("kind", ["npo, kl, checkpointing", "altpo, lora"])
def test_as_many_bytes_as_the_allocator_counts(
    kind, estimated, model_dir, data_dir, lora_config, num_parameters, tmp_path, monkeypatch
):
    """A few real steps: the most that is allocated beside the model, as PyTorch's profiler sees it on the CPU."""
    # The allocator counts the whole buffer of a chunk, of which no more than the vocabulary is ever written
    vocab_size = AutoConfig.from_pretrained(model_dir).vocab_size
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", vocab_size)
    monkeypatch.setattr(trl.kernels.chunked_divergence, "VOCAB_CHUNK_SIZE", vocab_size)
    method = kind.split(",")[0]
    trainer_class, config_class = {"npo": (NPOTrainer, NPOConfig), "altpo": (AltPOTrainer, AltPOConfig)}[method]
    options = {
        "gradient_checkpointing": "checkpointing" in kind,
        "retain_loss_type": "kl" if "kl" in kind else "nll",
        "num_train_epochs": 3,  # the largest micro-batch may be the first, when the optimizer has no states yet
        "precompute_ref_batch_size": 1,  # not seen by the profiler, which starts later, and so not to be the peak
        "optim": "adamw_torch",  # the fused one allocates its states at once, all else alike
    }
    args = config_class(
        str(tmp_path / "run"), per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to=[],
        save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = trainer_class(
        model=model_dir,
        args=args,
        train_dataset=load_rows(data_dir, "forget"),
        retain_dataset=load_rows(data_dir, "retain"),
        peft_config=lora_config if "lora" in kind else None,
    )
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer.train()
    profiled.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    peak = max(accumulate(event["args"]["Bytes"] for event in events))

    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    if "lora" in kind:
        flags += ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "down_proj"]
    memory = estimated("--method", method, *flags)["memory"]
    expected = memory["total"] - memory["weights"] - memory["reference"] - memory["overhead"]
    assert expected == pytest.approx(peak, rel=0.05)
