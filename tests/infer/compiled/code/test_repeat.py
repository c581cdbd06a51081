"""Steps that are repeated as code: the same as a loop in Python, or an error before a number."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from ppl_models.infer.compiled.code import repeat
from ppl_models.infer.compiled.code.repeat import Differs, Repeat, by_code, repeat_of
from tests.support.interpreted import Interpreted


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(repeat, "Native", Interpreted)


def walk(module):
    """A random walk whose drift is of a network, and a count of ones."""

    def step(place, now):
        now["x"].add_(0.1 * module(now["x"])).add_(torch.randn_like(now["x"]))
        ones = torch.bernoulli(now["x"].sigmoid())
        now["ones"].index_copy_(0, place.view(1), ones.sum().view(1))

    return step


def start(dtype=torch.float64, rows=3):
    return {
        "x": torch.ones(rows, 2, dtype=dtype),
        "ones": torch.zeros(20, dtype=dtype),
    }


def by_hand(step, times, tensors):
    for n in range(times):
        step(torch.tensor(n), tensors)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_code_does_as_the_loop_with_the_same_random_numbers(dtype):
    module = nn.Linear(2, 2).to(dtype)
    step, ours = walk(module), start(dtype)
    code = Repeat(step, ours)
    with torch.no_grad():
        module.weight.mul_(2)  # parameters are live
        torch.manual_seed(1)
        code(5, 0, ours)
        code(15, 5, ours)
        after = torch.get_rng_state()
        torch.manual_seed(1)
        theirs = by_hand(step, 20, start(dtype))
    assert torch.equal(after, torch.get_rng_state())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


def test_ones_of_probabilities_that_lie_another_way_are_those_of_torch():
    def step(place, now):
        now["y"].copy_(torch.bernoulli(now["p"].t()))
        now["z"].copy_(torch.bernoulli(now["p"]))

    p = torch.rand(50, 30)
    p[0, 0] = 1.0
    ours = {"p": p, "y": torch.zeros(30, 50), "z": torch.zeros(50, 30)}
    code = Repeat(step, ours)
    torch.manual_seed(1)
    code(1, 0, ours)
    torch.manual_seed(1)
    torch.testing.assert_close(ours["y"], torch.bernoulli(p.t()), rtol=0, atol=0)
    torch.testing.assert_close(ours["z"], torch.bernoulli(p), rtol=0, atol=0)
    p[1, 1], p[2, 2] = torch.nan, 1.5
    code(1, 0, ours)
    assert ours["z"].isnan().nonzero().tolist() == [[1, 1], [2, 2]]  # where torch raises


def test_a_compared_step_is_taken_once_by_itself(interpreted):
    owner, ours, theirs = nn.Linear(2, 2).double(), start(), start()
    step = walk(owner)
    with torch.no_grad():
        torch.manual_seed(1)
        repeat_of(owner, "a walk", step, 0, ours)(19, 1, ours)
        torch.manual_seed(1)
        by_hand(step, 20, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_what_python_holds_is_seen_where_it_changes(interpreted):
    owner, held = nn.Linear(2, 2), {"by": 1.0}

    def step(place, now):
        now["x"].mul_(held["by"]).add_(1.0)

    with torch.no_grad():
        first = repeat_of(owner, "a step", step, 0, start())
        assert repeat_of(owner, "a step", step, 0, start()) is first
        held["by"] = 1.01
        second = repeat_of(owner, "a step", step, 0, start())
        assert second is not first
        ours = start()
        second(2, 0, ours)
    torch.testing.assert_close(ours["x"], torch.full((3, 2), 1.01**2 + 1.01 + 1).double())


def test_a_step_that_counts_outside_torch_is_no_code(interpreted):
    counted = []

    def step(place, now):
        counted.append(1)
        now["x"].add_(len(counted))

    with torch.no_grad(), pytest.raises(Differs):
        repeat_of(nn.Linear(2, 2), "a step", step, 0, start())


def test_a_step_that_writes_elsewhere_only_by_itself_is_no_code(interpreted):
    """The code writes nothing there: what is beside what it writes is looked at, too."""
    traced = []

    def step(place, now):
        now["x"].add_(1.0)
        if traced:
            now["ones"].add_(1.0)
        traced.append(1)

    with torch.no_grad(), pytest.raises(Differs):
        repeat_of(nn.Linear(2, 2), "a step", step, 0, start())


def test_after_a_difference_all_is_as_before(interpreted):
    step, tensors = walk(nn.Linear(2, 2).double()), start()
    code, other = Repeat(step, tensors), walk(nn.Linear(2, 2).double())
    before, rng = copy.deepcopy(tensors), torch.get_rng_state()
    with torch.no_grad(), pytest.raises(Differs):
        code.compared(other, 0, tensors)
    assert torch.equal(rng, torch.get_rng_state())
    torch.testing.assert_close(tensors, before, rtol=0, atol=0)


def test_parameters_of_another_kind_ask_for_other_code(interpreted):
    owner = nn.Linear(2, 2).double()
    with torch.no_grad():
        first = repeat_of(owner, "a walk", walk(owner), 0, start())
        owner.float()
        second = repeat_of(owner, "a walk", walk(owner), 0, start(torch.float32))
    assert first is not second
    assert not first.fits(start())


def test_buffers_that_a_step_moves_are_no_state_of_it(interpreted):
    held = torch.zeros(3, 2)

    def step(place, now):
        held.add_(1.0)
        now["x"].add_(held)

    with pytest.raises(ValueError, match="writes into tensors of its own"):
        Repeat(step, start(torch.float32))


def test_nan_is_like_nan(interpreted):
    def step(place, now):
        now["x"].mul_(torch.nan)

    with torch.no_grad():
        repeat_of(nn.Linear(2, 2), "a step", step, 0, start())


def test_code_goes_with_its_owner_and_the_oldest_first(interpreted):
    owner = nn.Linear(2, 2).double()
    with torch.no_grad():
        for rows in range(2, 2 + repeat.MOST + 3):
            repeat_of(owner, "a walk", walk(owner), 0, start(rows=rows))
    assert len(repeat._kept[owner]) == repeat.MOST
    copy.deepcopy(owner)  # which knows nothing of it
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


def test_what_fails_says_so_once_and_draws_the_same_afterwards():
    owner, tried = nn.Linear(2, 2), []

    def work():
        tried.append(torch.rand(()))
        raise RuntimeError("No working C++ compiler found\nand more")

    rng = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"Linear: draws are not compiled.*No working C\+\+ com"):
        assert by_code(owner, "draws", owner.weight, work) is None
    assert by_code(owner, "draws", owner.weight, work) is None
    assert len(tried) == 1
    assert torch.equal(rng, torch.get_rng_state())


def test_code_is_for_the_cpu():
    elsewhere = torch.zeros(2, device="meta")
    with pytest.warns(UserWarning, match="code is made for the CPU, and this is on meta"):
        assert by_code(nn.Linear(2, 2), "draws", elsewhere, lambda: 1) is None
