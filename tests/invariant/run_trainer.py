"""Trains one of the trainers as a process of its own: what the tests launch, kill and resume."""

import argparse
import json
import os
import signal
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

import trl_unlearn
from trl_unlearn.scripts.unlearn import end


class KillAtStep(TrainerCallback):
    """Kills the process without warning, in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--method")
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--options", type=json.loads)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--kill_at", type=int)
    arguments = parser.parse_args()

    peft_config = None
    if arguments.lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    forget, retain = (
        Dataset.from_list(json.loads((arguments.data / f"{name}.json").read_text())) for name in ("forget", "retain")
    )
    trainer = getattr(trl_unlearn, f"{arguments.method}Trainer")(
        arguments.model,
        args=getattr(trl_unlearn, f"{arguments.method}Config")(**arguments.options),
        train_dataset=forget,
        retain_dataset=retain,
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        callbacks=[KillAtStep(arguments.kill_at)] if arguments.kill_at else None,
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()
    result = {"logs": trainer.state.log_history}
    Path(trainer.args.output_dir, "result.json").write_text(json.dumps(result))
    end(trainer)


if __name__ == "__main__":
    main()
