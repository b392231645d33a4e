"""
The real TOFU on a CPU: a small Llama trained from nothing on its last 20 authors forgets the last two (forget01).

    python examples/tofu_from_scratch.py --dataset locuslab/TOFU --output_dir outputs/tofu/data
    for name in target:full retained:retain; do
        OMP_NUM_THREADS=1 python -m trl_unlearn.world.train --dataset_name outputs/tofu/data --tokenizer_config full \
            --dataset_config ${name#*:} --output_dir outputs/tofu/${name%:*} --hidden_size 192 --num_layers 3 \
            --vocab_size 4000 --per_device_train_batch_size 16 --learning_rate 2e-3 --num_train_epochs 30 \
            --eval_benchmark tofu --eval_splits forget --eval_max_new_tokens 100 &
    done; wait
    for method in npo simnpo altpo; do
        accelerate launch --config_file recipes/accelerate/single.yaml -m trl_unlearn.scripts.$method \
            --config recipes/tofu/llama-2m/$method.yaml
    done

TOFU ships five wrong answers for each question. Two become AltPO's alternates and three are kept to score, so that no
method is scored on what it was trained on.
"""

from argparse import ArgumentParser

from datasets import load_dataset

from trl_unlearn.world import save_world


parser = ArgumentParser(description="Lay out a part of TOFU for a model that is trained from nothing.")
parser.add_argument("--dataset", default="locuslab/TOFU", help="TOFU: Hub id or path")
parser.add_argument("--output_dir", default="outputs/tofu/data")
options = parser.parse_args()

authors = list(load_dataset(options.dataset, "forget10_perturbed", split="train"))  # 20 authors of 20 questions
alternates = [row["perturbed_answer"][:2] for row in authors]
scored = [{**row, "perturbed_answer": row["perturbed_answer"][2:]} for row in authors]
rows = [{"question": row["question"], "answer": row["answer"]} for row in authors]
save_world(
    {
        "full": rows,
        "forget": [{**row, "alternates": others} for row, others in zip(rows[360:], alternates[360:], strict=True)],
        "retain": rows[:360],
        "forget_perturbed": scored[360:],
        "retain_perturbed": scored[260:360],
    },
    options.output_dir,
    title="Twenty authors of TOFU (locuslab/TOFU, MIT)",
)
