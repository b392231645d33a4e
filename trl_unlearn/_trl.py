"""
Every name of TRL that is used here and is not part of its documented API, read in trl 1.16.

`tests/test_trl_surface.py` checks that they still behave as this package relies on.
"""

from trl.data_utils import common_prefix_length
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.models.utils import disable_gradient_checkpointing, prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import (
    add_fused_lm_head,
    disable_dropout_in_model,
    get_config_model_id,
    global_then_local_main_first,
    use_adapter,
)


__all__ = [
    "ChunkedDivergenceFunction",
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
