"""Bayesian regressions: closed forms and numerical integration first, then guides."""

import math

import arviz as az
import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import sklearn.linear_model
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    init_to_value,
)
from sklearn.datasets import load_iris
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import elbo, fit, from_pyro_svi, log_evidence
from ppl_models.supervised.logistic import LogisticRegression, SoftmaxRegression
from ppl_models.supervised.regression import LinearRegression


def linear(rows=30, features=2):
    """A model with a prior scale of its own for each weight, and data drawn from it."""
    scales = torch.linspace(0.5, 2.0, features)
    model = LinearRegression(features, noise=0.7, weights_scale=scales, bias_scale=3.0).double()
    x = torch.randn(rows, features).double()
    return model, x, model(x)


def logistic(rows=40):
    model = LogisticRegression(1, weights_scale=2.0, bias_scale=1.5).double()
    x = torch.randn(rows, 1).double()
    return model, x, model(x)


def log_joint(model, *data, **latents):
    """log p(latents, y | x), with a gradient."""
    conditioned = poutine.condition(model, latents)
    return poutine.trace(conditioned).get_trace(*data).log_prob_sum()


def train(model, guide, *data, **options):
    """Descends the ELBO of 8 draws at once, which is less noise than 8 times the steps."""
    options = {"epochs": 250, "lr": 0.1, "schedule": CosineAnnealingLR, "seed": 0, **options}
    draws = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    return fit(elbo(model, guide, draws), data, **options)


# Linear regression: closed forms


def test_marginal_is_a_dense_gaussian():
    model, x, y = linear()
    design = torch.cat([x, torch.ones(30, 1)], 1)
    prior = torch.tensor([0.5, 2.0, 3.0]).double().diag() ** 2
    covariance = design @ prior @ design.T + 0.7**2 * torch.eye(30)
    expected = torch.distributions.MultivariateNormal(torch.zeros(30).double(), covariance)
    torch.testing.assert_close(model.marginal(x).log_prob(y), expected.log_prob(y))


def test_posterior_by_bayes_rule():
    """log p(w | x, y) = log p(w, y | x) - log p(y | x), for any w."""
    model, x, y = linear()
    for _ in range(3):
        w = torch.randn(3).double()
        joint = log_joint(model, x, y, weights=w[:2], bias=w[2])
        expected = joint - model.marginal(x).log_prob(y)
        torch.testing.assert_close(model.posterior(x, y).log_prob(w), expected)


def exact_guide(model):
    def guide(x, y=None, size=None):
        posterior = model.posterior(x, y)
        both = pyro.sample("both", posterior, infer={"is_auxiliary": True})
        pyro.sample("weights", dist.Delta(both[:-1]).to_event(1))
        pyro.sample("bias", dist.Delta(both[-1]))

    return guide


def test_exact_posterior_closes_the_gap():
    """For any draw the ELBO is the log evidence of the whole data, per row."""
    model, x, y = linear()
    expected = model.marginal(x).log_prob(y)
    for _ in range(3):
        loss = elbo(model, exact_guide(model)).loss(x, y)
        torch.testing.assert_close(loss, -expected / 30, atol=1e-10, rtol=0)
    evidence = log_evidence(model, exact_guide(model), x, y, num_samples=3)
    assert evidence.value.item() == pytest.approx(expected.item(), abs=1e-9)
    assert evidence.monte_carlo_error == pytest.approx(0, abs=1e-7)


def test_without_rows_the_posterior_is_the_prior():
    model, x, y = linear()
    posterior = model.posterior(x[:0], y[:0])
    torch.testing.assert_close(posterior.mean, torch.zeros(3).double())
    torch.testing.assert_close(posterior.stddev, torch.tensor([0.5, 2.0, 3.0]).double())


def test_a_fitted_guide_finds_the_exact_posterior():
    model, x, y = linear()
    guide = AutoMultivariateNormal(model)
    train(model, guide, x, y)
    exact, found = model.posterior(x, y), guide.get_posterior()
    assert ((found.mean - exact.mean) / exact.stddev).abs().max() < 0.1
    torch.testing.assert_close(
        found.covariance_matrix, exact.covariance_matrix, atol=1e-3, rtol=0.15
    )


def test_unknown_noise_is_known_noise_given_its_scale():
    """p(w, s, y | x) = p(s) p(y | x, s) p(w | x, y, s), for any w and s."""
    _, x, y = linear()
    model = LinearRegression(2, noise_scale=2.0).double()
    for scale in torch.tensor([0.3, 1.0, 4.0]).double():
        known, w = LinearRegression(2, noise=scale).double(), torch.randn(3).double()
        expected = dist.HalfNormal(2.0).log_prob(scale)
        expected += known.marginal(x).log_prob(y) + known.posterior(x, y).log_prob(w)
        joint = log_joint(model, x, y, weights=w[:2], bias=w[2], scale=scale)
        torch.testing.assert_close(joint, expected)


# Classification: integrals, and the optima of scikit-learn


def grid(low, high, number):
    return torch.linspace(low, high, number).double()


@pytest.fixture(scope="module")
def integrated():
    """A logistic regression of one feature; its evidence, means and deviations by integration."""
    pyro.set_rng_seed(0)
    model, x, y = logistic()
    w, b = torch.meshgrid(grid(-9, 9, 300), grid(-7, 7, 300), indexing="ij")
    draws = w.reshape(-1, 1, 1), b.reshape(-1, 1)
    joint = model.conditional(x, *draws).log_prob(y).sum(1).reshape(w.shape)
    joint += dist.Normal(0.0, 2.0).log_prob(w) + dist.Normal(0.0, 1.5).log_prob(b)
    cell = math.log(18 / 299 * 14 / 299)
    evidence = joint.logsumexp((0, 1)) + cell
    mass = (joint + cell - evidence).exp()
    means = torch.stack([(mass * v).sum() for v in (w, b)])
    deviations = torch.stack([(mass * v**2).sum() for v in (w, b)]).sub(means**2).sqrt()
    return model, x, y, evidence.item(), means, deviations


def test_logistic_posterior_beside_integration(integrated):
    model, x, y, exact, means, deviations = integrated
    guide = AutoMultivariateNormal(model)
    run = train(model, guide, x, y)
    assert -run.history["loss"][-1] * 40 < exact + 0.5  # a noisy lower bound
    evidence = log_evidence(model, guide, x, y, num_samples=300, seed=0)
    assert evidence.kind == "lower bound"
    assert evidence.value.item() == pytest.approx(exact, abs=0.05)
    found = guide.get_posterior()
    assert ((found.mean - means) / deviations).abs().max() < 0.15
    torch.testing.assert_close(found.stddev, deviations, atol=0, rtol=0.15)


def test_laplace_beside_integration(integrated):
    model, x, y, exact, _, deviations = integrated
    point = AutoLaplaceApproximation(model)
    fit(elbo(model, point), (x, y), epochs=150, lr=0.1, schedule=CosineAnnealingLR, seed=0)
    guide = point.laplace_approximation(x, y)
    evidence = log_evidence(model, guide, x, y, num_samples=300, seed=0)
    assert evidence.value.item() == pytest.approx(exact, abs=0.05)
    found = guide.get_posterior()
    torch.testing.assert_close(found.stddev, deviations, atol=0, rtol=0.2)
    gradient(model, x, y, weights=found.mean[:1], bias=found.mean[1], below=0.02)


def gradient(model, x, y, below, **latents):
    """Asserts that the log joint is stationary."""
    latents = {k: v.detach().clone().requires_grad_() for k, v in latents.items()}
    log_joint(model, x, y, **latents).backward()
    for name, value in latents.items():
        assert value.grad.abs().max() < below, name


def standardised(load):
    features, labels = load(return_X_y=True)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    return (x - x.mean(0)) / x.std(0), y


def test_scikit_learn_is_the_mode_of_logistic_regression():
    """Its penalty with C = 1 is the prior N(0, 1) of the weights; the bias has none."""
    x, y = standardised(load_iris)
    y = (y == 2).long()
    peer = sklearn.linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
    peer.fit(x.numpy(), y.numpy())
    model = LogisticRegression(4, bias_scale=1e8).double()
    weights, bias = torch.from_numpy(peer.coef_[0]), torch.from_numpy(peer.intercept_)[0]
    gradient(model, x, y, weights=weights, bias=bias, below=1e-4)
    probs = model.conditional(x, weights, bias).probs
    np.testing.assert_allclose(probs, peer.predict_proba(x.numpy()), atol=1e-12)


def test_scikit_learn_is_the_mode_of_softmax_regression():
    """Its penalty on the weights of all classes is our prior of the differences, s^2 / 2 = 1."""
    x, y = standardised(load_iris)
    peer = sklearn.linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
    peer.fit(x.numpy(), y.numpy())
    model = SoftmaxRegression(4, 3, weights_scale=2**0.5, bias_scale=1e8).double()
    weights = torch.from_numpy(peer.coef_[1:] - peer.coef_[0]).T  # (D, C - 1)
    bias = torch.from_numpy(peer.intercept_[1:] - peer.intercept_[0])
    gradient(model, x, y, weights=weights, bias=bias, below=1e-4)
    probs = model.conditional(x, weights, bias).probs
    np.testing.assert_allclose(probs, peer.predict_proba(x.numpy()), atol=1e-12)


def test_softmax_of_two_classes_is_logistic_regression():
    x, y = torch.randn(9, 3).double(), torch.arange(9) % 2
    scales = {"weights_scale": torch.tensor([0.5, 1.0, 2.0]), "bias_scale": 3.0}
    two, one = SoftmaxRegression(3, 2, **scales), LogisticRegression(3, **scales)
    two, one = two.double(), one.double()
    weights, bias = torch.randn(3).double(), torch.randn(()).double()
    torch.testing.assert_close(
        log_joint(two, x, y, weights=weights[:, None], bias=bias[None]),
        log_joint(one, x, y, weights=weights, bias=bias),
    )


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 2, 0, 1]])
def test_renaming_the_classes_changes_nothing(order):
    model = SoftmaxRegression(3, 4, weights_scale=torch.tensor([0.5, 1.0, 2.0])).double()
    x, y = torch.randn(9, 3).double(), torch.arange(9) % 4
    weights, bias = torch.randn(3, 3).double(), torch.randn(3).double()
    renamed = torch.tensor(order)
    every = torch.cat([torch.zeros(3, 1), weights], 1)[:, renamed.argsort()]  # of all classes
    biases = torch.cat([torch.zeros(1), bias])[renamed.argsort()]
    others = {"weights": (every - every[:, :1])[:, 1:], "bias": (biases - biases[0])[1:]}
    torch.testing.assert_close(
        log_joint(model, x, renamed[y], **others),
        log_joint(model, x, y, weights=weights, bias=bias),
    )


@pytest.mark.filterwarnings("ignore:log_evidence. 300 draws have weights of infinite variance")
def test_softmax_posterior_beside_integration():
    """Four latents, by Gauss-Hermite quadrature about the mode."""
    model = SoftmaxRegression(1, 3, weights_scale=1.0, bias_scale=1.0).double()
    x = torch.randn(30, 1).double()
    y = model(x)
    point = AutoLaplaceApproximation(model)
    fit(elbo(model, point), (x, y), epochs=150, lr=0.1, schedule=CosineAnnealingLR, seed=0)
    guide = point.laplace_approximation(x, y)
    about = guide.get_posterior()

    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(15))
    z = torch.cartesian_prod(*[nodes] * 4)  # (15^4, 4)
    log_weight = torch.cartesian_prod(*[weights.log()] * 4).sum(1)
    latents = about.mean + z @ about.scale_tril.T
    draws = latents[:, None, None, :2], latents[:, None, 2:]  # (S, 1, 1, 2), (S, 1, 2)
    prior = dist.MultivariateNormal(torch.zeros(2).double(), (torch.eye(2) + 1).double() / 2)
    joint = model.conditional(x, *draws).log_prob(y).sum(1)
    joint += prior.log_prob(draws[0][:, 0, 0]) + prior.log_prob(draws[1][:, 0])
    terms = joint + log_weight + z.square().sum(1) / 2
    exact = terms.logsumexp(0) + about.scale_tril.diagonal().log().sum()
    mass = (terms - terms.logsumexp(0)).exp()[:, None]
    means = (mass * latents).sum(0)
    deviations = (mass * latents**2).sum(0).sub(means**2).sqrt()

    evidence = log_evidence(model, guide, x, y, num_samples=300, seed=0)
    assert evidence.value.item() == pytest.approx(exact.item(), abs=0.05)
    guide = AutoMultivariateNormal(model, init_scale=0.5)
    train(model, guide, x, y)
    found = guide.get_posterior()
    assert ((found.mean - means) / deviations).abs().max() < 0.15
    torch.testing.assert_close(found.stddev, deviations, atol=0, rtol=0.15)


# Programs


MODELS = {
    "linear": lambda: LinearRegression(2).double(),
    "linear, known noise": lambda: LinearRegression(2, noise=0.5).double(),
    "logistic": lambda: LogisticRegression(2).double(),
    "softmax": lambda: SoftmaxRegression(2, 3).double(),
}
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_draws_at_once_are_draws_one_by_one(name):
    model, x = MODELS[name](), torch.randn(7, 2).double()
    traces = [poutine.trace(model).get_trace(x) for _ in range(5)]
    sites = [n for n in ("weights", "bias", "scale") if n in traces[0]]
    values = {n: torch.stack([t.nodes[n]["value"] for t in traces])[:, None] for n in sites}
    if name == "linear, known noise":
        values["scale"] = model.noise
    y = model(x)
    together = model.conditional(x, **values).log_prob(y)  # (S, B)
    one_by_one = [t.nodes["y"]["fn"].log_prob(y) for t in traces]
    torch.testing.assert_close(together, torch.stack(one_by_one))


@every_model
def test_minibatches_are_scaled(name):
    """At a point, the mean loss of the parts is the loss of the whole."""
    model, x = MODELS[name](), torch.randn(12, 2).double()
    y = model(x)
    objective = elbo(model, AutoDelta(model))
    whole = objective.loss(x, y)
    parts = [objective.loss(x[i : i + 4], y[i : i + 4], size=12) for i in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@every_model
def test_labels_of_all_kinds(name):
    model, x = MODELS[name](), torch.randn(12, 2).double()
    y = model(x)
    assert y.shape == (12,)
    if "linear" in name:
        assert y.is_floating_point()
        return
    assert not y.is_floating_point()
    guide = AutoDelta(model)
    losses = [elbo(model, guide).loss(x, labels).item() for labels in (y, y.int(), y.double())]
    assert losses == [losses[0]] * 3


@every_model
def test_arviz(name):
    model, x = MODELS[name](), torch.randn(25, 2).double()
    y = model(x)
    guide = AutoMultivariateNormal(model, init_scale=0.1)
    fit(elbo(model, guide), (x, y), epochs=5, lr=0.05)
    classes = {"class": ["one", "two"], "feature": ["length", "width"]}
    data = from_pyro_svi(model, guide, x, y, num_samples=40, seed=0, coords=classes)
    posterior = data["posterior"]
    extra = ("class",) if name == "softmax" else ()
    assert posterior["weights"].dims == ("chain", "draw", "feature", *extra)
    assert posterior["bias"].dims == ("chain", "draw", *extra)
    assert ("scale" in posterior) == (name == "linear")
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "data")
    assert data["log_likelihood"]["y"].shape == (1, 40, 25)
    assert list(data["constant_data"].data_vars) == ["x"]
    np.testing.assert_array_equal(data["observed_data"]["y"].values, y)
    if "linear" not in name:
        assert data["posterior_predictive"]["y"].dtype == int
    summary = az.summary(data, kind="stats")
    label = "weights[width, two]" if name == "softmax" else "weights[width]"
    mean = posterior["weights"].values.reshape(40, 2, -1)[:, 1, -1].mean()
    assert float(summary.loc[label, "mean"]) == pytest.approx(mean, abs=2e-3, rel=2e-2)


def test_loo_beside_the_exact_one():
    """p(y_n | the others), by leaving each row out of the closed form."""
    model, x, y = linear()
    exact = 0.0
    for n in range(30):
        rest = torch.arange(30) != n
        posterior = model.posterior(x[rest], y[rest])
        row = torch.cat([x[n], torch.ones(1)])
        variance = row @ posterior.covariance_matrix @ row + 0.7**2
        exact += dist.Normal(row @ posterior.mean, variance.sqrt()).log_prob(y[n]).item()
    data = from_pyro_svi(model, exact_guide(model), x, y, num_samples=400, seed=0)
    loo = az.loo(data)
    assert (getattr(loo, "elpd_loo", None) or loo.elpd) == pytest.approx(exact, abs=0.3)


# Bad input


X, Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
LINEAR, LOGISTIC, SOFTMAX = LinearRegression(2), LogisticRegression(2), SoftmaxRegression(2, 3)


@pytest.mark.parametrize(
    ("model", "x", "y", "message"),
    [
        (LOGISTIC, X, Y + 1, "LogisticRegression: expected labels .* from 0 to 1, got 6 of 12"),
        (LOGISTIC, X, 2 * Y - 1, "such as -1"),
        (LOGISTIC, X, Y[:, None], r"one label for each row, with shape \(12,\), got \(12, 1\)"),
        (LOGISTIC, X, Y == 1, r"torch.bool\. Try y.long"),
        (LOGISTIC, X[:, :1], Y, "rows of 2 features"),
        (LOGISTIC, X.long(), Y, "floating-point"),
        (SOFTMAX, X, 2 * Y + 1, "SoftmaxRegression: expected labels .* from 0 to 2, got 6 of 12"),
        (SOFTMAX, X, Y + 0.5, "such as 0.5"),
        (SOFTMAX, X, torch.eye(3)[Y], "one-hot"),
        (SOFTMAX, X[:, :1], Y, "rows of 2 features"),
        (LINEAR, X, Y, "floating-point targets, got torch.int64. Try y.float"),
        (
            LINEAR,
            X,
            Y[:, None].float(),
            r"one target for each row, .*got \(12, 1\)",
        ),
        (LINEAR, X[:, :1], Y.float(), "rows of 2 features"),
        (LINEAR, X, Y * math.nan, "NaN or infinity"),
        (LINEAR, X * math.inf, Y.float(), "NaN or infinity"),
    ],
)
def test_programs_refuse(model, x, y, message):
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={}))
    with pytest.raises((ValueError, TypeError), match=message):
        fit(elbo(model, guide), (x, y), epochs=1)


@pytest.mark.parametrize("model", [LINEAR, LOGISTIC, SOFTMAX])
def test_a_regression_does_not_sample_rows(model):
    with pytest.raises(TypeError, match=r"got NoneType.* a model of y given x"):
        model(None, size=10)


@pytest.mark.parametrize("kind", [LinearRegression, LogisticRegression, SoftmaxRegression])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights_scale", 0.0, "positive standard deviations, got 0.0"),
        ("weights_scale", -1, "positive"),
        ("weights_scale", math.nan, "positive"),
        ("weights_scale", math.inf, "positive"),
        ("weights_scale", torch.ones(3), r"expected one number or 2, one for each feature.*\(3,\)"),
        ("weights_scale", torch.tensor([1.0, 0.0]), "positive"),
        ("weights_scale", "wide", "expected a number or a tensor, got str"),
        ("weights_scale", None, "expected a number or a tensor, got NoneType"),
        ("bias_scale", torch.ones(2), r"expected one number, got shape \(2,\)"),
        ("bias_scale", 0, "positive"),
        ("num_features", 0, "positive whole number, got 0"),
        ("num_features", 2.0, "positive whole number, got 2.0"),
    ],
)
def test_priors_that_cannot_be(kind, name, value, message):
    options = {"num_features": 2, name: value}
    if kind is SoftmaxRegression:
        options["num_classes"] = 3
    with pytest.raises((ValueError, TypeError), match=f"{name}: .*{message}"):
        kind(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftmaxRegression(2, 1), "num_classes: expected a whole number, 2 or more, got 1"),
        (lambda: SoftmaxRegression(2, 2.5), "num_classes: .* got 2.5"),
        (lambda: LinearRegression(2, noise=0.0), "noise: expected positive"),
        (lambda: LinearRegression(2, noise_scale=-1.0), "noise_scale: expected positive"),
        (
            lambda: LinearRegression(2).posterior(X, X[:, 0]),
            "for known noise only.*=0.5",
        ),
        (lambda: LinearRegression(2).marginal(X), "for known noise only"),
        (lambda: LinearRegression(2, noise=1.0).posterior(X, X), "one target for each row"),
        (lambda: LinearRegression(2, noise=1.0).posterior(X, X[:, 0] * math.nan), "y: 12 of 12"),
        (lambda: LinearRegression(2, noise=1.0).marginal(X * math.inf), "x: 12 of 12 rows hold"),
        (lambda: LinearRegression(2, noise=1.0).marginal(X[:, :1]), "rows of 2 features"),
        (lambda: LOGISTIC.conditional(X, torch.ones(5, 2), torch.ones(5)), r"weights\[:, None\]"),
        (
            lambda: SOFTMAX.conditional(X, torch.ones(5, 1, 2, 2), torch.ones(5, 2)),
            r"bias\[:, None",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Rows far from zero, and in other units


def in_sixty_digits(x, y, scales, noise):
    """The posterior's means and standard deviations, and log p(y | x)."""
    with mpmath.workdps(60):
        design = mpmath.matrix([[*row, 1.0] for row in x.double().tolist()])
        target, size = mpmath.matrix(y.double().tolist()), len(scales)
        prior = mpmath.diag([mpmath.mpf(s) ** -2 for s in scales])
        precision = prior + design.T * design / noise**2
        mean = mpmath.lu_solve(precision, design.T * target / noise**2)
        square = (target.T * target)[0] / noise**2 - (mean.T * precision * mean)[0]
        log_det = mpmath.log(mpmath.det(precision) / mpmath.det(prior))
        log_det += len(x) * mpmath.log(2 * mpmath.pi * mpmath.mpf(noise) ** 2)
        inverse = precision**-1
        deviations = [float(mpmath.sqrt(inverse[i, i])) for i in range(size)]
        return [float(m) for m in mean], deviations, float(-(square + log_det) / 2)


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("far", [0.0, 1e2, 1e4, 1e6])
def test_closed_forms_far_from_zero_and_in_other_units(far, unit, precision):
    """In float32 the products of such rows leave the weights no digits."""
    x = torch.randn(15, 2).double()
    y = (x @ torch.tensor([1.0, -2.0]).double() + 3 + 0.5 * torch.randn(15)).to(precision)
    x = (unit * x + far * unit).to(precision)
    scales = [1 / unit, 2 / unit, 8.0]
    model = LinearRegression(
        2, noise=0.5, weights_scale=torch.tensor(scales[:2], dtype=precision), bias_scale=8.0
    ).to(precision)
    mean, deviations, evidence = in_sixty_digits(x, y, [*model.weights_scale.tolist(), 8.0], 0.5)
    posterior = model.posterior(x, y)
    within = 1e-8 if precision == torch.float64 else 1e-4
    found = posterior.mean.double().numpy()
    np.testing.assert_allclose((found - mean) / np.array(deviations), 0, atol=within)
    np.testing.assert_allclose(posterior.stddev.double().numpy(), deviations, rtol=within)
    assert model.marginal(x).log_prob(y).item() == pytest.approx(evidence, abs=1e-7)
    assert posterior.mean.dtype == precision
