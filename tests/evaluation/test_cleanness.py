"""Probabilities of clean text come from the class of that name, whatever the batch."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from trl_unlearn.evaluation.cleanness import clean_probabilities


@pytest.fixture
def classifier(tokenizer, tmp_path):
    def save(labels):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return save


def test_equals_the_classifier_by_itself(classifier, tokenizer, world):
    texts = [row["answer"] for row in world["full"][:40]]  # more than a batch
    path = classifier(["noise", "Clean", "word salad"])
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1].item() for text in texts]
    assert clean_probabilities(texts, path) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 10


def test_a_classifier_without_the_class_is_refused(classifier):
    with pytest.raises(ValueError, match=r"has the classes \['good', 'bad'\]; expected one called 'clean'"):
        clean_probabilities(["a"], classifier(["good", "bad"]))
