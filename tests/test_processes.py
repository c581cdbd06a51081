"""What processes tell each other, on three of them."""

import itertools
import os
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from ppl_models.processes import ALONE, ProcessError, Processes, fingerprint, together
from ppl_models.processes.meeting import meet
from tests.support.together import all_returned, run_together


def test_alone_nothing_is_exchanged() -> None:
    x = torch.arange(3.0)
    assert together() == ALONE
    assert ALONE.total(x) is x
    assert ALONE.gather(x)[0] is x
    assert ALONE.gather_values({"a": 1}) == [{"a": 1}]
    assert ALONE.from_first(b"abc") == b"abc"
    ALONE.check_agree("fit", "", data="1")
    with pytest.raises(ValueError, match="mine"), ALONE.all_or_none("reading"):
        raise ValueError("mine")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_each_row_belongs_to_one_process(size: int) -> None:
    parts = [list(range(size))[Processes(rank, 3).own(size)] for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(parts)) == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_fingerprints_see_values_shapes_and_types() -> None:
    x = torch.arange(6.0)
    others = [x.view(2, 3), x.double(), x.flip(0), x + 1e-6, torch.cat([x, x[:0]]) * -1]
    assert all(fingerprint(other) != fingerprint(x) for other in others)
    assert fingerprint(x.view(2, 3).T) == fingerprint(x.view(2, 3).T.contiguous())
    assert fingerprint(torch.tensor(0.0)) != fingerprint(torch.tensor(-0.0))


def _exchanged() -> dict:
    here = together()
    rank, x = here.rank, torch.arange(4.0).view(2, 2).T * (here.rank + 1)
    own = torch.full((2, 2), float(rank)).T
    here.take_from_first([own])
    return {
        "here": (rank, here.count),
        "total": here.total(x),
        "gathered": here.gather(torch.full((rank, 2), rank)),
        "scalars": here.gather(torch.tensor(rank)),
        "values": here.gather_values({"rank": rank, "text": "ä" * rank}),
        "first": here.from_first(b"abc" if rank == 0 else None),
        "empty": here.from_first(b""),
        "taken": own,
    }


def test_what_is_exchanged_is_the_same_on_all() -> None:
    found = all_returned(run_together(_exchanged, 3))
    for rank, one in enumerate(found):
        assert one["here"] == (rank, 3)
        assert torch.equal(one["total"], torch.arange(4.0).view(2, 2).T * 6)
        assert [tuple(x.shape) for x in one["gathered"]] == [(0, 2), (1, 2), (2, 2)]
        assert [x.unique().tolist() for x in one["gathered"]] == [[], [1], [2]]
        assert [x.item() for x in one["scalars"]] == [0, 1, 2]
        assert one["values"] == [{"rank": n, "text": "ä" * n} for n in range(3)]
        assert (one["first"], one["empty"]) == (b"abc", b"")
        assert torch.equal(one["taken"], torch.zeros(2, 2))


def _disagrees(kind: str) -> None:
    here = together()
    if kind == "values":
        here.check_agree("fit", "Try the same.", size=3, data="one" if here.rank < 2 else "two")
    with here.all_or_none("reading the data"):
        if here.rank == 1:
            raise FileNotFoundError("x.npy")


def test_what_differs_is_an_error_on_all() -> None:
    for error in run_together(_disagrees, 3, "values"):
        assert isinstance(error, ValueError)
        assert "the same data on all 3 processes, got 'one' on process 0 and 'two'" in str(error)


def test_where_one_raises_all_do() -> None:
    errors = run_together(_disagrees, 3, "errors")
    assert [type(error) for error in errors] == [ProcessError, FileNotFoundError, ProcessError]
    assert "reading the data failed on process 1: FileNotFoundError: x.npy" in str(errors[0])


def _is_left() -> None:
    here = together()
    if here.rank == 1:
        os._exit(1)
    here.total(torch.ones(2))


def _waits() -> None:
    here = together()
    if here.rank == 0:
        here.total(torch.ones(2))
    here.gather_values(1)


@pytest.mark.slow
def test_one_that_ended_is_told_of() -> None:
    errors = run_together(_is_left, 3, patience=5.0)
    for error in (errors[0], errors[2]):
        assert isinstance(error, ProcessError)
        assert "one has ended, stalls" in str(error)


@pytest.mark.slow
def test_one_that_does_other_things_is_told_of_after_a_while() -> None:
    errors = run_together(_waits, 2, patience=2.0)
    assert any(isinstance(error, ProcessError) for error in errors)


def met(store: dist.Store, rank: int, count: int, found: dict[int, str]) -> threading.Thread:
    def come() -> None:
        found[rank] = meet(store, rank, count, timedelta(seconds=20))

    thread = threading.Thread(target=come)
    thread.start()
    return thread


def test_those_who_meet_do_not_wait_for_who_was_there_before() -> None:
    store, names = dist.HashStore(), []
    for late in (0, 1, 2):
        found: dict[int, str] = {}
        threads = [met(store, rank, 3, found) for rank in range(3) if rank != late]
        time.sleep(0.2)
        assert found == {}  # the one that is late has left its name there the time before
        threads.append(met(store, late, 3, found))
        for thread in threads:
            thread.join()
        assert len(set(found.values())) == 1
        names += [found[0]]
    assert len(set(names)) == 3


def test_who_waits_in_vain_is_told_how_many_came() -> None:
    with pytest.raises(TimeoutError, match=r"process 1 of 3 waited 0:00:00.2.* 1 of them came"):
        meet(dist.HashStore(), 1, 3, timedelta(seconds=0.2))
