"""The processes that compute together, as `torchrun` starts them, and what they tell each other.

One process alone is the usual case, and costs nothing. Otherwise all of them run the same lines, on
the same data, and whatever is computed together is called on all of them. What they exchange are
tensors, and JSON as bytes: nothing is unpickled.

References:
    | PyTorch Distributed: Experiences on Accelerating Data Parallel Training (Li et al., 2020)
    | https://arxiv.org/abs/2006.15704
"""

import atexit
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ppl_models.processes.meeting import meet
from ppl_models.processes.memory import Memory, shared_memory

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what `torchrun` sets
TIMEOUT = timedelta(minutes=10)  # after which a process that does not answer is given up


class ProcessError(RuntimeError):
    """Another process failed, or does not answer.

    Example:
        >>> raise ProcessError("process 1 has ended")
        Traceback (most recent call last):
        ...
        ppl_models.processes.group.ProcessError: process 1 has ended
    """


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is.

    Attributes:
        rank: The number of this process, from 0 on.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other one."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether it is this one that shows and writes what all have in common."""
        return self.rank == 0

    def own(self, size: int) -> slice:
        """Which of so many rows in a line are those of this process: every `count`-th.

        Example:
            >>> list(range(7))[Processes(rank=1, count=3).own(7)]
            [1, 4]
        """
        return slice(self.rank, size, self.count)

    def total(self, x: Tensor) -> Tensor:
        """The sum of tensors of one shape over all processes; the same bits on each."""
        if self.alone:
            return x
        result = x.detach().clone(memory_format=torch.contiguous_format)
        self.sum_into(result)
        return result

    def totals(self, *parts: Tensor | float) -> tuple[Any, ...]:
        """The sums of several numbers and tensors over all processes, in one exchange.

        Alone they are what they were; else tensors in float64 that lie where the first one does.

        Example:
            >>> ALONE.totals(torch.ones(2), 3)
            (tensor([1., 1.]), 3)
        """
        if self.alone:
            return parts
        place = next((x.device for x in parts if isinstance(x, Tensor)), torch.device("cpu"))
        tensors = [torch.as_tensor(x, dtype=torch.float64, device=place) for x in parts]
        whole = self.total(torch.cat([x.detach().reshape(-1) for x in tensors]))
        pieces = whole.split([x.numel() for x in tensors])
        return tuple(piece.view(x.shape) for piece, x in zip(pieces, tensors, strict=True))

    def first_of(self, *own: Tensor) -> tuple[Tensor, ...]:
        """What the first process has of several tensors of floating-point numbers.

        In one exchange, as new tensors.
        """
        if self.alone:
            return own
        whole = torch.cat([x.detach().reshape(-1).double() for x in own])
        self.take_from_first([whole])
        pieces = whole.split([x.numel() for x in own])
        both = zip(pieces, own, strict=True)
        return tuple(piece.view(x.shape).to(x.dtype) for piece, x in both)

    def sum_into(self, x: Tensor) -> None:
        """Puts the sum of tensors over all processes, which lie in one piece, in their place."""
        if not self.alone:
            flat = x.detach().view(-1)
            self.sum_written(lambda row: row.copy_(flat), flat)

    def sum_written(self, write: Callable[[Tensor], object], into: Tensor) -> None:
        """Puts the sum over all processes of what each writes into a row of numbers.

        Arguments:
            write: Writes all of such a row.
            into: A row of as many numbers of the same type, for the sum.

        Example:
            >>> row = torch.zeros(3)
            >>> ALONE.sum_written(lambda own: own.fill_(2), row)
            >>> row
            tensor([2., 2., 2.])
        """
        with _answered("a sum"):
            memory = None if self.alone or into.device.type != "cpu" else _memory_of(self)
            if memory is not None:
                memory.sum_written(write, into)
                return
            write(into)
            if not self.alone:
                dist.all_reduce(into)

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all processes in their order, whose shapes may differ."""
        if self.alone:
            return [x]
        shapes = self.gather_values(list(x.shape))
        sizes = [int(torch.Size(shape).numel()) for shape in shapes]
        place = x.device if x.device.type != "cpu" else _place()
        row = torch.zeros(max(sizes), dtype=x.dtype, device=place)
        row[: x.numel()] = x.detach().reshape(-1)
        rows = [torch.empty_like(row) for _ in shapes]
        with _answered("results"):
            dist.all_gather(rows, row)
        both = zip(rows, shapes, sizes, strict=True)
        return [found[:size].view(shape).to(x.device) for found, shape, size in both]

    def gather_values(self, value: Any) -> list[Any]:
        """What all processes have to say, in their order: whatever JSON can hold."""
        if self.alone:
            return [value]
        message = _bytes(json.dumps(value).encode())
        length = torch.tensor([len(message)], device=message.device)
        lengths = [torch.empty_like(length) for _ in range(self.count)]
        with _answered("messages"):
            dist.all_gather(lengths, length)
            most = max(int(n) for n in lengths)
            padded = message.new_zeros(most)
            padded[: len(message)] = message
            found = [torch.empty_like(padded) for _ in range(self.count)]
            dist.all_gather(found, padded)
        texts = (row[: int(n)].cpu() for row, n in zip(found, lengths, strict=True))
        return [json.loads(bytes(text.numpy())) for text in texts]

    def from_first(self, content: bytes | None) -> bytes:
        """Bytes that the first process has, on all of them."""
        if self.alone:
            assert content is not None
            return content
        message = _bytes(content if self.is_first and content is not None else b"")
        length = torch.tensor([len(message)], device=message.device)
        with _answered("what process 0 has"):
            dist.broadcast(length, 0)
            if not self.is_first:
                message = message.new_empty(int(length))
            if len(message):
                dist.broadcast(message, 0)
        return bytes(message.cpu().numpy())

    def take_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors, in place, the values that they have in the first process."""
        if self.alone:
            return
        with _answered("what process 0 has"), torch.no_grad():
            for x in tensors:
                own = x.detach()
                held = own if own.is_contiguous() else own.contiguous()
                dist.broadcast(held, 0)
                if held is not own:
                    own.copy_(held)

    def check_agree(self, where: str, advice: str, **kinds: Any) -> None:
        """Raises a ValueError on all processes where what should be alike is not.

        Arguments:
            where: What for, the first word of the error.
            advice: What to try.
            kinds: By name, values that JSON can hold, such as a `fingerprint`.
        """
        for name, values in self._by_name(kinds).items():
            other = next((n for n, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise ValueError(
                    f"{where}: expected the same {name.replace('_', ' ')} on all {self.count} "
                    f"processes, got {_short(values[0])} on process 0 and {_short(values[other])} "
                    f"on process {other}. {advice}"
                )

    def _by_name(self, kinds: dict[str, Any]) -> dict[str, list[Any]]:
        found = self.gather_values({name: repr(value) for name, value in kinds.items()})
        names = dict.fromkeys(name for one in found for name in one)
        return {name: [one.get(name, "nothing") for one in found] for name in names}

    @contextmanager
    def all_or_none(self, what: str) -> Iterator[None]:
        """A context that all processes leave alike: where one raises, the others do, too.

        What is inside must not be computed together.

        Raises:
            ProcessError: If another process raised, with what it said.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.alone:
            if error is not None:
                raise error
            return
        if not self._is_told(error is not None):
            return
        texts = self.gather_values(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = next((n for n, text in enumerate(texts) if text is not None), None)
        if failed is not None:
            raise ProcessError(f"{what} failed on process {failed}: {texts[failed]}")

    def _is_told(self, by_this: bool) -> bool:
        """Whether any process has something to tell."""
        flag = torch.tensor([float(by_this)], device=_bytes(b"").device)
        return bool(self.total(flag) > 0)


ALONE = Processes()
_memories: WeakKeyDictionary[Any, Memory | None] = WeakKeyDictionary()  # of groups
_apart = 0  # how many contexts this process is in, in which it computes by itself


def together() -> Processes:
    """The processes that this one computes with, which it joins where `torchrun` started it.

    A group that was made before, by `torch.distributed.init_process_group`, is taken as it is,
    with its backend and its time-out.

    Example:
        >>> together()
        Processes(rank=0, count=1)
    """
    if _apart or not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not _is_launched():
            return ALONE
        if torch.cuda.is_available():  # each process of a machine has a GPU of its own
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        _join()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def apart() -> Iterator[None]:
    """A context in which this process computes by itself, as each of several does its own work.

    Example:
        >>> with apart():
        ...     together().alone
        True
    """
    global _apart
    _apart += 1
    try:
        yield
    finally:
        _apart -= 1


def is_other() -> bool:
    """Whether this process has joined others, of which it is not the first."""
    return not _apart and dist.is_available() and dist.is_initialized() and dist.get_rank() > 0


def is_first() -> bool:
    """Whether this process is alone, or the first of those that were started with it.

    It is told without joining the others, which may never come to the same line.
    """
    if not _apart and dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return bool(_apart) or not _is_launched() or os.environ["RANK"] == "0"


def _is_launched() -> bool:
    """Whether this process was started beside others, and is no child of one that was."""
    if not all(name in os.environ for name in LAUNCHED) or os.environ["WORLD_SIZE"] == "1":
        return False
    return multiprocessing.parent_process() is None


def _join() -> None:
    store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
    here = dist.PrefixStore(meet(store, rank, count, TIMEOUT), store)
    dist.init_process_group(store=here, rank=rank, world_size=count, timeout=TIMEOUT)
    atexit.register(_leave)


def _memory_of(here: Processes) -> Memory | None:
    """What the processes share where they are all on one machine: found once for a group."""
    group = dist.group.WORLD
    assert group is not None
    if group not in _memories:
        try:
            limit = group._get_backend(torch.device("cpu")).options._timeout
        except (AttributeError, RuntimeError):  # of a backend that says none
            limit = TIMEOUT
        _memories[group] = shared_memory(here, limit.total_seconds())
    return _memories[group]


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _bytes(content: bytes) -> Tensor:
    """Bytes as a tensor, where messages go."""
    if not content:
        return torch.empty(0, dtype=torch.uint8, device=_place())
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(_place())


def _place() -> torch.device:
    """Where tensors on the CPU are sent from: a backend of GPUs alone takes none."""
    if any(kind in dist.get_backend_config() for kind in ("gloo", "mpi")):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def _answered(what: str) -> Iterator[None]:
    """A context in which all processes take part, or those that do say that another does not."""
    try:
        yield
    except ProcessError:  # which says it already
        raise
    except (RuntimeError, OSError) as error:
        said = str(error).strip().splitlines()
        raise ProcessError(
            f"process {dist.get_rank()} of {dist.get_world_size()} waited for {what} of the others "
            f"in vain ({said[0][:200] if said else type(error).__name__}): one has ended, stalls, "
            f"cannot be reached, or does other things. Try its own output, the same lines on all "
            f"processes (no `if rank == 0:` around what they compute together), and "
            f"fit(..., checkpoint=, resume=True) to go on from the last checkpoint."
        ) from None
