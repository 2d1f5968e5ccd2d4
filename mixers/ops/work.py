"""How much is in work at once: on a CPU what stays in the cache; on a GPU, where each call costs more than what it does
with so little, many times as much. And what is not kept for the backward pass, where that would be too much.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def wider(number: int, x: Tensor, times: int = 256) -> int:
    """`number`, which suits a CPU, or so many times it where x is elsewhere."""
    return number if x.device.type == "cpu" else number * times


def again(function: Callable, *inputs: Any) -> Any:
    """function(*inputs), computed again backwards: nothing inside of it is kept. It may draw no random number."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
