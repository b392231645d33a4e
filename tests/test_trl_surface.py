"""What this package relies on in TRL and Transformers beyond their documented API, checked where it would break first."""

import inspect

import torch
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_unlearn import _trl


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_overridden_methods_keep_their_signatures():
    assert parameters(SFTTrainer._prepare_dataset) == [
        "self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name",
    ]  # fmt: skip
    assert parameters(SFTTrainer.compute_loss) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert parameters(SFTTrainer.evaluate) == ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]
    assert parameters(Trainer._get_num_items_in_batch) == ["self", "batch_samples", "device"]
    assert parameters(Trainer._get_train_sampler) == ["self", "train_dataset"]
    assert parameters(Trainer._save) == ["self", "output_dir", "state_dict"]
    assert parameters(Trainer.log) == ["self", "logs", "start_time"]
    assert "metric_key_prefix" in parameters(Trainer.evaluation_loop)
    assert hasattr(TrainerCallback, "on_epoch_begin")


def test_private_functions_keep_their_arguments():
    assert parameters(_trl.add_fused_lm_head)[0] == "model"
    assert parameters(_trl.ChunkedDivergenceFunction.forward)[1:] == [
        "student_hidden", "student_weight", "student_bias", "teacher_hidden", "teacher_weight", "teacher_bias", "beta",
        "temperature", "student_logit_scale", "student_final_logit_softcapping", "teacher_logit_scale",
        "teacher_final_logit_softcapping",
    ]  # fmt: skip
    assert parameters(_trl.use_adapter) == ["model", "adapter_name"]
    assert parameters(_trl.disable_gradient_checkpointing) == ["model", "gradient_checkpointing_kwargs"]
    assert parameters(_trl.prepare_deepspeed) == parameters(_trl.prepare_fsdp) == ["model", "accelerator"]
    assert _trl.common_prefix_length([1, 2, 3], [1, 2, 4]) == 2


def test_the_parts_of_the_fused_head_are_there():
    assert all(callable(getattr(module, name)) for module, names in _trl.TRITON_KERNELS.items() for name in names)
    assert all(getattr(module, name) > 0 for module, name in _trl.CHUNK_SIZES)


def test_the_fused_head_scores_what_it_is_given(model):
    """With `shift_labels` and hidden states of label positions only, it projects those and no others."""
    _trl.add_fused_lm_head(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model(ids).logits.log_softmax(-1)
        output = model(input_ids=ids, shift_labels=torch.tensor([[6, 7, 8, -100]]), fused_lm_head=True)
    expected = logits[0, torch.arange(3), torch.tensor([6, 7, 8])]
    torch.testing.assert_close(output.log_probs[0, :3], expected, rtol=1e-5, atol=1e-6)
    assert output.log_probs[0, 3] == 0


def test_the_padding_free_collator_tells_rows_apart():
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(
        [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}]
    )
    assert batch["seq_idx"].tolist() == [[0, 0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5]]
