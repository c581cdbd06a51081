"""The units of rows and where they lie change nothing: a fit to c x + b is that to x, moved."""

import copy
import math
import warnings

import pytest
import torch

from ppl_models import GaussianMixture, elbo, fit_em, log_evidence
from ppl_models.infer.selection.compare import compare
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from tests.support.oracles import with_holes

KINDS = ["full", "tied", "diag", "spherical"]
UNITS = [1e-6, 1e-4, 1.0, 1e4, 1e6]


def rows(number: int = 300) -> torch.Tensor:
    """Two clusters of correlated features, of covariance about 1."""
    x = torch.randn(number, 3, dtype=torch.float64)
    x[: number // 2] += 5
    return x @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]]).double()


def fitted(x: torch.Tensor, kind: str, **settings) -> tuple[GaussianMixture, float]:
    """A mixture of two, components in order, and its evidence."""
    model = GaussianMixture(x.shape[1], 2, kind, **settings).to(x.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit_em(model, x, tolerance=1e-9, seed=0)
    evidence = log_evidence(model, None, x).mean
    assert evidence == pytest.approx(-run.history["loss"][-1], abs=1e-3)
    return model, evidence


def assert_moved(model, other, unit, shift, tolerance):
    """Means c m + b, covariances c^2 S, the same weights."""
    a, b = (m.locs[:, 0].argsort() for m in (model, other))
    spread = torch.as_tensor(unit, dtype=torch.float64)
    loc = (other.locs[b].double() - shift) / spread
    torch.testing.assert_close(loc, model.locs[a].double(), atol=tolerance, rtol=0)
    covariance = other.covariances[b].double() / (spread[..., None] * spread).double()
    torch.testing.assert_close(covariance, model.covariances[a].double(), atol=tolerance, rtol=0)
    weights = other.weights[b].double()
    torch.testing.assert_close(weights, model.weights[a].double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", KINDS)
def test_units_and_offsets_move_the_mixture(kind, unit, far):
    x = rows()
    model, evidence = fitted(x, kind)
    shift = 3 * far * unit  # rows spread about 3
    other, moved = fitted(unit * x + shift, kind)
    assert moved + 3 * math.log(unit) == pytest.approx(evidence, abs=1e-6)
    assert_moved(model, other, unit, shift, 1e-5)
    single, moved = fitted((unit * x + shift).float(), kind)  # rows of 7 digits, 4 of them the same
    assert moved + 3 * math.log(unit) == pytest.approx(evidence, abs=2e-3)
    assert_moved(model, single, unit, shift, 2e-2)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_each_column_has_units_of_its_own(kind):
    x, unit = rows(), torch.tensor([1e-6, 1.0, 1e5], dtype=torch.float64)
    model, evidence = fitted(x, kind)
    other, moved = fitted(unit * x, kind)
    assert moved + unit.log().sum().item() == pytest.approx(evidence, abs=1e-7)
    a, b = model.locs[:, 0].argsort(), other.locs[:, 0].argsort()
    torch.testing.assert_close(other.locs[b] / unit, model.locs[a], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        other.covariances[b] / unit / unit[:, None], model.covariances[a], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_units_with_missing_entries(kind, unit):
    x = with_holes(rows(), 0.1)
    model, evidence = fitted(x, kind, missing="marginalise")
    other, moved = fitted(unit * x, kind, missing="marginalise")
    entries = (~x.isnan()).sum().item() / len(x)
    assert moved + entries * math.log(unit) == pytest.approx(evidence, abs=1e-5)
    assert_moved(model, other, unit, 0.0, 1e-3)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_compare_chooses_the_same_number_in_all_units(unit):
    x = rows(120)

    def table(scale: float):
        candidates = {k: GaussianMixture(3, k).double() for k in (1, 2)}
        return compare(candidates, scale * x, folds=3, restarts=1, seed=0)

    expected, found = table(1.0), table(unit)
    assert expected.best() == found.best() == 2
    moved = found.held_out + 3 * math.log(unit)
    torch.testing.assert_close(moved, expected.held_out, atol=1e-5, rtol=0)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_collapse_ends_at_the_same_floor_in_all_units(kind, unit):
    """The floor is a thousandth of the spread, and told of in all units."""
    x = unit * torch.cat([torch.randn(60, 2), torch.full((3, 2), 8.0)]).double()
    model = GaussianMixture(2, 2, kind).double()
    if kind == "tied":
        fit_em(model, x, restarts=5, seed=0)
        assert model.caveat() is None
        return
    with pytest.warns(UserWarning, match=r"have no more variance .* a thousandth"):
        fit_em(model, x, restarts=5, seed=0)
    own = x.var(0, correction=0)
    own = own.mean().expand(2) if kind == "spherical" else own
    least = torch.linalg.eigvalsh(model.covariances / own.outer(own).sqrt()).min().item()
    assert least == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_sees_the_same_floor(kind):
    """From where `initialise` leads the loss and its slopes are those of other units."""
    x, unit, losses, slopes = rows(), 1e-6, [], []
    for scale in (1.0, unit):
        model = GaussianMixture(3, 2, kind).double()
        torch.manual_seed(0)
        model.initialise(scale * x)
        loss = elbo(model).loss(scale * x)
        loss.backward()
        losses.append(loss.item() - 3 * math.log(scale))
        slopes.append([model.log_scale.grad, model.locs.grad * scale, model.logits.grad])
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


def test_the_floor_is_saved_and_travels():
    x = 1e-6 * rows()
    model, other = GaussianMixture(3, 2).double(), GaussianMixture(3, 2).double()
    fit_em(model, x, restarts=3, seed=0)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.evidence().log_prob(x), model.evidence().log_prob(x))


def test_a_step_of_em_alone_learns_the_units():
    x, model = 1e-6 * rows(), GaussianMixture(3, 2).double()
    with torch.no_grad():
        model.locs.copy_(x[[0, -1]])
        model.log_scale.fill_(math.log(1e-6))
    streamed = copy.deepcopy(model)
    fit_em(model, x, initialise=False)
    assert log_evidence(model, None, x).mean - 3 * math.log(1e6) > -6
    streamed.em_step(iter([x[:100], x[100:]]))
    torch.testing.assert_close(streamed.log_floor[0].exp(), 1e-3 * x.std(0, correction=0))


@pytest.mark.parametrize("kind", KINDS)
def test_constant_and_repeated_columns_are_taken(kind):
    """The floor keeps them from an infinite evidence, and a warning says that they rest on it."""
    x = rows()
    for extra in (torch.full((300, 1), 7.0), 2 * x[:, :1]):
        odd = torch.cat([x, extra.double()], 1)
        model = GaussianMixture(4, 2, kind).double()
        if kind == "spherical" or (kind == "diag" and extra.std() > 0):  # nothing is singular
            fit_em(model, odd, seed=0)
        else:
            with pytest.warns(UserWarning, match="have no more variance"):
                fit_em(model, odd, seed=0)
        label = model.posterior(odd).probs.argmax(1)
        assert (label[:150] == label[0]).all()
        assert (label[150:] != label[0]).all()


def test_what_has_no_units_is_refused():
    x = rows()
    with pytest.raises(ValueError, match=r"expected min_scale \*\* 2.*of the rows, 3\.91e-12"):
        fit_em(GaussianMixture(3, 2, min_scale=1e-3).double(), x / x.std() * 2e-6)
    with pytest.raises(ValueError, match=r"rows near zero.*Try x - x\.mean\(0\)"):
        fit_em(GaussianMixture(3, 2), x + 1e8)  # float32 has numbers 8 apart there


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_a_prior_tied_to_the_data_moves_with_it(kind, unit):
    x, results = rows(), []
    for scale in (1.0, unit):
        y = scale * x + 1e4 * scale
        spread = 0.25 * (y.std().item() if kind == "spherical" else y.std(0))
        settings = {"prior_loc": y.mean(0), "prior_scale": spread}
        torch.set_default_dtype(torch.float64)
        try:
            model = BayesianGaussianMixture(3, 4, kind, **settings)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        found = model.mean_field(y)
        results.append([found.strength, (found.loc - 1e4 * scale) / scale, found.df])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("x", [1e-4 * rows(), rows() + 1e4])
def test_a_prior_of_other_units_is_refused(x):
    with pytest.raises(ValueError, match=r"priors are not about rows like these.*prior_scale="):
        BayesianGaussianMixture(3, 4).double().mean_field(x)


def test_the_mean_field_of_float32_is_that_of_float64():
    """Far from zero its sums would have no digits left."""
    x = (rows() + 1e4).float()
    settings = {"prior_loc": x.mean(0), "prior_scale": x.std(0)}
    single = BayesianGaussianMixture(3, 3, **settings)
    double = BayesianGaussianMixture(3, 3, **settings).double()
    found = []
    for model, y in ((single, x), (double, x.double())):
        torch.manual_seed(0)
        found.append(model.mean_field(y))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=1e-5)
