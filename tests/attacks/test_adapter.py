"""Scale 0 is the base, scale 1 the adapter, and between them lies what half of the addition gives."""

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model

from trl_unlearn.attacks.adapter import scaled_adapter
from trl_unlearn.attacks.not_applicable import NotApplicable
from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.hub.load import take_off


IDS = torch.arange(20, 50)[None]


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_scales(load, adapter_dir, target_dir, forget):
    model, tokenizer = load(adapter_dir)
    base, _ = load(target_dir)
    merged, _ = load(adapter_dir, merge=True)
    as_it_is = logits(model)
    with scaled_adapter(model, 0.0):
        assert torch.equal(logits(model), logits(base))
        found = evaluate_unlearning(model, tokenizer, forget, max_new_tokens=8, show_progress=False)
    expected = evaluate_unlearning(base, tokenizer, forget, max_new_tokens=8, show_progress=False)
    assert found["summary"] == expected["summary"] and found["rows"] == expected["rows"]
    assert torch.equal(logits(model), as_it_is) and not torch.equal(as_it_is, logits(base))
    with torch.no_grad():  # halfway between the base's weights and the merged ones
        for old, new in zip(base.parameters(), merged.parameters(), strict=True):
            old.add_(new).mul_(0.5)
    with scaled_adapter(model, 0.5):
        torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), as_it_is)


def test_an_adapter_is_taken_off(load, adapter_dir, target_dir):
    model = take_off(load(adapter_dir)[0])
    assert not hasattr(model, "peft_config") and torch.equal(logits(model), logits(load(target_dir)[0]))
    assert model.config.name_or_path == target_dir


def test_what_has_no_scale(load, target_dir):
    model, _ = load(target_dir)
    with pytest.raises(NotApplicable, match="no adapter, but whole"), scaled_adapter(model, 0.5):
        pass
    prefix = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with scaled_adapter(prefix, 0.0):
        assert torch.equal(logits(prefix), logits(model))
    with pytest.raises(NotApplicable, match="PREFIX_TUNING has no scale"), scaled_adapter(prefix, 0.5):
        pass
