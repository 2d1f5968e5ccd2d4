"""S4D-Lin, a diagonal state space (Gu et al., 2022, https://arxiv.org/abs/2206.11893, eqs. 2-3 and section 4.4),
per channel.

h_t = e^{dt A} h_{t-1} + x_t,   y_t = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n h_{t,n} + D x_t,   A_n = -1/2 + i pi n
out = GLU(W gelu(y))

A whole sequence is a convolution with the kernel K_l = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{dt A_n l}.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import S4DLin


class S4D(Mixer):
    """A fixed bank of damped oscillators per channel: what is remembered does not depend on what is read."""

    sizes = ("d_state",)

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        self.ssm = S4DLin(d_model, d_state=d_state)
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        y, state = self.ssm(x, state)
        return F.glu(self.out(F.gelu(y)), -1), state
