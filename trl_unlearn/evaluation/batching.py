"""What scoring and generation share: batches of about equal length, and a model in evaluation mode for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from transformers.utils import logging


logger = logging.get_logger(__name__)

Row = TypeVar("Row")
Output = TypeVar("Output")


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


def run_batches(
    batches: Sequence[list[Row]], compute: Callable[[list[Row]], list[Output]], halve: bool = True
) -> Iterator[tuple[list[Row], list[Output]]]:
    """
    Computes batch after batch; one that does not fit in memory is halved, and so are all later ones that are as large.

    Args:
        batches (`Sequence[list]`):
            Batches, none of them empty.
        compute (`Callable`):
            From a batch to one output a row.
        halve (`bool`, *optional*, defaults to `True`):
            Whether to go on after running out of memory. Not where the weights are sharded: the other processes would
            wait for this one for ever.

    Yields:
        `tuple[list, list]`: The rows of a batch, or of a part of it, and their outputs.
    """
    most_rows = None
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch[start : start + (most_rows or len(batch))]
            try:
                outputs = compute(part)
            except RuntimeError as error:
                if not (halve and len(part) > 1 and should_reduce_batch_size(error)):
                    raise
                most_rows = len(part) // 2
                logger.warning(f"Out of memory with {len(part)} rows at once: going on with {most_rows}.")
                del error  # its frames hold the tensors
                clear_device_cache(garbage_collection=True)
                continue
            yield part, outputs
            start += len(part)


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
