"""A density as a sampler takes it: value, gradient and latents, by code or by the program."""

import threading

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled.code.density import NativeDensity
from ppl_models.infer.compiled.code.flat import closed, make_ready
from ppl_models.infer.compiled.graph import Compiled
from ppl_models.infer.programs.not_finite import first_not_finite
from ppl_models.infer.sampling.known import Dependent, Known
from ppl_models.infer.sampling.unconstrained import OtherSitesError, Unconstrained
from ppl_models.user_line import warn

TRIES = 100  # positions, before a density is said to be finite nowhere
WIDTH = 2.0  # of the positions around zero, as in Stan
NEAR = 1e-8  # relative, what double precision leaves between code and program
NONE = torch.zeros(())  # what a graph without inputs is called with
PROBES = 3  # positions at which these are compared


class NotFinite(ArithmeticError):
    """A density that is no number where a step led: the trajectory ends there."""

    is_recoverable = True


class Density:
    """A density, its gradient and the latents: by the program, and by code that is the same.

    Arguments:
        unconstrained: The program's.
        starts: Positions to start from, `(C, D)`; random ones where there are none.
    """

    def __init__(self, unconstrained: Unconstrained, starts: Tensor | None) -> None:
        self.unconstrained, self.starts = unconstrained, starts
        self.size, self.count = unconstrained.size, unconstrained.count
        self._alone = threading.Lock()  # chains begin in threads, and handlers are Pyro's for all
        self.broken: OtherSitesError | None = None  # what ended a chain
        self.probes = [torch.from_numpy(self.start(seed)) for seed in range(PROBES)]
        self._check_drawless(self.probes[0])
        slopes = [self.evaluate(x.numpy())[1] for x in self.probes]
        self._slope = max(float(np.linalg.norm(slope)) for slope in slopes)
        self.native: NativeDensity | None = None

    def start(self, seed: int) -> np.ndarray:
        """A position at which the density is finite, by a seed, `(D,)`."""
        random, error = np.random.default_rng(seed), None
        for _ in range(TRIES):
            position = random.uniform(-WIDTH, WIDTH, self.size)
            if self.starts is not None:
                position = self.starts[random.integers(len(self.starts))].numpy()
            try:
                with self._alone:
                    self.evaluate(position)
            except NotFinite as found:
                error = found.__cause__
                continue
            return position
        where = first_not_finite(self.unconstrained.first, poutine.Trace())
        if error is not None:
            where = f"at the last of them the model raised {type(error).__name__}: {error}"
        raise ValueError(
            f"nuts: the density is not finite at any of {TRIES} positions"
            f"{' that the guide drew' if self.starts is not None else ''}; {where}. Expected one "
            f"from which a chain can start. Try a guide to start from, or data inside the support."
        ) from error

    def evaluate(self, position: np.ndarray) -> tuple[float, np.ndarray]:
        """The density and its gradient by the program.

        Raises:
            NotFinite: If they are no numbers.
            OtherSitesError: If the program has other latents there.
        """
        x = torch.from_numpy(np.array(position)).requires_grad_()
        try:
            with torch.enable_grad():
                value = self.unconstrained.at(x)
                (slope,) = torch.autograd.grad(value, [x])
        except OtherSitesError as error:
            self.broken = error
            raise
        except (ValueError, RuntimeError) as error:  # a matrix without a factor
            raise NotFinite(str(error)) from error
        if not (value.isfinite() and slope.isfinite().all()):
            raise NotFinite("a density or its gradient is not finite")
        return value.item(), slope.numpy()

    def latents(self, position: np.ndarray) -> np.ndarray:
        """The latents in a row, `(L,)`, by the program."""
        with torch.no_grad():
            return self.unconstrained.flat(torch.from_numpy(np.array(position))).numpy()

    def _check_drawless(self, position: Tensor) -> None:
        """Raises where the program draws by itself, so that it has no density."""
        first, second = (self.unconstrained.at(position) for _ in range(2))
        if not torch.equal(first, second):
            raise ValueError(
                "nuts: the density is another each time: the program draws something that is no "
                "latent of it, such as a plate that subsamples, or by torch itself. Expected a "
                "density of all rows. Try the program without it."
            )

    def compile(self, chains: int) -> None:
        """Makes code of it, for so many chains, if that is the same as the program."""
        self.native = self._compiled(chains)

    def _compiled(self, chains: int) -> NativeDensity | None:
        """The density as code, compared with the program; None where there is none."""
        position = self.unconstrained.position

        def loss(_: Tensor) -> Tensor:
            with Dependent(position) as dependent, Known(dependent):
                return -self.unconstrained.at(position)

        with torch.enable_grad():
            tracer = Compiled(self.unconstrained)
            tracer.quiet = True
            found = tracer.trace("nuts", loss, (NONE,))
        if found is None:
            _eagerly(str(tracer.reason))
            return None
        graph = found.graph
        read = closed(graph)
        others = [x for x in read if x is not position]

        def step(
            x: Tensor, slope: Tensor, value: Tensor, latents: Tensor, *others: Tensor
        ) -> tuple[()]:
            moved, rest = x.detach().requires_grad_(), iter(others)
            with torch.enable_grad():
                loss = graph(NONE, *(moved if y is position else next(rest) for y in read))
                (gradient,) = torch.autograd.grad(loss, [moved])
            slope.copy_(-gradient)
            value.copy_(-loss.detach())
            with Dependent(x) as dependent, Known(dependent):
                latents.copy_(self.unconstrained.flat(x))
            return ()

        rooms = [
            x.new_zeros(n) for x in self.probes[:1] for n in (self.size, self.size, 1, self.count)
        ]
        rooms[2] = rooms[2].squeeze(0)
        try:
            with tracing(TracingContext(FakeTensorMode())):  # one for all operations: half the time
                whole = make_fx(step, _allow_non_fake_inputs=True)(*rooms, *others)
            make_ready(whole)
            native = NativeDensity(whole, [*rooms, *others], chains)
        except Exception as error:
            _eagerly(f"{type(error).__name__}: {error}")
            return None
        return native if self.stands_for_program(native, self.probes) else None

    def stands_for_program(self, native: NativeDensity, positions: list[Tensor]) -> bool:
        """Whether code and program are the same at positions; warns where they are not."""
        if wrong := self._difference(native, positions):
            _eagerly(wrong)
        return not wrong

    def _difference(self, native: NativeDensity, positions: list[Tensor]) -> str | None:
        """What differs between code and program."""
        for probe in positions:
            ours = native(probe)
            value, slope = self.evaluate(probe.numpy())
            theirs = (
                torch.tensor(value, dtype=torch.float64),
                torch.from_numpy(slope),
                self.unconstrained.flat(probe),
            )
            names = ("density", "gradient", "latents")
            sizes = [1 + torch.linalg.vector_norm(b).item() for b in theirs]
            sizes[1] += self._slope  # where it is nearly zero, terms have cancelled
            for name, a, b, size in zip(names, ours, theirs, sizes, strict=True):
                if not torch.linalg.vector_norm(a - b) <= NEAR * size:
                    return f"its code has another {name} than the program itself"
        return None


def _eagerly(reason: str) -> None:
    warn(f"nuts: it runs eagerly, not compiled: {reason}. The draws are right, only slower.")
