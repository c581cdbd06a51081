r"""A model and a guide on some data: draws of the latents, and both densities there.

Where all latents belong to rows, rows are independent. They are then tiled, `K` draws of `R` rows
as `K * R` rows, which every program and every network takes; a plate of draws to the left of the
rows would break convolutions and normalisation layers. Elsewhere, and where the guide has
parameters for each row, a draw is one of the whole data, and draws go side by side.

Shapes: `S` draws, `N` rows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppl_models.checks import check_tensors
from ppl_models.infer.compiled.side_by_side import FEW, Results, side_by_side
from ppl_models.infer.compiled.watch import Finder
from ppl_models.infer.evidence.density import log_density, sum_out
from ppl_models.infer.evidence.draws import Call, Draws
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.modules import allows_missing, check_devices
from ppl_models.infer.programs.program import Program, no_latents
from ppl_models.infer.programs.rng import own_rng
from ppl_models.infer.programs.rows import Rows
from ppl_models.modes import modes

ROOM = 2**10  # numbers that a tensor may hold for each draw of a batch: about those of a row


@contextmanager
def sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    data: tuple[Tensor, ...],
    seed: int | None,
) -> Iterator["Joint"]:
    """Gives a `Joint` in the context of its draws.

    There are no gradients, the modules are in evaluation mode, and with a seed the draws come from
    a generator of their own.
    """
    programs = Program(model, "model"), Program(no_latents if guide is None else guide, "guide")

    def modules() -> list[nn.Module]:
        return [module for program in programs for module in program.modules().values()]

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(modes(modules(), training=False))
        if seed is not None:
            device = data[0].device if data and isinstance(data[0], Tensor) else "cpu"
            stack.enter_context(own_rng(seed, torch.device(device)))
        joint = Joint(programs[0], programs[1], data)
        stack.enter_context(modes(modules(), training=False))  # those that the run has shown
        stack.enter_context(pyro.validation_enabled(False))  # a first run has been checked
        yield joint


class Joint:
    """A model and a guide on some data.

    Arguments:
        model: The model, called as `model(*data, size=N)`.
        guide: Its guide.
        data: Tensors with one entry for each row.

    Raises:
        ValueError: If the data are not finite or elsewhere than the modules, or the sites of
            model and guide do not match.
    """

    def __init__(self, model: Program, guide: Program, data: tuple[Tensor, ...]) -> None:
        self.model, self.guide = model, guide
        for x in data:
            if not isinstance(x, Tensor):
                raise TypeError(f"data: expected tensors, got {type(x).__name__}.")
        if not data:
            raise ValueError("data: expected at least one tensor of rows, got none.")
        for program in (self.model, self.guide):
            program.check_arguments(len(data))
            check_devices(program.modules(), data)
        check_tensors(data, allows_missing(model.modules().values()))
        self.data, self.num_rows = data, len(data[0])
        self.all_rows = slice(0, self.num_rows)
        self._look()

    def _look(self) -> None:
        """Runs both once, to learn their structure."""
        amortised = not isinstance(self.guide.inner, AutoGuide)
        # A few rows, and not as many as there are: parameters for each row do not fit them.
        rows, count = slice(0, 2), 3 if self.num_rows == 4 else 2
        try:
            model, guide = self._structure(*((rows, count) if amortised else (self.all_rows, 1)))
        except (RuntimeError, ValueError):
            if not amortised:
                raise
            amortised = False
            model, guide = self._structure(self.all_rows, 1)
        checks.check_sites(model, guide)
        checks.check_unscaled(model, guide)
        self.traces = model, guide
        self.latent = sites.latent_sites(model)
        self.observed = sites.observed_sites(model)
        self.enumerated = sites.summed_out_sites(model, guide)
        random = [*sites.random_sites(model), *sites.random_sites(guide)]
        self.by_row = bool(random) and all(sites.in_data_plate(site) for site in random)
        self.tiled = self.by_row and amortised
        self.free_dim = -1 - sites.plate_depth(model, guide)

    def _structure(self, rows: slice, count: int) -> tuple[poutine.Trace, poutine.Trace]:
        run, batch = self._on(rows, count)
        with checks.noting_batch(batch), self.guide.noticing(), self.model.noticing():
            guide = run(poutine.trace(self.guide).get_trace)
            model = run(poutine.trace(poutine.replay(self.model, trace=guide)).get_trace)
        self.probed = len(batch[0])
        checks.check_support(model, batch, self.data)
        return model, guide

    def _on(
        self, rows: slice, count: int, data: tuple[Tensor, ...] | None = None
    ) -> tuple[Call, tuple[Tensor, ...]]:
        """Returns what runs a program on some rows, tiled, and the rows."""
        batch = tile(data or self.data, rows, count)
        which = tile((torch.arange(self.num_rows, device=batch[0].device),), rows, count)[0]
        size = len(which)

        def run(program: Callable[..., Any]) -> Any:
            with Rows(which, size, size):
                return program(*batch, size=size)

        return run, batch

    def arguments(self) -> dict[str, Tensor]:
        """The data under the names of the model's arguments."""
        return self.model.name_arguments(self.data)

    def each(
        self, look: Callable[[Draws], Results], num_samples: int, batch_size: int
    ) -> Iterator[tuple[slice, Results]]:
        """Yields what `look` says of all draws of some rows after the other, and which rows.

        Arguments:
            look: Gives tensors with the draws in front.
            num_samples: The number of draws of each row.
            batch_size: How many draws of rows are made at once. Draws of the whole data are as many
                as make no tensor larger than `ROOM` numbers for each of these.
        """
        if self.tiled:
            for draws in self._tiled(num_samples, batch_size):
                yield draws.rows, look(draws)
            return

        def run(_: Tensor) -> Results:
            return look(self.draw(self.all_rows, 1))

        for results in self.of_all(run, num_samples, batch_size):
            yield self.all_rows, results

    def of_all(
        self, run: Callable[[Tensor], Results], num_samples: int, batch_size: int
    ) -> Iterator[Results]:
        """Yields what `run` says of draws of the whole data, given their numbers."""
        watch = None
        if num_samples > FEW:
            with suppress(Exception):  # what it holds cannot be told, as of a scripted module
                watch = Finder(self).watch
        return side_by_side(run, num_samples, batch_size * ROOM, watch, self.data[0].device)

    def modules(self) -> dict[str, nn.Module]:
        """The modules of both programs."""
        return {
            f"{program.name}.{name}": module
            for program in (self.model, self.guide)
            for name, module in program.modules().items()
        }

    def _tiled(self, num_samples: int, batch_size: int) -> Iterator[Draws]:
        width = min(self.num_rows, batch_size)
        for start in range(0, self.num_rows, width):
            rows = slice(start, min(start + width, self.num_rows))
            most = max(1, batch_size // (rows.stop - start))
            for done in range(0, num_samples, most):
                yield self.draw(rows, min(most, num_samples - done))

    def draw(self, rows: slice, count: int, data: tuple[Tensor, ...] | None = None) -> Draws:
        """Draws `count` times the latents of some rows from the guide."""
        run, batch = self._on(rows, count, data)
        size = len(batch[0])
        guide = run(poutine.trace(self.guide).get_trace)
        model = run(poutine.trace(self._enumerating(guide)).get_trace)
        guide, model = prune_subsample_sites(guide), prune_subsample_sites(model)
        guide.compute_log_prob()
        model.compute_log_prob()
        shape = (count, -1) if self.by_row else (1, 1)
        rows_of, device = size if self.by_row else None, self.data[0].device
        log_q = log_density(guide, rows_of, device).reshape(shape)
        summed_out = sum_out(model, guide) if self.enumerated else None
        log_p = log_density(model, rows_of, device, summed_out).reshape(shape)
        return Draws(
            model, guide, rows, count, self.tiled, log_p, log_q, run, self.free_dim, summed_out
        )

    def _enumerating(self, guide: poutine.Trace) -> Callable[..., Any]:
        """The model on the latents of a guide, with the marked sites in parallel."""
        model: Callable[..., Any] = self.model
        if self.enumerated:
            model = EnumMessenger(first_available_dim=self.free_dim)(model)
        return poutine.replay(model, trace=guide)


def tile(data: tuple[Tensor, ...], rows: slice, count: int) -> tuple[Tensor, ...]:
    """Repeats some rows, all of them `count` times."""
    return tuple(x[rows].repeat(count, *[1] * (x.dim() - 1)) for x in data)
