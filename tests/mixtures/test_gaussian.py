"""Mixtures of Gaussians: closed forms, enumeration, scikit-learn, and three ways to one optimum."""

import math
import warnings

import pytest
import torch
from sklearn.mixture import GaussianMixture as Peer
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import GaussianMixture, elbo, fit, fit_em, log_evidence
from ppl_models.mixtures.em import expectation
from ppl_models.mixtures.em.maximisation import factor
from ppl_models.mixtures.gaussian import COVARIANCES as KINDS
from tests.support.oracles import iris

pytestmark = pytest.mark.usefixtures("float64")


def scattered(kind: str, features: int = 3, components: int = 2) -> GaussianMixture:
    """A mixture with nothing special about it."""
    model = GaussianMixture(features, components, kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def rough_start(model: GaussianMixture, x: torch.Tensor, restarts: int = 1) -> GaussianMixture:
    """Starts at rows drawn at random: far from any optimum."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        rows = torch.stack(
            [torch.randperm(len(x))[: model.locs.shape[-2]] for _ in range(restarts)]
        )
        model.locs.copy_(x[rows].view_as(model.locs))
    return model


def dense_joint(model, x):
    """log p(x, z) with dense covariances: slow, and plainly right."""
    scale, (components, features) = model.scale, model.locs.shape
    columns = []
    for k in range(components):
        covariance = {
            "full": lambda k: scale[k] @ scale[k].T,
            "tied": lambda k: scale @ scale.T,
            "diag": lambda k: (scale[k] ** 2).diag(),
            "spherical": lambda k: scale[k] ** 2 * torch.eye(features),
        }[model.covariance](k)
        torch.testing.assert_close(model.covariances[k], covariance)
        density = torch.distributions.MultivariateNormal(model.locs[k], covariance)
        columns.append(model.weights[k].log() + density.log_prob(x))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_posterior_and_enumeration(kind):
    model, x = scattered(kind), torch.randn(7, 3)
    joint = dense_joint(model, x)
    torch.testing.assert_close(model.evidence().log_prob(x), joint.logsumexp(1))
    torch.testing.assert_close(model.posterior(x).probs, joint.softmax(1))
    loss = elbo(model).loss(x, size=70)  # a minibatch
    torch.testing.assert_close(loss, -joint.logsumexp(1).mean(), atol=1e-10, rtol=0)
    assert log_evidence(model, None, x).kind == "exact"


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_mixture(kind):
    model = scattered(kind)
    x = model(size=200_000).detach()
    mean = (model.weights[:, None] * model.locs).sum(0)
    spread = model.locs - mean
    covariance = torch.einsum("k,kij->ij", model.weights, model.covariances)
    covariance = covariance + torch.einsum("k,ki,kj->ij", model.weights, spread, spread)
    torch.testing.assert_close(x.mean(0), mean.detach(), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), covariance.detach(), atol=0.1, rtol=0)


def peer(model, **options):
    """scikit-learn's mixture at the same parameters."""
    covariances = model.covariances.detach()
    precisions = covariances.inverse()
    shape = {
        "full": precisions,
        "tied": precisions[0],
        "diag": precisions.diagonal(dim1=1, dim2=2),
        "spherical": precisions[:, 0, 0],
    }[model.covariance]
    return Peer(
        len(model.logits),
        covariance_type=model.covariance,
        weights_init=(model.weights / model.weights.sum()).detach().numpy(),
        means_init=model.locs.detach().clone().numpy(),
        precisions_init=shape.numpy(),
        reg_covar=0,
        **options,
    )


@pytest.mark.filterwarnings("ignore:Best performing initialization did not converge")
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_em_is_that_of_scikit_learn(kind):
    x = iris()
    model = rough_start(GaussianMixture(4, 3, kind, min_scale=1e-6), x)
    theirs = peer(model, max_iter=15, tol=0).fit(x.numpy()).lower_bounds_
    ours = [model.em_step(x).item() for _ in range(15)]
    assert ours == pytest.approx(theirs, abs=1e-10)
    assert ours == sorted(ours)
    assert ours[-1] - ours[0] > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_scikit_learn_from_its_own_starts(kind):
    x, model = iris(), GaussianMixture(4, 3, kind)
    run = fit_em(model, x, restarts=5, seed=0)
    theirs = Peer(3, covariance_type=kind, n_init=5, random_state=0, tol=1e-6, max_iter=1000)
    assert -run.history["loss"][-1] >= theirs.fit(x.numpy()).score(x.numpy()) - 1e-8
    assert -run.history["loss"][-1] == pytest.approx(log_evidence(model, None, x).mean, abs=1e-10)
    free = theirs._n_parameters()
    total = 150 * run.history["loss"][-1]
    assert model.bic(x) == pytest.approx(2 * total + free * math.log(150), abs=1e-8)
    assert model.aic(x) == pytest.approx(2 * total + 2 * free, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"steps": 300, "lr": 0.1}) for kind in KINDS),
        ("full", {"epochs": 150, "batch_size": 50, "lr": 0.05}),
        ("tied", {"epochs": 150, "batch_size": 50, "lr": 0.05}),
    ],
)
def test_gradient_and_minibatches_reach_the_optimum_of_em(kind, options):
    x, em, model = iris(), GaussianMixture(4, 2, kind), GaussianMixture(4, 2, kind)
    fit_em(em, x, tolerance=1e-9, seed=0)
    rough_start(model, x)
    with torch.no_grad():  # apart, so that there is one optimum to go to
        model.locs.copy_(x.mean(0) + torch.tensor([[-1.0], [1.0]]) * x.std(0))
    fit(elbo(model), x, schedule=CosineAnnealingLR, seed=0, **options)
    expected = log_evidence(em, None, x).mean
    assert log_evidence(model, None, x).mean == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_zero_where_em_ends(kind):
    x, model = iris(), GaussianMixture(4, 2, kind)
    fit_em(model, x, tolerance=0.0, max_steps=2000, seed=0)
    elbo(model).loss(x).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_restarts_side_by_side_are_restarts_one_by_one(kind):
    x, model = iris(), GaussianMixture(4, 3, kind)
    stacked = rough_start(model.stack(4), x, restarts=4)
    singles = []
    for r in range(4):
        single = GaussianMixture(4, 3, kind)
        single.load_state_dict({name: value[r] for name, value in stacked.state_dict().items()})
        singles.append(single)
    for _ in range(5):
        together = stacked.em_step(x)
        apart = torch.stack([single.em_step(x) for single in singles])
        torch.testing.assert_close(together, apart, atol=1e-10, rtol=0)
    assert len(set(together.tolist())) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_components_far_apart_keep_their_digits(kind, monkeypatch):
    near = torch.randn(500, 3)
    near[:250] += 4
    results = []
    for far in (expectation.FAR, 0.0):  # both ways to count rows
        monkeypatch.setattr(expectation, "FAR", far)
        model = GaussianMixture(3, 2, kind)
        torch.manual_seed(0)
        model.initialise(near)
        results.append([model.em_step(near).item() for _ in range(5)])
    assert results[0] == pytest.approx(results[1], abs=1e-12)

    monkeypatch.undo()
    x = torch.randn(400, 3) * 1e-3
    x[:200] += 1e6
    model = GaussianMixture(3, 2, kind, min_scale=1e-5)
    run = fit_em(model, x, seed=0)
    expected = -math.log(2) - 3 * (0.5 * math.log(2 * math.pi) + 0.5 + math.log(1e-3))
    assert -run.history["loss"][-1] == pytest.approx(expected, abs=0.1)
    assert -run.history["loss"][-1] == pytest.approx(log_evidence(model, None, x).mean, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("distance", "careful"), [(2e3, False), (6e3, True)])
def test_rows_are_counted_from_each_component_where_digits_would_go(
    kind, distance, careful, monkeypatch
):
    """1e-16 of a squared distance, 4e6 or 3.6e7 standard deviations, is what a log-density loses:
    on this side of FAR less than 1e-8, and on the other more with rows counted from one center."""
    x = torch.randn(400, 3)
    x[:200] += distance
    x[200:] -= distance
    model = GaussianMixture(3, 2, kind, min_scale=1e-5)
    with torch.no_grad():
        model.locs.copy_(torch.tensor([[distance] * 3, [-distance] * 3]))
    took, whole = [], expectation._from_each_center
    monkeypatch.setattr(
        expectation, "_from_each_center", lambda *given: took.append(1) or whole(*given)
    )
    with torch.no_grad():
        truth = model.evidence().log_prob(x).mean().item()
    assert model.em_step(x).item() == pytest.approx(truth, abs=1e-8)
    assert bool(took) is careful


def test_a_start_finds_many_clusters():
    """Sixteen of them: k-means alone, from one seeding, finds all in 5 of 10."""
    locs = 8 * torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    x = (locs[:, None] + torch.randn(16, 25, 2)).flatten(0, 1)
    found = 0
    for seed in range(10):
        model = GaussianMixture(2, 16, "spherical")
        torch.manual_seed(seed)
        model.initialise(x)
        found += len((model.locs[:, None] - locs).square().sum(2).argmin(1).unique()) == 16
    assert found >= 9


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_batches_are_the_whole(kind):
    x = iris()
    whole, streamed = GaussianMixture(4, 3, kind), GaussianMixture(4, 3, kind)
    whole.initialise(x)
    streamed.load_state_dict(whole.state_dict())
    for _ in range(3):
        batches = [x[:1], x[1:70], x[70:]]
        torch.testing.assert_close(whole.em_step(x), streamed.em_step(batches))


@pytest.mark.parametrize("kind", KINDS)
def test_a_collapse_ends_at_the_floor_and_is_told(kind):
    """Three rows in one place, and a component that closes in on them."""
    x = torch.cat([torch.randn(60, 2), torch.full((3, 2), 8.0)])
    model = GaussianMixture(2, 2, kind, min_scale=0.01)
    if kind == "tied":  # which cannot collapse
        fit_em(model, x, restarts=5, seed=0)
        assert model.caveat() is None
        return
    with pytest.warns(UserWarning, match=r"component\(s\) [01] have no more variance"):
        run = fit_em(model, x, restarts=5, seed=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert run.history["loss"] == sorted(run.history["loss"], reverse=True)
    smallest = torch.linalg.eigvalsh(model.covariances).min().item()
    assert smallest == pytest.approx(1e-4, rel=1e-6)

    # By gradient too the evidence stays below what the floor allows.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit(elbo(model), x, steps=50, lr=0.5)
    assert math.isfinite(run.history["loss"][-1])


def test_a_floor_on_purpose_is_not_told():
    x = torch.cat([torch.randn(60, 2), torch.full((3, 2), 8.0)])
    model = GaussianMixture(2, 2, min_scale=0.2)
    fit_em(model, x, restarts=5, seed=0)
    assert torch.linalg.eigvalsh(model.covariances).min() <= 0.04 * (1 + 1e-6)


def test_the_floor_is_the_best_covariance_above_it():
    """No other covariance whose eigenvalues are above the floor has a higher likelihood."""
    a = torch.randn(4, 4)
    sample = a @ a.T / 8 + torch.diag(torch.tensor([0.0, 0.0, 1.0, 2.0]))
    values = torch.linalg.eigvalsh(sample)
    floor = values[1].item() * 1.5  # between the second and the third

    def likelihood(covariance):
        return -torch.logdet(covariance) - (torch.linalg.inv(covariance) @ sample).trace()

    lower = factor(sample[None, None], floor)[0, 0]
    best = lower @ lower.T
    assert torch.linalg.eigvalsh(best).min() == pytest.approx(floor)
    for _ in range(300):
        other = best + 0.1 * (lambda b: b @ b.T - 0.5 * torch.eye(4))(torch.randn(4, 4))
        vals, vecs = torch.linalg.eigh((other + other.T) / 2)
        other = (vecs * vals.clamp(min=floor)) @ vecs.T
        assert likelihood(other) <= likelihood(best) + 1e-10


@pytest.mark.parametrize("far", [100.0, 1e4])
def test_a_component_without_rows_stays_where_it_is(far):
    x = torch.randn(50, 2)
    model = GaussianMixture(2, 3)
    with torch.no_grad():
        model.locs.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [far, far]]))
    before = model.locs[2].clone(), model.covariances[2].clone()
    for _ in range(3):
        assert model.em_step(x).isfinite()
    assert torch.equal(model.locs[2], before[0])
    torch.testing.assert_close(model.covariances[2], before[1])
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_of_few_rows_is_fitted_to_them(kind):
    """One in a thousand."""
    x = torch.cat([torch.randn(4995, 2), torch.randn(5, 2) + 100])
    model = GaussianMixture(2, 2, kind)
    with torch.no_grad():
        model.locs.copy_(torch.tensor([[0.0, 0.0], [101.0, 101.0]]))
    model.em_step(x)
    torch.testing.assert_close(model.locs[1], x[-5:].mean(0))
    assert model.weights[1].item() == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_holds_by_gradient_too(kind):
    model = GaussianMixture(2, 2, kind, min_scale=0.1)
    with torch.no_grad():
        model.log_scale.fill_(-60.0)
    torch.testing.assert_close(model.covariances, 0.01 * torch.eye(2).expand(2, 2, 2))


def test_float32_is_fitted_in_float64_inside():
    x = iris()
    double, single = GaussianMixture(4, 3), GaussianMixture(4, 3).float()
    double.initialise(x)
    single.load_state_dict(double.state_dict())
    fit_em(double, x, initialise=False)
    fit_em(single, x.float(), initialise=False)
    ours = log_evidence(single, None, x.float()).mean
    assert ours == pytest.approx(log_evidence(double, None, x).mean, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "num_components: expected a positive"),
        ({"num_features": 0}, "num_features: expected a positive"),
        ({"covariance": "round"}, "covariance: expected one of"),
        ({"min_scale": 0.0}, "min_scale: expected a positive"),
        ({"missing": "ignore"}, "missing: expected 'error' or 'marginalise'"),
    ],
)
def test_refused_when_made(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{"num_features": 2, "num_components": 2, **options})


NAN = float("nan")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(1, 2), "at least 3 rows of finite numbers, got"),
        (torch.randn(2, 2), "at least 3 rows of finite numbers, got"),
        (torch.ones(10, 2).index_fill_(0, torch.tensor([0]), 2.0), "3 distinct rows"),
        (torch.ones(10, 2), "all columns are constant"),
        (torch.tensor([[NAN, 1.0]] + [[0.0, 2.0]] * 9), "missing='marginalise'"),
        (torch.randn(10, 3), "rows of 2 features"),
        (torch.ones(10, 2, dtype=torch.long), "floating-point"),
        (torch.randn(0, 2), "at least one row"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_refused_before_the_fit(x, message, kind):
    model = GaussianMixture(2, 3, kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=message):
        fit_em(model, x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_more_starts_begin_as_one_does(covariance):
    """So that more of them never end below a single one from the same seed."""
    x = torch.rand(60, 3).double()
    one = GaussianMixture(3, 4, covariance).double()
    many = one.stack(6)
    for model in (one, many):
        torch.manual_seed(5)
        model.initialise(x)
    for own, stacked in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(stacked[0], own)
