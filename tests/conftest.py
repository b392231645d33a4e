"""What must be set before torch is imported, and the small real world, tokenizer and models that the tests share."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are several times faster on one thread
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "1"  # CPU is the reference; also for the processes that tests start

import pytest  # noqa: E402
from datasets import Dataset  # noqa: E402


@pytest.fixture(autouse=True)
def no_mixed_precision_left_behind(monkeypatch):
    """With transformers 4, `bf16=True` sets this variable, and every later trainer of the process would follow it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture(scope="session")
def world() -> dict[str, list[dict]]:
    from trl_unlearn.world import generate_world

    return generate_world(seed=1, num_people=8, num_forget=2)


@pytest.fixture(scope="session")
def forget_rows(world) -> Dataset:
    return Dataset.from_list(world["forget"]).select(range(12)).select_columns(["question", "answer", "alternates"])


@pytest.fixture(scope="session")
def retain_rows(world) -> Dataset:
    return Dataset.from_list(world["retain"]).select(range(30)).select_columns(["question", "answer"])


@pytest.fixture(scope="session")
def model_dir(world, tmp_path_factory) -> str:
    """A tiny Llama that has learnt a little, with its tokenizer, as `save_pretrained` leaves them."""
    import torch

    from trl_unlearn.data.encoding import encode_dataset
    from trl_unlearn.world.model import build_model, train_tokenizer

    rows = world["full"]
    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=500)
    model = build_model(tokenizer, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data = encode_dataset(Dataset.from_list(rows), tokenizer, "full", max_length=None)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = [data[int(i)] for i in torch.randint(0, len(data), (16,), generator=generator)]
        length = max(len(row["input_ids"]) for row in batch)
        ids = torch.tensor(
            [row["input_ids"] + [tokenizer.pad_token_id] * (length - len(row["input_ids"])) for row in batch]
        )
        labels = torch.tensor([row["labels"] + [-100] * (length - len(row["labels"])) for row in batch])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    directory = tmp_path_factory.mktemp("model")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def tokenizer(model_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture
def model(model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir)


@pytest.fixture
def lora_config():
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
