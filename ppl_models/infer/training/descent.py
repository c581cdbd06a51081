"""One step of descent: the loop under `fit`, for those who drive it themselves."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_models.checks import check_devices, listed
from ppl_models.infer.compiled.graph import Compiled
from ppl_models.infer.compiled.replay import Replay, recorder_for
from ppl_models.infer.objectives.objective import Objective, as_objectives, modules_of
from ppl_models.infer.objectives.reports import Reports
from ppl_models.infer.programs.checks import noting_batch
from ppl_models.infer.training.average import Average, check_decay, copy_all
from ppl_models.infer.training.batches import Batch, Chosen
from ppl_models.infer.training.ends.blame import blame_loss, blame_slope
from ppl_models.infer.training.ends.slopes import are_finite
from ppl_models.infer.training.files import held
from ppl_models.infer.training.optimizers import (
    LearningRateSchedule,
    Optimizer,
    make_optimizer,
    make_scheduler,
    takes_steps,
)
from ppl_models.infer.training.together.agreement import SitesSeen, check_same_start
from ppl_models.infer.training.together.as_one import whole_draws
from ppl_models.infer.training.together.exchange import Exchange
from ppl_models.infer.training.together.generators import go_on_from, states_of_all
from ppl_models.infer.training.together.parts import as_batch, parts_of, placed, some_of
from ppl_models.infer.training.together.shards.shards import Shards
from ppl_models.infer.training.together.shards.whether import (
    check_moves_each_alone,
    check_rows_for_all,
)
from ppl_models.infer.training.together.trial import Parted
from ppl_models.processes import ALONE, Processes
from ppl_models.scoped import get_rng_state, kept_rng, modes, set_rng_state
from ppl_models.user_line import warn


def descend(
    objectives: Objective | Sequence[Objective],
    batches: Iterable[Batch | Tensor | tuple[Tensor, ...]],
    **options: Any,
) -> Iterator[dict[str, Tensor]]:
    """Yields the losses of each step, in nats per row: one step for each batch.

    Several objectives take turns on each batch. Under `torchrun` each process descends by itself;
    see `fit`. The keyword arguments are those of `Descent`;
    with `ema` the parameters are those averages once the batches have come to an end.

    Arguments:
        objectives: What to descend.
        batches: Tensors, tuples of tensors, or `Batch`es. Only a `Batch` says which rows it
            holds, of how many; others stand for the whole data.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE, elbo
        >>> objective = elbo(VAE(4, 2), AmortizedNormal(4, 2))
        >>> x = torch.ones(10, 4)
        >>> losses = [step["elbo"] for step in descend(objective, [x] * 3, lr=1e-2)]
        >>> len(losses)
        3
    """
    objectives, stream = as_objectives(objectives), map(as_batch, batches)
    batch = next(stream, None)
    if batch is None:
        return
    with closing(Descent(objectives, batch, **options)) as descent:
        while batch is not None:
            yield descent.step(batch)
            batch = next(stream, None)
        descent.finish()


class Descent:
    """Objectives that can take their first step, each with its optimiser and its schedule.

    Arguments:
        objectives: What to descend, in turns.
        batch: A first batch. The objectives are checked against it and create their parameters;
            it is no step.
        data: All the rows, where they are in memory, to be checked, too.
        lr: The learning rate.
        optimizer: A callable `optimizer(parameters, lr=lr)`. Default: fused Adam.
        clip: The largest norm of a gradient; None for no clipping.
        schedule: A callable `schedule(optimizer)`, or `schedule(optimizer, steps)` with the
            number of steps in all, that returns a scheduler of torch. It moves at every step.
        steps: The number of steps in all, for the schedule.
        amp: Whether to run the programs under autocast to bfloat16.
        ema: The decay of an average of the parameters, between 0 and 1; None for no average.
        compile: Whether the losses run as compiled code, where that gives the same numbers.
        processes: Those that share each batch. The first one is the whole, on each of them.
        shard: Whether they share the networks, too.
    """

    def __init__(
        self,
        objectives: Objective | Sequence[Objective],
        batch: Batch,
        data: tuple[Tensor, ...] | None = None,
        *,
        lr: float = 1e-3,
        optimizer: Optimizer | None = None,
        clip: float | None = None,
        schedule: LearningRateSchedule | None = None,
        steps: int | None = None,
        amp: bool = False,
        ema: float | None = None,
        compile: bool = False,
        processes: Processes = ALONE,
        shard: bool = False,
    ) -> None:
        check_decay(ema)
        self.objectives = as_objectives(objectives)
        self.lr, self.clip, self.amp = lr, clip, amp
        self.ema, self.compile = ema, compile
        self.device = batch.values[0].device
        self.step_number = 0
        with (
            processes.all_or_none("fit: a check of the first batch"),
            kept_rng(self.device),
            modes(self.modules(), training=False),
        ):
            with SitesSeen() as seen:
                self.check(batch, data)
            if not processes.alone:
                self._check_part(batch, processes)
        self.names = [[name for name, _ in o.named_parameters()] for o in self.objectives]
        self.parameters = [_trained(objective) for objective in self.objectives]
        self._warn_of_untrained()
        self.processes = processes
        self.exchange = None if processes.alone else Exchange(processes)
        if self.exchange is not None:
            check_same_start(processes, self.objectives, seen.found)
            self._check_shared(batch, self.exchange)
        self.shards = self._sharded(batch, optimizer) if shard and not processes.alone else None
        if self.shards is not None:
            self.parameters = [self.shards.here(p) for p in self.parameters]
        with self.joined_on(Exception):
            self.optimizers = [make_optimizer(optimizer, p, lr) for p in self.parameters]
            if self.shards is not None:
                self.shards.check_given(self.optimizers[0], self.parameters[0])
            self.schedulers = [make_scheduler(schedule, o, steps) for o in self.optimizers]
        self.horizon = steps if schedule is not None and takes_steps(schedule) else None
        moved = list(chain.from_iterable(self.parameters))
        self.average = None if ema is None else Average(moved, ema)
        self.compiled = [Compiled(objective) for objective in self.objectives]
        self.reports = [Reports(objective) for objective in self.objectives]
        self.by_blocks = False  # whether compiled steps come in blocks, and single ones do not
        self.seconds_compiling = 0.0  # of blocks
        recorder = recorder_for(self.device) if compile and processes.alone else None
        self.replay: Replay | None = None
        if recorder is not None:
            self.replay = Replay(recorder, self.compiled, self.optimizers, moved)

    def modules(self) -> list[nn.Module]:
        """The modules of all objectives."""
        return modules_of(self.objectives)

    def frozen(self) -> list[str]:
        """The names of the parameters that the objectives have, and that are not trained."""
        named = chain.from_iterable(o.named_parameters() for o in self.objectives)
        return [name for name, parameter in named if not parameter.requires_grad]

    def check(self, batch: Batch, data: tuple[Tensor, ...] | None = None) -> None:
        """Raises where the objectives cannot take a batch, or the data that it came from."""
        for objective in self.objectives:
            check_devices(objective.modules(), batch.values)
            with placed(batch):
                objective.prepare(*batch.values, size=batch.size, data=data)

    def _check_part(self, batch: Batch, processes: Processes) -> None:
        """Raises where the objectives cannot take the part of a batch that a process has."""
        own = processes.own(len(batch.values[0]))
        rows = None if batch.rows is None else batch.rows[own]
        try:
            self.check(Batch(tuple(x[own] for x in batch.values), rows, batch.size))
        except ValueError as error:
            raise ValueError(
                f"on {processes.count} processes, each of which has a part of each batch: {error}"
            ) from None

    def _check_shared(self, batch: Batch, exchange: Exchange) -> None:
        """Raises where a loss on a batch is not the mean over its parts."""
        for objective in self.objectives:
            loss = partial(self._numbers, objective, batch)
            modules = list(objective.modules().values())
            trial = Parted(objective.name, loss, modules, self.device)
            names = trial.check(exchange.processes, len(batch.values[0]))
            exchange.names[objective.name] = names

    def _sharded(self, batch: Batch, optimizer: Optimizer | None) -> Shards:
        """The networks of the objective, which are split from here on."""
        check_moves_each_alone(optimizer, self.lr)
        (objective,) = self.objectives
        numbers, rows = partial(self._numbers, objective, batch), len(batch.values[0])
        return Shards(objective, numbers, rows, self.processes, self.device)

    def _numbers(
        self, objective: Objective, batch: Batch, places: Tensor, total: int
    ) -> dict[str, Tensor]:
        """The loss, and what it reports, on some of the first rows of a batch."""
        loss = self._evaluated(objective, some_of(batch, places, total))
        return {objective.name: loss, **objective.reports}

    def evaluate(self, objective: Objective, batch: Batch) -> Tensor:
        """The loss of an objective on a batch, in nats per row."""
        with whole_draws(batch.share):
            return self._evaluated(objective, batch)

    def _evaluated(self, objective: Objective, batch: Batch) -> Tensor:
        with (
            placed(batch),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp),
            noting_batch(batch.values),
        ):
            return objective.loss(*batch.values, size=batch.size)

    def step(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Takes one step for each objective, and returns their losses before it."""
        losses = self._turns(batch) if self.replay is None else self._replayed(batch)
        for scheduler in self.schedulers:
            if scheduler is not None:
                scheduler.step()
        self.step_number += 1
        if self.average is not None:
            self.average.update(self.step_number)
        return losses

    def moved(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """A step without what counts it and what the schedules do: parameters and averages."""
        losses = self._turns(batch)
        if self.average is not None:
            self.average.update(self.step_number + 1)
        return losses

    def _turns(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Moves the parameters of all objectives, and returns their losses before it."""
        if isinstance(batch, Chosen):
            batch = batch.gathered()
        losses: dict[str, Tensor] = {}
        for i, objective in enumerate(self.objectives):
            parts = parts_of(batch, objective.turns)
            for part in parts:
                for name, number in self._turn(i, part).items():
                    share = number / len(parts) if len(parts) > 1 else number
                    losses[name] = losses[name] + share if name in losses else share
        return losses

    def _replayed(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """The same, by a recording where there is one for batches of this kind."""
        assert self.replay is not None
        if isinstance(batch, Chosen):
            losses = self.replay(
                lambda rows: self._turns(batch._replace(rows=rows)),
                (batch.rows,),
                *map(id, batch.tensors),
                batch.size,
            )
        elif batch.rows is None:
            losses = self.replay(
                lambda *values: self._turns(batch._replace(values=values)),
                batch.values,
                batch.size,
            )
        else:
            losses = self.replay(
                lambda rows, *values: self._turns(Batch(values, rows, batch.size)),
                (batch.rows, *batch.values),
                batch.size,
            )
        return {name: loss.clone() for name, loss in losses.items()}

    def _turn(self, i: int, batch: Batch) -> dict[str, Tensor]:
        """Moves the parameters of an objective once, and returns what there is to record."""
        self.optimizers[i].zero_grad(set_to_none=True)
        if self.exchange is None:
            numbers = self._differentiated(i, batch)
        elif self.shards is not None:
            numbers = self._differentiated_in_shards(i, batch, self.exchange, self.shards)
        else:
            numbers = self._averaged_over_processes(i, batch, self.exchange)
        if self.step_number == 0:
            self._warn_of_idle(i)
        if self.clip is not None and self.shards is not None:
            self.shards.clip(self.parameters[i], self.clip)
        elif self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters[i], self.clip)
        self.optimizers[i].step()
        self.objectives[i].stepped()
        return numbers

    def _averaged_over_processes(
        self, i: int, batch: Batch, exchange: Exchange
    ) -> dict[str, Tensor]:
        """The same of a batch of which each process has a part, which may have no rows."""
        assert batch.share is not None
        numbers, error = {}, None
        weight = len(batch.share.places) / batch.share.total
        try:
            if len(batch.share.places):
                numbers = self._differentiated(i, batch, weight)
        except Exception as raised:  # of which the others are told
            error = raised
        name = self.objectives[i].name
        return exchange.average(name, self.parameters[i], numbers, weight, error)

    def _differentiated_in_shards(
        self, i: int, batch: Batch, exchange: Exchange, shards: Shards
    ) -> dict[str, Tensor]:
        """The same where networks are gathered on the way, by all processes together."""
        share, objective, error = batch.share, self.objectives[i], None
        assert share is not None
        check_rows_for_all(share.total, self.processes)
        weight = len(share.places) / share.total
        shards.forget_slopes()
        rng = get_rng_state(self.device)
        with pyro.validation_enabled(False), shards.gathering():
            loss = self.evaluate(objective, batch)
            (loss * weight).backward()
        shards.take_slopes()
        numbers = {objective.name: loss.detach(), **objective.reports}
        if not (torch.isfinite(loss) and are_finite(self.parameters[i])):
            error = FloatingPointError(
                f"{objective.name}: a gradient is not finite at step {self.step_number + 1}. Try a "
                f"smaller lr, or the run without shard=True, which names the line and the rows."
            )
        whole = shards.whole_ones(self.parameters[i])
        numbers = {name: x.detach() * weight for name, x in numbers.items()}
        try:
            return exchange.average(objective.name, whole, numbers, 1.0, error)
        except FloatingPointError:
            self.join()
            set_rng_state(rng, self.device)
            self._blame_together(objective, batch, loss.detach())
            raise

    def _blame_together(self, objective: Objective, batch: Batch, loss: Tensor) -> None:
        """Raises on all processes where a loss is not finite, as the one says that has it."""
        text = None
        if not torch.isfinite(loss):
            text = self.blame(objective, batch, loss, f"at step {self.step_number + 1}")
        found = self.processes.gather_values(text)
        for rank, said in enumerate(found):
            if said is not None:
                raise FloatingPointError(f"on process {rank} of {len(found)}, {said}") from None

    def _differentiated(self, i: int, batch: Batch, weight: float = 1.0) -> dict[str, Tensor]:
        """Gives the parameters of an objective their gradients; returns what there is to record."""
        objective = self.objectives[i]
        # Pyro's checks run once: on every step they would cost more than the mathematics.
        validate = pyro.settings.get("validate_infer") and self.step_number == 0
        # Reading the loss makes a GPU wait; there it is checked when it is reported.
        checked = self.device.type == "cpu" and self.replay is None
        rng = get_rng_state(self.device) if checked else {}
        with pyro.validation_enabled(validate):
            loss = self._loss(i, batch)
        if checked and not torch.isfinite(loss):
            set_rng_state(rng, self.device)
            when = f"at step {self.step_number + 1}"
            raise FloatingPointError(self.blame(objective, batch, loss, when))
        loss.backward(torch.full_like(loss, weight))
        if checked and not are_finite(self.parameters[i]):
            set_rng_state(rng, self.device)
            raise FloatingPointError(self._blame_slope(i, batch._replace(share=None), loss))
        by_code = self.compile and not self.by_blocks and self.compiled[i].reason is None
        reports = self.reports[i].now() if by_code else objective.reports
        return {objective.name: loss.detach(), **reports}

    def _loss(self, i: int, batch: Batch) -> Tensor:
        """The loss of an objective on a batch that it is trained on."""
        if not self.compile or self.by_blocks:
            return self.evaluate(self.objectives[i], batch)
        self.reports[i].make_room()
        if batch.rows is None:
            return self.compiled[i](
                lambda *values: self.noted(i, batch._replace(values=values)),
                batch.values,
                batch.size,
            )
        return self.compiled[i](
            lambda rows, *values: self.noted(i, Batch(values, rows, batch.size)),
            (batch.rows, *batch.values),
            batch.size,
        )

    def noted(self, i: int, batch: Batch) -> Tensor:
        """The loss of an objective, and what it reports where code can write it, too."""
        loss = self.evaluate(self.objectives[i], batch)
        if not self.reports[i].note() and self.compiled[i].reason is None:
            self.compiled[i].give_up("the names of what it reports are not always the same")
        return loss

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the parameters are their averages, where there are any."""
        return nullcontext() if self.average is None else self.average.taken()

    def finish(self) -> None:
        """Ends it: the parameters take the values of their averages."""
        if self.average is not None:
            self.average.take()

    def state_dict(self) -> dict[str, Any]:
        """Where it is, the parameters themselves aside."""
        return {
            "average": self.average and self.average.tensors,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [s and s.state_dict() for s in self.schedulers],
            **states_of_all(self.processes, self.device),
            "step": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where another one was, as `state_dict` gave it."""
        if self.average is not None:
            copy_all(self.average.tensors, state["average"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
            _lay_out_like_parameters(optimizer)
        for scheduler, its_state in zip(self.schedulers, state["schedulers"], strict=True):
            if scheduler is not None:
                scheduler.load_state_dict(its_state)
        self.step_number = state["step"]
        go_on_from(state, self.processes, self.device)

    @contextmanager
    def joined_afterwards(self) -> Iterator[None]:
        """A context after which networks are whole again, also where all raise the same error."""
        with self.joined_on(FloatingPointError):
            yield
        self.join()

    @contextmanager
    def joined_on(self, kind: type[Exception]) -> Iterator[None]:
        """A context after which networks are whole again where an error is raised on all."""
        try:
            yield
        except kind:
            self.join()
            raise

    def join(self) -> None:
        """Makes networks that are split over processes whole again, on each."""
        if self.shards is not None:
            self.shards.join()

    def close(self) -> None:
        """Lets recordings go, and the data that they hold, also where a run was interrupted."""
        if self.replay is not None:
            self.replay.recordings.clear()

    def blame(self, objective: Objective, batch: Batch, loss: Tensor, when: str) -> str:
        """Says where a loss that is not finite comes from."""
        return blame_loss(objective, batch, loss, when, moved=self.step_number > 0)

    def _blame_slope(self, i: int, batch: Batch, loss: Tensor) -> str:
        """Says where a gradient that is not finite comes from, of a loss that is."""
        objective = self.objectives[i]
        return blame_slope(
            objective, batch, loss, self.step_number + 1, self.parameters[i], self.evaluate
        )

    def check_parameters(self) -> None:
        """Raises where parameters turned up after the start, or are no longer finite."""
        if self.shards is None:
            self._check_parameters()
        else:  # of which each process has others
            raised = None
            try:
                self._check_parameters()
            except FloatingPointError as error:
                raised = str(error)
            for text in filter(None, self.processes.gather_values(raised)):
                raise FloatingPointError(text)

    def _check_parameters(self) -> None:
        for objective, names in zip(self.objectives, self.names, strict=True):
            for name, parameter in objective.named_parameters():
                if name not in names:
                    raise RuntimeError(
                        f"{objective.name}: the parameter {name} first came up after the start, "
                        f"and is not trained. Try a program that declares all on every call."
                    )
                if not torch.isfinite(held(parameter)).all():
                    raise FloatingPointError(
                        f"{objective.name}: the parameter {name} is not finite after step "
                        f"{self.step_number}. Try a smaller lr, or clip=1.0."
                    )

    def _warn_of_idle(self, i: int) -> None:
        """Warns of parameters that the first loss of an objective does not depend on."""
        if idle := self.objectives[i].idle():
            warn(
                f"{self.objectives[i].name}: the loss does not depend on {listed(idle)}, which "
                f"stay as they are where that is so of each batch. Try using them in a site, "
                f"without .detach() on the way, or .requires_grad_(False) if that is meant."
            )

    def _warn_of_untrained(self) -> None:
        trained = {id(p) for parameters in self.parameters for p in parameters}
        for objective in self.objectives:
            for name, module in objective.modules().items():
                if any(p.requires_grad and id(p) not in trained for p in module.parameters()):
                    warn(
                        f"{objective.name}: the program runs {name}, some of whose parameters are "
                        f"not trained. Try pyro.module('{name.split('.')[-1]}', ...) in the "
                        f"program, or .requires_grad_(False) if that is meant."
                    )


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments the strides of their parameters, in whose order of memory fused steps go."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _trained(objective: Objective) -> list[Tensor]:
    parameters = [p for _, p in objective.named_parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"{objective.name}: there is nothing to train: its programs have no parameters that "
            f"require a gradient. Try pyro.param, nn.Parameter, or log_evidence for the model "
            f"as it is."
        )
    return parameters
