"""Trains for the test Hub and is interrupted: what `test_end_to_end.py` starts, and how, is its first argument."""

import os
import resource
import signal
import sys

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from trl_unlearn import NPOConfig, NPOTrainer
from trl_unlearn.hub.push import PushError


class KilledTrainer(NPOTrainer):
    """Kills its process when everything is saved, and the last push is about to begin."""

    def _finish_current_push(self):
        super()._finish_current_push()
        if os.path.exists(f"{self.args.output_dir}/README.md"):
            os.kill(os.getpid(), signal.SIGKILL)


def make(output_dir: str, trainer_class=NPOTrainer, **options) -> NPOTrainer:
    sets = {name: load_dataset("endtoend/world", name, split="train") for name in ("forget", "retain")}
    return trainer_class(
        "endtoend/base",
        args=NPOConfig(output_dir, max_steps=2, report_to="none", disable_tqdm=True, **options),
        train_dataset=sets["forget"],
        retain_dataset=sets["retain"],
        processing_class=AutoTokenizer.from_pretrained("endtoend/base"),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )


def killed() -> None:
    """Pushes every checkpoint in the background, and is killed between the last save and its push."""
    options = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "every_save", "hub_always_push": True}
    trainer = make("killed", KilledTrainer, push_to_hub=True, hub_model_id="endtoend/killed", **options)
    trainer.train()
    trainer.push_to_hub()


def full() -> None:
    """Is told before training that a token is bad; finds the disk full when it saves; pushes once there is room."""
    try:
        make("full", push_to_hub=True, hub_token="hf_wrongwrongwrongwrong")
    except PushError as error:
        sys.stdout.write(f"BEFORE TRAINING: {error}\n")
    trainer = make("full", hub_model_id="endtoend/full", save_strategy="steps", save_steps=1)
    trainer.train()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        trainer.push_to_hub()
    except PushError as error:
        sys.stdout.write(f"FULL: {error}\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    trainer.model_card.text += "\n\n## Contact\n\nWrite to me.\n"
    commit = trainer.push_to_hub(blocking=False, private=True, dataset_name=None).result()
    sys.stdout.write(f"COMMIT: {commit.oid}\n")


if __name__ == "__main__":
    {"killed": killed, "full": full}[sys.argv[1]]()
