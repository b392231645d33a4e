"""An evaluation goes on with smaller batches when memory runs out, in a process that really has no more."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.files import write_json


HEADROOM = 24 * 2**20  # bytes; a token takes 32 KiB of it in each of several tensors, a row of 40 tokens some MiB


def main(model_dir: str, rows: str, output: str) -> None:
    """Evaluates with and without a limit on memory: what the test launches."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=8192,  # wide, so that what a batch needs is large and the model is small
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    forget = Dataset.from_list(json.loads(Path(rows).read_text()))

    def evaluate(dataset):
        options = {"max_new_tokens": 32, "max_batch_tokens": 10**6, "show_progress": False}
        return evaluate_unlearning(model, tokenizer, dataset, **options)

    evaluate(forget.select(range(2)))  # everything that is loaded on first use
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + HEADROOM, resource.RLIM_INFINITY))
    limited = evaluate(forget)
    try:
        evaluate(Dataset.from_list([{"text": " ".join(forget["question"])}]))
        error = None
    except RuntimeError as caught:
        error = str(caught)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sys.stderr.write("No limit any more.\n")
    write_json({"limited": limited, "error": error, "unlimited": evaluate(forget)}, output)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_batches_are_halved_and_a_row_that_does_not_fit_raises(world, model_dir, tmp_path):
    rows = [*world["forget_perturbed"], *world["retain_perturbed"]][:30]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    # large tensors straight from the system and back to it, whatever was allocated before
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    process = subprocess.run(
        [sys.executable, __file__, model_dir, tmp_path / "rows.json", tmp_path / "result.json"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-9000:]
    result = json.loads((tmp_path / "result.json").read_text())
    limited, unlimited = result["limited"], result["unlimited"]

    before, after = process.stderr.split("No limit any more.")
    halved = [tuple(map(int, sizes)) for sizes in re.findall(r"with (\d+) rows at once: going on with (\d+)", before)]
    assert "Out of memory" not in after
    assert halved[0][0] == unlimited["cost"]["scored_rows"]  # all in one batch
    first = next(index for index, (rows, _) in enumerate(halved[1:], 1) if rows != halved[index - 1][1])
    assert first > 1 and halved[first][0] <= len(rows)  # prompts to be continued, halved as well
    assert all(now == before // 2 for before, now in halved)

    for metric, value in unlimited["summary"].items():
        assert limited["summary"][metric] == pytest.approx(value, rel=1e-6), metric
    columns, expected = limited["rows"]["forget"], unlimited["rows"]["forget"]
    assert columns["generated"] == expected["generated"]
    assert columns["exact_memorization"] == expected["exact_memorization"]
    assert columns["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert limited["cost"]["scored_rows"] == unlimited["cost"]["scored_rows"]
    assert limited["cost"]["generated_tokens"] == unlimited["cost"]["generated_tokens"]
    assert "DefaultCPUAllocator: can't allocate memory" in result["error"]


if __name__ == "__main__":
    main(*sys.argv[1:])
