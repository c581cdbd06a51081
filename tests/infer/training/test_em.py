"""Expectation maximisation, on models that it has never heard of."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_models import GaussianMixture, fit_em


class Bernoullis(nn.Module):
    """A user's own: a mixture of two coins, thrown ten times each."""

    def __init__(self, fault: float = 0.0) -> None:
        super().__init__()
        self.probs = nn.Parameter(torch.tensor([0.3, 0.6], dtype=torch.float64))
        self.fault, self.starts, self.calls = fault, 0, 0

    def initialise(self, x):
        self.starts += 1
        nn.init.uniform_(self.probs)

    @torch.no_grad()
    def em_step(self, x):
        self.calls += 1
        heads = x[:, 0]
        joint = heads[:, None] * self.probs.log() + (10 - heads[:, None]) * (1 - self.probs).log()
        responsibilities = joint.softmax(1)
        new = (responsibilities * heads[:, None]).sum(0) / (10 * responsibilities.sum(0))
        self.probs.copy_(new + self.fault * (self.calls > 3))
        return (joint.logsumexp(1) - torch.tensor(2.0).log()).mean()


def heads() -> torch.Tensor:
    return torch.tensor([[5.0], [9.0], [8.0], [4.0], [7.0], [2.0]], dtype=torch.float64)


def test_the_parameters_are_those_of_the_last_loss():
    model = Bernoullis()
    run = fit_em(model, heads(), initialise=False, tolerance=1e-8)
    assert model.starts == 0
    assert run.history["loss"] == sorted(run.history["loss"], reverse=True)
    assert len(run.history["loss"]) == run.steps > 5
    assert -model.em_step(heads()).item() == run.history["loss"][-1]
    gain = run.history["loss"][-2] - run.history["loss"][-1]
    before = run.history["loss"][-3] - run.history["loss"][-2]
    assert gain < 1e-8 <= before


class Overtaking(nn.Module):
    """Starts side by side, of which the one that is behind at first ends higher."""

    PATHS = torch.tensor([[0.0, 0.1, 0.1, 0.1], [-1.0, 0.5, 0.5, 0.5]], dtype=torch.float64)

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.steps = 0

    def initialise(self, x):
        self.at.data.copy_(self.PATHS[:, 0])

    def stack(self, restarts):
        copied = Overtaking()
        copied.at = nn.Parameter(self.at.detach().expand(restarts).clone())
        return copied

    @torch.no_grad()
    def em_step(self, x):
        value = self.at.clone()
        self.steps += 1
        self.at.copy_(self.PATHS[:, self.steps])
        return value


def test_the_best_end_is_kept_and_not_the_best_start():
    model = Overtaking()
    run = fit_em(model, heads(), restarts=2)
    assert run.history["loss"] == [1.0, -0.5, -0.5]
    assert model.at.item() == 0.5


def test_a_step_that_lowers_the_evidence_is_an_error_and_is_not_accepted():
    model = Bernoullis(fault=0.2)
    good = Bernoullis()
    for _ in range(3):
        good.em_step(heads())
    with pytest.raises(RuntimeError, match=r"EM step 4 lowered .* by .* nats per row"):
        fit_em(model, heads(), initialise=False, tolerance=0.0)
    torch.testing.assert_close(model.probs, good.probs)


def test_an_objective_that_is_not_finite_is_an_error_and_is_not_accepted():
    model = Bernoullis(fault=5.0)
    with pytest.raises(FloatingPointError, match="EM step 5: the objective of Bernoullis is"):
        fit_em(model, heads(), initialise=False, tolerance=0.0)
    assert ((model.probs > 0) & (model.probs < 1)).all()


class Hills(nn.Module):
    """Climbs the nearer of two hills, of heights 1 and 2, and may slip a little at the top."""

    def __init__(self, slip: float = 0.0) -> None:
        super().__init__()
        self.place, self.slip = nn.Parameter(torch.tensor(3.0, dtype=torch.float64)), slip

    def initialise(self, x):
        nn.init.uniform_(self.place, 0.0, 10.0)

    @torch.no_grad()
    def em_step(self, x):
        hill = 10.0 * (self.place > 5).double()
        height = 1 + hill / 10 - (self.place - hill) ** 2
        self.place.copy_(hill + (self.place - hill) / 2)
        if (self.place - hill).abs() < 1e-5:
            self.place.copy_(hill + self.slip)
        return height


def test_the_best_of_several_starts_is_kept():
    ends = [fit_em(Hills(), heads(), seed=seed).history["loss"][-1] for seed in range(6)]
    assert {round(end) for end in ends} == {-1, -2}
    for seed in range(6):
        model = Hills()
        run = fit_em(model, heads(), restarts=8, seed=seed)
        assert run.history["loss"][-1] == pytest.approx(-2, abs=1e-6)
        assert model.place.item() == pytest.approx(10, abs=1e-3)
        again = Hills()
        assert fit_em(again, heads(), restarts=8, seed=seed).history == run.history
        assert torch.equal(again.place, model.place)


def test_what_rounding_takes_back_is_not_accepted():
    model = Hills(slip=4e-5)  # which costs 2e-9: too little to be an error
    run = fit_em(model, heads(), initialise=False, tolerance=0.0)
    losses = run.history["loss"]
    assert losses == sorted(losses, reverse=True)
    assert -model.em_step(heads()).item() == losses[-1]


def test_the_best_of_stacked_starts_is_kept():
    x = torch.cat([torch.randn(40, 2) + 6 * i for i in range(5)]).double()
    losses = []
    for restarts in (1, 20):
        model = GaussianMixture(2, 5).double()
        run = fit_em(model, x, restarts=restarts, seed=1)
        losses.append(run.history["loss"][-1])
        assert -model.em_step(x).item() == pytest.approx(losses[-1], abs=1e-12)
        assert model.locs.shape == (5, 2)
    assert losses[1] <= losses[0] + 1e-6


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_streams(kind):
    x = torch.cat([torch.randn(300, 2), torch.randn(300, 2) + 7]).double()
    whole, streamed = GaussianMixture(2, 2).double(), GaussianMixture(2, 2).double()

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, n):
            return x[n]

    data = Rows() if kind == "dataset" else DataLoader(TensorDataset(x), batch_size=64)
    options = {"batch_size": 50} if kind == "dataset" else {}
    fit_em(whole, x, seed=0, tolerance=1e-10)
    fit_em(streamed, data, seed=0, tolerance=1e-10, **options)
    a, b = whole.locs[whole.locs[:, 0].argsort()], streamed.locs[streamed.locs[:, 0].argsort()]
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_streamed_rows_are_checked():
    x = torch.randn(100, 2)
    x[70, 1] = torch.inf
    with pytest.raises(ValueError, match="1 of 20 rows hold NaN"):
        fit_em(GaussianMixture(2, 2), DataLoader(TensorDataset(x), batch_size=20))


def test_an_unfinished_climb_is_told():
    with pytest.warns(UserWarning, match=r"still rising by .* nats per row at step 3"):
        fit_em(Bernoullis(), heads(), initialise=False, max_steps=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restarts": 0}, "restarts: expected a positive"),
        ({"max_steps": 0}, "max_steps: expected a positive"),
        ({"tolerance": -1.0}, "tolerance: expected"),
        ({"tolerance": float("nan")}, "tolerance: expected"),
        ({"restarts": 3, "initialise": False}, "restarts: expected 1"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_em(Bernoullis(), heads(), **options)


def test_a_model_without_a_step():
    with pytest.raises(TypeError, match=r"Linear has no em_step\(x\)"):
        fit_em(nn.Linear(2, 2), heads())


class Thrown(Bernoullis):
    """Coins thrown as often as the second tensor says: a step that takes two."""

    def initialise(self, x, times):
        super().initialise(x)

    def em_step(self, x, times):
        assert times.shape == (len(x),)
        return super().em_step(x)


def test_a_step_may_take_more_tensors_than_one():
    alone, both = Bernoullis(), Thrown()
    expected = fit_em(alone, heads(), seed=0).history
    assert fit_em(both, (heads(), torch.full((6,), 10)), seed=0).history == expected
    with pytest.raises(ValueError, match=r"expected 2 tensor.*, got 1. Try .x, times.;"):
        fit_em(both, heads())


class Labelled(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return heads().float()[i], torch.tensor(1.0)


@pytest.mark.parametrize("read", [False, True])
def test_labels_are_not_taken_for_weights_nor_left_out(read):
    data = Labelled() if read else (heads().float(), torch.ones(6))
    with pytest.raises(ValueError, match=r"Mixture.em_step takes, got 2. Try rows alone;"):
        fit_em(GaussianMixture(1, 2), data)
