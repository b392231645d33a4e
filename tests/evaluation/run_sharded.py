"""Evaluates a model whose weights are sharded over CPU processes: what the tests launch."""

import argparse
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked
from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.evaluation.loading import load_model
from trl_unlearn.files import write_json


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=["fully_shard", "fsdp2", "zero3"])
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--output_dir", type=Path)
    arguments = parser.parse_args()

    if arguments.kind == "fully_shard":
        Accelerator(cpu=True)
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    else:
        # On a CPU accelerate takes any sharding for plain data parallelism, unless it thinks of accelerators.
        PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
        model, tokenizer = load_model(arguments.model)

    state = PartialState()
    assert state.num_processes == 2, state
    if arguments.kind == "zero3":
        assert state.distributed_type == DistributedType.DEEPSPEED, state
        assert all(parameter.ds_tensor.numel() <= parameter.ds_numel // 2 + 1 for parameter in model.parameters())
    else:
        assert (state.distributed_type == DistributedType.FSDP) == (arguments.kind == "fsdp2"), state
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor), name
            assert parameter.to_local().numel() < parameter.numel(), name

    options = EvaluationArguments(
        eval_benchmark="world",
        eval_dataset=arguments.data,
        eval_max_new_tokens=8,
        eval_max_batch_tokens=256,
        eval_extra_metrics=["self_confidence", "min_k_plus_plus"],
    )
    result = evaluate_as_asked(
        model, tokenizer, options, model_name=arguments.model, cache_dir=arguments.output_dir / "rows"
    )
    again = evaluate_as_asked(
        model, tokenizer, options, model_name=arguments.model, cache_dir=arguments.output_dir / "rows"
    )
    # One process has a long document, and the other one of which a single token is scored.
    documents = Dataset.from_list([{"text": "Which town does she come from?"}, {"text": "xq"}])
    of_documents = evaluate_unlearning(model, tokenizer, documents, max_batch_tokens=4)
    assert of_documents["rows"]["forget"]["num_tokens"][1] == 1
    if state.is_main_process:
        write_json({"first": result, "again": again, "documents": of_documents}, arguments.output_dir / "result.json")
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
