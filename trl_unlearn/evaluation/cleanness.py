"""How likely a classifier finds it that a text is clean and not gibberish."""

import torch
from accelerate import PartialState
from transformers import AutoModelForSequenceClassification, AutoTokenizer


CLASSIFIER = "madhurjindal/autonlp-Gibberish-Detector-492513457"
_BATCH_SIZE = 32


@torch.no_grad()
def clean_probabilities(texts: list[str], classifier: str = CLASSIFIER) -> list[float]:
    """
    Probability of the class "clean" for each text.

    Args:
        texts (`list[str]`):
            Texts.
        classifier (`str`, *optional*):
            Sequence classifier with a class called "clean": a path or an id on the Hub. Defaults to the one that the
            paper of AltPO uses, which is downloaded.

    Returns:
        `list[float]`: Probabilities, in the order of `texts`.

    Raises:
        ValueError: If the classifier has no class "clean".
    """
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier, use_safetensors=True)
    model = model.to(PartialState().device).eval()
    classes = [name.lower() for name in model.config.id2label.values()]
    if "clean" not in classes:
        raise ValueError(f"{classifier} has the classes {classes}; expected one called 'clean'.")
    probabilities = []
    for start in range(0, len(texts), _BATCH_SIZE):
        batch = tokenizer(texts[start : start + _BATCH_SIZE], padding=True, truncation=True, return_tensors="pt")
        logits = model(**batch.to(model.device)).logits.float()
        probabilities += logits.softmax(-1)[:, classes.index("clean")].tolist()
    return probabilities
