"""Density from counts: against numpy and scipy first, then identities, then draws.

Shapes: `B` rows, `J` bins.
"""

import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy.stats import kstest, rv_histogram
from sklearn.datasets import load_breast_cancer

from ppl_models import elbo, fit, load, log_evidence, save
from ppl_models.densities.bins import PiecewiseConstant, bin_edges
from ppl_models.densities.histogram import HistogramDensity

UNEQUAL = [-3.0, -1.0, -0.5, 0.0, 0.25, 2.0, 5.0]


def rows(num_features: int, number: int = 400) -> torch.Tensor:
    """Real data: radius and texture of tumours, standardised; (B, D)."""
    x = torch.from_numpy(load_breast_cancer().data[:number, [0, 1][:num_features]])
    return (x - x.mean(0)) / x.std(0)


def one(pseudo_count: float = 0.0) -> tuple[HistogramDensity, torch.Tensor]:
    x = rows(1)
    return HistogramDensity(UNEQUAL).double().maximum_likelihood(x, pseudo_count), x


def two(pseudo_count: float = 0.0) -> tuple[HistogramDensity, torch.Tensor]:
    x = rows(2)
    return HistogramDensity(*bin_edges(x, (9, 5))).maximum_likelihood(x, pseudo_count), x


# --- the density ------------------------------------------------------------------------------


def test_density_in_one_dimension_is_that_of_numpy_and_scipy():
    model, x = one()
    density, edges = np.histogram(x[:, 0], UNEQUAL, density=True)
    peer = rv_histogram((density, edges), density=True)
    inside = x[:, 0] < UNEQUAL[-1]
    got = model.evidence().log_prob(x)
    torch.testing.assert_close(got[inside].detach().numpy(), peer.logpdf(x[inside, 0].numpy()))
    assert model.evidence().entropy().item() == pytest.approx(peer.entropy(), abs=1e-12)


def test_density_in_two_dimensions_is_that_of_numpy():
    model, x = two()
    edges = [e.numpy() for e in model.edges]
    expected, *_ = np.histogram2d(x[:, 0], x[:, 1], edges, density=True)
    middle = torch.cartesian_prod(*((e[1:] + e[:-1]) / 2 for e in model.edges))
    got = model.evidence().log_prob(middle).exp().reshape(9, 5)
    torch.testing.assert_close(got.detach().numpy(), expected)
    assert (got == 0).any()  # an empty bin: its logarithm is minus infinity, and no NaN


def test_edges_belong_to_the_bin_above_and_the_last_to_the_one_below():
    model = HistogramDensity([0.0, 1.0, 2.0]).maximum_likelihood(
        torch.tensor([[0.0], [1.0], [2.0]])
    )
    torch.testing.assert_close(model.proportions, torch.tensor([1 / 3, 2 / 3]))
    x = torch.tensor([[-0.001], [0.0], [0.999], [1.0], [2.0], [2.001]])
    expected = torch.tensor([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 0])
    torch.testing.assert_close(model.evidence().log_prob(x).exp().detach(), expected)


@pytest.mark.parametrize("pseudo_count", [0.0, 0.5])
@pytest.mark.parametrize("make", [one, two])
def test_it_integrates_to_one(make, pseudo_count):
    """The midpoint rule on a grid that is finer and wider than the bins."""
    model, _ = make(pseudo_count)
    axes, volume = [], 1.0
    for edges in model.edges:
        low, width = edges[0] - 1, edges[-1] - edges[0] + 2
        number = 200_000 if len(model.edges) == 1 else 1000
        axes.append(low + width * (torch.arange(number, dtype=torch.float64) + 0.5) / number)
        volume = volume * width / number
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    integral = model.evidence().log_prob(grid).exp().sum() * volume
    assert integral.item() == pytest.approx(1, abs=1e-4 if len(axes) == 1 else 5e-3)
    assert model.proportions.sum().item() == pytest.approx(1, abs=1e-14)


def test_the_program_scores_rows_as_the_evidence_does():
    model, x = two()
    trace = poutine.trace(model).get_trace(x[:50], size=400)
    trace.compute_log_prob()
    expected = model.evidence().log_prob(x[:50])
    torch.testing.assert_close(trace.nodes["x"]["unscaled_log_prob"], expected)
    torch.testing.assert_close(trace.log_prob_sum(), 8 * expected.sum())
    torch.testing.assert_close(elbo(model).loss(x[:50], size=400), -expected.mean())


def test_log_evidence_is_exact_and_minus_infinity_where_nothing_was_seen():
    model, x = two()
    evidence = log_evidence(model, None, x)
    assert evidence.kind == "exact"
    assert evidence.mean == pytest.approx(-model.evidence().entropy().item(), abs=1e-12)
    outside = torch.tensor([[0.0, 100.0]], dtype=torch.float64)
    assert log_evidence(model, None, outside).mean == -math.inf


def test_labels_have_probabilities():
    """In bins of width one the density is the probability."""
    labels = torch.tensor([0.0, 0, 1, 3, 3, 3])[:, None]
    model = HistogramDensity(torch.arange(-0.5, 4)).maximum_likelihood(labels)
    torch.testing.assert_close(model.proportions, torch.tensor([2 / 6, 1 / 6, 0, 3 / 6]))
    probability = model.evidence().log_prob(torch.arange(4.0)[:, None]).exp()
    torch.testing.assert_close(probability.detach(), model.proportions)


# --- maximum likelihood -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [one, two])
def test_mean_log_density_is_minus_entropy_minus_divergence(make):
    """For any proportions: so that those of the data, whose divergence is zero, are the best."""
    model, x = make()
    found, entropy = model.proportions, model.evidence().entropy()
    other = make(pseudo_count=3.0)[0]
    for scale in (0.0, 0.01, 1.0):
        with torch.no_grad():
            other.logits += scale * torch.randn_like(other.logits)
        divergence = torch.special.xlogy(found, found / other.proportions).sum()
        expected = -entropy - divergence
        got = other.evidence().log_prob(x).mean()
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
        assert divergence > 0
        assert got < model.evidence().log_prob(x).mean()


@pytest.mark.parametrize("make", [one, two])
def test_gradient_is_zero_at_the_maximum_likelihood(make):
    model, x = make()
    (gradient,) = torch.autograd.grad(elbo(model).loss(x), [model.logits])
    assert gradient.abs().max() < 1e-15  # and no NaN from empty bins


def test_descent_finds_the_proportions():
    model, x = two()
    expected = model.proportions
    again = HistogramDensity(*model.edges)
    fit(elbo(again), x, epochs=300, lr=0.3, progress=False)
    torch.testing.assert_close(again.proportions, expected, atol=2e-3, rtol=0)


def test_pseudo_count_is_the_posterior_mean_of_a_dirichlet():
    model, x = one()
    counts = 400 * model.proportions
    expected = torch.distributions.Dirichlet(0.5 + counts).mean
    torch.testing.assert_close(one(pseudo_count=0.5)[0].proportions, expected)
    assert log_evidence(one(pseudo_count=0.5)[0], None, x).mean < log_evidence(model, None, x).mean


# --- two features -------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1])
def test_marginal_is_the_histogram_of_that_feature_alone(dim):
    model, x = two()
    alone = HistogramDensity(model.edges[dim]).maximum_likelihood(x[:, [dim]])
    torch.testing.assert_close(model.marginal(dim).proportions, alone.proportions)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("pseudo_count", [0.0, 1.0])
def test_joint_is_marginal_times_conditional(dim, pseudo_count):
    model, x = two(pseudo_count)
    expected = model.evidence().log_prob(x[:40])
    marginal = model.marginal(dim).evidence().log_prob(x[:40, [dim]])
    conditional = torch.stack(
        [
            model.conditional(dim, row[dim]).evidence().log_prob(row[[1 - dim]])
            for row in x[:40]  # (2,)
        ]
    )
    torch.testing.assert_close(marginal + conditional, expected, atol=1e-12, rtol=0)


def test_conditional_is_the_histogram_of_the_rows_in_that_bin():
    model, x = two()
    low, high = model.edges[0][2:4]
    chosen = x[(low <= x[:, 0]) & (x[:, 0] < high)]
    alone = HistogramDensity(model.edges[1]).maximum_likelihood(chosen[:, [1]])
    found = model.conditional(0, (low + high).item() / 2)
    torch.testing.assert_close(found.proportions, alone.proportions)


# --- draws --------------------------------------------------------------------------------------


def test_draws_in_one_dimension_follow_the_distribution():
    model, x = one()
    peer = rv_histogram(np.histogram(x[:, 0], UNEQUAL), density=False)
    draws = model(size=20_000)
    assert draws.shape == (20_000, 1)
    assert kstest(draws[:, 0].numpy(), peer.cdf).pvalue > 0.01


def test_draws_in_two_dimensions_have_the_proportions():
    model, _ = two()
    again = HistogramDensity(*model.edges).maximum_likelihood(model(size=100_000))
    error = (model.proportions * (1 - model.proportions) / 100_000).sqrt()
    assert ((again.proportions - model.proportions).abs() <= 4.5 * error).all()
    assert (again.proportions > 0).any(0).all()


def test_no_draw_is_rounded_into_an_empty_bin():
    """Near a million, float32 numbers are 1/16 apart."""
    edges = 1e6 + torch.arange(9.0)
    logits = torch.tensor([0.0, -math.inf] * 4)
    density = PiecewiseConstant(logits, [edges])
    draws = density.sample((5000,))
    assert density.log_prob(draws).isfinite().all()
    assert density.support.check(draws).all()
    assert density.sample().shape == (1,)


def test_support_is_the_box_of_the_edges():
    model, x = two()
    low, high = x.amin(0), x.amax(0)
    corners = torch.stack([low, high, low - 0.01, torch.stack([low[0], high[1] + 0.01])])
    assert model.evidence().support.check(corners).tolist() == [True, True, False, False]


# --- the rule -----------------------------------------------------------------------------------


def test_rule_in_one_dimension_is_that_of_numpy():
    x = rows(1)
    (edges,) = bin_edges(x)
    np.testing.assert_allclose(edges, np.histogram_bin_edges(x, "scott"), atol=1e-12)


def test_rule_minimises_the_squared_error_for_independent_gaussians():
    """It is 1 / (N h^2) + h^2 / 12 (R_1 + R_2) for widths h, with roughness R_d = 1 / (8 pi)."""
    x = torch.randn(100_000, 2, dtype=torch.float64) * torch.tensor([1.0, 10.0])
    edges = bin_edges(x)
    width = torch.stack([(e[1] - e[0]) for e in edges]) / torch.tensor([1.0, 10.0])  # in sd
    h = torch.linspace(0.05, 0.5, 10_001, dtype=torch.float64)
    error = 1 / (len(x) * h**2) + h**2 / 12 * 2 / (8 * math.pi)
    assert width.tolist() == pytest.approx([h[error.argmin()].item()] * 2, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_rows_lie_within_the_edges_found(dtype):
    for seed in range(20):
        x = 1e3 * torch.randn(50, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        model = HistogramDensity(*bin_edges(x)).maximum_likelihood(x)  # raises otherwise
        assert model.logits.dtype == dtype
        assert log_evidence(model, None, x).mean > -math.inf


def test_number_of_bins_of_all_features_or_of_each():
    x = rows(2)
    assert [len(e) - 1 for e in bin_edges(x, 7)] == [7, 7]
    assert [len(e) - 1 for e in bin_edges(x, [7, 3])] == [7, 3]
    (edges,) = bin_edges(x[:, :1], 7)
    np.testing.assert_allclose(edges, np.histogram_bin_edges(x[:, 0], 7), atol=1e-12)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [one, two])
def test_files_keep_edges_and_proportions(make, tmp_path):
    model, x = make()
    copy = HistogramDensity(*(e - e[0] for e in model.edges))  # as many bins, elsewhere
    save(tmp_path / "density.safetensors", model=model)
    load(tmp_path / "density.safetensors", model=copy)
    assert torch.equal(copy.evidence().log_prob(x), model.evidence().log_prob(x))
    assert set(model.state_dict()) == {"logits", *(f"edges_{d}" for d in range(x.shape[1]))}


def test_edges_are_copies():
    edges = torch.arange(3.0)
    model = HistogramDensity(edges)
    edges += 5
    assert model.edges[0].tolist() == [0, 1, 2]


# --- bad input ----------------------------------------------------------------------------------

NAN, FLAT = torch.full((3, 1), math.nan), torch.full((10, 2), 3.0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 1), "at least one row"),
        (NAN, "3 of 3 rows hold NaN"),
        (torch.tensor([[math.inf], [0.0]]), "1 of 2 rows hold NaN or infinity"),
        (FLAT, r"feature 0 has one distinct value, 3.*HistogramDensity\(\[2.5, 3.5\]\)"),
        (torch.stack([torch.arange(5.0), torch.ones(5)], 1), "feature 1 has one distinct value"),
        (torch.zeros(5), r"\(5,\). Try x\[:, None\]"),
        (torch.zeros(5, 3), "one feature or two, got 3"),
        (torch.zeros(5, 1, 1), r"\(B, 1\), got \(5, 1, 1\)"),
        (torch.zeros(5, 1, dtype=torch.long), "floating-point"),
        (np.zeros((5, 1)), r"got ndarray. Try torch.tensor"),
        ([[0.0], [1.0]], "got list"),
    ],
)
def test_rule_refuses(x, message):
    with pytest.raises((ValueError, TypeError), match=f"bin_edges: .*{message}"):
        bin_edges(x)


@pytest.mark.parametrize("num_bins", [0, -3, 2.5, [3], [3, 0], [3, 3, 3], [3, 2.5], "fd"])
def test_rule_refuses_numbers(num_bins):
    with pytest.raises(ValueError, match="positive whole number of bins for each of 2"):
        bin_edges(rows(2), num_bins)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0.0, 1.0, 1.0]], r"increasing order for feature 0, got \[0, 1, 1\]"),
        ([[0.0, 1.0], [2.0, 1.0]], r"feature 1, got \[2, 1\]"),
        ([[0.0]], "two or more finite edges"),
        ([[0.0, math.nan]], "finite edges"),
        ([[0.0, math.inf]], "finite edges"),
        ([torch.zeros(2, 2)], r"a tensor of shape \(2, 2\)"),
        ([[0.0, 1.0]] * 3, "one feature or two, got 3"),
        ([], "one feature or two, got 0"),
    ],
)
def test_model_refuses_edges(edges, message):
    with pytest.raises(ValueError, match=f"HistogramDensity: .*{message}"):
        HistogramDensity(*edges)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 1), "at least one row"),
        (NAN, "3 of 3 rows hold NaN"),
        (torch.zeros(5), r"\(5,\). Try x\[:, None\]"),
        (torch.zeros(5, 2), "rows of 1 features"),
        (torch.zeros(5, 3), "one feature or two, got 3"),
        (torch.zeros(5, 1, dtype=torch.long), "floating-point"),
        (
            torch.tensor([[0.5], [-1.0], [7.0]]),
            "2 of 3 rows lie outside .*: feature 0 goes from -1 to 7, its edges from 0 to 3",
        ),
    ],
)
def test_model_refuses_rows(x, message):
    model = HistogramDensity([0.0, 1.0, 3.0])
    with pytest.raises((ValueError, TypeError), match=f"HistogramDensity: .*{message}"):
        model.maximum_likelihood(x)
    assert model.logits.tolist() == [0, 0]  # as before


def test_rows_outside_in_the_second_feature_are_found():
    model, x = two()
    x[3, 1] = 50
    with pytest.raises(ValueError, match=r"1 of 400 rows .* feature 1 goes from \S+ to 50"):
        model.maximum_likelihood(x)


def test_descent_refuses_rows_outside():
    """Before the first step, which would give an infinite loss."""
    x = torch.tensor([[0.5], [-1.0], [7.0]])
    message = r"2 of 3 rows lie outside .* \(bins over \[0, 3\]\), such as -1"
    with pytest.raises(ValueError, match=message):
        fit(elbo(HistogramDensity([0.0, 1.0, 3.0])), x, epochs=1, progress=False)
    model = HistogramDensity([0.0, 1.0, 3.0], [0.0, 1.0, 3.0])
    with pytest.raises(ValueError, match="2 of 3 rows lie outside"):
        fit(elbo(model), x.expand(3, 2), epochs=1, progress=False)


@pytest.mark.parametrize("pseudo_count", [-1.0, math.nan, math.inf])
def test_model_refuses_pseudo_counts(pseudo_count):
    with pytest.raises(ValueError, match="pseudo-count of 0 or more"):
        one()[0].maximum_likelihood(rows(1), pseudo_count)


def test_program_and_density_refuse_other_shapes():
    model, _ = one()
    with pytest.raises(ValueError, match=r"Try x\[:, None\]"):
        model(torch.zeros(5))
    with pytest.raises(ValueError, match=r"\(\*, 1\), got \(5, 2\)"):
        model.evidence().log_prob(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="2 features"):
        log_evidence(two()[0], None, torch.zeros(5, 1))


def test_nothing_is_conditional_on_what_never_happens():
    x = torch.tensor([[0.5, 0.5], [2.5, 0.5]])
    model = HistogramDensity([0.0, 1.0, 2.0, 3.0], [0.0, 1.0]).maximum_likelihood(x)
    for value in (1.5, -1.0, 4.0, math.nan):
        with pytest.raises(ValueError, match="density of feature 0 is zero at"):
            model.conditional(0, value)


@pytest.mark.parametrize("dim", [2, -1])
def test_there_are_two_features(dim):
    for model in (two()[0], one()[0]):
        with pytest.raises(ValueError, match="feature 0 or 1 of two"):
            model.marginal(dim)
        with pytest.raises(ValueError, match="feature 0 or 1 of two"):
            model.conditional(dim, 0.0)
    with pytest.raises(ValueError, match="got dim=0 of 1"):
        one()[0].marginal(0)


@pytest.mark.parametrize("unit", [1e-6, 1e-4, 1.0, 1e4, 1e6])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_units_and_offsets_change_no_proportion(unit, precision):
    """A density over edges as they are rounded: it integrates to one, and moves by log c."""
    x = torch.randn(500, 2, dtype=torch.float64)
    expected = HistogramDensity(*bin_edges(x, 8)).maximum_likelihood(x)
    y = (unit * x + 1e4 * unit).to(precision)
    edges = bin_edges(y, 8)
    model = HistogramDensity(*edges).maximum_likelihood(y)
    moved = model.evidence().log_prob(y).double().mean() + 2 * math.log(unit)
    within = 1e-6 if precision == torch.float64 else 1e-2  # rows near an edge change their bin
    assert abs(moved - expected.evidence().log_prob(x).mean()) < within
    widths = edges[0].double().diff()[:, None] * edges[1].double().diff()
    middles = [(e[1:] + e[:-1]) / 2 for e in edges]
    grid = torch.cartesian_prod(*middles)
    total = (model.evidence().log_prob(grid).double().exp() * widths.flatten()).sum()
    assert total.item() == pytest.approx(1, abs=1e-5)
