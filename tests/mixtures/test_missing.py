"""Missing entries: mixtures of Gaussians are exact on what was observed."""

import pytest
import torch
from scipy import integrate

from ppl_models import GaussianMixture, elbo, fit, fit_em, from_pyro_svi, log_evidence
from ppl_models import missing as module
from ppl_models.missing import complete
from tests.support.oracles import iris, with_holes

KINDS = ["full", "tied", "diag", "spherical"]
NAN = float("nan")


@pytest.fixture(autouse=True, params=[torch.float64, torch.float32], ids=["float64", "float32"])
def default_dtype(request):
    """All is in float64 here, whatever torch's default, which must not creep in."""
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def clusters() -> torch.Tensor:
    """Three clusters of rows with holes."""
    locs = torch.tensor([[0.0, 0, 0, 0], [3, 3, 0, -3], [-3, 2, 3, 0]])
    return with_holes(locs[torch.arange(300) % 3] + randn(300, 4))


def scattered(kind: str, features: int = 4, components: int = 3) -> GaussianMixture:
    model = GaussianMixture(features, components, kind, missing="marginalise").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def by_hand(model: GaussianMixture, row: torch.Tensor) -> torch.Tensor:
    """log p(x_o, z) of one row from the blocks of dense covariances, (K,)."""
    o = ~row.isnan()
    joint = model.weights.log().clone()
    if o.any():
        for k, (loc, covariance) in enumerate(zip(model.locs, model.covariances, strict=True)):
            block = torch.distributions.MultivariateNormal(loc[o], covariance[o][:, o])
            joint[k] += block.log_prob(row[o])
    return joint


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_and_posterior_of_what_was_observed(kind):
    model, x = scattered(kind), with_holes(randn(50, 4))
    x[0] = NAN  # nothing observed
    joint = torch.stack([by_hand(model, row) for row in x])
    torch.testing.assert_close(model.evidence().log_prob(x), joint.logsumexp(1), atol=1e-10, rtol=0)
    torch.testing.assert_close(model.posterior(x).probs, joint.softmax(1), atol=1e-10, rtol=0)
    torch.testing.assert_close(elbo(model).loss(x), -joint.logsumexp(1).mean(), atol=1e-10, rtol=0)
    assert model.evidence().log_prob(x[:1]).abs() < 1e-12
    evidence = log_evidence(model, None, x)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, joint.logsumexp(1).detach())


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_the_integral_over_what_is_missing(kind):
    model = scattered(kind, features=2)
    whole = GaussianMixture(2, 3, kind).double()
    whole.load_state_dict(model.state_dict())
    density = whole.evidence()

    def p(missing):
        return density.log_prob(torch.tensor([0.7, missing], dtype=torch.float64)).exp().item()

    integral, _ = integrate.quad(p, -30, 30, epsabs=1e-13, epsrel=1e-13, limit=500)
    got = model.evidence().log_prob(torch.tensor([[0.7, NAN]], dtype=torch.float64)).exp().item()
    assert got == pytest.approx(integral, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_complete_rows_are_as_without(kind):
    model, x = scattered(kind), randn(50, 4)
    whole = GaussianMixture(4, 3, kind).double()
    whole.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.evidence().log_prob(x), whole.evidence().log_prob(x))
    for _ in range(4):
        torch.testing.assert_close(model.em_step(x), whole.em_step(x))
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_conditionals_of_missing_entries():
    """Against the blocks of the covariance, row by row."""
    model, x = scattered("full"), with_holes(randn(20, 4), 0.5)
    given = complete(x, model.locs, model.scale)
    for b, row in enumerate(x):
        m, o = row.isnan(), ~row.isnan()
        for k in range(3):
            s, loc = model.covariances[k], model.locs[k]
            gain = torch.linalg.solve(s[o][:, o], s[o][:, m]).T
            mean = loc[m] + gain @ (row[o] - loc[o])
            covariance = s[m][:, m] - gain @ s[o][:, m]
            places = given.places[b][given.present[b]]
            assert places.tolist() == m.nonzero().flatten().tolist()
            n = len(places)
            torch.testing.assert_close(given.shift[b, k, :n] + loc[m], mean)
            spread = torch.cholesky_inverse(given.factor[b, k, :n, :n])
            torch.testing.assert_close(spread, covariance)
    torch.testing.assert_close(
        given.log_prob + model.weights.log(), torch.stack([by_hand(model, row) for row in x])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_em_never_lowers_the_evidence_of_what_was_observed(kind):
    x = clusters()
    model = GaussianMixture(4, 3, kind, missing="marginalise").double()
    run = fit_em(model, x, restarts=3, seed=0, tolerance=1e-9)
    losses = run.history["loss"]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 1e-4
    assert losses[-1] == pytest.approx(-log_evidence(model, None, x).mean, abs=1e-9)
    elbo(model).loss(x).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_is_a_part_of_the_spread_of_what_was_observed(kind):
    """Means in the place of missing entries, as a start has them, would make that less."""
    x = clusters() * torch.tensor([1.0, 20.0, 0.3, 5.0]).double()
    model = GaussianMixture(4, 3, kind, missing="marginalise").double()
    model.initialise(x)
    variance = (x - x.nanmean(0)).square().nanmean(0)
    variance = variance.mean()[None] if kind == "spherical" else variance
    torch.testing.assert_close(model._floor()[0, 0], 1e-3 * variance.sqrt())


@pytest.mark.slow
def test_gradient_climbs_to_where_em_does():
    x = with_holes(iris())
    em, model = (GaussianMixture(4, 1, missing="marginalise").double() for _ in range(2))
    fit_em(em, x, tolerance=1e-10)
    with torch.no_grad():
        model.locs.copy_(x.nanmean(0))
    run = fit(elbo(model), x, steps=300, lr=0.05)
    assert run.history["loss"][-1] == pytest.approx(-log_evidence(em, None, x).mean, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_imputations_have_the_moments_of_the_conditional(kind):
    model, row = scattered(kind), torch.tensor([[0.3, NAN, -0.5, NAN]]).double()
    draws = model.impute(row, num_samples=40_000)[:, 0]
    assert (draws[:, [0, 2]] == row[0, [0, 2]]).all()
    # p(x_m | x_o) on a grid of both missing entries
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    grid = row.expand(161**2, 4).clone()
    grid[:, [1, 3]] = torch.cartesian_prod(axis, axis)
    weight = model.evidence().log_prob(grid).softmax(0)
    mean = weight @ grid[:, [1, 3]]
    torch.testing.assert_close(model.impute(row)[0, [1, 3]], mean, atol=1e-6, rtol=0)
    centred = grid[:, [1, 3]] - mean
    covariance = (weight[:, None] * centred).T @ centred
    torch.testing.assert_close(draws[:, [1, 3]].mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(draws[:, [1, 3]].T), covariance, atol=0.08, rtol=0)


def test_complete_rows_are_imputed_by_themselves():
    model, x = scattered("full"), randn(5, 4)
    assert torch.equal(model.impute(x), x)
    assert torch.equal(model.impute(x, num_samples=3), x.expand(3, 5, 4))


@pytest.mark.parametrize(
    ("x", "num_samples", "message"),
    [
        (torch.zeros(3, 4).double(), 0, "num_samples: expected a positive"),
        (torch.full((3, 4), torch.inf).double(), None, "3 of 3 rows hold NaN or infinity"),
        (torch.zeros(3, 5).double(), None, "rows of 4 features"),
    ],
)
def test_refused_imputations(x, num_samples, message):
    with pytest.raises(ValueError, match=message):
        scattered("full").impute(x, num_samples)


def test_rows_in_parts_are_rows_at_once(monkeypatch):
    model, x = scattered("full"), with_holes(randn(30, 4))
    expected = model.evidence().log_prob(x)
    monkeypatch.setattr(module, "MAX_NUMBERS", 100)
    torch.testing.assert_close(model.evidence().log_prob(x), expected)


def test_posteriors_of_rows_with_holes_reach_arviz():
    model, x = scattered("full"), with_holes(randn(20, 4))
    data = from_pyro_svi(model, None, x, num_samples=300, seed=0)
    share = torch.nn.functional.one_hot(
        torch.from_numpy(data["posterior"]["z"].values[0]).long(), 3
    )
    probs = model.posterior(x).probs
    torch.testing.assert_close(share.double().mean(0), probs, atol=0.12, rtol=0)


def test_nan_is_refused_unless_it_means_missing():
    x = with_holes(randn(20, 4))
    model = GaussianMixture(4, 2).double()
    for use in (
        lambda: fit_em(model, x),
        lambda: fit(elbo(model), x, steps=1),
        lambda: log_evidence(model, None, x),
        lambda: model.impute(x),
    ):
        with pytest.raises(ValueError, match="missing='marginalise'"):
            use()
    model = GaussianMixture(4, 2, missing="marginalise").double()
    with pytest.raises(ValueError, match=r"nothing was observed of column\(s\) \[1\]"):
        fit_em(model, x.index_fill(1, torch.tensor([1]), NAN))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        fit_em(model, x.index_fill(1, torch.tensor([1]), torch.inf))
