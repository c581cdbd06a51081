"""Densities of rows with their gradients, by a flat graph where it is shown to be the program.

A run under Pyro's handlers, in double precision, is mostly Python. Its operations and those of the
gradient are written down once, as a graph of tensors that is called in its place. It stands for the
program where it is the same from two positions, reads no value as a number, and gives what the
program gives, there and every now and then at positions where chains are.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled.traced.tracing import Reads
from ppl_models.infer.sampling.of_rows import OfRows
from ppl_models.user_line import warn

NEAR = 1e-8  # relative, what double precision leaves between the graph and the program
EVERY = 128  # calls, between two comparisons


class Slope(NamedTuple):
    """At some positions.

    Attributes:
        log_ratio: Of the densities of model and guide, `(K * R,)`.
        density: The logarithm of that at a temperature, `(K * R,)`.
        slope: Its gradient, `(K * R, D)`.
    """

    log_ratio: Tensor
    density: Tensor
    slope: Tensor


class AnotherProgramError(ArithmeticError):
    """The graph is not the program, as a comparison has shown: the run is to begin anew."""


class Slopes:
    """The densities of rows and their gradients, as a function of positions and a temperature.

    Arguments:
        rows: The densities.
        position: Positions at which to begin, `(K * R, D)`.

    Raises:
        ValueError: If the program draws by itself, so that it has no density.
    """

    def __init__(self, rows: OfRows, position: Tensor) -> None:
        self.rows = rows
        self.calls = 0
        self.graph: GraphModule | None = None
        beta = torch.full((), 0.5, dtype=torch.float64, device=position.device)
        first = self.by_program(position, beta)  # after which networks have seen their rows
        again = self.by_program(position, beta)
        if not _near(first, again):
            raise ValueError(
                "sandwich: the density is another each time: the program draws something that is "
                "no latent of it, such as a plate that subsamples, or by torch itself. Expected a "
                "density of the rows and their latents. Try the program without it."
            )
        self.graph = self._traced(position, beta)

    def __call__(self, position: Tensor, beta: Tensor) -> Slope:
        if self.graph is None:
            return self.by_program(position, beta)
        found = Slope(*self.graph(position, beta))
        self.calls += 1
        if self.calls % EVERY == 0 and not _near(found, self.by_program(position, beta)):
            raise AnotherProgramError("its graph gives another density than the program itself")
        return found

    def by_program(self, position: Tensor, beta: Tensor) -> Slope:
        """By the program itself."""
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            found = self.rows.at(leaf)
            density = found.between(beta)
            (slope,) = torch.autograd.grad(density.sum(), leaf)
        return Slope(found.log_ratio.detach(), density.detach(), slope.detach())

    def give_up(self, reason: str) -> None:
        """Runs the program from now on."""
        self.graph = None
        warn(f"sandwich: it runs eagerly: {reason}. The bounds are right, only slower.")

    def _traced(self, position: Tensor, beta: Tensor) -> GraphModule | None:
        """The graph; None, with a warning, where there is none."""

        def evaluate(x: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.by_program(x, beta))

        nearby = position + 0.1 * position.std(0, keepdim=True).nan_to_num(1.0)
        try:
            with Reads() as reads:
                graphs = [make_fx(evaluate)(x, beta) for x in (nearby, position)]
            if reads.tensors or graphs[0].code != graphs[1].code:
                raise ValueError("what it computes depends on values")
            for graph in graphs:
                graph.graph.eliminate_dead_code()
                graph.recompile()
            places = (nearby, position, position.flip(1) if position.shape[1] > 1 else -position)
            if not all(_near(Slope(*graphs[1](x, beta)), self.by_program(x, beta)) for x in places):
                raise ValueError("its graph gives another density than the program itself")
        except Exception as error:
            self.give_up(f"{type(error).__name__}: {error}".splitlines()[0])
            return None
        return graphs[1]


def _near(ours: Slope, theirs: Slope) -> bool:
    """Whether two evaluations agree up to rounding, with what is no number in the same places."""
    return all(
        torch.allclose(a, b, NEAR, NEAR * (1 + _size(b)), equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _size(x: Tensor) -> float:
    """How large the numbers of a tensor are."""
    return x.where(x.isfinite(), 0.0).abs().mean().item()
