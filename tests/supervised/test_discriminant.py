"""Gaussian discriminant analysis: closed forms and scikit-learn first, then descent."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, load_wine
from torch.distributions import MultivariateNormal
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import ExactPosterior
from ppl_models import checks, elbo, fit, from_pyro_svi, load, log_evidence, save
from ppl_models.supervised import discriminant
from ppl_models.supervised.discriminant import GaussianDiscriminant

BOTH = pytest.mark.parametrize("covariance", ["own", "shared"])
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "truth" / "discriminants.py"


def iris():
    features, labels = load_iris(return_X_y=True)
    return torch.from_numpy(features), torch.from_numpy(labels)


def arbitrary(covariance, features=3, classes=4):
    """A model whose parameters are all different, and rows and labels drawn at random."""
    model = GaussianDiscriminant(features, classes, covariance).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model, torch.randn(9, features).double(), torch.arange(9) % classes


def joint(model, x):
    """log p(x, y) of each row and class, (B, C), with dense covariances."""
    weights = model.logits.exp() / model.logits.exp().sum()
    factors = model.log_cholesky.expand(len(weights), -1, -1)
    columns = []
    for weight, loc, log_cholesky in zip(weights, model.locs, factors, strict=True):
        factor = log_cholesky.tril(-1) + log_cholesky.diagonal().exp().diag()
        columns.append(weight.log() + MultivariateNormal(loc, factor @ factor.T).log_prob(x))
    return torch.stack(columns, 1)


@BOTH
def test_evidence_and_posterior_by_bayes_rule(covariance):
    model, x, _ = arbitrary(covariance)
    torch.testing.assert_close(model.evidence().log_prob(x), joint(model, x).logsumexp(1))
    torch.testing.assert_close(model.posterior(x).probs, joint(model, x).softmax(1))
    assert model.posterior(x).batch_shape == (9,)


@BOTH
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_without_labels_the_elbo_is_the_evidence(covariance, rows):
    model, x, _ = arbitrary(covariance)
    loss = elbo(model).loss(x[:rows], size=18)
    expected = -joint(model, x[:rows]).logsumexp(1).mean()
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    loss = elbo(model, ExactPosterior(model, site="y")).loss(x[:rows], size=18)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)


@BOTH
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_with_labels_the_elbo_is_the_joint_evidence(covariance, rows):
    model, x, y = arbitrary(covariance)
    expected = -joint(model, x)[torch.arange(rows), y[:rows]].mean()
    for labels in (y, y.int(), y.double()):
        loss = elbo(model).loss(x[:rows], labels[:rows], size=18)
        torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)


@BOTH
def test_log_evidence_of_rows_and_of_rows_with_labels(covariance):
    model, x, y = arbitrary(covariance)
    alone = log_evidence(model, None, x)
    torch.testing.assert_close(alone.value, joint(model, x).logsumexp(1).detach())
    enumerated = log_evidence(model, None, x, method="importance")
    torch.testing.assert_close(enumerated.value, alone.value, atol=1e-10, rtol=0)
    both = log_evidence(model, None, x, y, method="importance")
    torch.testing.assert_close(both.value, joint(model, x)[torch.arange(9), y].detach())
    assert {alone.kind, enumerated.kind, both.kind} == {"exact"}


@BOTH
def test_posterior_is_that_of_scikit_learn(covariance):
    spec = importlib.util.spec_from_file_location("discriminants", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = [row for row in benchmark.rows() if row[1] == covariance]
    assert {name for name, *_ in found} == {"iris", "wine"}
    assert len(found) == (2 if covariance == "own" else 4)
    for *_, difference in found:
        assert difference < 1e-8


@pytest.mark.parametrize("data", [load_iris, load_wine])
@pytest.mark.parametrize("correction", [0, 1, 3])
def test_covariances_are_those_of_torch(data, correction):
    x, y = (torch.from_numpy(a) for a in data(return_X_y=True))
    parts = [x[y == c] for c in range(3)]
    own = GaussianDiscriminant(x.shape[1], 3).double().maximum_likelihood(x, y, correction)
    factors = own.scale_tril.detach()
    expected = torch.stack([torch.cov(part.T, correction=correction) for part in parts])
    torch.testing.assert_close(factors @ factors.mT, expected)
    torch.testing.assert_close(own.locs.data, torch.stack([part.mean(0) for part in parts]))
    weights = own.logits.detach().softmax(0)
    torch.testing.assert_close(weights, y.bincount() / torch.tensor(len(y)).double())

    shared = GaussianDiscriminant(x.shape[1], 3, "shared").double()
    factor = shared.maximum_likelihood(x, y, correction).scale_tril.detach()
    scatter = sum(torch.cov(part.T, correction=0) * len(part) for part in parts)
    torch.testing.assert_close(factor @ factor.T, scatter / (len(x) - correction))


@BOTH
def test_gradient_is_zero_at_maximum_likelihood(covariance):
    x, y = iris()
    model = GaussianDiscriminant(4, 3, covariance).double().maximum_likelihood(x, y)
    elbo(model).loss(x, y).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-10, name


@BOTH
def test_descent_finds_maximum_likelihood(covariance):
    x, y = iris()
    x = (x - x.mean(0)) / x.std(0)
    best = GaussianDiscriminant(4, 3, covariance).double().maximum_likelihood(x, y)
    model = GaussianDiscriminant(4, 3, covariance).double()
    fit(elbo(model), (x, y), epochs=200, lr=0.1, schedule=CosineAnnealingLR, seed=0)
    found, least = (elbo(m).loss(x, y).item() for m in (model, best))
    assert least <= found < least + 1e-4


def test_descent_without_labels_finds_classes():
    x, y = iris()
    x, y = x[y != 2][:, 2:], y[y != 2]  # two species that do not overlap
    model = GaussianDiscriminant(2, 2).double()
    with torch.no_grad():
        model.locs.add_(x.mean(0))
    run = fit(elbo(model), x, epochs=30, batch_size=25, lr=0.05, seed=0)
    assert run.history["loss"][-1] < run.history["loss"][0] - 1
    agree = (model.posterior(x).probs.argmax(1) == y).double().mean()
    assert max(agree, 1 - agree) == 1  # up to the names of the classes


@BOTH
def test_units_do_not_matter(covariance):
    x, y = iris()
    units = torch.tensor([1e-9, 1.0, 1e5, 1e9]).double()
    probs = []
    for rows in (x, x * units + 3 * units):
        model = GaussianDiscriminant(4, 3, covariance).double().maximum_likelihood(rows, y)
        probs.append(model.posterior(rows).probs)
    torch.testing.assert_close(*probs, atol=1e-8, rtol=0)


@BOTH
def test_samples_have_the_moments_of_the_classes(covariance):
    model = GaussianDiscriminant(4, 3, covariance).maximum_likelihood(*iris())
    factors = model.scale_tril.detach().expand(3, 4, 4)
    for c in range(3):
        x = model(y=torch.full((50_000,), c)).detach()
        expected = factors[c] @ factors[c].T
        torch.testing.assert_close(x.mean(0), model.locs[c].detach(), atol=0.02, rtol=0)
        torch.testing.assert_close(torch.cov(x.T), expected, atol=0.02, rtol=0)
    x = model(size=50_000).detach()
    assert x.shape == (50_000, 4)
    torch.testing.assert_close(x.mean(0), iris()[0].float().mean(0), atol=0.03, rtol=0)


def test_arviz_shows_the_posterior_of_labels():
    x, y = iris()
    model = GaussianDiscriminant(4, 3).double().maximum_likelihood(x, y)
    data = from_pyro_svi(model, None, x[70:75], num_samples=1000, seed=0)
    draws = data["posterior"]["y"]
    assert draws.dims == ("chain", "draw", "data")
    assert draws.dtype == int
    found = np.stack([(draws.values[0] == c).mean(0) for c in range(3)], 1)
    np.testing.assert_allclose(found, model.posterior(x[70:75]).probs.detach(), atol=0.05)
    evidence = model.evidence().log_prob(x[70:75]).detach()
    np.testing.assert_allclose(data["log_likelihood"]["x"].values[0, 0], evidence)


def test_a_saved_model_is_the_same(tmp_path):
    model, x, _ = arbitrary("own")
    save(tmp_path / "model.safetensors", model=model)
    other, *_ = arbitrary("own")
    load(tmp_path / "model.safetensors", model=other)
    assert torch.equal(model.posterior(x).probs, other.posterior(x).probs)


X, Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
NAN = torch.tensor(math.nan)
CONSTANT = torch.cat([X[:, :1], torch.full((12, 1), 0.1)], 1)
CONSTANT_IN_1 = torch.where(Y[:, None] == 1, CONSTANT, X)
COLLINEAR = X[:, :1] * torch.tensor([1.0, -3.0]) + torch.tensor([0.0, 5.0])


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, Y + 1, {}, r"whole numbers from 0 to 1, got 6 of 12 others, such as 2\. Try num_cl"),
        (X, Y - 1, {}, "such as -1"),
        (X, Y + 0.5, {}, "such as 0.5"),
        (X, Y * NAN, {}, "such as nan"),
        (X, Y == 1, {}, r"tensor of labels, got torch.bool\. Try y.long"),
        (X, Y.tolist(), {}, "tensor of labels, got list"),
        (X, Y[:5], {}, r"shape \(12,\), got \(5,\)"),
        (X, Y[:, None], {}, r"got \(12, 1\)\. Try y.flatten"),
        (X, torch.eye(2)[Y], {}, "one-hot"),
        (X, Y * 0, {}, r"rows of all 2 classes, got none of \[1\]. Try num_classes=1"),
        (X * NAN, Y, {}, "12 of 12 rows hold NaN"),
        (X[:1], Y[:1], {}, "at least two rows of finite numbers, got 1"),
        (X[:0], Y[:0], {}, "at least two rows of finite numbers, got 0"),
        (X[:, :1], Y, {}, "rows of 2 features"),
        (X.long(), Y, {}, "floating-point"),
        (X[:5], Y[:5], {}, "class 1 is singular with 2 rows of 2 features; expected at least 3"),
        (X[:3], Y[:3], {"covariance": "shared"}, "all classes .* 3 rows.*expected at least 4"),
        (
            X,
            Y,
            {"correction": 6},
            r"class 0 is singular.* 7 rows\. Try covariance='shared'",
        ),
        (X, Y, {"correction": -1}, "correction: expected a whole number, 0 or more"),
        (X, Y, {"correction": 0.5}, "correction: expected a whole number, 0 or more"),
        (CONSTANT, Y, {}, r"column\(s\) \[1\] of x are constant in class 0.*leaving them out"),
        (CONSTANT, Y, {"covariance": "shared"}, r"\[1\] of x are constant in all classes together"),
        (CONSTANT_IN_1, Y, {}, r"\[1\] of x are constant in class 1.*Try covariance='shared'"),
        (COLLINEAR, Y, {}, "linear functions of others in class 0.*Try covariance='shared'"),
        (COLLINEAR, Y, {"covariance": "shared"}, "linear functions of others in all classes"),
    ],
)
def test_maximum_likelihood_refuses(x, y, options, message):
    options = {"covariance": "own", **options}
    model = GaussianDiscriminant(2, 2, options.pop("covariance"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=message):
        model.maximum_likelihood(x, y, **options)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_constant_whose_mean_is_rounded_is_one():
    x = torch.randn(21, 2).double()
    x[:, 1] = 0.7
    y = torch.arange(21) % 3
    assert (x[:, 1] - x[y == 0].mean(0)[1]).abs().max() > 0
    for covariance in ("own", "shared"):
        with pytest.raises(ValueError, match=r"column\(s\) \[1\] of x are constant"):
            GaussianDiscriminant(2, 3, covariance).maximum_likelihood(x, y)


def test_what_own_covariances_refuse_shared_ones_may_take():
    model = GaussianDiscriminant(2, 2, "shared")
    for x, y in ((CONSTANT_IN_1, Y), (X[:5], torch.tensor([0, 0, 0, 0, 1]))):
        model.maximum_likelihood(x, y)
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "num_features: expected a positive whole number, got 0"),
        ((4, 0), "num_classes: expected a positive"),
        ((4, 2.0), "num_classes: expected a positive"),
        ((4, 3, "full"), "covariance: expected 'own' or 'shared', got 'full'"),
    ],
)
def test_a_model_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianDiscriminant(*arguments)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y + 1, "GaussianDiscriminant: expected labels .* from 0 to 1, got 6 of 12"),
        (X, Y[:, None], "one label for each row"),
        (X[:, :1], Y, "rows of 2 features"),
        (X * NAN, Y, "NaN or infinity"),
    ],
)
def test_programs_refuse_before_a_step(x, y, message):
    model = GaussianDiscriminant(2, 2)
    before = model.locs.clone()
    with pytest.raises((ValueError, TypeError), match=message):
        fit(elbo(model), (x, y), epochs=1)
    with pytest.raises((ValueError, TypeError), match=message):
        log_evidence(model, None, x, y, method="importance")
    assert torch.equal(model.locs, before)


def test_labels_that_are_not_read_are_found_by_their_site(monkeypatch):
    """As on a GPU, where reading them at every step would cost too much."""
    monkeypatch.setattr(checks, "check_classes", lambda *_: None)
    with pytest.raises(ValueError, match="'y': 6 of 12 rows lie outside the support"):
        fit(elbo(GaussianDiscriminant(2, 2)), (X, Y + 1), epochs=1)


def test_the_closed_form_reads_labels_wherever_they_are(monkeypatch):
    monkeypatch.setattr(discriminant, "check_labels", lambda *_: None)
    with pytest.raises(ValueError, match="such as 2"):
        GaussianDiscriminant(2, 2).maximum_likelihood(X, Y + 1)


def test_neither_rows_nor_a_number_of_them():
    with pytest.raises(ValueError, match="size=10"):
        GaussianDiscriminant(2, 2)()


def test_evidence_of_rows_with_and_without_labels():
    x, y = torch.randn(30, 2).double(), torch.arange(30) % 3
    model = GaussianDiscriminant(2, 3).double().maximum_likelihood(x, y)
    joint = model.posterior(x).log_prob(y) + model.evidence().log_prob(x)
    evidence = log_evidence(model, None, x, y)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, joint.detach())
    assert log_evidence(model, None, x).kind == "exact"
    torch.testing.assert_close(
        log_evidence(model, None, x).value, model.evidence().log_prob(x).detach()
    )
