"""Whether a text was in the training data: scores that are higher for a text that likely was not, and their AUC."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


# A distribution over the vocabulary with one certain token has no spread. The same floor as in open-unlearning.
_MIN_SIGMA = 1e-3


def loss_score(nll: ArrayLike, num_tokens: ArrayLike) -> dict[str, float | list[float]]:
    """
    Loss attack: negative log-likelihood per token, in nats.

    Proposed in [Privacy Risk in Machine Learning](https://huggingface.co/papers/1709.01604).

    Args:
        nll (`array-like` of shape `(n,)`):
            Summed negative log-likelihood of each text's tokens, the final EOS included.
        num_tokens (`array-like` of shape `(n,)`):
            Number of those tokens.

    Returns:
        `dict`: `loss` (the mean) and `per_row`.

    Example:

    ```python
    >>> loss_score(nll=[2.0, 9.0], num_tokens=[4, 3])
    {'loss': 1.75, 'per_row': [0.5, 3.0]}
    ```
    """
    return _mean_and_rows("loss", np.asarray(nll, dtype=np.float64) / np.asarray(num_tokens))


def zlib_score(nll: ArrayLike, num_tokens: ArrayLike, texts: Sequence[str]) -> dict[str, float | list[float]]:
    """
    Zlib attack: negative log-likelihood per token, over the bytes of the compressed text.

    A text that repeats itself is easy for any model; the compressed size takes that out. Proposed in [Extracting
    Training Data from Large Language Models](https://huggingface.co/papers/2012.07805).

    Args:
        nll (`array-like` of shape `(n,)`):
            Summed negative log-likelihood of each text's tokens, the final EOS included.
        num_tokens (`array-like` of shape `(n,)`):
            Number of those tokens.
        texts (`list[str]`):
            The texts which were scored, without special tokens.

    Returns:
        `dict`: `zlib` (the mean) and `per_row`.

    Example:

    ```python
    >>> zlib_score(nll=[6.5], num_tokens=[5], texts=["ha ha ha ha ha ha"])["per_row"]
    [0.1]
    ```
    """
    losses = np.asarray(nll, dtype=np.float64) / np.asarray(num_tokens)
    compressed = [len(zlib.compress(text.encode())) for text in texts]
    return _mean_and_rows("zlib", losses / compressed)


def min_k_score(log_probabilities: Sequence[ArrayLike], k: float = 0.4) -> dict[str, float | list[float]]:
    """
    Min-K% attack: negative mean log-probability of each text's least probable tokens, in nats.

    Proposed in [Detecting Pretraining Data from Large Language Models](https://huggingface.co/papers/2310.16789).

    Args:
        log_probabilities (sequence of `n` `array-like` of shape `(num_tokens,)`):
            Log-probability of each token of each text, the final EOS left out. The score of a row without tokens is 0.
        k (`float`, *optional*, defaults to `0.4`):
            Share of the tokens, rounded down, but at least one token. 0.4 is what PrivLeak is made of.

    Returns:
        `dict`: `min_k` (the mean) and `per_row`.

    Example:

    ```python
    >>> min_k_score([[-1.0, -0.5, -4.0, -0.1, -2.0]])["per_row"]
    [3.0]
    ```
    """
    return _mean_and_rows("min_k", [_negative_mean_of_lowest(row, k) for row in log_probabilities])


def min_k_plus_plus_score(
    log_probabilities: Sequence[ArrayLike], mu: Sequence[ArrayLike], sigma: Sequence[ArrayLike], k: float = 0.4
) -> dict[str, float | list[float]]:
    """
    Min-K%++ attack: Min-K% of log-probabilities that are standardised over the vocabulary.

    Proposed in [Min-K%++](https://huggingface.co/papers/2404.02936).

    Args:
        log_probabilities (sequence of `n` `array-like` of shape `(num_tokens,)`):
            Log-probability of each token of each text, the final EOS left out. The score of a row without tokens is 0.
        mu (sequence of `n` `array-like` of shape `(num_tokens,)`):
            Mean of the log-probability over the next-token distribution at each of those tokens.
        sigma (sequence of `n` `array-like` of shape `(num_tokens,)`):
            Standard deviation of the same.
        k (`float`, *optional*, defaults to `0.4`):
            Share of the tokens, rounded down, but at least one token.

    Returns:
        `dict`: `min_k_plus_plus` (the mean) and `per_row`.

    Example:

    ```python
    >>> min_k_plus_plus_score([[-1.0, -4.0]], mu=[[-1.0, -2.0]], sigma=[[1.0, 0.5]])["per_row"]
    [4.0]
    ```
    """
    scores = [
        _negative_mean_of_lowest((np.asarray(row) - np.asarray(mean)) / np.maximum(deviation, _MIN_SIGMA), k)
        for row, mean, deviation in zip(log_probabilities, mu, sigma, strict=True)
    ]
    return _mean_and_rows("min_k_plus_plus", scores)


def reference_score(nll: ArrayLike, reference_nll: ArrayLike, num_tokens: ArrayLike) -> dict[str, float | list[float]]:
    """
    Reference attack: negative log-likelihood per token above that of a reference model, in nats.

    Proposed in [Extracting Training Data from Large Language Models](https://huggingface.co/papers/2012.07805).

    Args:
        nll (`array-like` of shape `(n,)`):
            Summed negative log-likelihood of each text's tokens, the final EOS included.
        reference_nll (`array-like` of shape `(n,)`):
            The same under a model that never saw the forget set. It must have the same tokenizer.
        num_tokens (`array-like` of shape `(n,)`):
            Number of those tokens.

    Returns:
        `dict`: `reference` (the mean) and `per_row`.

    Example:

    ```python
    >>> reference_score(nll=[2.0], reference_nll=[3.0], num_tokens=[4])["per_row"]
    [-0.25]
    ```
    """
    difference = np.asarray(nll, dtype=np.float64) - np.asarray(reference_nll)
    return _mean_and_rows("reference", difference / np.asarray(num_tokens))


def gradnorm_score(gradient_norms: ArrayLike) -> dict[str, float | list[float]]:
    """
    GradNorm attack: norm of the loss's gradient, averaged over the model's parameter tensors.

    Proposed in [Pandora's White-Box](https://huggingface.co/papers/2402.17012).

    Args:
        gradient_norms (`array-like` of shape `(n, num_parameters)`):
            For each text, Euclidean norm of the gradient of its mean negative log-likelihood, the final EOS left out,
            with respect to each parameter tensor.

    Returns:
        `dict`: `gradnorm` (the mean) and `per_row`.

    Example:

    ```python
    >>> gradnorm_score([[1.0, 2.0], [0.5, 0.5]])
    {'gradnorm': 1.0, 'per_row': [1.5, 0.5]}
    ```
    """
    return _mean_and_rows("gradnorm", np.asarray(gradient_norms, dtype=np.float64).mean(axis=1))


def membership_auc(forget_scores: ArrayLike, holdout_scores: ArrayLike) -> dict[str, float | int]:
    """
    Area under the ROC curve of an attack: probability that a holdout text scores above a forget text, ties half.

    1 for a model that remembers every forget text better than any text it never saw, 0.5 for one that cannot tell them
    apart, and 0 for one whose unlearning shows in the opposite direction. This is the direction of open-unlearning;
    MUSE's AUC is one minus this.

    Args:
        forget_scores (`array-like` of shape `(n,)`):
            Score of each forget text, higher for a text that was less likely in the training data.
        holdout_scores (`array-like` of shape `(m,)`):
            The same for texts that never were in it.

    Returns:
        `dict`: `auc`, `n_forget` and `n_holdout`.

    Example:

    ```python
    >>> membership_auc([0.1, 0.2], [0.2, 0.9])
    {'auc': 0.875, 'n_forget': 2, 'n_holdout': 2}
    ```
    """
    from scipy.stats import rankdata  # half a second at the start of every command

    forget_scores, holdout_scores = np.asarray(forget_scores), np.asarray(holdout_scores)
    n, m = len(forget_scores), len(holdout_scores)
    ranks = rankdata(np.concatenate([forget_scores, holdout_scores]))
    auc = float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))
    return {"auc": auc, "n_forget": n, "n_holdout": m}


def _negative_mean_of_lowest(values: ArrayLike, k: float) -> float:
    values = np.sort(np.asarray(values, dtype=np.float64))
    return float(-values[: max(1, int(k * len(values)))].mean()) if len(values) else 0.0


def _mean_and_rows(name: str, per_row: ArrayLike) -> dict[str, float | list[float]]:
    per_row = np.asarray(per_row, dtype=np.float64)
    return {name: float(per_row.mean()), "per_row": per_row.tolist()}
