"""Metrics of samples: closed forms, other people's formulas, and what is refused."""

import math

import pytest
import torch
from scipy import linalg, stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ppl_models import datasets, elbo, fit, log_evidence
from ppl_models.datasets.toys import grid, ring
from ppl_models.metrics import (
    frechet,
    label_coverage,
    latent_classification,
    mode_coverage,
    prdc,
)
from ppl_models.supervised.classifier import Classifier

# --- precision, recall, density, coverage ---------------------------------------------------


def line(*points: float) -> Tensor:
    return torch.tensor(points, dtype=torch.float64)[:, None]


def test_prdc_by_hand():
    """Radii for k = 1: of the real rows 1, 1, 2, 6, of the generated 2, 2, 5."""
    found = prdc(line(0, 1, 3, 9), line(0.5, 2.5, 7.5), k=1)
    # 0.5 lies in the balls of 0 and 1; 2.5 in that of 3, and not of 1; 7.5 in that of 9 only;
    # 3.5 and more around 9 hold 7.5, and 9 - 6 = 3 < 7.5.
    assert found.precision == 1.0
    assert found.density == pytest.approx((2 + 1 + 1) / 3)
    assert found.coverage == 1.0
    # 0 and 1 lie in the ball of 0.5; 3 in that of 2.5; 9 in that of 7.5.
    assert found.recall == 1.0

    # All generated rows at one place: radius 0 holds no real row.
    found = prdc(line(0, 1, 3, 9), line(0.5, 0.5, 0.5), k=1)
    assert (found.precision, found.recall) == (1.0, 0.0)
    assert found.density == 2.0
    assert found.coverage == 0.5


def test_prdc_far_away():
    found = prdc(torch.randn(50, 3), 100 + torch.randn(40, 3))
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_prdc_is_that_of_the_definition(offset):
    """With neighbours by scikit-learn, and distances by differences, in chunks that do not fit."""
    torch.manual_seed(1)
    x, y = torch.randn(157, 4).double(), 0.8 * torch.randn(113, 4).double() + 0.3
    k = 3

    def radii(rows: Tensor) -> Tensor:
        tree = NearestNeighbors(n_neighbors=k + 1).fit(rows.numpy())
        return torch.from_numpy(tree.kneighbors(rows.numpy())[0][:, k])

    distance = (x[:, None] - y).norm(dim=-1)
    in_real, in_generated = distance < radii(x)[:, None], distance < radii(y)
    found = prdc(x + offset, y + offset, k=k, chunk=20)
    assert found.precision == pytest.approx(in_real.any(0).double().mean().item())
    assert found.recall == pytest.approx(in_generated.any(1).double().mean().item())
    assert found.density == pytest.approx(in_real.sum().item() / (k * 113))
    assert found.coverage == pytest.approx(in_real.any(1).double().mean().item())
    assert prdc(x, y, k=k) == prdc(x, y, k=k, chunk=7)


def test_prdc_where_both_come_from_one_distribution():
    """Coverage is 1 - 2^-k where N = M, and density is 1, whatever the distribution."""
    torch.manual_seed(0)
    found = [prdc(torch.randn(600, 5).exp(), torch.randn(600, 5).exp(), k=2) for _ in range(10)]
    coverage = sum(f.coverage for f in found) / 10
    assert coverage == pytest.approx(1 - 2**-2, abs=0.02)
    assert sum(f.density for f in found) / 10 == pytest.approx(1.0, abs=0.06)


def test_prdc_tells_fidelity_from_diversity():
    torch.manual_seed(0)
    x = torch.randn(800, 2)
    narrow, wide = prdc(x, 0.3 * torch.randn(800, 2)), prdc(x, 3 * torch.randn(800, 2))
    assert narrow.precision > 0.97
    assert narrow.recall < 0.6
    assert wide.recall > 0.9
    assert wide.precision < 0.75
    assert "precision 0." in str(wide)
    assert "k = 5 neighbours" in str(wide)


# --- Fréchet distance -----------------------------------------------------------------------


def with_moments(mean: Tensor, covariance: Tensor, rows: int, seed: int) -> Tensor:
    """Rows whose sample mean and covariance are these."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, len(mean), generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_frechet_between_gaussians():
    torch.manual_seed(2)
    a, b = torch.randn(2, 4, 4, dtype=torch.float64)
    first, second = a @ a.T + 0.1 * torch.eye(4), b @ b.T + 0.1 * torch.eye(4)
    means = torch.randn(2, 4, dtype=torch.float64)
    x = with_moments(means[0], first, 50, seed=0)
    y = with_moments(means[1], second, 70, seed=1)
    root = linalg.sqrtm((first @ second).numpy()).real
    expected = (means[0] - means[1]).square().sum() + (first + second).trace()
    expected = expected.item() - 2 * root.trace()
    assert frechet(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-8)


def test_frechet_where_covariances_commute():
    """Then it is the distance of the means and of the standard deviations."""
    scales = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 0.5]], dtype=torch.float64)
    mean = torch.zeros(3, dtype=torch.float64)
    x, y = (with_moments(mean + i, s.square().diag(), 30, i) for i, s in enumerate(scales))
    assert frechet(x, y) == pytest.approx(3 + 1 + 0 + 6.25, rel=1e-9)
    assert frechet(x[:, :1], y[:, :1]) == pytest.approx(1 + 1, rel=1e-9)  # one feature


def test_frechet_of_rows_with_themselves_and_of_flat_ones():
    x = torch.randn(40, 6, dtype=torch.float64)
    assert frechet(x, x) == pytest.approx(0, abs=1e-10)
    flat = torch.cat([x, x[:, :1]], 1)  # a covariance without full rank
    assert frechet(flat, flat) == pytest.approx(0, abs=1e-6)
    few = x[:3]
    assert frechet(few, few + 1) == pytest.approx(6, rel=1e-6)


# --- modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", [ring, grid])
def test_modes_of_true_draws(toy):
    x, modes, scale = toy(25_000, seed=5)
    found = mode_coverage(x, modes, scale)
    assert found.captured == found.num_modes == len(modes)
    inside = 1 - math.exp(-4.5)  # two normals, within three standard deviations
    error = (inside * (1 - inside) / 25_000) ** 0.5
    assert abs(found.high_quality - inside) < 4 * error
    assert found.spread == pytest.approx(1, abs=0.015)
    assert found.kl == pytest.approx(len(modes) / 2 / 25_000, abs=5e-4)
    assert torch.equal(x, toy(25_000, seed=5).x)
    assert not torch.equal(x, toy(25_000, seed=6).x)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=0.1, rtol=0)


def test_toys_are_those_of_the_papers():
    assert ring(1).modes.norm(dim=1).tolist() == pytest.approx([1.0] * 8)
    assert ring(1).scale == 0.01
    assert sorted(map(tuple, grid(1).modes.tolist())) == [
        (a, b) for a in (-4, -2, 0, 2, 4) for b in (-4, -2, 0, 2, 4)
    ]
    assert grid(1).scale == 0.05
    with pytest.raises(ValueError, match="num_rows: expected a positive whole number, got 0"):
        ring(0)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_shrunken_modes_show_in_the_spread(ratio):
    _, modes, scale = ring(1)
    torch.manual_seed(0)
    x = modes.repeat(2000, 1) + ratio * scale * torch.randn(16_000, 2)
    found = mode_coverage(x, modes, scale)
    if ratio < 1:
        assert found.high_quality == pytest.approx(1, abs=1e-3)
        # Half as wide, nothing is cut off; what is kept of true draws has less variance.
        kept = stats.chi2.cdf(9, 4) / stats.chi2.cdf(9, 2)
        assert found.spread == pytest.approx(0.5 / kept**0.5, rel=0.02)
    else:
        assert found.spread == pytest.approx(1, rel=0.02)


def test_modes_by_hand():
    modes = torch.tensor([[0.0], [10.0], [20.0]])
    x = torch.tensor([[0.0], [2.0], [3.5], [10.0], [14.0], [16.0]])
    found = mode_coverage(x, modes, scale=1.0)
    assert found.captured == 2  # to 20 only a sample of low quality is near
    assert found.high_quality == pytest.approx(3 / 6)
    shares = [3 / 6, 2 / 6, 1 / 6]
    assert found.kl == pytest.approx(sum(p * math.log(3 * p) for p in shares))
    # 0 and 2 around their mean 1; a single sample has no spread.
    true = stats.truncnorm(-3, 3).var()
    assert found.spread == pytest.approx((2 / 1 / true) ** 0.5, rel=1e-6)
    none = mode_coverage(torch.full((5, 1), 5.0), modes, scale=1.0)
    assert (none.captured, none.high_quality) == (0, 0.0)
    assert math.isnan(none.spread)
    assert "2 of 3 modes" in str(found)
    assert "high quality 50.0%" in str(found)


def test_labels():
    labels = torch.tensor([0, 0, 0, 2])
    shares = torch.tensor([0.5, 0.25, 0.25])
    found = label_coverage(labels, 3, shares)
    assert found.captured == 2
    assert found.kl == pytest.approx(0.75 * math.log(1.5))
    assert str(found) == "2 of 3 modes, KL 0.304 nats"
    with pytest.raises(ValueError, match="a mode that the data do not"):
        label_coverage(labels, 3, torch.tensor([1.0, 1.0, 0.0]))


# --- latents --------------------------------------------------------------------------------


def test_latents_that_hold_the_labels_and_latents_that_do_not():
    torch.manual_seed(0)
    y = torch.randint(3, (600,))
    angle = y * 2 * math.pi / 3
    z = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(600, 2)
    z = torch.cat([z, torch.ones(600, 1)], 1)  # a latent that is not used
    found = latent_classification(z[:400], y[:400], z[400:], y[400:])
    assert (found.knn, found.linear) == (1.0, 1.0)
    assert found.majority == pytest.approx(1 / 3, abs=0.08)
    blind = latent_classification(torch.randn(400, 2), y[:400], torch.randn(200, 2), y[400:])
    assert max(blind.knn, blind.linear) < 0.45
    # A circle in a circle: near neighbours see it, planes do not.
    radius = 1 + (y == 0)
    turn = 2 * math.pi * torch.rand(600)
    circles = radius[:, None] * torch.stack([turn.cos(), turn.sin()], 1)
    inner = (y == 0).long()
    found = latent_classification(circles[:400], inner[:400], circles[400:], inner[400:], k=3)
    assert found.knn == 1.0
    assert found.linear < 0.75
    assert "by 3 nearest neighbours" in str(found)


def test_latents_are_standardised():
    torch.manual_seed(0)
    y = torch.arange(300) % 2
    z = torch.stack([y + 0.1 * torch.randn(300), 1000 * torch.randn(300)], 1)
    found = latent_classification(z[:200], y[:200], z[200:], y[200:])
    assert min(found.knn, found.linear) > 0.95


# --- the classifier -------------------------------------------------------------------------


def test_a_classifier_of_digits():
    (x, y), (x_test, y_test) = datasets.digits(labels=True)
    torch.manual_seed(0)
    model = Classifier(64, 10)
    run = fit(elbo(model), (x, y), epochs=15, batch_size=100, lr=5e-3, seed=0, progress=False)
    accuracy = (model.predict(x_test) == y_test).double().mean().item()
    assert accuracy > 0.9
    assert run.history["loss"][0] > run.history["loss"][-1]
    evidence = log_evidence(model, None, x_test, y_test)
    assert evidence.kind == "exact"
    logits = model.head(model.network(x_test)).log_softmax(1)
    by_hand = logits[torch.arange(len(y_test)), y_test].double().mean().item()
    assert evidence.mean == pytest.approx(by_hand, abs=1e-5)
    torch.testing.assert_close(model.predict(x_test, batch_size=7), model.predict(x_test))
    assert model.features(x_test).shape == (297, 64)

    # On its features the test rows are near the training rows, and noise is not.
    features = [model.features(part).detach() for part in (x, x_test, torch.rand(297, 64))]
    assert frechet(features[0], features[2]) > 5 * frechet(features[0], features[1])


def test_what_the_classifier_refuses():
    with pytest.raises(ValueError, match="num_classes: expected a whole number, 2 or more, got 1"):
        Classifier(4, 1)
    with pytest.raises(ValueError, match="from 0 to 2"):
        fit(elbo(Classifier(4, 3)), (torch.randn(5, 4), torch.arange(5)), epochs=1)
    with pytest.raises(ValueError, match="rows of 4 features"):
        fit(elbo(Classifier(4, 3)), (torch.randn(5, 3), torch.zeros(5).long()), epochs=1)


# --- what is refused ------------------------------------------------------------------------

X = torch.randn(10, 3)
Y = torch.arange(10) % 2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: prdc(X, X[:, :2]), r"got real with shape \(10, 3\) and generated"),
        (lambda: prdc(X[:5], X), r"expected real to have 6 rows or more.*got \(5, 3\)"),
        (lambda: prdc(X, X[:5], k=5), "expected generated to have 6 rows or more"),
        (lambda: prdc(X, X, k=0), "k: expected a positive whole number, got 0"),
        (lambda: prdc(X, X, chunk=0), "chunk: expected a positive whole number, got 0"),
        (lambda: prdc(X, X * math.nan), "10 of 10 rows of generated hold NaN"),
        (lambda: frechet(X[:1], X), "expected real to have 2 rows or more"),
        (lambda: frechet(X[:, 0], X), r"with shape \(N, D\), got \(10,\)"),
        (lambda: mode_coverage(X, X, 0.0), "scale: expected a positive number, got 0.0"),
        (lambda: mode_coverage(X, X[:, :2], 1.0), "expected rows alike"),
        (lambda: label_coverage(Y, 1), "labels from 0 to 0, got 0 to 1"),
        (lambda: label_coverage(Y - 1, 2), "got -1 to 0"),
        (lambda: label_coverage(Y[:0], 2), "one label for each sample"),
        (lambda: label_coverage(Y, 2, torch.ones(3)), "shares of 2 modes"),
        (lambda: latent_classification(X, Y[:5], X, Y), "one label for each of 10 rows in y_train"),
        (lambda: latent_classification(X, Y * 0, X, Y), "two classes or more in y_train"),
        (lambda: latent_classification(X, Y, X, Y, k=11), "k from 1 to 10 rows, got 11"),
        (lambda: latent_classification(X, Y, X[:, :2], Y), "expected rows alike"),
    ],
)
def test_values_that_do_not_fit(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: prdc(X.numpy(), X), "expected real to be a tensor of floating-point"),
        (lambda: frechet(X, X.long()), r"got a tensor of torch.int64. Try torch.as_tensor"),
        (lambda: label_coverage(X[:, 0], 3), "expected a tensor of integers"),
        (lambda: latent_classification(X, Y.float(), X, Y), "y_train to be a tensor of integers"),
    ],
)
def test_types_that_do_not_fit(call, match):
    with pytest.raises(TypeError, match=match):
        call()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_prdc_of_copies(scale):
    """More than k copies of a row make its ball a point, in which the copies still lie."""
    torch.manual_seed(0)
    few = scale * torch.rand(3, 50)
    x = few.repeat_interleave(10, 0)
    same = prdc(x, x[torch.randperm(30)])
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    if scale:
        other = prdc(x, x + scale)
        assert (other.precision, other.recall, other.coverage) == (0, 0, 0)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_units_and_offsets_change_no_comparison(unit):
    real, generated = torch.randn(200, 3).double(), 1.2 * torch.randn(200, 3).double() + 0.3
    distance, shares = frechet(real, generated), prdc(real, generated)
    x, y = (unit * rows + 1e4 * unit for rows in (real, generated))
    assert frechet(x, y) / unit**2 == pytest.approx(distance, rel=1e-6)
    assert prdc(x, y) == shares
    assert frechet(x.float(), y.float()) / unit**2 == pytest.approx(distance, rel=1e-2)
