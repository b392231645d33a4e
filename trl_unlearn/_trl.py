"""
Every name of TRL that is used here and is not part of its documented API, read in trl 1.16.

`tests/test_trl_surface.py` checks that they still behave as this package relies on.
"""

from trl.data_utils import common_prefix_length
from trl.kernels import chunked_divergence, chunked_logprob
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.models.utils import disable_gradient_checkpointing, prepare_deepspeed, prepare_fsdp
from trl.trainer import utils as trainer_utils
from trl.trainer.utils import (
    add_fused_lm_head,
    disable_dropout_in_model,
    get_config_model_id,
    global_then_local_main_first,
    use_adapter,
)


# The fused LM head: what it runs as Triton kernels on a GPU, and how large its chunks are elsewhere
TRITON_KERNELS = {
    chunked_logprob: ("_forward_tile", "_backward_tile", "_addmm_fp32"),
    chunked_divergence: ("_stats_tile", "_backward_tile", "_addmm_fp32", "_project"),
}
CHUNK_SIZES = [(trainer_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE"), (chunked_divergence, "VOCAB_CHUNK_SIZE")]
ChunkedLogProbFunction = chunked_logprob.ChunkedLogProbFunction

__all__ = [
    "CHUNK_SIZES",
    "ChunkedDivergenceFunction",
    "ChunkedLogProbFunction",
    "TRITON_KERNELS",
    "add_fused_lm_head",
    "common_prefix_length",
    "disable_dropout_in_model",
    "disable_gradient_checkpointing",
    "get_config_model_id",
    "global_then_local_main_first",
    "prepare_deepspeed",
    "prepare_fsdp",
    "use_adapter",
]
