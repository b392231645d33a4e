"""What scoring and generation share: batches of about equal length, and a model in evaluation mode for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import nn


Row = TypeVar("Row")


def batch_by_length(rows: Sequence[Row], length: Callable[[Row], int], max_batch_tokens: int) -> Iterator[list[Row]]:
    """
    Yields the rows longest first, so that a batch that does not fit in memory is the first one.

    Args:
        rows (`Sequence`):
            Rows.
        length (`Callable`):
            Number of tokens of a row.
        max_batch_tokens (`int`):
            Size of a batch in tokens once all its rows are as long as its longest. A single longer row is a batch of
            its own.
    """
    batch: list[Row] = []
    for row in sorted(rows, key=length, reverse=True):
        if batch and (len(batch) + 1) * length(batch[0]) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches dropout and the like off, and each module back to the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
