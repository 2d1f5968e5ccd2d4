"""How much is in work at once: on a CPU what stays in the cache; on a GPU, where each call costs more than what it does
with so little, many times as much.
"""

from torch import Tensor


def wider(number: int, x: Tensor, times: int = 256) -> int:
    """`number`, which suits a CPU, or so many times it where x is elsewhere."""
    return number if x.device.type == "cpu" else number * times
