"""A small world, a model that knows it, the same after a shallow unlearning, and an adapter that makes it forget."""

import pytest
from datasets import Dataset

from trl_unlearn.world import generate_world, save_world


QUIET = {
    "per_device_train_batch_size": 16,
    "warmup_epochs": 0,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def people() -> dict[str, list[dict]]:
    """Twelve people, four of whom are to be forgotten."""
    return generate_world(seed=1, num_people=12, num_forget=4)


@pytest.fixture(scope="session")
def data_dir(people, tmp_path_factory) -> str:
    """The world on disk; of what is to be kept, few rows, so that an evaluation is short."""
    directory = tmp_path_factory.mktemp("attacked") / "data"
    short = {"forget_perturbed": 16, "retain_perturbed": 6, "world_facts_perturbed": 4}
    save_world({name: rows[: short.get(name)] for name, rows in people.items()}, directory)
    return str(directory)


@pytest.fixture(scope="session")
def target_dir(data_dir, tmp_path_factory) -> str:
    from trl_unlearn.world.train import WorldTrainingArguments, WorldTrainingConfig, train

    directory = str(tmp_path_factory.mktemp("attacked") / "target")
    arguments = WorldTrainingArguments(dataset_name=data_dir, vocab_size=500, hidden_size=64, num_heads=2)
    train(arguments, WorldTrainingConfig(directory, num_train_epochs=30, disable_tqdm=True))
    return directory


def unlearn(target_dir, people, directory, **options):
    from trl_unlearn import NPOConfig, NPOTrainer

    rows = {
        name: Dataset.from_list(people[name]).select_columns(["question", "answer"]) for name in ("forget", "retain")
    }
    peft_config = options.pop("peft_config", None)
    config = NPOConfig(directory, **QUIET, **options)
    retain = rows["retain"] if config.retain_weight > 0 else None
    trainer = NPOTrainer(
        target_dir, args=config, train_dataset=rows["forget"], retain_dataset=retain, peft_config=peft_config
    )
    trainer.train()
    trainer.save_model()
    return directory


@pytest.fixture(scope="session")
def unlearned_dir(target_dir, people, tmp_path_factory) -> str:
    """Three epochs of gradient ascent, after which no answer leaks: shallow, as relearning shows."""
    directory = str(tmp_path_factory.mktemp("attacked") / "unlearned")
    options = {"forget_loss_type": "grad_ascent", "retain_weight": 0.0, "learning_rate": 1e-3, "num_train_epochs": 3}
    return unlearn(target_dir, people, directory, **options)


@pytest.fixture(scope="session")
def adapter_dir(target_dir, people, tmp_path_factory) -> str:
    from peft import LoraConfig

    directory = str(tmp_path_factory.mktemp("attacked") / "adapter")
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return unlearn(target_dir, people, directory, peft_config=lora, beta=0.5, learning_rate=1e-2, num_train_epochs=3)


@pytest.fixture
def load():
    """Loads a model and its tokenizer."""
    from trl_unlearn import load_unlearned

    return load_unlearned


@pytest.fixture
def forget(people) -> Dataset:
    """One row a fact: 32."""
    return Dataset.from_list(people["forget_perturbed"])
