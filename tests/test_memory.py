"""Sums by the memory of one machine, on some processes that are not equally quick."""

import os
import random
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ppl_models.processes import ProcessError, group, memory, together
from tests.support.together import all_returned, run_together

LENGTHS = [3, 0, 1, 1000, 7, 100_000, 2, 50_001]  # growing and not, with parts of none
KINDS = [torch.float32, torch.float64, torch.int64, torch.bfloat16]


def terms(rank: int) -> list[Tensor]:
    """What a process adds to each sum."""
    generator = torch.Generator().manual_seed(rank)
    whole = [torch.randn(n, generator=generator, dtype=torch.float64) * 100 for n in LENGTHS]
    return [x.to(kind) for x in whole for kind in KINDS]


def shared() -> memory.Memory | None:
    return group._memory_of(together())


def _sums(slow: float) -> tuple[bool, list[Tensor]]:
    here, meet = together(), memory.Memory._meet
    pauses = random.Random(here.rank)

    def met_late(self: memory.Memory, message: bytes) -> None:
        meet(self, message)
        time.sleep(slow * pauses.random() * pauses.randrange(2))

    memory.Memory._meet = met_late
    found = [here.total(x) for _ in range(3) for x in terms(here.rank)]
    return shared() is None, found


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sums_are_those_in_the_order_of_the_processes(count: int) -> None:
    expected = []
    for of_all in zip(*map(terms, range(count)), strict=True):
        total = of_all[0].clone()
        for x in of_all[1:]:
            total += x
        expected.append(total)
    for without, found in all_returned(run_together(_sums, count, 0.002)):
        assert not without
        assert all(map(torch.equal, found, 3 * expected))


def _sums_of_shapes() -> list[Tensor]:
    here = together()
    x = torch.arange(6.0).view(2, 3)
    return [here.total(x.T), here.total(x[:, 1]), here.total(torch.tensor(2.0)), x]


def test_shapes_and_orders_of_memory_are_kept() -> None:
    x = torch.arange(6.0).view(2, 3)
    for found in all_returned(run_together(_sums_of_shapes, 2)):
        for total, one in zip(found, (2 * x.T, 2 * x[:, 1], torch.tensor(4.0), x), strict=True):
            assert torch.equal(total, one)


def _without_memory(where: int) -> tuple[bool, Tensor]:
    here = together()
    if here.rank == where:  # as on another machine, where nobody listens
        memory._connected = lambda *_: None
    return shared() is None, here.total(torch.ones(3))


@pytest.mark.parametrize("where", [0, 2])
def test_where_one_is_on_another_machine_all_sum_by_the_network(where: int) -> None:
    for without, found in all_returned(run_together(_without_memory, 3, where)):
        assert without
        assert torch.equal(found, torch.full((3,), 3.0))


def _differs(kind: str) -> None:
    here = together()
    here.total(torch.ones(2))
    length = 3 if kind == "length" and here.rank == 1 else 2
    here.total(torch.ones(length, dtype=torch.float64 if kind == "type" and here.rank else None))


@pytest.mark.parametrize(("kind", "text"), [("length", "3 numbers of"), ("type", "of float64")])
def test_who_sums_other_numbers_is_told_of(kind: str, text: str) -> None:
    errors = run_together(_differs, 2, kind)
    assert all(isinstance(error, ProcessError) for error in errors)
    assert text in str(errors[0])


def _ends(how: str) -> float:
    here = together()
    here.total(torch.ones(2))
    if here.rank == 1 and how == "ends":
        os._exit(1)
    if here.rank == 1:
        time.sleep(20)
    began = time.monotonic()
    with pytest.raises(ProcessError, match="one has ended, stalls"):
        here.total(torch.ones(2))
    return time.monotonic() - began


def test_one_that_ends_is_told_of_at_once() -> None:
    first, other, last = run_together(_ends, 3, "ends")
    assert isinstance(other, RuntimeError)
    assert max(first, last) < 30  # of 60 seconds of patience


@pytest.mark.slow
def test_one_that_stalls_is_told_of_after_a_while() -> None:
    waited, _ = run_together(_ends, 2, "stalls", patience=2.0)
    assert 1.5 < waited < 15


def _ends_of_groups(folder: str) -> list[Any]:
    here, found = together(), []
    for n in range(3):
        found.append(here.total(torch.ones(2)))
        dist.destroy_process_group()
        where = f"file://{folder}/{n}"
        dist.init_process_group("gloo", init_method=where, rank=here.rank, world_size=here.count)
    return [*found, len(group._memories)]


def test_a_group_has_memory_of_its_own(tmp_path: Any) -> None:
    for *sums, left in all_returned(run_together(_ends_of_groups, 2, str(tmp_path))):
        assert all(torch.equal(x, torch.full((2,), 2.0)) for x in sums)
        assert left == 0
