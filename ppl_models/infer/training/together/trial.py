r"""Whether a loss can be shared: whether that of a batch is the mean over its parts.

.. math::
    \ell(x_{1:B}) = \sum_r \frac{B_r}{B} \, \ell(x_{r})

It is where rows are independent given the parameters. It is not where they meet: in batch
normalisation, in a divergence between the rows of a batch, in a program that takes all rows or
none. That is tried before the first step, in training mode, on a few rows, with random numbers that
are the same for each row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_models.processes import Processes
from ppl_models.scoped import kept_rng, modes

ROWS = 4  # for each process
TOLERANCE = {torch.float64: 1e-8}  # relative
SINGLE = 1e-3
QUANTILE = 0.37  # of uniform numbers, and of normal ones the value


Numbers = Callable[[Tensor, int], dict[str, Tensor]]


class _Even(TorchDispatchMode):
    """Draws the same number for each row."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        make = _MADE.get(name)
        if make is None:
            return func(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))  # for its shape, its type, and its errors
        named = {
            argument.name: value
            for argument, value in zip(func._schema.arguments, args, strict=False)
        }
        even = make(result, {**named, **(kwargs or {})})
        return result.copy_(even) if name.endswith("_") else even.to(result.dtype)


def _normal(result: Tensor, given: dict[str, Any]) -> Tensor:
    loc, scale = given.get("mean", 0.0), given.get("std", 1.0)
    return torch.zeros_like(result) + loc + QUANTILE * scale


def _uniform(result: Tensor, given: dict[str, Any]) -> Tensor:
    low, high = given.get("from", 0.0), given.get("to", 1.0)
    return torch.full_like(result, low + QUANTILE * (high - low))


def _bernoulli(result: Tensor, given: dict[str, Any]) -> Tensor:
    p: Any = given.get("p", given.get("self"))
    return torch.zeros_like(result) + torch.as_tensor(p > QUANTILE)


def _integers(result: Tensor, given: dict[str, Any]) -> Tensor:
    low, high = given.get("low", given.get("from", 0)), given.get("high", given.get("to", 2))
    return torch.full_like(result, int(low + QUANTILE * ((high or 2) - low)))


def _likeliest(result: Tensor, given: dict[str, Any]) -> Tensor:
    order = given["self"].argsort(-1, descending=True)[..., : result.shape[-1]]
    return order if order.shape == result.shape else order[..., :1].expand_as(result)


def _mean(result: Tensor, given: dict[str, Any]) -> Tensor:
    return given["self"].expand_as(result).clone()


_MADE = {
    **dict.fromkeys(("normal", "normal_", "randn", "randn_like"), _normal),
    **dict.fromkeys(("uniform", "uniform_", "rand", "rand_like"), _uniform),
    **dict.fromkeys(("bernoulli", "bernoulli_"), _bernoulli),
    **dict.fromkeys(("randint", "randint_like", "random_"), _integers),
    "multinomial": _likeliest,
    "_standard_gamma": _mean,
    "poisson": lambda result, given: given["self"].floor(),
    "binomial": lambda result, given: (given["count"] * given["prob"]).floor(),
    "_sample_dirichlet": lambda result, given: given["self"] / given["self"].sum(-1, keepdim=True),
    "exponential_": lambda result, given: torch.full_like(result, 1 / given.get("lambd", 1.0)),
}


def even_draws() -> TorchDispatchMode:
    """A context in which each row draws the same numbers, so that they are alike in any part."""
    return _Even()


def check_transform(
    transform: Callable[..., Any], tensors: tuple[Tensor, ...], processes: Processes
) -> None:
    """Raises on all processes where what a transform makes of a row depends on the others."""
    rows = min(len(tensors[0]), ROWS * processes.count)
    own = processes.own(rows)
    with processes.all_or_none("fit: a trial of the transform"):
        made = []
        for part in (slice(0, rows), own):
            with kept_rng(tensors[0].device), even_draws():
                found = transform(*(x[part] for x in tensors))
            made.append(found if isinstance(found, tuple) else (found,))
        whole, here = made
        alike = all(_close(x[own], y) for x, y in zip(whole, here, strict=True))
    if not all(processes.gather_values(alike)):
        raise ValueError(
            f"data: the transform cannot be shared by {processes.count} processes: what it makes "
            f"of a row depends on the rows beside it, or draws by other ways than torch's. Try "
            f"rows that are transformed before, or a single process."
        )


class Parted:
    """What the trial of one objective needs.

    Arguments:
        name: That of the objective.
        loss: Its loss, and what it reports, of some of the first rows: by their places, and how
            many these are of.
        modules: The modules that run.
        device: Where they are.
    """

    def __init__(
        self, name: str, loss: Numbers, modules: list[nn.Module], device: torch.device
    ) -> None:
        self.name, self.loss, self.modules, self.device = name, loss, modules, device

    def check(self, processes: Processes, rows: int) -> list[str]:
        """Raises where the parts are not the whole, on all processes; returns what is recorded.

        Arguments:
            processes: Those that share a batch.
            rows: The rows of a batch.
        """
        rows = min(rows, ROWS * processes.count)
        every = torch.arange(rows, device=self.device)
        own = every[processes.own(rows)]
        whole, kept = self._evaluated(every, rows)
        said: str | None = None
        numbers = {name: x.new_zeros((), dtype=torch.float64) for name, x in whole.items()}
        changed: dict[str, Tensor] = {}
        try:
            part, changed = self._evaluated(own, rows)
            for name, x in part.items():
                numbers[name] = x.double() * (len(own) / rows)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        texts = processes.gather_values(said)
        if text := next(filter(None, texts), None):
            raise ValueError(self._cannot(f"a part of it raises {text}", processes))
        total = processes.total(torch.stack(list(numbers.values())))
        for (name, x), found in zip(whole.items(), total.tolist(), strict=True):
            expected = x.double().item()
            close = TOLERANCE.get(x.dtype, SINGLE)
            if not abs(found - expected) <= close * (1 + abs(expected)):
                what = "the loss" if name == self.name else name
                text = (
                    f"{what} of {rows} rows is {expected:.6g}, and the mean over parts {found:.6g}"
                )
                raise ValueError(self._cannot(text, processes))
        self._check_buffers(kept, changed, processes)
        return list(whole)

    def _check_buffers(
        self, kept: dict[str, Tensor], changed: dict[str, Tensor], processes: Processes
    ) -> None:
        unlike = [name for name, x in kept.items() if not _close(x, changed[name])]
        for names in processes.gather_values(unlike):
            if names:
                text = f"the buffer {names[0]} changes by the rows of a process alone"
                raise ValueError(self._cannot(text, processes))

    def _cannot(self, found: str, processes: Processes) -> str:
        return (
            f"{self.name}: its loss cannot be shared by {processes.count} processes: {found}. "
            f"Expected a loss whose rows do not see each other, such as one without batch "
            f"normalisation. Try GroupNorm or LayerNorm in its place, a program with an argument "
            f"`size` whose rows are in data_plate(x, size), or a single process."
        )

    @torch.no_grad()
    def _evaluated(self, places: Tensor, rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The numbers of some rows, and the buffers afterwards, which are then as before."""
        with (
            kept_rng(self.device),
            modes(self.modules, training=True),
            _restored(self.modules) as buffers,
            pyro.validation_enabled(False),
            even_draws(),
        ):
            numbers = {name: x.detach().clone() for name, x in self.loss(places, rows).items()}
            after = {name: x.detach().clone() for name, x in buffers.items()}
        return numbers, after


@contextmanager
def _restored(modules: list[nn.Module]) -> Iterator[dict[str, Tensor]]:
    buffers = {f"{n}.{k}": x for n, m in enumerate(modules) for k, x in m.named_buffers()}
    before = {name: x.clone() for name, x in buffers.items()}
    try:
        yield buffers
    finally:
        for name, x in buffers.items():
            x.copy_(before[name])


def _close(a: Tensor, b: Tensor) -> bool:
    close = TOLERANCE.get(a.dtype, SINGLE)
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=close, atol=close, equal_nan=True
    )
