"""
NPO on TOFU, with all weights or with LoRA.

    python examples/npo.py --lora
    python examples/npo.py --model outputs/quickstart/world-0/target --dataset outputs/quickstart/world-0/data \
        --forget forget --retain retain
"""

from argparse import ArgumentParser

from datasets import load_dataset
from peft import LoraConfig

from trl_unlearn import NPOConfig, NPOTrainer


parser = ArgumentParser(description="Unlearn with NPO.")
parser.add_argument("--model", default="open-unlearning/tofu_Llama-3.2-1B-Instruct_full", help="Hub id or path")
parser.add_argument("--dataset", default="locuslab/TOFU", help="Hub id or path")
parser.add_argument("--forget", default="forget10", help="configuration of the forget set")
parser.add_argument("--retain", default="retain90", help="configuration of the retain set")
parser.add_argument("--lora", action="store_true", help="train an adapter instead of all weights")
parser.add_argument("--output_dir", default="outputs/npo")
options = parser.parse_args()

trainer = NPOTrainer(
    model=options.model,
    args=NPOConfig(options.output_dir, learning_rate=1e-4 if options.lora else 1e-5),
    train_dataset=load_dataset(options.dataset, options.forget, split="train"),
    retain_dataset=load_dataset(options.dataset, options.retain, split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if options.lora else None,
)
trainer.train()
trainer.save_model()
