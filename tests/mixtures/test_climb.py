"""Steps of EM one after the other are those of `em_step`, and starts are chosen from some rows."""

import copy

import pytest
import torch

from ppl_models import GaussianMixture, fit_em
from ppl_models.checks import check_finite
from ppl_models.mixtures import gaussian
from ppl_models.mixtures.em import expectation
from ppl_models.mixtures.em.candidates import REST, in_the_race, settled
from ppl_models.mixtures.em.climb import Climb
from ppl_models.mixtures.gaussian import COVARIANCES as KINDS
from ppl_models.mixtures.kmeans import coreset, draw

pytestmark = pytest.mark.usefixtures("float64")


def rows(number: int = 300) -> torch.Tensor:
    """Three clusters that overlap, in units of their own, away from zero."""
    x = torch.cat([torch.randn(number // 3, 3) + 1.5 * k for k in range(3)])
    return x @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 30.0], [0.0, 0.0, 10.0]]) + 40


def begun(kind: str, x: torch.Tensor, restarts: int | None = None, **settings) -> GaussianMixture:
    """A mixture of three at some of the rows, far from any optimum."""
    model = GaussianMixture(x.shape[1], 3, kind, **settings)
    model = model if restarts is None else model.stack(restarts)
    with torch.no_grad():
        some = torch.randperm(len(x))[: model.locs.numel() // x.shape[1]]
        model.locs.copy_(x[some].view_as(model.locs))
        model.log_scale.copy_(x.std(0).mean().log().expand_as(model.log_scale))
    return model


def assert_same_steps(model, x, weight=None, steps: int = 25, tolerance: float = 1e-11) -> Climb:
    """The same objectives and parameters, before each step, as by `em_step`."""
    climb = copy.deepcopy(model).climb(x, weight)
    for _ in range(steps):
        found = climb.parameters(climb.state())
        for name, value in model.named_parameters():
            many = 1e3 * tolerance
            torch.testing.assert_close(found[name].view_as(value), value, rtol=many, atol=many)
        expected = model.em_step(x, weight)
        torch.testing.assert_close(climb(), expected, rtol=tolerance, atol=tolerance)
    return climb


@pytest.mark.parametrize("restarts", [None, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_em_step(kind, weighted, restarts):
    x = rows()
    weight = torch.arange(300.0) % 4 if weighted else None
    climb = assert_same_steps(begun(kind, x, restarts), x, weight)
    assert climb.steps.now is not None  # all of them without parameters


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_many_rows_go_through_them_in_parts(kind, monkeypatch):
    x = rows(3000)
    monkeypatch.setattr(expectation, "CHUNK", 1)  # at least 1024 rows
    climb = assert_same_steps(begun(kind, x), x, steps=5)
    assert climb.steps.rows.kept is None


@pytest.mark.parametrize("restarts", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_component_without_rows_stays_where_it_was(kind, restarts):
    x = rows()
    model = begun(kind, x, restarts)
    with torch.no_grad():
        model.locs[..., 2, :] += 1e4
    climb = assert_same_steps(model, x, steps=6, tolerance=1e-8)  # as far as there are digits
    assert climb.steps.now is None


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_covariances_at_the_floor_are_left_to_em_step(kind):
    x = rows()
    x[:, 2] = x[:, 0] + 1e-4 * torch.randn(300)
    climb = assert_same_steps(begun(kind, x), x, steps=6, tolerance=1e-9)
    assert climb.steps.now is None


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_variances_at_the_floor_stay_there(kind):
    x = torch.cat([rows(), torch.full((3, 3), 90.0)])
    model = begun(kind, x, min_scale=0.5)
    with torch.no_grad():
        model.locs[2] = 90.0
        model.log_scale[2] = 0.0
    climb = assert_same_steps(model, x)
    assert climb.steps.now is not None
    assert model.scale.min().item() == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_components_far_away_are_left_to_em_step(kind):
    x = torch.cat([torch.randn(100, 3), torch.randn(200, 3) + 1e5])
    model = begun(kind, x, min_scale=1e-3)
    with torch.no_grad():
        model.locs.copy_(x[[0, 150, 250]])
        model.log_scale.fill_(0.0)
    assert assert_same_steps(model, x, steps=5).steps.now is None


@pytest.mark.parametrize("restarts", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_ends_at_the_parameters_of_its_last_loss(kind, restarts):
    x, model = rows(), GaussianMixture(3, 3, kind)
    run = fit_em(model, x, restarts=restarts, seed=0)
    assert run.history["loss"] == sorted(run.history["loss"], reverse=True)
    assert -model.em_step(x).item() == pytest.approx(run.history["loss"][-1], abs=1e-11)


def test_complete_rows_are_as_fast_where_some_could_be_missing():
    x = rows()
    one, other = (GaussianMixture(3, 3, missing=m) for m in ("error", "marginalise"))
    assert other.climbs(x)
    losses = [fit_em(model, x, seed=0).history["loss"] for model in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    x[0, 0] = torch.nan
    assert not other.climbs(x)


class Slower(GaussianMixture):
    """Somebody's own step, which counts."""

    calls = 0

    def em_step(self, x, sample_weight=None):
        self.calls += 1
        return super().em_step(x, sample_weight)


def test_a_step_of_a_subclass_is_its_own():
    model = Slower(3, 3)
    assert fit_em(model, rows(), seed=0).steps == model.calls > 1


def test_single_precision_is_rounded_at_each_step_as_before():
    assert not GaussianMixture(3, 3).float().climbs(rows().float())


def test_what_is_reached_is_kept_where_it_is_interrupted(monkeypatch):
    x, model = rows(), begun("full", rows())
    expected, taken, step = copy.deepcopy(model), [], Climb.__call__
    for _ in range(4):
        expected.em_step(x)

    def interrupted(self):
        taken.append(1)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Climb, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_em(model, x, initialise=False, tolerance=0.0)
    for own, value in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, value, rtol=1e-8, atol=1e-8)


def test_what_stands_for_many_rows_weighs_as_they_do():
    x = torch.cat([torch.randn(9990, 2), torch.randn(10, 2) + 30])
    x = x - x.mean(0)
    times = torch.arange(1.0, 10_001) % 3 + 1
    for weight in (None, times):
        chosen, share = coreset(x.square().sum(1), 200_000, weight)
        every = torch.ones(10_000) if weight is None else weight
        assert share.mean() == pytest.approx(1)
        expected = every @ x.square() / every.sum()
        found = share @ x[chosen].square() / share.sum()
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
        far = (x[chosen] > 15).all(1)
        assert far.double().mean() > 0.2  # of one row in a thousand
        assert share[far].sum() / share.sum() == pytest.approx(
            (every[-10:].sum() / every.sum()).item(), rel=0.05
        )


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_a_cluster_of_few_rows_among_many_is_found(kind):
    x = torch.cat([torch.randn(19_990, 2), torch.randn(10, 2) + 20])
    for seed in range(3):
        model = GaussianMixture(2, 2, kind)
        fit_em(model, x, seed=seed)
        assert model.weights.min().item() == pytest.approx(10 / 20_000, rel=1e-6)


def test_distinct_rows_that_some_of_many_lack_are_found():
    x = torch.tensor([[0.0], [1.0]]).repeat(5000, 1)
    x[7] = 0.5
    model = GaussianMixture(1, 3)
    with pytest.warns(UserWarning, match="have no more variance"):
        fit_em(model, x, seed=0)
    assert sorted(model.locs.flatten().tolist()) == pytest.approx([0.0, 0.5, 1.0])


def test_what_has_no_chance_is_not_drawn():
    chances = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).cumsum(1)
    found = draw(chances, 4000)[0]
    assert set(found.tolist()) == {1, 3}
    assert (found == 3).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_candidates_stay_in_the_race_while_they_can_win():
    ahead = -1.0
    assert in_the_race([ahead, -2.0, -3.0, -1.5], [ahead, -2.1, -3.0, -1.6], left=4) == [0]
    assert in_the_race([ahead, -2.0, -3.0, -1.5], [ahead, -2.1, -3.0, -1.7], left=4) == [0, 3]
    assert in_the_race([ahead, -2.0, -3.0, -1.5], [ahead, -2.3, -3.0, -1.7], left=5) == [0, 1, 3]


def test_the_best_candidate_is_named_among_those_that_are_left():
    at = [-3.0, -2.0, -1.0, -2.5]
    gains = [0.0, 0.2, 0.0, 0.0]  # the second overtakes the third
    left = list(range(4))

    def step():
        nonlocal at
        at = [value + gain for value, gain in zip(at, gains, strict=True)]
        return torch.tensor([at[which] for which in left])

    def keep(some):
        nonlocal left
        left = [left[which] for which in some]

    best = settled(step, keep)
    assert left[best] == 1
    assert left == [1]  # ahead in the end, and alone
    assert at[1] > at[2] + REST
    assert settled(lambda: None, keep) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_leaps_end_where_steps_do_but_sooner(kind, weighted, monkeypatch):
    x = rows(3000)
    weight = torch.arange(3000.0) % 4 if weighted else None
    model = begun(kind, x)
    leapt = copy.deepcopy(model)
    options = {"initialise": False, "sample_weight": weight, "tolerance": 1e-9, "max_steps": 5000}
    run = fit_em(leapt, x, **options)
    losses = torch.tensor(run.history["loss"])
    assert (losses.diff() <= 0).all()
    last = -model_evidence(leapt, x, weight)
    torch.testing.assert_close(losses[-1], last, rtol=1e-11, atol=1e-11)
    monkeypatch.setattr(Climb, "leap", lambda *_: False)
    plain = fit_em(model, x, **options)
    assert run.steps < 0.7 * plain.steps
    assert run.history["loss"][-1] <= plain.history["loss"][-1] + 1e-9


def model_evidence(model, x, weight):
    found = model.evidence().log_prob(x).detach()
    return found.mean() if weight is None else (found * weight).sum() / weight.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_leap_too_far_moves_nothing(kind):
    x = rows()
    climb = begun(kind, x).climb(x)
    for _ in range(5):
        value = climb()
    before = climb.state()
    assert not climb.leap(1.0, value.item() + 10)
    assert not climb.leap(1e6, value.item())
    for name, held in climb.state().items():
        torch.testing.assert_close(held, before[name], rtol=0, atol=0)
    assert climb() >= value


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_are_scored_as_one_is(kind, monkeypatch):
    model, x = GaussianMixture(3, 2, kind), torch.randn(gaussian.LONG, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        each = torch.distributions.MultivariateNormal(model.locs, model.covariances)
        joint = model.weights.log() + each.log_prob(x[:, None])
    with torch.no_grad():
        torch.testing.assert_close(model.log_joint(x), joint, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.log_joint(x[:1]), joint[:1], rtol=1e-12, atol=1e-12)
        monkeypatch.setattr(expectation, "FAR", -1.0)  # as where digits would go
        torch.testing.assert_close(model.log_joint(x), joint, rtol=1e-12, atol=1e-12)
    assert model.log_joint(x).requires_grad


def test_finite_numbers_with_a_sum_that_is_not_are_let_through():
    check_finite(torch.full((9, 1), 3e38, dtype=torch.float32), "data")
    with pytest.raises(ValueError, match="1 of 9 rows"):
        check_finite(torch.full((9, 1), 1.0).index_fill_(0, torch.tensor([4]), torch.inf), "data")
