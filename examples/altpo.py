"""
AltPO on TOFU, with all weights or with LoRA.

    python examples/altpo.py --lora
    python examples/altpo.py --model outputs/quickstart/world-0/target --dataset outputs/quickstart/world-0/data \
        --forget forget --retain retain --alternates alternates
"""

from argparse import ArgumentParser

from datasets import load_dataset
from peft import LoraConfig

from trl_unlearn import AltPOConfig, AltPOTrainer


parser = ArgumentParser(description="Unlearn with AltPO.")
parser.add_argument("--model", default="open-unlearning/tofu_Llama-3.2-1B-Instruct_full", help="Hub id or path")
parser.add_argument("--dataset", default="locuslab/TOFU", help="Hub id or path")
parser.add_argument("--forget", default="forget10_perturbed", help="configuration of the forget set")
parser.add_argument("--retain", default="retain90", help="configuration of the retain set")
parser.add_argument("--alternates", default="perturbed_answer", help="column with the alternate answers")
parser.add_argument("--lora", action="store_true", help="train an adapter instead of all weights")
parser.add_argument("--output_dir", default="outputs/altpo")
options = parser.parse_args()

forget = load_dataset(options.dataset, options.forget, split="train")
if options.alternates != "alternates":
    forget = forget.rename_column(options.alternates, "alternates")
trainer = AltPOTrainer(
    model=options.model,
    args=AltPOConfig(options.output_dir, learning_rate=1e-4 if options.lora else 5e-5),
    train_dataset=forget,
    retain_dataset=load_dataset(options.dataset, options.retain, split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if options.lora else None,
)
trainer.train()
trainer.save_model()
