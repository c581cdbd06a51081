r"""A guide of latents that all rows share, and one of those of each row, put together.

.. math:: q(\theta, z_{1:N} \mid x) = q(\theta) \prod_n q_\phi(z_n \mid x_n, \theta)

With the shared latents given, those of a row can depend on them as in the posterior; without, they
cannot, and the bound lacks what that dependence is worth.

Shapes: `B` rows, `D` features, `S` numbers of shared latents.

References:
    | Stochastic Variational Inference (Hoffman et al., 2013), https://arxiv.org/abs/1206.7051
    | Structured Stochastic Variational Inference (Hoffman & Blei, 2015)
    | https://arxiv.org/abs/1404.4114
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_models.prompt.lines import in_a_line


class SharedAndLocal(nn.Module):
    r"""A guide of shared latents, and then an amortised one of those of each row.

    Both are called as the model is: the first may look at the rows, too.

    Arguments:
        shared: A guide of the shared latents, such as `AutoNormal` of the model without the others.
        local: An amortised guide of the latents of a row.
        given: The names of the shared latents that it sees: their numbers stand after those of each
            row, so that it takes rows of `D + S` features. Default: none.

    Raises:
        TypeError: If one of them is no guide.
        ValueError: At a call, if the first does not draw what is to be given.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from guides import AmortizedNormal
        >>> from ppl_models import data_plate
        >>> def model(x=None, size=None):
        ...     loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with data_plate(x, size):
        ...         z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        ...         return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> shared = AutoNormal(poutine.block(model, hide=["z"]))
        >>> guide = SharedAndLocal(shared, AmortizedNormal(2 + 2, 2), given=["loc"])
        >>> guide(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    __repr__ = in_a_line

    def __init__(
        self,
        shared: Callable[..., Any],
        local: Callable[..., Any],
        given: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, guide in (("shared", shared), ("local", local)):
            if isinstance(guide, type) or not callable(guide):
                raise TypeError(
                    f"SharedAndLocal: expected {name} to be a guide (a function or a module), got "
                    f"{guide!r}. Try an object, as in AmortizedNormal(num_features=4, "
                    f"num_latents=2)."
                )
        if isinstance(given, str):
            raise TypeError(
                f"SharedAndLocal: expected given to be a list of names, got {given!r}. "
                f"Try [{given!r}]."
            )
        self.shared, self.local = shared, local
        self.given = list(given)

    def forward(self, x: Tensor, *others: Tensor, size: int | None = None) -> Any:
        """Draws what rows `x` (and `others` beside them) share, and then the latents of each."""
        trace = poutine.trace(self.shared).get_trace(x, *others, size=size)
        return self.local(self.rows(x, trace), *others, size=size)

    def rows(self, x: Tensor, shared: poutine.Trace) -> Tensor:
        """The rows, and after each of them the numbers of the latents that are given."""
        missing = [name for name in self.given if name not in shared.nodes]
        if missing:
            known = [n for n, s in shared.nodes.items() if s["type"] == "sample"]
            raise ValueError(
                f"SharedAndLocal: expected the guide of shared latents to draw {missing[0]!r}, got "
                f"{known}. Try given={known[:1]}."
            )
        values = [shared.nodes[name]["value"].reshape(1, -1) for name in self.given]
        return torch.cat([x, *(v.expand(len(x), -1).to(x.dtype) for v in values)], 1)
