r"""Training steps as CUDA graphs: one launch for each step, instead of one for each kernel.

A CUDA graph holds the kernels that a function launched while it was recorded, with the addresses
they read and write. A replay runs them again, on what the inputs, the parameters and the states of
the optimisers hold by then, and with other random numbers. Nothing of Python is run again. So only
steps are recorded whose losses are compiled, of which it is known what they hold fast
(`ppl_models.infer.compiled.graph`), and anew where an address or a setting is no longer what it
was. Learning rates are read from the device, so that schedules go on.

References:
    | Accelerating PyTorch with CUDA Graphs (Nguyen et al., 2021)
    | https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_models.infer.compiled.graph import Compiled, Graph
from ppl_models.user_line import warn

WARM_UP = 3  # steps before one is recorded, in which all that lasts is allocated
PLAIN = (bool, int, float, str, tuple)  # settings that count by their values
UNSTEADY = 100  # changes of addresses or settings after which no more steps are recorded

Losses = dict[str, Tensor]
Settings = list[Any]


class Recorder(Protocol):
    """What records a function once, to be replayed: torch's word is capture."""

    def run(self, function: Callable[[], Losses]) -> Losses:
        """Runs a function as it will be recorded."""

    def record(self, function: Callable[[], Losses]) -> tuple[Callable[[], Any], Losses]:
        """Records a function without running it; returns the replay, and what that writes."""


class CudaRecorder:
    """Records on a stream of its own, as CUDA wants it.

    Arguments:
        device: The device, of CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        # One pool for all: replays follow each other, and what they write is copied at once.
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], Losses]) -> Losses:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self.stream):
                return function()
        finally:  # what was launched before an error runs on
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def record(self, function: Callable[[], Losses]) -> tuple[Callable[[], Any], Losses]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those of a DataLoader, may use the device meanwhile.
        recorded = torch.cuda.graph(
            graph, self.pool, self.stream, capture_error_mode="thread_local"
        )
        # Where a recording breaks, torch may leave its stream the current one.
        try:
            with torch.cuda.stream(torch.cuda.current_stream(self.device)), recorded:
                result = function()
        except BaseException:
            self._release_generator()
            raise
        return graph.replay, result

    def _release_generator(self) -> None:
        """Draws go on after a recording that broke, of which some versions of torch know no end."""
        state = torch.cuda.get_rng_state(self.device)
        try:
            torch.rand((), device=self.device)
        except RuntimeError:
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())
        torch.cuda.set_rng_state(state, self.device)


def recorder_for(device: torch.device) -> Recorder | None:
    """Returns what records the steps on a device, None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Rate:
    """A learning rate on the device."""

    def __init__(self, device: torch.device) -> None:
        self.tensor, self.value = torch.zeros((), device=device), 0.0

    def take(self, value: float | Tensor) -> None:
        """Takes a value over, without waiting for the device."""
        if isinstance(value, Tensor):
            self.tensor.copy_(value)
            self.value = math.nan  # not known here
        elif value != self.value:
            self.tensor.fill_(value)
            self.value = value


@dataclass
class Recording:
    """A step on inputs of one kind: first it runs, then it is recorded, then replayed."""

    step: Callable[..., Losses]  # kept, as are the tensors that it knows
    inputs: tuple[Tensor, ...]  # what a replay reads
    settings: Settings  # with which it was begun
    runs: int = 0
    graphs: list[Graph] = field(default_factory=list)  # the compiled losses in it
    held: list[tuple[Tensor, int]] = field(default_factory=list)  # what these read, and where
    replay: Callable[[], Any] | None = None
    losses: Losses = field(default_factory=dict)  # what a replay writes

    def holds(self, settings: Settings) -> bool:
        """Whether addresses, settings and all that the graphs hold fast are as they were."""
        return (
            _all_same(settings, self.settings)
            and all(x.data_ptr() == address for x, address in self.held)
            and all(graph.holds() for graph in self.graphs)
        )


class Replay:
    """Steps of descent, each recorded once it has run a few times, and replayed from then on.

    Arguments:
        recorder: What records and replays.
        compiled: The compiled losses that a step runs.
        optimizers: The optimisers that it runs.
        tensors: The parameters that they move.
    """

    def __init__(
        self,
        recorder: Recorder,
        compiled: Sequence[Compiled],
        optimizers: Sequence[Optimizer],
        tensors: Sequence[Tensor],
    ) -> None:
        self.recorder, self.compiled = recorder, compiled
        self.optimizers, self.tensors = optimizers, tensors
        self.rates: dict[int, Rate] = {}  # of each group
        self.recordings: dict[Hashable, Recording] = {}
        self.changes = 0
        self.reason: str | None = None  # why nothing is recorded, if so

    def __call__(
        self, step: Callable[..., Losses], inputs: tuple[Tensor, ...], *constants: Hashable
    ) -> Losses:
        """Takes a step, and returns its losses, which the next one overwrites.

        Arguments:
            step: Takes the step on its inputs.
            inputs: The tensors that change from step to step.
            constants: What else the step depends on.
        """
        if self.reason is not None or any(c.reason is not None for c in self.compiled):
            return step(*inputs)
        key = (tuple((x.shape, x.stride(), x.dtype) for x in inputs), *constants)
        recording, settings = self.recordings.get(key), self._settings()
        if recording is None or not recording.holds(settings):
            self.changes += recording is not None
            if self.changes == UNSTEADY:
                self._give_up("a setting of the optimiser, or an address, changes at every step")
                return step(*inputs)
            copies = tuple(x.clone() for x in inputs)
            recording = self.recordings[key] = Recording(step, copies, settings)
        for kept, x in zip(recording.inputs, inputs, strict=True):
            kept.copy_(x)
        if recording.runs < WARM_UP or any(graph.due() for graph in recording.graphs):
            return self._run(recording)
        if recording.replay is None:
            self._record(recording)
        if recording.replay is None:
            return step(*inputs)
        for group in self._groups():
            if id(group) in self.rates:
                self.rates[id(group)].take(group["lr"])
        recording.replay()
        for graph in recording.graphs:
            graph.calls[0] += 1
        return recording.losses

    def _run(self, recording: Recording) -> Losses:
        for compiled in self.compiled:
            compiled.used.clear()
        before = self._kept()
        losses = self.recorder.run(partial(recording.step, *recording.inputs))
        recording.graphs = [graph for c in self.compiled for graph in c.used.values()]
        others = {id(x): x for graph in recording.graphs for x in graph.tensors}
        known = set(map(id, self.tensors))
        recording.held = [(x, x.data_ptr()) for n, x in others.items() if n not in known]
        recording.runs += 1
        if any(graph.on_host for graph in recording.graphs):
            self._give_up("the program draws on the CPU, or reads tensors there that may change")
        elif recording.runs == WARM_UP and not _all_same(before, self._kept()):
            self._give_up("the optimiser counts in Python, or has new tensors after each step")
        return losses

    def _record(self, recording: Recording) -> None:
        try:
            with self._capturable():
                replay, losses = self.recorder.record(partial(recording.step, *recording.inputs))
        except Exception as error:  # whatever an optimiser does that a recording cannot hold
            first = error.__context__ or error  # CUDA's own, that the recording broke, comes second
            self._give_up(f"{type(first).__name__}: {str(first).strip().splitlines()[0]}")
        else:
            recording.replay, recording.losses = replay, losses

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """A context in which the optimisers keep on the device what changes from step to step."""
        before = []
        for optimizer in self.optimizers:
            for p, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.device != p.device:
                        state[name] = value.to(p.device)
        for group in self._groups():
            if "capturable" in group:
                rate = self.rates.setdefault(id(group), Rate(group["params"][0].device))
                before.append((group, group["capturable"], group["lr"]))
                group.update(capturable=True, lr=rate.tensor)
        try:
            yield
        finally:
            for group, capturable, lr in before:
                group.update(capturable=capturable, lr=lr)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _settings(self) -> Settings:
        """What a recording has written into it: addresses, and the settings of the optimisers."""
        settings: Settings = [x.data_ptr() for x in self.tensors]
        for optimizer in self.optimizers:
            settings += [optimizer.state, *optimizer.param_groups]
            for group in optimizer.param_groups:
                read = "lr" if "capturable" in group else None  # from the device
                numbers = [v for name, v in group.items() if name not in ("params", read)]
                settings += [*numbers, *(v._version for v in numbers if isinstance(v, Tensor))]
        return settings

    def _kept(self) -> Settings:
        """What the optimisers keep from step to step: of this a recording repeats tensors alone."""
        kept: Settings = []
        for optimizer in self.optimizers:
            kept += [v for v in vars(optimizer).values() if isinstance(v, PLAIN)]
            kept += [v for state in optimizer.state.values() for v in state.values()]
        return kept

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self.recordings.clear()
        warn(
            f"steps are compiled, but not recorded as CUDA graphs: {reason}. The numbers are "
            f"right, only slower."
        )


def _all_same(now: Settings, before: Settings) -> bool:
    return len(now) == len(before) and all(map(_same, now, before))


def _same(a: Any, b: Any) -> bool:
    """Whether a setting is what it was: the same object, or an equal number or tuple of them."""
    return a is b or (isinstance(a, PLAIN) and type(a) is type(b) and a == b)
