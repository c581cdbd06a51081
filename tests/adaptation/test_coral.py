"""The map of moments against numbers by hand, scikit-learn's boundary and a peer's map."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from ppl_models import Coral, GaussianDiscriminant, elbo, fit, load, log_evidence, save


def domains(rows=400, features=3):
    """Correlated rows of a source, and of a target with other moments; float64."""
    mixing = torch.randn(2, features, features, dtype=torch.float64)
    source, target = (torch.randn(rows, features, dtype=torch.float64) @ m for m in mixing)
    return source + 2, target - 1


def classes(rows, offset, scale=1.0):
    """Two Gaussian classes at -1 and 1 of the first feature, all moved and scaled."""
    y = torch.arange(rows) % 2
    x = torch.randn(rows, 2, dtype=torch.float64)
    x[:, 0] += 2.0 * y - 1
    return scale * x + torch.tensor(offset, dtype=torch.float64), y


def test_mapped_rows_have_the_moments_of_the_target():
    source, target = domains()
    mapped = Coral(3).double().maximum_likelihood(source, target).map(source)
    torch.testing.assert_close(mapped.mean(0), target.mean(0))
    torch.testing.assert_close(torch.cov(mapped.T), torch.cov(target.T))


def test_it_whitens_and_recolours_as_sun_et_al_do():
    """Their map of centred rows, by powers of matrices from another routine."""
    from scipy.linalg import fractional_matrix_power as power

    source, target = domains()
    source, target = source - source.mean(0), target - target.mean(0)
    coral = Coral(3, ridge=1.0).double().maximum_likelihood(source, target)
    first, second = (torch.cov(x.T, correction=0).numpy() for x in (source, target))
    identity = torch.eye(3).numpy()
    theirs = source.numpy() @ power(first + identity, -0.5) @ power(second + identity, 0.5)
    torch.testing.assert_close(coral.map(source), torch.from_numpy(theirs))


def test_two_classes_with_an_offset_have_the_exact_posterior():
    """Classes of one share in both domains: the map is the offset, and so is the boundary."""
    source, y = classes(100_000, [0.0, 0.0])
    target, _ = classes(100_000, [3.0, -2.0])
    mapped = Coral(2).double().maximum_likelihood(source, target).map(source)
    model = GaussianDiscriminant(2, 2, "shared").double().maximum_likelihood(mapped, y)
    grid = torch.cartesian_prod(*[torch.linspace(-2, 2, 9, dtype=torch.float64)] * 2)
    exact = torch.sigmoid(2 * grid[:, 0])  # log odds of -1 and 1 with variance 1
    found = model.posterior(grid + torch.tensor([3.0, -2.0])).probs[:, 1]
    torch.testing.assert_close(found, exact, atol=0.01, rtol=0)
    unmapped = GaussianDiscriminant(2, 2, "shared").double().maximum_likelihood(source, y)
    wrong = unmapped.posterior(grid + torch.tensor([3.0, -2.0])).probs[:, 1]
    assert (wrong - exact).abs().max() > 0.4


def test_its_evidence_is_that_of_a_gaussian_with_the_moments_of_the_target():
    source, target = domains()
    coral = Coral(3).double().maximum_likelihood(source, target)
    covariance = torch.cov(target.T, correction=0)
    exact = MultivariateNormal(target.mean(0), covariance).log_prob(target)
    found = log_evidence(coral, None, target)
    assert found.kind == "exact"
    torch.testing.assert_close(found.value, exact)
    best = -0.5 * (3 * math.log(2 * math.pi) + torch.logdet(covariance) + 3)
    assert found.mean == pytest.approx(best.item())
    assert found.mean > coral.source().log_prob(target).mean()


def test_the_closed_form_is_a_maximum_of_the_likelihood():
    source, target = domains()
    coral = Coral(3).double().maximum_likelihood(source, target)
    elbo(coral).loss(target).backward()
    for parameter in coral.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), atol=1e-10, rtol=0)
    before = coral.evidence().log_prob(target).mean()
    fit(elbo(coral), target, epochs=20, lr=1e-3, seed=0, progress=False)
    assert coral.evidence().log_prob(target).mean() <= before


def test_a_saved_map_maps_alike(tmp_path):
    source, target = domains()
    coral = Coral(3).double().maximum_likelihood(source, target)
    save(tmp_path / "map", coral=coral)
    other = Coral(3).double()
    load(tmp_path / "map", coral=other)
    assert torch.equal(coral.map(source), other.map(source))
    assert torch.equal(coral.source().mean, other.source().mean)


def test_refusals():
    source, target = domains()
    coral = Coral(3).double()
    labels = torch.zeros(len(target))
    with pytest.raises(
        TypeError, match=r"Coral, target: expected rows alone, got 2 things.*labels"
    ):
        coral.maximum_likelihood(source, (target, labels))
    with pytest.raises(TypeError, match="Coral, source: expected rows alone"):
        coral.maximum_likelihood((source, labels), target)
    with pytest.raises(ValueError, match="target: expected rows of 3 features"):
        coral.maximum_likelihood(source, target[:, :2])
    with pytest.raises(ValueError, match=r"target: 1 of 400 rows hold NaN or infinity \(row 7\)"):
        coral.maximum_likelihood(source, target.index_fill(0, torch.tensor(7), torch.nan))
    flat = torch.cat([source[:, :2], torch.ones(400, 1, dtype=source.dtype)], 1)
    with pytest.raises(ValueError, match=r"source: .*full rank.* got rank 2 of 3.*ridge=0.1"):
        coral.maximum_likelihood(flat, target)
    with pytest.raises(ValueError, match=r"target: .*full rank.* got rank 1 of 3: 2 rows"):
        coral.maximum_likelihood(source, target[:2])
    assert torch.equal(coral.weight, torch.eye(3, dtype=torch.float64))  # nothing was set
    assert Coral(3, ridge=0.1).double().maximum_likelihood(flat, target).map(flat).isfinite().all()
    with pytest.raises(ValueError, match="ridge: expected a number of 0 or more, got -1"):
        Coral(3, ridge=-1)
    with pytest.raises(ValueError, match="num_features: expected a positive whole number"):
        Coral(0)
