r"""An exponential moving average of parameters, which often does better than the last of them.

After step :math:`t`

.. math::
    \bar\theta_t = d_t \, \bar\theta_{t-1} + (1 - d_t) \, \theta_t, \qquad
    d_t = \min\left(d, \frac{1 + t}{10 + t}\right), \qquad \bar\theta_0 = \theta_0

so that the start is soon forgotten: early on about the last tenth of the steps counts, until that
is as many as :math:`1 / (1 - d)`.

References:
    | Acceleration of Stochastic Approximation by Averaging (Polyak & Juditsky, 1992)
    | https://doi.org/10.1137/0330046
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_models.infer.programs.torch_internals import lerp_each_


class Average:
    """The averages of parameters, beside the parameters themselves.

    Arguments:
        parameters: The live parameters. The average begins with them.
        decay: d, between 0 and 1.
    """

    def __init__(self, parameters: list[Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.tensors = [  # half precision would lose moves as small as 1 - d
            p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for p in parameters
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the parameters after step number `step`, the first of which is 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = [p.to(a.dtype) for p, a in zip(self.parameters, self.tensors, strict=True)]
        lerp_each_(self.tensors, now, 1 - decay)

    def take(self) -> None:
        """Gives the parameters the values of their averages."""
        copy_all(self.parameters, self.tensors)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A context in which the parameters have the values of their averages."""
        before = [p.detach().clone() for p in self.parameters]
        self.take()
        try:
            yield
        finally:
            copy_all(self.parameters, before)


@torch.no_grad()
def copy_all(targets: list[Tensor], values: list[Tensor]) -> None:
    """Copies values into live tensors, in place."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def check_decay(ema: float | None) -> None:
    """Raises a ValueError where `ema` is no decay of an average."""
    if ema is not None and not (isinstance(ema, (int, float)) and 0 < ema < 1):
        raise ValueError(f"ema: expected a decay between 0 and 1, got {ema!r}. Try 0.999.")
