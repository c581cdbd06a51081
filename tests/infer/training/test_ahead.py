"""Blocks of games, of what is done beside a loss, and of batches that are read ahead."""

import warnings
from functools import partial

import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_models import (
    GAN,
    DomainAdversarial,
    Transformed,
    adversarial,
    domain_adversarial,
    elbo,
    fit,
    weighted,
)
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.training.ahead import streamed
from tests.support.blocks import assert_same, both, rows, tamper, vae


@pytest.fixture(autouse=True)
def single_steps_as_traced(monkeypatch):
    """Single steps, which are another matter, run as they are traced."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


LABELS = torch.arange(20) % 3
STEPS = 40
DOMAINS = (torch.arange(20) > 11).long()


def game(**settings):
    torch.manual_seed(0)
    return adversarial(GAN(4, 2).double(), **settings)


def confusion():
    torch.manual_seed(0)
    return domain_adversarial(DomainAdversarial(4, 3, num_hidden=5).double())


KNOWN = torch.where(DOMAINS == 0, LABELS, -1)
OBJECTIVES = {
    "game": (game, rows(), {}),
    "game, three turns": (
        partial(game, critic_steps=3, instance_noise=(0.3, 0.1, 15)),
        rows(),
        {"clip": 0.5, "ema": 0.9},
    ),
    "game, penalty": (partial(game, loss="wasserstein", critic_steps=2), rows(), {}),
    "remedies": (lambda: elbo(*vae(), beta=2.0, warm_up=12), rows(), {}),
    "weighted": (lambda: weighted({elbo(*vae(), warm_up=12): 2.0}), rows(), {}),
    "adversarial": (confusion, (rows(), KNOWN, DOMAINS), {}),
}


COMPILED = ("game, three turns", "remedies")  # the others as they are traced, in less time


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_that_do_more_than_have_a_loss(name, taken, request):
    if name not in COMPILED:
        request.getfixturevalue("graphs_as_traced")
    make, data, options = OBJECTIVES[name]
    options = {"epochs": 6, "batch_size": 8, "lr": 0.01, **options}
    assert_same(*both(make, data, **options))
    assert {block.loop.refused for block, _ in taken} == {None}
    assert len(taken) <= 6  # blocks cross epochs, whose last batch has fewer rows
    assert sum(times for _, times in taken) == 17


class Own(Objective):
    """Half a sum of squares, with what a user may add to it."""

    name = "own"

    def __init__(self):
        self.loc = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.reports = {}
        self.taken = torch.zeros((), dtype=torch.float64)

    def loss(self, *batch, size=None):
        loss = (batch[0] - self.loc).square().sum(1).mean() * (1 + self.taken)
        self.reports = {"size": self.loc.detach().abs().sum()}
        return loss

    def prepare(self, *batch, size, data=None):
        pass

    def named_parameters(self):
        yield "loc", self.loc

    def modules(self):
        return {}

    def blame(self, *batch, size):
        return "it is so"


class InTensors(Own):
    def stepped(self):
        self.taken.add_(0.1)
        with torch.no_grad():
            self.loc.clamp_(max=0.02)


class InPython(Own):
    count = 0

    def stepped(self):
        self.count += 1


class InAList(Own):
    def __init__(self):
        super().__init__()
        self.counts = []

    def stepped(self):
        self.counts.append(len(self.counts))
        self.taken.fill_(0.1 * len(self.counts))


class ByValue(Own):
    def stepped(self):
        self.taken.fill_(1.0 if self.loc.sum().item() > 0.1 else 0.0)


class Replacing(Own):
    def stepped(self):
        self.taken = self.taken + 0.1


class Renaming(Own):
    """Another name once it has moved so far."""

    def loss(self, *batch, size=None):
        loss = super().loss(*batch, size=size)
        far = self.loc.detach().sum() > 0.03
        self.reports = {"far" if far else "near": loss.detach()}
        return loss


def test_reports_whose_names_change_are_taken_one_by_one(taken, monkeypatch):
    from ppl_models.infer.compiled.steps import loop

    monkeypatch.setattr(loop, "LONGEST", 2)
    (history, _), (other, _) = own_runs(Renaming)
    assert history.keys() == other.keys() == {"own", "near", "far"}
    for name, values in history.items():
        assert values == pytest.approx(other[name], rel=1e-9)


def own_runs(kind):
    found = []
    for compiled in (True, False):
        objective = kind()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = fit(objective, rows() + 1, steps=STEPS, compile=compiled, progress=False)
        found.append((run.history, objective))
    return found


def test_a_step_that_writes_tensors_is_a_part_of_blocks(taken):
    (history, first), (other, second) = own_runs(InTensors)
    for name, values in history.items():
        assert values == pytest.approx(other[name], rel=1e-9)
    assert torch.equal(first.taken, second.taken)
    torch.testing.assert_close(first.loc, second.loc)
    assert taken


@pytest.mark.parametrize("kind", [InPython, InAList, ByValue, Replacing])
def test_a_step_that_moves_python_is_taken_one_by_one(kind, taken):
    (history, first), (other, second) = own_runs(kind)
    for name, values in history.items():
        assert values == pytest.approx(other[name], rel=1e-9)
    assert vars(first).get("count") == vars(second).get("count")
    assert vars(first).get("counts") == vars(second).get("counts")
    assert torch.equal(first.taken, second.taken)
    assert not taken


def test_a_report_that_is_not_finite_is_found_at_its_step():
    class Sinking(Own):
        def loss(self, *batch, size=None):
            loss = super().loss(*batch, size=size)
            self.reports = {"log": (0.5 - self.loc.detach().sum()).log()}
            return loss

    found = []
    for compiled in (True, False):
        with pytest.raises(FloatingPointError) as caught:
            fit(Sinking(), rows() + 1, steps=300, compile=compiled, progress=False)
        found.append(str(caught.value))
    assert "log: the loss is nan at step" in found[0]
    assert found[0].endswith(found[1])


class Binarised:
    """Counts its calls."""

    def __init__(self, draw):
        self.draw, self.calls = draw, 0

    def __call__(self, x):
        self.calls += 1
        return self.draw(x, self.calls)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, n: x * (1 + 0.01 * n),
        lambda x, n: x * (1 + 0.01 * torch.rand((), generator=OWN, dtype=x.dtype)),
        lambda x, n: x * float(x.sum()),
    ],
    ids=["counts", "generator", "value"],
)
def test_transforms_that_no_graph_can_hold_run_by_themselves(draw, taken):
    found = []
    for compiled in (True, False):
        OWN.manual_seed(0)
        transform = Binarised(draw)
        data = Transformed(rows(), transform=transform)
        run = fit(elbo(*vae()), data, steps=8, seed=3, compile=compiled, progress=False)
        found.append(run.history["loss"])
    assert not taken
    assert found[0] == pytest.approx(found[1], rel=1e-9)


OWN = torch.Generator()


class Counting(Dataset):
    """Rows that depend on how many were read before, and a list of those."""

    def __init__(self, draws=0):
        self.read, self.draws = [], draws

    def __len__(self):
        return 20

    def __getitem__(self, n):
        self.read.append(int(n))
        noise = 0.1 * torch.randn(4, dtype=torch.float64) if self.draws else 0.0
        return rows()[n] * (1 + 1e-3 * len(self.read)) + noise


LOADERS = {
    "shuffled": lambda data: DataLoader(data, batch_size=8, shuffle=True),
    "even": lambda data: DataLoader(data, batch_size=6, shuffle=True, drop_last=True),
    "a generator of its own": lambda data: DataLoader(
        data, batch_size=6, shuffle=True, generator=torch.Generator()
    ),
    "by index": lambda data: data,
    "one batch": lambda data: DataLoader(data, batch_size=20),
}


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("name", LOADERS)
def test_streamed_batches_are_read_ahead(name, draws, taken):
    found, read = [], []
    for compiled in (True, False):
        data = Counting(draws)
        options = {"batch_size": 8} if name == "by index" else {}
        run = fit(
            elbo(*vae(0.2)),
            LOADERS[name](data),
            steps=17,
            seed=3,
            compile=compiled,
            progress=False,
            **options,
        )
        found.append((run.history["loss"], torch.get_rng_state()))
        read.append(data.read)
    assert read[0] == read[1]  # each once, in the same order
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert torch.equal(found[0][1], found[1][1])
    assert sum(times for _, times in taken) == 16
    assert (max(times for _, times in taken) == 1) == (draws and name != "one batch")


def test_code_that_goes_wrong_reads_no_batch_twice(monkeypatch, taken):
    tamper(monkeypatch, right=4, length=4)
    ends = []
    for compiled in (True, False):
        data = Counting(draws=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = fit(elbo(*vae(0.2)), DataLoader(data, 5), steps=30, seed=3, compile=compiled)
        ends.append((data.read, fitted.history["loss"]))
    assert ends[0][0] == ends[1][0]
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-9)
    assert taken
    assert taken[0][0].loop.refused


def test_an_error_of_the_data_comes_after_the_steps_before_it():
    class Broken(Counting):
        def __getitem__(self, n):
            if len(self.read) > 60:
                raise OSError("the file is gone")
            return super().__getitem__(n)

    ends = []
    for compiled in (True, False):
        model, guide = vae()
        with pytest.raises(OSError, match="gone"):
            fit(elbo(model, guide), DataLoader(Broken(), 5), steps=30, seed=3, compile=compiled)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_batches_of_many_shapes_go_step_by_step(taken):
    groups = [[0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13]]
    data = DataLoader(TensorDataset(rows()), batch_sampler=groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, others = both(lambda: elbo(*vae()), data, epochs=4)
    assert ours[0]["loss"] == pytest.approx(others[0]["loss"], rel=1e-9)
    assert all("shapes" in block.loop.refused for block, _ in taken)


@pytest.mark.parametrize("stops", [1, 5, 9])
def test_a_resumed_run_on_a_stream_goes_on_bit_for_bit(stops, tmp_path):
    def run(steps, **options):
        pyro.clear_param_store()
        pair, x = vae(0.2), TensorDataset(rows())
        loader = DataLoader(x, batch_size=8, shuffle=True)
        fit(elbo(*pair, warm_up=9), loader, steps=steps, seed=3, compile=True, **options)
        return [t for module in pair for t in module.state_dict().values()]

    path = tmp_path / "run"
    whole = run(14)
    run(stops, checkpoint=path)
    again = run(14, checkpoint=path, resume=True)
    for first, second in zip(whole, again, strict=True):
        assert torch.equal(first, second)


def test_batches_that_are_too_large_are_not_read_ahead(monkeypatch, taken):
    monkeypatch.setattr(streamed, "ROOM", 100)
    data = DataLoader(TensorDataset(rows()), batch_size=10)
    ours, others = both(lambda: elbo(*vae()), data, epochs=2)
    assert ours[0]["loss"] == pytest.approx(others[0]["loss"], rel=1e-9)
    assert not taken
