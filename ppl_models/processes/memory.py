r"""Sums over the processes of one machine, by memory that they share.

Each process `r` of :math:`n` writes its :math:`x_r`, sums a part of what all have written, and
reads the sums of the others. Two of them read what the other one has written.

.. math::
    s_{[p]} = \sum_{r=1}^{n} x_{r, [p]}, \qquad p = 1, \dots, n

They are summed in the order of the processes, so that all have the same bits. In between, each
tells each other one by a message through a socket, which takes some microseconds. There are two
sides to write to, in turn: who is ahead by one sum writes where nobody reads. The memory has no
name, and ends with the processes.
"""

import mmap
import os
import socket
import struct
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ppl_models.processes.group import Processes

_CAME = struct.Struct("i")  # who comes
_TURN = struct.Struct("q8s")  # how many numbers of which type are summed
_LINE = 64  # bytes that a processor takes at once


class Memory:
    """Memory that the processes of one machine have in common.

    Arguments:
        rank: The number of this process.
        sockets: Those to the others, by their numbers.
    """

    def __init__(self, rank: int, sockets: dict[int, socket.socket]) -> None:
        self.rank, self.count, self.sockets = rank, len(sockets) + 1, sockets
        self.sides = torch.empty(2, self.count, 0, dtype=torch.uint8)
        self.side = 0

    def sum_written(self, write: Callable[[Tensor], object], into: Tensor) -> None:
        """Puts the sum over all processes of what each writes into a row of numbers.

        Arguments:
            write: Writes all of such a row.
            into: A row of as many numbers of the same type, for the sum.

        Raises:
            OSError: If a process has ended, or does not answer in time.
            RuntimeError: If one sums other numbers.
        """
        size = into.numel() * into.element_size()
        message = _TURN.pack(len(into), str(into.dtype).removeprefix("torch.")[:8].encode())
        if size > self.sides.shape[2]:
            self._meet(message)
            self._grow(size)
        self.side = 1 - self.side
        rows = [row.view(into.dtype) for row in self.sides[self.side, :, :size]]
        write(rows[self.rank])
        self._meet(message)
        if self.count == 2:
            torch.add(rows[0], rows[1], out=into)
            return
        ends = [len(into) * r // self.count for r in range(self.count + 1)]
        parts = [slice(*pair) for pair in pairwise(ends)]
        here = parts[self.rank]
        total = rows[0][here] + rows[1][here]
        for other in rows[2:]:
            total += other[here]
        rows[self.rank][here] = total
        self._meet(message)
        torch.cat([row[part] for row, part in zip(rows, parts, strict=True)], out=into)

    def _meet(self, message: bytes) -> None:
        """Returns when all processes have come here, with the same to say."""
        for other in self.sockets.values():
            other.sendall(message)
        for rank, other in self.sockets.items():
            if (said := _received(other, len(message))) != message:
                raise RuntimeError(
                    f"it sums {_read(message)}, and process {rank} {_read(said)} at the same time"
                )

    def _grow(self, size: int) -> None:
        """Makes room for so many bytes of each process, twice."""
        room = -(-size // _LINE) * _LINE
        length = 2 * self.count * room
        if self.rank == 0:
            handle = os.memfd_create("ppl_models")
            os.truncate(handle, length)
            for other in self.sockets.values():
                socket.send_fds(other, [b"x"], [handle])
        else:
            _, handles, _, _ = socket.recv_fds(self.sockets[0], 1, 1)
            if not handles:
                raise ConnectionError("the socket of process 0 is closed")
            (handle,) = handles
        held = mmap.mmap(handle, length)
        os.close(handle)
        self.sides = torch.frombuffer(held, dtype=torch.uint8).view(2, self.count, room)


def shared_memory(here: "Processes", patience: float) -> Memory | None:
    """Memory of processes that are all on one machine; None where they are not, or it has none.

    Arguments:
        here: The processes, all of which call this.
        patience: The seconds after which one that does not answer is given up.
    """
    name = here.from_first(uuid.uuid4().bytes if here.is_first else None).hex()
    with ExitStack() as opened:  # until it is known that all processes are here
        listener = _listener(f"\0ppl_models/{name}/{here.rank}", opened)
        if not all(here.gather_values(listener is not None)):
            return None
        assert listener is not None
        listener.settimeout(patience)
        sockets = _connected(name, here.rank, patience, opened)
        if not all(here.gather_values(sockets is not None)):
            return None
        assert sockets is not None
        for _ in range(here.rank + 1, here.count):
            other, _ = listener.accept()
            opened.enter_context(other)
            other.settimeout(patience)
            (rank,) = _CAME.unpack(_received(other, _CAME.size))
            sockets[rank] = other
        opened.pop_all()
        listener.close()
    return Memory(here.rank, sockets)


def _listener(name: str, opened: ExitStack) -> socket.socket | None:
    """Where others of the machine come to, under a name that no file has; None if there is none."""
    if not (hasattr(os, "memfd_create") and hasattr(socket, "send_fds")):
        return None
    listener = opened.enter_context(socket.socket(socket.AF_UNIX))
    try:
        listener.bind(name)
        listener.listen(socket.SOMAXCONN)
    except OSError:
        return None
    return listener


def _connected(
    name: str, rank: int, patience: float, opened: ExitStack
) -> dict[int, socket.socket] | None:
    """Sockets to the processes before this one; None where one is on another machine."""
    sockets = {}
    for first in range(rank):
        other = opened.enter_context(socket.socket(socket.AF_UNIX))
        other.settimeout(patience)
        try:
            other.connect(f"\0ppl_models/{name}/{first}")
        except OSError:
            return None
        other.sendall(_CAME.pack(rank))
        sockets[first] = other
    return sockets


def _received(other: socket.socket, size: int) -> bytes:
    """So many bytes that another process sends."""
    content = b""
    while len(content) < size:
        piece = other.recv(size - len(content))
        if not piece:
            raise ConnectionError("the socket of another process is closed")
        content += piece
    return content


def _read(message: bytes) -> str:
    """What a message says is summed."""
    number, kind = _TURN.unpack(message)
    return f"{number} numbers of {kind.rstrip(bytes(1)).decode()}"
