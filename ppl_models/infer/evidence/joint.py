r"""A model and a guide on some data: draws of the latents, and what both say of them.

Where all latents belong to rows, rows are independent. They are then tiled, `K` draws of `R` rows
as `K * R` rows, which every program and every network takes; a plate of draws to the left of the
rows would break convolutions and normalisation layers. Elsewhere, and where the guide has
parameters for each row, a draw is one of the whole data, and draws go side by side.

That rows are independent is tried. A program that looks at the whole batch has draws of the whole
data, too: with a weight for each row, unless rows depend on the latents of others.

Shapes: `S` draws, `N` rows.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.infer.discrete import infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_models.checks import allows_missing, check_devices, check_tensors, check_whole
from ppl_models.infer.compiled.changes import changes
from ppl_models.infer.compiled.side_by_side import FEW, Results, side_by_side
from ppl_models.infer.compiled.watch import Finder
from ppl_models.infer.evidence.exact.closed_forms import check_posterior, posterior_guide
from ppl_models.infer.evidence.weights import Call, Draws, Enumeration, draw, row_dim
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.once import Once
from ppl_models.infer.programs.program import Program, no_latents
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.programs.tables import as_rows, no_rows
from ppl_models.infer.trials import same
from ppl_models.infer.trials.auxiliary import Draw, is_of_pyro, why_unknown
from ppl_models.infer.trials.independence import FEW as TRIED
from ppl_models.infer.trials.independence import Pair, Trial, first_line
from ppl_models.infer.trials.masks import OwnWhereMasked, follow_masks
from ppl_models.infer.trials.precision import check_precision
from ppl_models.infer.trials.shapes import check_rows, replayed
from ppl_models.processes import ALONE, Processes, Turns, in_turn, together
from ppl_models.prompt.bars import progress_bar
from ppl_models.scoped import (
    kept_host_rng,
    kept_rng,
    mix,
    modes,
    own_draws,
    own_rng,
    seed_of,
)
from ppl_models.user_line import warn

AT_ONCE = 4096  # rows that are tried
Piece = TypeVar("Piece")
ROOM = 2**10  # numbers that a tensor may hold for each draw of a batch: about those of a row


@contextmanager
def sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    data: tuple[Tensor, ...],
    seed: int | None,
    numbered: bool = False,
    what: str = "an evaluation",
) -> Iterator["Joint"]:
    """Gives a `Joint` in the context of its draws.

    There are no gradients, the modules are in evaluation mode, and the draws come from a generator
    of their own, which without a seed is seeded by torch's. The other arguments are of `Joint`.

    Arguments:
        what: What the draws are for. Those that may become data, and be evaluated with the same
            seed, have another purpose than evaluations.
    """
    programs = [Program(model, "model")]
    programs += [] if guide is None else [Program(guide, "guide", programs[0])]
    for program in programs:
        program.is_evaluated = True

    def modules() -> list[nn.Module]:
        return [module for program in programs for module in program.modules().values()]

    data = as_rows(data, modules())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(modes(modules(), training=False))
        device = data[0].device if data and isinstance(data[0], Tensor) else "cpu"
        stack.enter_context(own_rng(what, seed_of(seed), torch.device(device)))
        with together().all_or_none("a first run"):
            joint = Joint(programs[0], None if guide is None else programs[1], data, numbered)
        stack.enter_context(modes(modules(), training=False))  # those that the run has shown
        stack.enter_context(pyro.validation_enabled(False))  # a first run has been checked
        yield joint


class FirstRun(NamedTuple):
    """The traces of both programs on some rows: they show which sites there are."""

    model: poutine.Trace
    guide: poutine.Trace
    num_rows: int
    batch: tuple[Tensor, ...]


class Joint:
    """A model and a guide on some data.

    Arguments:
        model: The model, called as `model(*data, size=N)`.
        guide: Its guide. None for the posterior of a model that knows it, and for latents that are
            all enumerated.
        data: Tensors with one entry for each row.
        numbered: Whether the data are no rows but the number of a draw that was made before, which
            the guide takes.

    Raises:
        ValueError: If the data are not finite or elsewhere than the modules, or the sites of
            model and guide do not match.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        data: tuple[Tensor, ...],
        numbered: bool = False,
    ) -> None:
        _check_data(model, guide, data)
        self.data, self.num_rows = data, len(data[0])
        self.all_rows = slice(0, self.num_rows)
        known = posterior_guide(model, data) if guide is None else None
        self.model, self.guide = model, guide or Program(known or no_latents, "guide")
        self.numbered, self.by_row = numbered, False
        self.once: Once | None = None  # the networks that see each row once, if they may
        first, amortised = self._first_run()
        self._note(first)
        self.tiled = self.by_row and amortised and self._has_independent_rows()
        if amortised and not self.tiled and not numbered:
            with kept_rng(data[0].device):  # a loop over rows has sites that a few do not show
                self._note(self._run_both(self.all_rows, 1))
        self.masked = [] if numbered else self._follow_masks()
        if known:
            with kept_rng(data[0].device):
                check_posterior(self.draw(slice(0, 8), 2), model)
        if self.by_row and not self.tiled:
            self.by_row = self._has_own_latents()

    def _note(self, first: FirstRun) -> None:
        """Takes note of the sites that a run shows, and checks them."""
        traces = first.model, first.guide
        checks.check_sites(*traces)
        checks.check_unscaled(*traces)
        self.first = first
        self.latent = sites.latent_sites(traces[0])
        self.observed = sites.observed_sites(traces[0])
        self.enumeration = Enumeration.of(*traces)
        random = [site for trace in traces for site in sites.random_sites(trace)]
        of_rows = [sites.has_entries(site, first.num_rows) for site in random]
        self.by_row = bool(random) and all(of_rows) and not self.numbered

    def _first_run(self) -> tuple[FirstRun, bool]:
        """Runs both once, and says whether the guide takes any rows."""
        if not isinstance(self.guide.inner, (AutoGuide, AutoMessenger, EasyGuide)):
            # A few rows, and not as many as there are: parameters for each row do not fit them.
            with suppress(Exception):  # what comes up again, of all rows, comes up as itself
                return self._run_both(slice(0, 2), 3 if self.num_rows == 4 else 2), True
        return self._run_both(self.all_rows, 1), False

    def _run_both(self, rows: slice, count: int) -> FirstRun:
        call, batch = self._call_on(rows, count)
        with checks.noting_batch(batch), self.guide.noticing(), self.model.noticing():
            guide = call(poutine.trace(self.guide).get_trace)
            model = call(partial(replayed, self.model, guide))
        checks.check_support(model, batch, self.data)
        check_rows(model, "model", batch)
        check_rows(guide, "guide", batch)
        return FirstRun(model, guide, len(batch[0]), batch)

    def _trial(self, size: int | None) -> Trial:
        rows = torch.arange(self.num_rows, device=self.data[0].device)
        return Trial(self.model, self.guide, self.data, rows, size)

    def _whole_and_few(self) -> tuple[int, int]:
        """How many rows there are, if they are not too many to be tried at once, and a few."""
        few = min(self.num_rows, TRIED)
        most = min(AT_ONCE, self._trial(None).room())
        return (self.num_rows if self.num_rows <= most else few), few

    def _has_independent_rows(self) -> bool:
        """Whether a row is the same whatever rows are beside it, so that draws can be."""
        trial = self._trial(None)
        try:
            return not (trial.of_parts() or trial.of_sizes(*self._whole_and_few()))
        except Exception:  # whatever a program does that takes no other number of rows
            return False

    def _follow_masks(self) -> list[str]:
        """Which latents are masked, whose entries the guide is then to leave out, too."""
        width = AT_ONCE if self.tiled else None
        trial = self._trial(None if self.tiled else self.num_rows)
        first = Pair(self.first.model, self.first.guide)
        return follow_masks(self.model, self.guide, first, trial, width)

    def _is_alike_tiled(self, num_samples: int, batch_size: int) -> bool:
        """Whether as many rows as will be run at once are what they are by themselves."""
        batches = self._batches(num_samples, batch_size)
        sizes = {(rows.stop - rows.start) * count for rows, count, _ in batches}
        try:
            found = self._trial(None).of_sizes(*self._whole_and_few(), *sizes)
        except Exception as error:  # whatever a program does that takes no other number of rows
            found = f"one of {sorted(sizes)} rows at once ({first_line(error)})"
        if found and not self._has_own_latents():
            raise ValueError(
                f"{found}: the log-density of a row is another, or none, among as many rows as are "
                f"run at once, {max(sizes)}, and depends on the latents of others. Expected rows "
                f"that are independent, as the plate 'data' promises. Try latents that rows share "
                f"outside of that plate."
            )
        return not found

    def _has_own_latents(self) -> bool:
        """Whether no row depends on the latents of another, so that each has its own weight."""
        found = self._trial(self.num_rows).of_latents()
        if found and self.enumeration.names:
            names = ", ".join(map(repr, sorted(self.enumeration.names)))
            raise ValueError(
                f"{found}: the log-density of a row depends on the latents of other rows, which "
                f"the plate 'data' promises are independent, and the sum over the enumerated "
                f"site(s) {names} goes over each row by itself. Try pyro.markov instead of the "
                f"plate."
            )
        return not found

    def _call_on(
        self, rows: slice, count: int, data: tuple[Tensor, ...] | None = None
    ) -> tuple[Call, tuple[Tensor, ...]]:
        """Returns what runs a program on some rows, tiled, and the rows."""
        batch = tile(data or self.data, rows, count)
        which = tile((torch.arange(self.num_rows, device=batch[0].device),), rows, count)[0]
        size, once = len(which), self.once
        few = tile(data or self.data, rows, 1) if once else ()  # copies: none writes into ours
        name = rows.start, rows.stop

        def call(program: Callable[..., Any]) -> Any:
            shared = once.given(batch, few, name) if once else nullcontext()
            with Rows(which, size, size), shared:
                return program(*batch, size=size)

        return call, batch

    def arguments(self) -> dict[str, Tensor]:
        """The data under the names of the model's arguments."""
        return self.model.name_arguments(self.data)

    def modules(self) -> dict[str, nn.Module]:
        """The modules of both programs."""
        return {
            f"{program.name}.{name}": module
            for program in (self.model, self.guide)
            for name, module in program.modules().items()
        }

    def evaluate(
        self,
        statistics: Callable[[Draws], Results],
        num_samples: int,
        batch_size: int,
        progress: str | None = None,
    ) -> Iterator[tuple[slice, Results]]:
        """Yields statistics of all draws, of some of them after the other, and of which rows.

        Processes that compute together share the draws: those made at once are made by one of
        them, with random numbers of their own, and all get the statistics of all.

        Arguments:
            statistics: Gives tensors with the draws in front.
            num_samples: The number of draws of each row.
            batch_size: How many draws of rows are made at once. Draws of the whole data are as many
                as make no tensor larger than `ROOM` numbers for each of these.
            progress: What a bar calls it; without one there is none.
        """
        if self.tiled and not self._is_alike_tiled(num_samples, batch_size):
            self.tiled = False
        one = (slice(0, 2), 1, None) if self.tiled else (self.all_rows, 1, self._number(0))
        numbers = {"num_samples": num_samples, "batch_size": batch_size}
        here, seed = self.begin(lambda: statistics(self.draw(*one)), **numbers)
        parts = self._of_rows if self.tiled else self._of_all
        total = num_samples * (self.num_rows if self.tiled else 1)
        bar = progress_bar(progress or "", total, shown=progress is not None)
        with kept_host_rng(), bar as advance:
            for rows, results in parts(statistics, num_samples, batch_size, here, seed):
                draws = len(next(iter(results.values())))
                advance(draws * (rows.stop - rows.start if self.tiled else 1))
                yield rows, results

    def begin(self, first: Callable[[], Any], **numbers: int) -> tuple[Processes, int]:
        """Returns the processes that share some work, and the seed of it.

        Arguments:
            first: Does a little of it, with random numbers that do not count.
            numbers: How much it is, by names.

        Raises:
            ValueError: If processes are about to do different things.
        """
        here, seed = together(), seed_of(None)
        if here.alone:
            return here, seed
        found = same.sites_of(self.first.model, self.first.guide)
        kind = "rows" if self.tiled else "draws with weights of rows" if self.by_row else "draws"
        here.check_agree(
            "evaluation",
            same.ADVICE,
            **found,
            **numbers,
            rows=self.num_rows,
            kind_of_draws=kind,
            random_numbers=seed,
        )
        device = self.data[0].device
        with kept_rng(device), kept_host_rng(), here.all_or_none("a first draw"):
            moves = changes(self, first)
        if moves:
            warn(
                "draws: each process makes all of them, as the program keeps something from one to "
                "the next, or nobody can tell. The numbers are right, only not faster."
            )
        return ALONE if moves else here, seed

    def in_turn(
        self, here: Processes, seed: int, pieces: Iterable[Piece], work: Callable[[Piece], Results]
    ) -> Iterator[tuple[Piece, Results]]:
        """Yields what pieces of work give, each with random numbers of its own."""
        device = self.data[0].device

        def of(numbered: tuple[int, Piece]) -> Results:
            with own_draws("a piece", mix(seed, numbered[0]), device):
                return work(numbered[1])

        for (_, piece), found in in_turn(here, "an evaluation", [*enumerate(pieces)], of, device):
            yield piece, found

    def _of_rows(
        self,
        statistics: Callable[[Draws], Results],
        num_samples: int,
        batch_size: int,
        here: Processes,
        seed: int,
    ) -> Iterator[tuple[slice, Results]]:
        """Those of tiled rows."""
        self._look_once(num_samples)

        def of(batch: tuple[slice, int, bool]) -> Results:
            rows, count, first = batch
            draws = self.draw(rows, count)
            if first:
                check_precision(draws.model, draws.guide)
            return statistics(draws)

        batches = self._batches(num_samples, batch_size)
        for (rows, _, _), results in self.in_turn(here, seed, batches, of):
            yield rows, results

    def _of_all(
        self,
        statistics: Callable[[Draws], Results],
        num_samples: int,
        batch_size: int,
        here: Processes,
        seed: int,
    ) -> Iterator[tuple[slice, Results]]:
        """Those of the whole data, draws side by side."""

        def of_one(number: Tensor) -> Results:
            return statistics(self.draw(self.all_rows, 1, self._number(number)))

        device, watch = self.data[0].device, None
        with kept_rng(device):
            draws = self.draw(self.all_rows, 1, self._number(0))
        check_precision(draws.model, draws.guide)
        if num_samples > FEW:
            with suppress(Exception):  # what it holds cannot be told, as of a scripted module
                watch = Finder(self).watch
        turns = Turns(here, "an evaluation", device)
        for results in side_by_side(of_one, num_samples, batch_size * ROOM, watch, turns, seed):
            yield self.all_rows, results

    def _number(self, number: int | Tensor) -> tuple[Tensor, ...] | None:
        """What is given to programs of the number of a draw, in the place of data."""
        if not self.numbered:
            return None
        return (torch.as_tensor(number, dtype=torch.int64, device=self.data[0].device)[None],)

    def _look_once(self, num_samples: int) -> None:
        """Finds the networks that may see each row once, whatever the number of draws."""
        once = Once(self.model, self.guide)

        def draw(shared: bool) -> Tensor:
            self.once = once if shared else None
            return torch.cat([self.draw(slice(0, TRIED), 3).log_weight for _ in range(2)])

        alike = num_samples > FEW and once.holds(draw, self.data[0].device)
        self.once = once if alike else None

    def _batches(self, num_samples: int, batch_size: int) -> Iterator[tuple[slice, int, bool]]:
        """Which rows are drawn at once, how often, and whether for the first time."""
        width = min(self.num_rows, batch_size)
        for start in range(0, self.num_rows, width):
            rows = slice(start, min(start + width, self.num_rows))
            most = max(1, batch_size // (rows.stop - start))
            for done in range(0, num_samples, most):
                yield rows, min(most, num_samples - done), not done

    def draw(self, rows: slice, count: int, data: tuple[Tensor, ...] | None = None) -> Draws:
        """Draws `count` times the latents of some rows from the guide."""
        call, batch = self._call_on(rows, count, data)
        num_rows = len(batch[0]) // count if self.by_row else None
        device = self.data[0].device
        return draw(call, self.model, self.guide, self.enumeration, count, num_rows, device)

    def weigh(self, latents: dict[str, Tensor]) -> Draws:
        """The densities of latents that are given, of all rows, as if a guide had drawn them."""

        def given(*_: Tensor, size: int | None = None) -> None:
            for name, value in latents.items():
                pyro.sample(name, pyro.distributions.Delta(value).to_event())

        call, _ = self._call_on(self.all_rows, 1)
        rows, device = self.num_rows if self.by_row else None, self.data[0].device
        program = Program(given, "guide")
        return draw(call, self.model, program, self.enumeration, 1, rows, device)

    def check_points(self, check: Callable[..., None]) -> None:
        """Applies a check of points to the guide, with draws of its own."""
        with kept_rng(self.data[0].device):
            check(self.first.model, self.first.guide, self._draws(slice(0, 8)))

    def why_unknown(self) -> str | None:
        """Why the density of the latents that the guide draws cannot be told, or None."""
        if is_of_pyro(self.guide.inner):
            return None
        traces, rows = (self.first.model, self.first.guide), slice(0, self.first.num_rows)
        with kept_rng(self.data[0].device):
            return why_unknown(*traces, self._draws(rows), self.by_row)

    def check_known(self) -> None:
        """Raises where the density of the latents that the guide draws cannot be told."""
        if reason := self.why_unknown():
            raise ValueError(reason)

    def _draws(self, some: slice) -> Draw:
        """Draws from the guide, of some rows, if these are as good as any."""
        call, _ = self._call_on(some if self.tiled else self.all_rows, 1)

        def again(given: poutine.Trace) -> poutine.Trace:
            return call(poutine.trace(poutine.replay(self.guide, trace=given)).get_trace)

        return again

    def latents(self, draws: Draws) -> poutine.Trace:
        """The trace of the latents, with draws of the enumerated ones given the others."""
        if not self.enumeration.names:
            return draws.guide
        # Given, not replayed: Pyro takes the event dimensions of what it replays, and what depends
        # on an enumerated site, for dimensions of the batch.
        drawn = sites.latent_sites(draws.guide)
        given = poutine.condition(self.model, data={n: site["value"] for n, site in drawn.items()})
        sampled = infer_discrete(given, first_available_dim=self.enumeration.first_dim)
        trace = draws.call(poutine.trace(sampled).get_trace)
        latents = poutine.Trace()
        for name, site in (drawn | sites.latent_sites(trace)).items():
            latents.add_node(name, **site)
        return latents

    def predictive(self, draws: Draws, given: poutine.Trace | None) -> poutine.Trace:
        """A trace of the model without its data: fresh rows given latents, or from the prior."""
        program: Callable[..., Any] = Unobserved()(self.model)
        if given is not None:
            program = poutine.replay(program, trace=given)
        if self.masked:
            program = OwnWhereMasked(self.masked)(program)
        return draws.call(poutine.trace(program).get_trace)

    def conditioned(self, draws: Draws, predictive: poutine.Trace) -> poutine.Trace:
        """A trace of the model with its data and the latents of a predictive trace."""
        if not self.masked and not self.enumeration.names:
            return draws.model  # which had them already
        return draws.call(poutine.trace(poutine.replay(self.model, trace=predictive)).get_trace)

    def unstack(self, draws: Draws, site: dict, value: Tensor, event_dim: int) -> Tensor:
        """Returns a tensor of a site with the draws in front, `(K, *batch, *event)`."""
        if not self.tiled:
            return value.unsqueeze(0)
        dim = row_dim(site)
        axis = -1 if dim is None else value.dim() - event_dim + dim
        if axis < 0:  # the same for all rows and draws
            return value.unsqueeze(0).expand(draws.count, *value.shape)
        return value.unflatten(axis, (draws.count, -1)).movedim(axis, 0)


class Unobserved(Messenger):
    """`poutine.uncondition`, but `pyro.deterministic` and `pyro.factor` stay as they are."""

    def _pyro_sample(self, message: dict) -> None:
        if message["is_observed"] and sites.is_datum(message):
            message.update(is_observed=False, value=None, done=False)


def tile(data: tuple[Tensor, ...], rows: slice, count: int) -> tuple[Tensor, ...]:
    """Repeats some rows, all of them `count` times."""
    return tuple(x[rows].repeat(count, *[1] * (x.dim() - 1)) for x in data)


def _check_data(model: Program, guide: Program | None, data: tuple[Tensor, ...]) -> None:
    """Raises unless the data are finite rows, as the programs take them and where they are."""
    for n, x in enumerate(data):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"data[{n}]: expected tensors, arrays or data frames of rows, "
                f"{no_rows(x, model.argument_names)}"
            )
    if not data:
        raise ValueError("data: expected at least one tensor of rows, got none.")
    for program in (model, guide):
        if program is not None:
            program.check_arguments(len(data))
            check_devices(program.modules(), data)
    check_tensors(data, allows_missing(model.modules().values()))
    check_whole(model.modules().values(), data)
