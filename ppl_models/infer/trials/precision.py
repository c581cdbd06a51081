r"""Whether float32 is enough for the log-densities of some draws.

.. math:: \log p(x) = \log\Gamma(x + r) - \log\Gamma(r) - \log x! + \dots

The terms of a negative binomial are some :math:`10^7` nats at counts of a million, and float32 has
seven digits of each: what is left of their difference is noise. So are those of a Poisson, a
binomial, a gamma or a Dirichlet with large numbers in them. Which ones it concerns is not listed:
the log-density is computed again in float64, at the same parameters and value.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_models.infer.programs import sites

FAR = 1e-2  # nats, and of a larger log-density that share


def check_precision(*traces: poutine.Trace) -> None:
    """Raises where the log-densities of a trace, as computed, are rounded away in float32."""
    for text in lost_digits(*traces):
        raise ValueError(text)


def lost_digits(*traces: poutine.Trace, most: int | None = None) -> Iterator[str]:
    """What to say of each site whose log-density, as computed, is rounded away in float32.

    Arguments:
        traces: Traces with log-densities.
        most: The most numbers that a site may have to be looked at. Default: any.
    """
    for trace in traces:
        for site in sites.random_sites(trace):
            found = site.get("unscaled_log_prob")
            if not isinstance(found, Tensor) or found.dtype != torch.float32:
                continue
            if most is not None and site["value"].numel() > most:
                continue
            better = in_float64(site["fn"], site["value"])
            if better is None or better.shape != found.shape:
                continue
            far = (found - better).abs() > FAR * (1 + better.abs())
            if isinstance(site["mask"], Tensor):
                far = far & site["mask"]
            if far.any():
                where = f"site {site['name']!r}: the log-density of its {sites.kind(site['fn'])}"
                yield _message(where, found[far][0].item(), better[far][0].item())


def check_density(fn: Any, value: Tensor) -> None:
    """Raises where a density of rows is rounded away in float32."""
    found, better = fn.log_prob(value), in_float64(fn, value)
    if found.dtype != torch.float32 or better is None:
        return
    far = (found - better).abs() > FAR * (1 + better.abs())
    if far.any():
        where = f"evidence: the log-density of its {sites.kind(fn)}"
        raise ValueError(_message(where, found[far][0].item(), better[far][0].item()))


def _message(where: str, found: float, better: float) -> str:
    return (
        f"{where} is {found:.3f} in float32 and {better:.3f} in float64, at the same parameters "
        f"and value: large numbers cancel in it. Expected no more than rounding between them. Try "
        f"model.double(), guide.double() and x.double()."
    )


def in_float64(fn: Any, value: Tensor) -> Tensor | None:
    """The log-density that a distribution has in float64; None where that cannot be told.

    Transforms and networks are left out: theirs are the sums of products that float32 is for.
    """
    if hasattr(sites.base(fn), "transforms"):
        return None
    try:
        with in_double():
            density: Tensor = copy.deepcopy(fn).log_prob(value)  # it may keep what it computes
    except Exception:  # whatever a distribution of somebody does that is not for two precisions
        return None
    return density if density.dtype == torch.float64 else None


class in_double(TorchFunctionMode):
    """Operations in double precision: of tensors in single, and of what operations make in single.

    A tensor that was made before stands for itself by one copy while the context lasts, so that
    what a program writes into it, or into a view of it, is there when it is read again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the one in single

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = {name: _each(self._copy, x) for name, x in kwargs.items()} if kwargs else {}
        return _each(_double, func(*[_each(self._copy, x) for x in args], **named))

    def _copy(self, x: Tensor) -> Tensor:
        found = self.copies.get(id(x))
        if found is None:
            found = self.copies[id(x)] = x, _double(x)
        return found[1]


def _double(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.double()


def _each(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """Changes tensors in single precision, alone or among others."""
    if isinstance(x, Tensor):
        return change(x) if x.dtype == torch.float32 else x
    if type(x) in (tuple, list):
        return type(x)(_each(change, y) for y in x)
    return x
