"""Work in pieces that processes take in turn, after which all of them have what each piece gave.

Which process does a piece changes nothing of it, so that one process and many have the same in the
same order. What pieces give is exchanged after a while of work, so that the exchange costs little.
Others wait for a piece that takes long, no longer than the time-out of `torch.distributed`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ppl_models.processes.group import ProcessError, Processes

LONG = 0.1  # seconds of work, after which it is worth an exchange
MOST = 2**26  # bytes of a process in an exchange, about

Piece = TypeVar("Piece")
Results = dict[Any, Tensor]  # by strings, or tuples of them


class Turns:
    """Exchanges, each after some pieces of work.

    Arguments:
        here: Which of how many processes this one is.
        what: What they do, the first word of an error where another process failed.
        device: Where results are put that are not on the CPU.
    """

    def __init__(self, here: Processes, what: str, device: torch.device) -> None:
        self.here, self.what, self.device = here, what, device
        self.each = 1  # how many pieces a process does before an exchange

    @property
    def number(self) -> int:
        """How many pieces all of them do before the next exchange."""
        return self.each * self.here.count

    def take(
        self, pieces: Sequence[Piece], work: Callable[[Piece], Results | None]
    ) -> list[Results | None]:
        """What some pieces give, in their order, of which this process does its share.

        Raises:
            ProcessError: If another process raised, with what it said.
        """
        if self.here.alone:
            return [_in_order(work(piece)) for piece in pieces]
        own: list[Results | None] = []
        error, start = None, time.perf_counter()
        try:
            own = [_in_order(work(piece)) for piece in pieces[self.here.own(len(pieces))]]
            content = self._packed(own)
        except Exception as raised:
            error, content = raised, self._packed([])
        seconds = time.perf_counter() - start
        said = None if error is None else f"{type(error).__name__}: {error}"
        shapes = [None if one is None else _shapes(one) for one in own]
        told = self.here.gather_values([said, seconds, shapes])
        self._check(error, [one[0] for one in told])
        found = self.here.gather(content)
        self._pace(max(one[1] for one in told), max(map(len, found)))
        all_ = [self._unpacked(one[2], x) for one, x in zip(told, found, strict=True)]
        all_[self.here.rank] = own
        return [all_[n % self.here.count][n // self.here.count] for n in range(len(pieces))]

    def _check(self, error: Exception | None, said: list[str | None]) -> None:
        if error is not None:
            raise error
        failed = next((n for n, text in enumerate(said) if text is not None), None)
        if failed is not None:
            raise ProcessError(f"{self.what} failed on process {failed}: {said[failed]}")

    def _pace(self, seconds: float, size: int) -> None:
        """Takes more pieces where those of the last exchange were quickly done."""
        if seconds < LONG and 2 * size <= MOST:
            self.each *= 2

    def _packed(self, found: Sequence[Results | None]) -> Tensor:
        """The bytes of all tensors."""
        rows = [_bytes_of(x) for one in found if one is not None for x in one.values()]
        return torch.cat([torch.empty(0, dtype=torch.uint8), *(row.cpu() for row in rows)])

    def _unpacked(self, shapes: list[Any], content: Tensor) -> list[Results | None]:
        """The tensors of another process."""
        found: list[Results | None] = []
        start = 0
        for one in shapes:
            results: Results = {}
            for key, kind, shape, on_cpu in one or ():
                dtype = getattr(torch, kind)
                stop = start + torch.Size(shape).numel() * dtype.itemsize
                value = content[start:stop].clone().view(dtype).view(shape)
                results[_key(key)] = value.to("cpu" if on_cpu else self.device)
                start = stop
            found.append(None if one is None else results)
        return found


def in_turn(
    here: Processes,
    what: str,
    pieces: Sequence[Piece],
    work: Callable[[Piece], Results],
    device: torch.device,
) -> Iterator[tuple[Piece, Results]]:
    """Yields all pieces of some work, and what each gave.

    Example:
        >>> from ppl_models.processes import ALONE
        >>> work = lambda n: {"square": torch.tensor(n * n)}
        >>> found = in_turn(ALONE, "squares", range(4), work, torch.device("cpu"))
        >>> [results["square"].item() for _, results in found]
        [0, 1, 4, 9]
    """
    turns, done = Turns(here, what, device), 0
    while done < len(pieces):
        chosen = pieces[done : done + turns.number]
        for piece, results in zip(chosen, turns.take(chosen, work), strict=True):
            assert results is not None
            yield piece, results
        done += len(chosen)


def _in_order(results: Results | None) -> Results | None:
    """Results as they come from other processes, whose sums have the same last digits."""
    return None if results is None else {key: x.contiguous() for key, x in results.items()}


def _shapes(results: Results) -> list[Any]:
    """What bytes are, for JSON."""
    return [
        [list(key) if isinstance(key, tuple) else key, *_kind(x), x.device.type == "cpu"]
        for key, x in results.items()
    ]


def _kind(x: Tensor) -> tuple[str, list[int]]:
    return str(x.dtype).removeprefix("torch."), list(x.shape)


def _key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key


def _bytes_of(x: Tensor) -> Tensor:
    return x.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
