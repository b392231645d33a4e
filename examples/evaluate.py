"""
Evaluates a model in Python: forget and retain rows in, a table and a dict of every number out.

    python examples/evaluate.py --model outputs/quickstart/world-0/target --dataset outputs/quickstart/world-0/data \
        --forget forget_perturbed --retain retain_perturbed --truth_ratio_question paraphrased_question
"""

from argparse import ArgumentParser

from datasets import load_dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn import evaluate_unlearning
from trl_unlearn.evaluation.report import summary_table


parser = ArgumentParser(description="Evaluate a model on what it should forget and keep.")
parser.add_argument("--model", default="open-unlearning/tofu_Llama-3.2-1B-Instruct_full")
parser.add_argument("--dataset", default="locuslab/TOFU")
parser.add_argument("--forget", default="forget10_perturbed")
parser.add_argument("--retain", default="retain_perturbed")
parser.add_argument("--truth_ratio_question", default="question")
options = parser.parse_args()

result = evaluate_unlearning(
    AutoModelForCausalLM.from_pretrained(options.model),
    AutoTokenizer.from_pretrained(options.model),
    forget=load_dataset(options.dataset, options.forget, split="train"),
    retain=load_dataset(options.dataset, options.retain, split="train"),
    truth_ratio_question=options.truth_ratio_question,
)
Console().print(summary_table({"model": result}))
