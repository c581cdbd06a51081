"""Linear Gaussian models: closed forms first."""

import math

import numpy as np
import pytest
import sklearn.decomposition
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch.utils.data import DataLoader, TensorDataset

from guides import ExactPosterior
from ppl_models import PCA, FactorAnalysis, ProbabilisticPCA, elbo, fit, fit_em
from ppl_models.factors.likelihood import (
    RIDGE,
    _hessian,
    _loss,
    best_loadings,
    best_noise,
    mean_log_evidence,
    spectrum,
    start_noise,
)
from ppl_models.factors.moments import LITTLE, one_thread
from tests.support.oracles import grey_digits, linear_gaussian, same, state

KINDS = [FactorAnalysis, ProbabilisticPCA]


def dense_evidence(model, x):
    """The evidence with a dense covariance: slow, and plainly right."""
    scale = model.log_scale.exp().expand_as(model.loc)
    covariance = model.loadings @ model.loadings.T + scale.diag() ** 2
    return torch.distributions.MultivariateNormal(model.loc, covariance).log_prob(x)


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_a_dense_gaussian(kind):
    model = kind(5, 2).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(model.evidence().log_prob(x), dense_evidence(model, x))


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_by_bayes_rule(kind):
    """log p(z | x) = log p(x, z) - log p(x), for any z."""
    model = kind(5, 2).double()
    x, z = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    scale = model.log_scale.exp()
    joint = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + torch.distributions.Normal(
        model.loc + z @ model.loadings.T, scale
    ).log_prob(x).sum(1)
    expected = joint - dense_evidence(model, x)
    torch.testing.assert_close(model.posterior(x).log_prob(z), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_exact_posterior_closes_the_gap(kind, rows):
    """For any draw and any minibatch, the ELBO is the log evidence."""
    model = kind(5, 2).double()
    x = torch.randn(rows, 5, dtype=torch.float64)
    loss = elbo(model, ExactPosterior(model)).loss(x, size=40)
    expected = -model.evidence().log_prob(x).mean()
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)


def test_samples_have_the_moments_of_the_evidence():
    model, _ = linear_gaussian()
    x = model(size=200_000).detach()
    expected = model.evidence().covariance_matrix.detach()
    torch.testing.assert_close(x.mean(0), model.loc.detach(), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), expected, atol=0.06, rtol=0)


PPCA_TABLE = {  # nats per row: train, test
    2: (-0.015612, -0.122549),
    5: (9.084194, 7.582845),
    10: (17.587164, 15.994818),
    20: (27.492278, 24.930613),
}


@pytest.mark.parametrize("num_factors", PPCA_TABLE)
def test_ppca_on_digits_is_the_reference_table(num_factors):
    train, test = grey_digits()
    model = ProbabilisticPCA(64, num_factors).double().maximum_likelihood(train)
    got = [model.evidence().log_prob(x).mean().item() for x in (train, test)]
    assert got == pytest.approx(PPCA_TABLE[num_factors], abs=1e-6)


def test_ppca_spans_the_principal_subspace():
    train, _ = grey_digits()
    model = ProbabilisticPCA(64, 10).double().maximum_likelihood(train)
    basis = torch.from_numpy(sklearn.decomposition.PCA(10).fit(train.numpy()).components_)  # (K, D)
    outside = model.loadings - basis.T @ (basis @ model.loadings)
    assert outside.abs().max() < 1e-8


def test_gradient_is_zero_at_the_closed_form_optimum():
    train, _ = grey_digits()
    model = ProbabilisticPCA(64, 5).double().maximum_likelihood(train)
    loss = elbo(model, ExactPosterior(model)).loss(train)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-10, name


# --- maximum likelihood ---------------------------------------------------------------------


def moving_digits():
    """The 8 x 8 digits of the reference tables, without the pixels that are always the same."""
    train, _ = grey_digits()
    return train[:, train.amax(0) > train.amin(0)]


def cancer():
    x = torch.from_numpy(load_breast_cancer().data)
    return (x - x.mean(0)) / x.std(0, correction=0)


def mean_evidence(model, x):
    return model.evidence().log_prob(x).mean().item()


def covariance(model):
    return (model.loadings @ model.loadings.T + model.log_scale.mul(2).exp().diag()).detach()


def root_of(x):
    return torch.linalg.cholesky(torch.corrcoef(x.T)).T


def test_the_loss_of_the_noise_is_the_evidence_with_the_best_loadings():
    root, noise = root_of(torch.randn(60, 6).double()), torch.rand(6).double() + 0.1
    loadings = best_loadings(root, noise, 2)
    loss = _loss(noise.log().numpy(), spectrum(root.numpy(), noise.numpy(), 2))
    density = torch.distributions.MultivariateNormal(
        torch.zeros(6).double(), loadings @ loadings.T + noise.diag()
    )
    second = (density.precision_matrix * (root.T @ root)).sum() / 2
    expected = 3 * math.log(2 * math.pi) + density.covariance_matrix.logdet() / 2 + second
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for _ in range(20):  # no other loadings are better
        other = loadings + 0.1 * torch.randn(6, 2).double()
        assert mean_log_evidence(root, torch.zeros(6).double(), other, noise) < -loss


@pytest.mark.parametrize("num_factors", [1, 3, 5])
def test_derivatives_of_the_loss(num_factors):
    """By differences of what is computed without them."""
    root, place = root_of(torch.randn(60, 6).double()).numpy(), torch.randn(6).double().numpy()

    def loss(place):
        return _loss(place, spectrum(root, np.exp(place), num_factors))

    found = spectrum(root, np.exp(place), num_factors)
    slope = found.others**2 @ (1 - found.weak) / 2
    steps = np.eye(6) * 1e-4
    first = [(loss(place + a) - loss(place - a)) / 2e-4 for a in steps]
    np.testing.assert_allclose(slope, first, atol=1e-7)
    second = [
        [
            loss(place + a + b) - loss(place + a - b) - loss(place - a + b) + loss(place - a - b)
            for a in steps
        ]
        for b in steps
    ]
    np.testing.assert_allclose(_hessian(found), np.array(second) / 4e-8, atol=1e-5)


def test_the_evidence_of_moments_is_the_mean_of_rows():
    model, x = linear_gaussian()
    centered = x - x.mean(0)
    root = torch.linalg.cholesky(centered.T @ centered / len(x)).T
    got = mean_log_evidence(root, x.mean(0) - model.loc, model.loadings, model._noise())
    assert got.item() == pytest.approx(mean_evidence(model, x), abs=1e-12)


def test_tiny_noise_costs_the_loss_no_digits():
    root, noise = root_of(cancer()), torch.full((30,), 0.3).double()
    noise[[4, 21, 8, 27]] = 1e-8
    loss = _loss(noise.log().numpy(), spectrum(root.numpy(), noise.numpy(), 5))
    loadings = best_loadings(root, noise, 5)
    expected = mean_log_evidence(root, torch.zeros(30).double(), loadings, noise)
    assert -loss == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("num_factors", [1, 5, 10, 15])
def test_maximum_likelihood_on_digits_is_that_of_a_peer(num_factors):
    x = moving_digits()
    model = FactorAnalysis(x.shape[1], num_factors).double().maximum_likelihood(x)
    peer = sklearn.decomposition.FactorAnalysis(num_factors, tol=1e-7, svd_method="lapack")
    best = peer.fit(x.numpy()).score(x.numpy())
    assert mean_evidence(model, x) == pytest.approx(best, abs=1e-7)
    assert model.caveat() is None


@pytest.mark.parametrize("num_factors", [1, 2, 3, 5, 10])
@pytest.mark.filterwarnings("ignore:FactorAnalysis. the noise")
def test_maximum_likelihood_on_breast_cancer_is_no_less_than_that_of_a_peer(num_factors):
    x = cancer()
    model = FactorAnalysis(30, num_factors).double().maximum_likelihood(x)
    peer = sklearn.decomposition.FactorAnalysis(num_factors, svd_method="lapack")
    assert mean_evidence(model, x) >= peer.fit(x.numpy()).score(x.numpy()) - 1e-6


def test_gradient_is_zero_at_the_maximum_of_factor_analysis():
    x = moving_digits()
    model = FactorAnalysis(x.shape[1], 5).double().maximum_likelihood(x)
    elbo(model, ExactPosterior(model)).loss(x).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-6, name


def test_maximum_likelihood_finds_the_truth():
    truth, _ = linear_gaussian()
    x = truth(size=100_000).detach()
    model = FactorAnalysis(5, 2).double().maximum_likelihood(x)
    torch.testing.assert_close(covariance(model), covariance(truth), atol=0.05, rtol=0)
    torch.testing.assert_close(model.log_scale, truth.log_scale, atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_does_not_depend_on_the_units(kind):
    _, x = linear_gaussian(200, 6)
    units = torch.tensor([1e-6, 1.0, 1e6, 3.0, 0.1, 1.0]) if kind is FactorAnalysis else 1e-6
    model, other = (kind(6, 2).double().maximum_likelihood(rows) for rows in (x, 7.0 + x * units))
    shift = torch.as_tensor(units).double().log().expand(6).sum().item()
    expected = mean_evidence(model, x) - shift
    assert mean_evidence(other, 7.0 + x * units) == pytest.approx(expected, abs=1e-6)


def test_the_convention_of_the_loadings():
    """Orthogonal over the noise, strongest first, the largest entry of each positive."""
    x = moving_digits()
    model = FactorAnalysis(x.shape[1], 5).double().maximum_likelihood(x)
    gram = model.loadings.T @ (model.loadings / model._noise()[:, None])
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-8, rtol=0)
    assert (gram.diagonal().diff() < 0).all()
    largest = model.loadings.gather(0, model.loadings.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_a_model_in_float32_is_fitted_in_float64():
    x = moving_digits()
    exact = FactorAnalysis(x.shape[1], 5).double().maximum_likelihood(x)
    model = FactorAnalysis(x.shape[1], 5).maximum_likelihood(x.float())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.double(), getattr(exact, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_as_good_as_all_rows(kind):
    _, x = linear_gaussian(100, 8)
    x = x + 1000  # far from zero, where squares lose digits
    a, b = kind(8, 2).double(), kind(8, 2).double()
    a.maximum_likelihood(x)
    b.maximum_likelihood([x[:7], x[7:7], x[7:]])
    for name, parameter in a.named_parameters():
        torch.testing.assert_close(getattr(b, name), parameter, atol=1e-6, rtol=0)


def test_features_that_are_constant_in_a_batch():
    _, x = linear_gaussian(100, 8)
    x[:50, 2], x[50:, 2] = 1.0, 2.0
    model = FactorAnalysis(8, 2).double()
    model.initialise([x[:50], x[50:]])
    x[:, 2] = 1.0
    with pytest.raises(ValueError, match=r"feature\(s\) 2 are constant"):
        model.initialise([x[:50], x[50:]])
    x[0, 2] = 2.0
    model.initialise([x[:50], x[50:]])


def test_rows_that_do_not_fit_into_a_chunk(monkeypatch):
    _, x = linear_gaussian(100, 8)
    whole = FactorAnalysis(8, 2).double().maximum_likelihood(x)
    monkeypatch.setattr("ppl_models.factors.moments.CHUNK", 7)
    parts = FactorAnalysis(8, 2).double().maximum_likelihood(x)
    torch.testing.assert_close(covariance(whole), covariance(parts))


def test_the_start_is_what_no_other_feature_explains():
    root = root_of(torch.randn(500, 6).double() @ torch.randn(6, 6).double())
    values, vectors = torch.linalg.eigh(root.T @ root)
    unexplained = 1 / torch.linalg.inv(root.T @ root + RIDGE * torch.eye(6)).diagonal()
    (start,) = start_noise(values, vectors, 2)
    torch.testing.assert_close(start, (1 - 2 / 12) * unexplained)


@pytest.mark.filterwarnings("ignore:FactorAnalysis. the noise of 1 of 10 features")
def test_the_highest_of_several_maxima():
    """Jöreskog's start misses the highest of these data: a Heywood case, which a peer finds."""
    x = torch.from_numpy(load_diabetes(scaled=False).data)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    values = [
        mean_evidence(FactorAnalysis(10, 1).double().maximum_likelihood(x, n), x) for n in (1, 2, 6)
    ]
    assert values[0] == pytest.approx(-12.82398, abs=1e-5)
    assert values[1:] == pytest.approx([-12.79144, -12.79144], abs=1e-5)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_restarts_are_counted(bad):
    with pytest.raises(ValueError, match="restarts: expected a positive whole number"):
        FactorAnalysis(6, 2).maximum_likelihood(X, restarts=bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_factors", [1, 2, 3])
def test_parameters_are_counted_without_rotations(kind, num_factors):
    """As many as the directions in which the density can move."""
    model = kind(5, num_factors).double()
    x = torch.randn(100, 5).double()

    def density(*parameters):
        names = [name for name, _ in model.named_parameters()]
        values = dict(zip(names, parameters, strict=True))
        scale = values["log_scale"].expand_as(values["loc"]).exp()
        covariance = values["loadings"] @ values["loadings"].T + scale.diag() ** 2
        return torch.distributions.MultivariateNormal(values["loc"], covariance).log_prob(x)

    parts = torch.autograd.functional.jacobian(density, tuple(model.parameters()))
    rank = torch.linalg.matrix_rank(torch.cat([part.reshape(len(x), -1) for part in parts], 1))
    assert model.num_parameters == rank


def test_information_criteria():
    model, x = linear_gaussian()
    total = model.evidence().log_prob(x).sum().item()
    count = model.num_parameters
    assert model.bic(x) == pytest.approx(-2 * total + count * math.log(len(x)))
    assert model.aic(x) == pytest.approx(-2 * total + 2 * count)


def threads_of_numpy():
    libraries = ThreadpoolController().select(user_api="blas").info()
    return [library["num_threads"] for library in libraries]


@pytest.mark.parametrize("method", ["maximum_likelihood", "initialise", "em_step"])
def test_small_matrices_are_left_to_one_thread_and_the_others_come_back(method, monkeypatch):
    inside = []

    def noting(*args):
        inside.extend([torch.get_num_threads(), *threads_of_numpy()])
        return spectrum(*args)

    monkeypatch.setattr("ppl_models.factors.likelihood.spectrum", noting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    numpy = threadpool_limits(2, user_api="blas")
    try:
        getattr(FactorAnalysis(8, 2).double(), method)(linear_gaussian(100, 8)[1])
        assert set(inside) == {1}
        with pytest.raises(ValueError, match="subspace"):
            getattr(FactorAnalysis(6, 2), method)(X[:3])
        assert {torch.get_num_threads(), *threads_of_numpy()} == {2}
        with one_thread(LITTLE):
            assert {torch.get_num_threads(), *threads_of_numpy()} == {2}
    finally:
        numpy.restore_original_limits()  # of torch, too
        torch.set_num_threads(before)


# --- noise that would vanish ----------------------------------------------------------------


def repeated(rows=200):
    """Features 1 and 3 are the same but for their units: the likelihood has no maximum."""
    _, x = linear_gaussian(rows)
    x[:, 3] = 5 * x[:, 1] - 2
    return x


def at_floor(model, x):
    return (model._noise() / x.var(0, correction=0) <= 1.01 * model.noise_floor).tolist()


def test_noise_stops_at_the_floor_and_it_is_said():
    x, model = repeated(), FactorAnalysis(5, 2).double()
    with pytest.warns(UserWarning, match=r"noise of 2 of 5 features \(1, 3\).*floor of 1e-08"):
        model.maximum_likelihood(x)
    assert at_floor(model, x) == [False, True, False, True, False]
    assert model.caveat().startswith("FactorAnalysis: the noise of 2 of 5 features (1, 3)")
    assert math.isfinite(mean_evidence(model, x))


def test_noise_in_float32_stops_earlier():
    x, model = repeated().float(), FactorAnalysis(5, 2)
    with pytest.warns(UserWarning, match=r"floor of 1e-05"):
        model.maximum_likelihood(x)
    precise = model.double()
    got, expected = (m.evidence().log_prob(x.to(m.loc)) for m in (model.float(), precise))
    assert (got.double() - expected).abs().max() < 0.1


@pytest.mark.filterwarnings("ignore:FactorAnalysis. the noise")
def test_a_heywood_case_has_the_slope_that_keeps_it_at_the_floor():
    """Noise at the floor would go lower; elsewhere the slope is zero."""
    x = cancer()
    model = FactorAnalysis(30, 5).double().maximum_likelihood(x)
    held = torch.tensor(at_floor(model, x))
    assert held.sum() == 2
    elbo(model, ExactPosterior(model)).loss(x).backward()
    slope = model.log_scale.grad
    assert slope[~held].abs().max() < 1e-6
    assert (slope[held] > 0).all()


def test_a_lower_floor_does_not_lower_the_likelihood():
    x = cancer()
    root = root_of(x)
    start = torch.full((30,), 0.5).double()
    losses = []
    for floor in (1e-2, 1e-4, 1e-6, 1e-8):
        noise = best_noise(root, 5, floor, [start])
        losses.append(_loss(noise.log().numpy(), spectrum(root.numpy(), noise.numpy(), 5)))
        assert floor <= noise.min() <= 1.01 * floor
    assert losses == sorted(losses, reverse=True)


def test_newton_says_where_it_did_not_arrive():
    with pytest.warns(UserWarning, match="could rise by another .* nats per row"):
        best_noise(root_of(cancer()), 5, 1e-8, [torch.full((30,), 0.5).double()], max_steps=2)


# --- expectation maximisation ---------------------------------------------------------------


def climb(model, x, steps, slack=1e-12):
    """The evidence before each step, which never falls."""
    values = torch.stack([model.em_step(x) for _ in range(steps)])
    assert values.dtype == torch.float64
    assert values.diff().min() > -slack
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_em_returns_the_evidence_before_the_step(kind):
    _, x = linear_gaussian(100)
    model = kind(5, 2).double()
    for _ in range(3):
        before = mean_evidence(model, x)
        assert model.em_step(x).item() == pytest.approx(before, abs=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_em_never_lowers_the_evidence_from_any_start(kind, seed):
    torch.manual_seed(seed)
    _, x = linear_gaussian(100)
    model = kind(5, 2).double()
    with torch.no_grad():
        model.loc.normal_(std=10.0)
        model.log_scale.normal_()
    climb(model, x, 100)


@pytest.mark.filterwarnings("ignore:FactorAnalysis. the noise")
def test_em_never_lowers_the_evidence_at_the_floor():
    x, model = repeated(), FactorAnalysis(5, 2).double()
    model.initialise(x)
    climb(model, x, 100, slack=1e-9)
    model.maximum_likelihood(x)
    with torch.no_grad():
        model.log_scale[1] -= 2.0  # below the floor, where no step may leave it for the worse
    climb(model, x, 20, slack=1e-6)
    assert at_floor(model, x) == [False, True, False, True, False]


def test_em_reaches_the_maximum_likelihood_on_digits():
    x = moving_digits()
    best = FactorAnalysis(x.shape[1], 5).double().maximum_likelihood(x)
    model = FactorAnalysis(x.shape[1], 5).double()
    run = fit_em(model, x, tolerance=1e-10)
    assert -run.history["loss"][-1] == pytest.approx(mean_evidence(best, x), abs=1e-8)
    torch.testing.assert_close(covariance(model), covariance(best), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_factors", [2, 10])
def test_em_reaches_the_closed_form_of_ppca(num_factors):
    x, _ = grey_digits()  # with pixels that are always zero
    best = ProbabilisticPCA(64, num_factors).double().maximum_likelihood(x)
    model = ProbabilisticPCA(64, num_factors).double()
    run = fit_em(model, x, tolerance=1e-12)
    assert -run.history["loss"][-1] == pytest.approx(mean_evidence(best, x), abs=1e-10)
    torch.testing.assert_close(model.log_scale, best.log_scale, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_em_and_maximum_likelihood_reach_the_same_optimum(kind):
    _, x = linear_gaussian(200, 8)
    by_gradient, by_em, best = (kind(8, 2).double() for _ in range(3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    objective = elbo(by_gradient, ExactPosterior(by_gradient))
    fit(objective, x, epochs=400, lr=0.1, schedule=schedule, progress=False)
    fit_em(by_em, x, tolerance=1e-10)
    best.maximum_likelihood(x)
    expected = mean_evidence(best, x)
    assert mean_evidence(by_em, x) == pytest.approx(expected, abs=1e-7)
    assert mean_evidence(by_gradient, x) == pytest.approx(expected, abs=1e-5)


def test_em_on_a_stream():
    _, x = linear_gaussian(100)
    a, b = FactorAnalysis(5, 2).double(), FactorAnalysis(5, 2).double()
    whole = fit_em(a, x, tolerance=1e-4)
    parts = fit_em(b, DataLoader(TensorDataset(x), batch_size=32), tolerance=1e-4)
    assert parts.history["loss"] == pytest.approx(whole.history["loss"], abs=1e-10)


def test_em_in_float32():
    x = moving_digits()
    best = mean_evidence(FactorAnalysis(x.shape[1], 5).double().maximum_likelihood(x), x)
    run = fit_em(FactorAnalysis(x.shape[1], 5), x.float())
    assert -run.history["loss"][-1] == pytest.approx(best, abs=1e-4)


def test_starts_are_the_same_for_the_same_rows():
    _, x = linear_gaussian(100)
    a, b = FactorAnalysis(5, 2).double(), FactorAnalysis(5, 2).double()
    a.initialise(x)
    b.initialise(x)
    assert same(state(a), state(b))


# --- bad input ------------------------------------------------------------------------------

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
FLAT = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 6).cumsum(1)


def spoiled(value):
    x = X.clone()
    x[3, 1] = value
    return x


BAD = [
    (X[:1], ValueError, "at least two rows of finite numbers, got 1"),
    (X[:0], ValueError, "at least two rows of finite numbers, got 0"),
    (X[:3], ValueError, "subspace of 2 dimensions.*more rows than 3"),
    (FLAT, ValueError, "subspace of 1 dimension, .*Try PCA with num_factors=1"),
    (X.index_fill(1, torch.tensor([1, 4]), 0.1), ValueError, r"feature\(s\) 1, 4 are constant"),
    (spoiled(math.nan), ValueError, "1 of 10 rows hold NaN.*isfinite.*missing='marginalise'"),
    (spoiled(math.inf), ValueError, "1 of 10 rows hold NaN or infinity"),
    (X[:, :4], ValueError, "rows of 6 features"),
    (X[0], ValueError, "rows of 6 features"),
    (X.to(torch.uint8), TypeError, "floating-point"),
]


@pytest.mark.parametrize("method", ["maximum_likelihood", "initialise", "em_step"])
@pytest.mark.parametrize(("x", "error", "message"), BAD)
def test_rows_that_cannot_be_fitted(x, error, message, method):
    model = FactorAnalysis(6, 2)
    before = state(model)
    with pytest.raises(error, match=f"FactorAnalysis: .*{message}"):
        getattr(model, method)(x)
    assert same(before, state(model))


def test_advice_on_rows_without_rank_is_true():
    """What is advised is taken, and what is not advised would not be."""
    wide, flat = torch.randn(20, 10), torch.randn(20, 2) @ torch.randn(2, 6)
    with pytest.raises(ValueError, match=r"8 rows .* 7 dim.*factors than 7, or more rows than 8"):
        FactorAnalysis(10, 7).maximum_likelihood(wide[:8])
    with pytest.raises(ValueError, match=r"subspace of 7 .*factors than 7, or more rows than 10"):
        FactorAnalysis(10, 9).maximum_likelihood(wide[:8])
    with pytest.raises(ValueError, match=r"6 features cannot\. Try fewer factors than 6, or PCA"):
        FactorAnalysis(6, 6).maximum_likelihood(torch.randn(50, 6))
    with pytest.raises(ValueError, match=r"subspace of 2 .*Try fewer factors than 2, or PCA with"):
        FactorAnalysis(6, 3).maximum_likelihood(flat)
    for model, x in (
        (ProbabilisticPCA(10, 6), wide[:8]),
        (ProbabilisticPCA(10, 7), wide[:9]),
        (ProbabilisticPCA(10, 9), wide[:11]),
        (ProbabilisticPCA(6, 5), torch.randn(50, 6)),
        (ProbabilisticPCA(6, 1), flat),
    ):
        assert model.maximum_likelihood(x).evidence().log_prob(x).isfinite().all()
    assert PCA(6, 2).least_squares(flat).components.shape == (2, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_passes_the_errors_on(kind):
    with pytest.raises(ValueError, match="subspace of 2 dimensions"):
        fit_em(kind(6, 2), X[:3])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_posterior_refuses_rows_that_are_not_finite(value):
    with pytest.raises(ValueError, match="1 of 10 rows hold NaN or infinity"):
        FactorAnalysis(6, 2).posterior(spoiled(value))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_factors", [0, -1, 5])
def test_the_number_of_factors(kind, num_factors):
    with pytest.raises(ValueError, match=f"factors.*got.*{num_factors}"):
        kind(4, num_factors)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(10, 6), "subspace"),
        (torch.zeros(1, 6), "at least two rows"),
        (torch.full((10, 6), float("nan")), "finite"),
        (torch.zeros(10, 4), "6 features"),
        (torch.zeros(10, 6, dtype=torch.uint8), "floating-point"),
    ],
)
def test_ppca_refuses(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ProbabilisticPCA(6, 2).maximum_likelihood(x)


def test_ppca_needs_fewer_factors_than_features():
    with pytest.raises(ValueError, match="fewer factors"):
        ProbabilisticPCA(4, 4)
