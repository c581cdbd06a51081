"""The units of rows and where they lie change nothing: a fit to c x + b is that to x, moved."""

import math

import pytest
import torch

from ppl_models import FactorAnalysis, ProbabilisticPCA, fit_em, log_evidence
from ppl_models.factors.bayesian import BayesianFactorAnalysis
from ppl_models.factors.pca import PCA
from tests.support.oracles import with_holes

UNITS = [1e-6, 1e-4, 1.0, 1e4, 1e6]


def rows() -> torch.Tensor:
    z, noise = torch.randn(200, 1).double(), torch.randn(200, 4).double()
    return z @ torch.tensor([[2.0, 1.0, 0.5, 1.5]]).double() + noise


def fitted(model, x: torch.Tensor, way: str):
    model = model.to(x.dtype)
    if way == "maximum likelihood":
        model.maximum_likelihood(x)
    else:
        fit_em(model, x, tolerance=1e-8)
    return model, log_evidence(model, None, x).mean


@pytest.mark.parametrize("way", ["maximum likelihood", "EM"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", [FactorAnalysis, ProbabilisticPCA])
def test_units_and_offsets_move_the_factors(kind, unit, way):
    x = rows()
    model, evidence = fitted(kind(4, 1), x, way)
    for far, precision, within in [(0.0, 64, 1e-5), (1e4, 64, 1e-5), (1e4, 32, 1e-2)]:
        y = (unit * x + far * unit).to(getattr(torch, f"float{precision}"))
        other, moved = fitted(kind(4, 1), y, way)
        assert moved + 4 * math.log(unit) == pytest.approx(evidence, abs=min(within, 2e-3))
        loc = (other.loc.double() - far * unit) / unit
        torch.testing.assert_close(loc, model.loc.double(), atol=within, rtol=0)
        loadings = other.loadings.double() / unit
        torch.testing.assert_close(loadings, model.loadings.double(), atol=within, rtol=0)
        scale = other.log_scale.double().exp() / unit
        torch.testing.assert_close(scale, model.log_scale.double().exp(), atol=within, rtol=0)


@pytest.mark.parametrize("way", ["maximum likelihood", "EM"])
def test_each_column_has_units_of_its_own(way):
    x, unit = rows(), torch.tensor([1e-6, 1.0, 1e3, 1e6], dtype=torch.float64)
    model, evidence = fitted(FactorAnalysis(4, 1), x, way)
    other, moved = fitted(FactorAnalysis(4, 1), unit * x, way)
    assert moved + unit.log().sum().item() == pytest.approx(evidence, abs=1e-8)
    torch.testing.assert_close(other.loadings / unit[:, None], model.loadings, atol=1e-6, rtol=0)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("kind", [FactorAnalysis, ProbabilisticPCA])
def test_units_with_missing_entries(kind, unit):
    x = with_holes(rows(), 0.1)
    model, evidence = fitted(kind(4, 1, missing="marginalise"), x, "EM")
    other, moved = fitted(kind(4, 1, missing="marginalise"), unit * x + 1e4 * unit, "EM")
    entries = (~x.isnan()).sum().item() / len(x)
    assert moved + entries * math.log(unit) == pytest.approx(evidence, abs=1e-6)
    torch.testing.assert_close(other.loadings / unit, model.loadings, atol=1e-4, rtol=0)


@pytest.mark.parametrize("unit", UNITS)
def test_units_and_offsets_move_principal_components(unit):
    x = rows()
    expected = PCA(4, 2).double().least_squares(x)
    for precision, within in [(torch.float64, 1e-8), (torch.float32, 3e-3)]:
        y = (unit * x + 1e4 * unit).to(precision)
        pca = PCA(4, 2).to(precision).least_squares(y)
        torch.testing.assert_close(
            pca.components.double(), expected.components, atol=within, rtol=0
        )
        found = pca.explained_variance.double() / unit**2
        torch.testing.assert_close(found, expected.explained_variance, atol=0, rtol=within)
        scores = pca.transform(y).double() / unit
        torch.testing.assert_close(scores, expected.transform(x), atol=5 * within, rtol=0)


@pytest.mark.parametrize("unit", UNITS)
def test_a_prior_tied_to_the_data_moves_with_it(unit):
    x, torch_default = rows(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        starts = []
        for y in (x, unit * x + 1e4 * unit):
            model = BayesianFactorAnalysis(4, 2, prior_loc=y.mean(0), prior_scale=y.std(0))
            starts.append(model.initial_values(y))
    finally:
        torch.set_default_dtype(torch_default)
    one, other = starts
    size = unit * one["loadings"]
    torch.testing.assert_close(other["loadings"], size, atol=1e-6 * unit, rtol=1e-6)
    torch.testing.assert_close(other["noise_variance"], unit**2 * one["noise_variance"])
    torch.testing.assert_close(other["factor_scale"], one["factor_scale"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "fit",
    [
        lambda x: FactorAnalysis(4, 1).maximum_likelihood(x),
        lambda x: fit_em(FactorAnalysis(4, 1, missing="marginalise"), x),
        lambda x: fit_em(ProbabilisticPCA(4, 1), x),
        lambda x: PCA(4, 1).least_squares(x),
    ],
)
def test_rows_where_float32_has_no_digits_left_are_refused(fit):
    with pytest.raises(ValueError, match=r"rows near zero.*a mean of 1e\+08.*model\.double"):
        fit(rows() + 1e8)
