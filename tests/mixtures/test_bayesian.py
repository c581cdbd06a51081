"""Bayesian Gaussian mixtures: exact values first, then guides beside Gibbs sampling."""

import itertools
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats
from scipy.special import betaln, gammaln
from sklearn.mixture import BayesianGaussianMixture as Peer
from torch.distributions import biject_to
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.mixture import MeanFieldMixture, MixturePosterior
from ppl_models import elbo, fit, from_pyro_svi, load, log_evidence, save
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.conjugate import weights_of
from ppl_models.mixtures.inverse_wishart import InverseWishart
from ppl_models.mixtures.mean_field import ascend

COVARIANCES = ["full", "diag", "spherical"]
WEIGHTS = ["dirichlet", "stick-breaking"]
every_kind = pytest.mark.parametrize("covariance", COVARIANCES)
both_priors = pytest.mark.parametrize("weights", WEIGHTS)


def build(components: int = 3, covariance: str = "full", weights: str = "dirichlet", **prior):
    prior = {"prior_loc": torch.tensor([0.25, -0.5]), "prior_scale": 0.75} | prior
    return BayesianGaussianMixture(2, components, covariance, weights, **prior).double()


def clusters(apart: float = 1.0, rows: int = 90) -> torch.Tensor:
    centers = apart * torch.tensor([[-1.2, 0.0], [1.0, 1.0], [1.0, -1.0]]).double()
    return centers[torch.arange(rows) % 3] + 0.3 * torch.randn(rows, 2).double()


def one_hot(z, components: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(z), components).double()


def shared_draw(model, num: int | None = None) -> dict[str, torch.Tensor]:
    """The latents that rows share, from the prior."""
    if num is None:
        trace = poutine.trace(model.sample_shared).get_trace(model.prior)
    else:
        with pyro.plate("draws", num, dim=-2):
            trace = poutine.trace(model.sample_shared).get_trace(model.prior)
    nodes = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
    return {name: nodes[name]["value"] for name in nodes if name not in ("component", "draws")}


def log_rows(model, latents, x: torch.Tensor) -> torch.Tensor:
    """log pi_k N(x_n | mu_k, Sigma_k), (N, K), written out."""
    weights = latents["weights"] if "weights" in latents else weights_of(latents["sticks"])
    columns = []
    for k in range(model.num_components):
        sigma = latents["covariances"][k]
        matrix = sigma if model.covariance == "full" else sigma.expand(2).diag()
        normal = torch.distributions.MultivariateNormal(latents["locs"][k], matrix)
        columns.append(weights[k].log() + normal.log_prob(x))
    return torch.stack(columns, 1)


# The program


@both_priors
@every_kind
@pytest.mark.parametrize("size", [7, 70])
def test_enumerated_elbo_is_the_sum_over_components(covariance, weights, size):
    model, x = build(3, covariance, weights), torch.randn(7, 2).double()
    latents = shared_draw(model)
    given = poutine.condition(model, data=latents)
    prior = poutine.trace(poutine.condition(model.sample_shared, data=latents))
    log_prior = prior.get_trace(model.prior).log_prob_sum()
    evidence = log_rows(model, latents, x).logsumexp(1)
    expected = -(size / 7 * evidence.sum() + log_prior) / size
    loss = elbo(given).loss(x, size=size)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)


def test_the_density_of_the_prior_is_the_textbooks():
    """scipy's inverse Wishart, Dirichlet and normal."""
    model = build(3, "full", prior_df=6.5, prior_strength=0.3, concentration=0.7)
    latents = shared_draw(model)
    prior = poutine.trace(poutine.condition(model.sample_shared, data=latents))
    got = prior.get_trace(model.prior).log_prob_sum().item()
    psi = 0.75**2 * (6.5 - 3) * np.eye(2)  # so that the mean is 0.75^2
    expected = stats.dirichlet([0.7] * 3).logpdf(latents["weights"])
    for k in range(3):
        sigma, mu = latents["covariances"][k].numpy(), latents["locs"][k].numpy()
        expected += stats.invwishart(6.5, psi).logpdf(sigma)
        expected += stats.multivariate_normal([0.25, -0.5], sigma / 0.3).logpdf(mu)
    assert got == pytest.approx(expected, abs=1e-6)  # 0.3 and 0.7 are rounded to float32


@every_kind
def test_draws_from_the_prior_have_its_moments(covariance):
    model = build(3, covariance, prior_df=9.0, prior_strength=0.25)
    draws = shared_draw(model, 20_000)
    expected = 0.75**2 * torch.eye(2).double()
    found = draws["covariances"].mean((0, 1))
    wanted = {"full": expected, "diag": expected.diagonal(), "spherical": expected[0, :1]}
    torch.testing.assert_close(found, wanted[covariance], atol=0.01, rtol=0)
    locs = draws["locs"].flatten(0, 1)
    torch.testing.assert_close(locs.mean(0), model.loc, atol=0.03, rtol=0)
    torch.testing.assert_close(locs.T.cov(), expected / 0.25, atol=0.06, rtol=0)


def test_weights_have_the_stated_means():
    draws = shared_draw(build(4, concentration=0.5), 20_000)["weights"][:, 0]
    torch.testing.assert_close(draws.sum(1), torch.ones(20_000).double())
    torch.testing.assert_close(draws.mean(0), torch.full((4,), 0.25).double(), atol=0.01, rtol=0)
    # The variance of a Dirichlet of 4 times 1/2: (1/4 3/4) / (1 + 2)
    torch.testing.assert_close(draws.var(0), torch.full((4,), 1 / 16).double(), atol=3e-3, rtol=0)

    sticks = shared_draw(build(5, weights="stick-breaking", concentration=2.0), 20_000)["sticks"]
    weights = weights_of(sticks)[:, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(20_000).double())
    expected = [
        1 / 3 * (2 / 3) ** k for k in range(4)
    ]  # E[pi_k] = (1 - r) r^(k - 1), r = a / (1 + a)
    expected.append(1 - sum(expected))
    torch.testing.assert_close(weights.mean(0), torch.tensor(expected).double(), atol=0.01, rtol=0)


@both_priors
def test_tiny_concentrations_are_finite(weights):
    """Draws by rounding 0 or 1 would have an infinite density."""
    model = build(30, weights=weights, concentration=1e-3)
    for _ in range(50):
        trace = poutine.trace(model.sample_shared).get_trace(model.prior)
        assert torch.isfinite(trace.log_prob_sum())


@both_priors
@every_kind
def test_samples_of_the_program(covariance, weights):
    model = build(3, covariance, weights)
    assert model(size=11).shape == (11, 2)
    trace = poutine.trace(model).get_trace(size=11)
    assert trace.nodes["weights"]["value"].shape == (3,)
    assert trace.nodes["z"]["value"].shape == (11,)
    scales = trace.nodes["scales"]["value"]
    covariances = trace.nodes["covariances"]["value"]
    if covariance == "full":
        covariances = covariances.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(scales**2, covariances.expand(3, 2))


# Inverse Wishart


def test_inverse_wishart_is_scipys():
    psi = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 0.5]]).double()
    law = InverseWishart(torch.tensor(7.25).double(), psi)
    draws = law.sample((20_000,))
    expected = stats.invwishart(7.25, psi.numpy()).logpdf(draws[:9].numpy().transpose(1, 2, 0))
    np.testing.assert_allclose(law.log_prob(draws[:9]), expected, atol=1e-10)
    torch.testing.assert_close(draws.mean(0), law.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(law.mean, psi / 3.25)
    assert law.expand([4]).sample().shape == (4, 3, 3)
    assert InverseWishart(torch.tensor(2.5), torch.eye(2)).mean.isinf().all()


def test_bijection_to_covariances_has_its_jacobian():
    law = InverseWishart(torch.tensor(5.0).double(), torch.eye(3).double())
    transform = biject_to(law.support)
    free = torch.randn(6).double()
    rows, columns = torch.tril_indices(3, 3)

    def lower(u):
        return transform(u)[rows, columns]

    matrix = torch.autograd.functional.jacobian(lower, free)
    got = transform.log_abs_det_jacobian(free, transform(free))
    torch.testing.assert_close(got, matrix.slogdet()[1])
    torch.testing.assert_close(transform.inv(transform(free)), free)
    assert transform.forward_shape((4, 6)) == (4, 3, 3)
    assert transform.inverse_shape((4, 3, 3)) == (4, 6)


# Closed forms


def marginal(x: np.ndarray, model, where: slice) -> float:
    """log p(x) of rows of one component, by the chain rule: each row is Student's t.

    As in Bayesian Data Analysis, chapter 3.6.
    """
    x, loc = x[:, where], model.loc[where].numpy()
    kappa, nu = model.strength.item(), model.df.item()
    size = x.shape[1]
    psi = 0.75**2 * (nu - size - 1) * np.eye(size)
    total = 0.0
    for row in x:
        df = nu - size + 1
        law = stats.multivariate_t(loc, psi * (kappa + 1) / (kappa * df), df)
        total += law.logpdf(row)
        shift = row - loc
        psi = psi + kappa / (kappa + 1) * np.outer(shift, shift)
        loc, kappa, nu = (kappa * loc + row) / (kappa + 1), kappa + 1, nu + 1
    return total


def log_weights_of(model, z: np.ndarray) -> float:
    """log p(z) with the weights integrated out."""
    components = model.num_components
    count = np.bincount(z, minlength=components)
    if model.stick_breaking:
        later = count.sum() - count.cumsum()
        pairs = zip(count[:-1], later[:-1], strict=True)
        return sum(betaln(1 + n, 1.5 + m) - betaln(1, 1.5) for n, m in pairs)
    a = np.full(components, 1.5)
    ratio = gammaln(a + count).sum() - gammaln(a).sum()
    return ratio + gammaln(a.sum()) - gammaln(a.sum() + len(z))


@both_priors
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_joint_of_rows_and_components_by_the_chain_rule(covariance, weights):
    model = build(3, covariance, weights, concentration=1.5, prior_strength=0.5)
    x = torch.randn(8, 2).double()
    z = np.array([0, 2, 2, 0, 0, 2, 0, 2])  # component 1 is empty
    expected = log_weights_of(model, z)
    for k in (0, 2):
        blocks = [slice(0, 2)] if covariance == "full" else [slice(0, 1), slice(1, 2)]
        expected += sum(marginal(x[z == k].numpy(), model, where) for where in blocks)
    got = model.prior.log_joint(x, one_hot(z, 3)).item()
    assert got == pytest.approx(expected, abs=1e-10)


def test_spherical_joint_by_integration():
    """Over the one variance, with the center integrated out by hand."""
    model = build(1, "spherical", prior_strength=0.5, prior_df=4.0)
    x = torch.randn(5, 2).double()
    grid = torch.linspace(-8, 8, 20_001).double().exp()  # variances
    shape, rate = torch.tensor([2.0, 0.5 * 0.75**2 * 2]).double()  # a logarithm in float32: 1e-7
    prior = dist.InverseGamma(shape, rate).log_prob(grid) + grid.log()
    # Each feature is normal with covariance sigma^2 (I + 1 1^T / kappa).
    covariance = torch.eye(5).double() + 2.0
    total = prior
    for d in range(2):
        shift = x[:, d] - model.loc[d]
        square = shift @ torch.linalg.solve(covariance, shift)
        total = total - 0.5 * (5 * (2 * math.pi * grid).log() + covariance.logdet() + square / grid)
    expected = torch.trapezoid((total - total.max()).exp(), grid.log()).log() + total.max()
    got = model.prior.log_joint(x, torch.ones(5, 1).double())
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=0)


@both_priors
@every_kind
def test_a_single_component_is_exact(covariance, weights):
    """Then the mean-field guide is the posterior, and each draw gives the evidence."""
    model, x = build(1, covariance, weights), clusters()
    guide = MeanFieldMixture(model, x)
    exact = model.prior.log_joint(x, torch.ones(90, 1).double())
    for _ in range(3):
        loss = elbo(model, guide).loss(x, size=90)
        torch.testing.assert_close(loss, -exact / 90, atol=1e-10, rtol=0)
    evidence = log_evidence(model, guide, x, num_samples=3)
    assert evidence.mean == pytest.approx(exact.item() / 90, abs=1e-10)


@both_priors
@every_kind
def test_expectations_of_the_ascent_are_those_of_draws(covariance, weights):
    model, x = build(3, covariance, weights, prior_df=8.0), torch.randn(6, 2).double()
    posterior = model.prior.given(x, torch.rand(6, 3).double().softmax(1))
    with pyro.plate("draws", 20_000, dim=-2):
        weights_, locs, root = model.sample_shared(posterior)
    if covariance != "full":
        root = root.expand_as(locs).diag_embed()
    rows = torch.distributions.MultivariateNormal(locs, scale_tril=root)
    joint = weights_.log().squeeze(1) + rows.log_prob(x[:, None, None])  # (N, S, K)
    error = joint.std(1) / 20_000**0.5
    assert ((joint.mean(1) - posterior.expected_log_joint(x)) / error).abs().max() < 4.5


@both_priors
@every_kind
def test_the_bound_rises_and_stays_below_the_evidence(covariance, weights):
    """The evidence is a sum over all 2^7 ways to place the rows."""
    model, x = build(2, covariance, weights), clusters(rows=7)
    ways = itertools.product([0, 1], repeat=7)
    exact = torch.stack([model.prior.log_joint(x, one_hot(z, 2)) for z in ways]).logsumexp(0)
    start = torch.rand(7, 2).double().softmax(1)
    bounds = [ascend(model.prior, x, start, max_steps=n, tolerance=0).bound for n in range(1, 25)]
    assert (np.diff(bounds) >= -1e-9).all()
    assert bounds[0] < bounds[-1] < exact
    best = ascend(model.prior, x, one_hot([0, 1, 1, 0, 1, 1, 0], 2))
    assert exact - best.bound < 3.5


def test_the_ascent_is_scikit_learns():
    """The same fixed point from the same start, a Dirichlet over full covariances."""
    model, x = build(3, prior_strength=0.5, prior_df=5.0, concentration=0.25), clusters(0.6)
    start = one_hot(torch.arange(90) % 3, 3)

    class Started(Peer):
        def _initialize_parameters(self, data, random_state, **_):
            self._initialize(data, start.numpy())

    settings = {
        "weight_concentration_prior_type": "dirichlet_distribution",
        "weight_concentration_prior": 0.25,
        "mean_precision_prior": 0.5,
        "mean_prior": model.loc.numpy(),
        "degrees_of_freedom_prior": 5.0,
        "covariance_prior": model.scale[0].numpy(),
    }
    peer = Started(n_components=3, reg_covar=0, tol=0, max_iter=500, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence at tolerance 0
        peer.fit(x.numpy())
    ours = ascend(model.prior, x, start, max_steps=501, tolerance=-1).posterior
    order = np.argsort(-peer.mean_precision_)
    np.testing.assert_allclose(ours.loc, peer.means_[order], atol=1e-7)
    np.testing.assert_allclose(ours.strength, peer.mean_precision_[order], atol=1e-6)
    np.testing.assert_allclose(ours.df, peer.degrees_of_freedom_[order], atol=1e-6)
    psi = peer.covariances_[order] * peer.degrees_of_freedom_[order, None, None]
    np.testing.assert_allclose(ours.scale[:, 0], psi, atol=1e-6)
    count = peer.weight_concentration_[order]
    np.testing.assert_allclose(ours.sticks[:, 0], count[:2], atol=1e-6)
    np.testing.assert_allclose(ours.sticks[:, 1], [count[1:].sum(), count[2]], atol=1e-6)


# Guides


@both_priors
def test_superfluous_components_are_emptied(weights):
    x = clusters()
    model = BayesianGaussianMixture(2, 8, weights=weights).double()
    guide = MeanFieldMixture(model, x)
    rows = guide.strength - 0.01
    torch.testing.assert_close(rows[:3], torch.full((3,), 30.0).double(), atol=0.5, rtol=0)
    assert rows[3:].abs().max() < 1e-4
    for name in ("loc", "df", "scale"):  # of those without rows the posterior is the prior
        after, before = getattr(guide.shared, name), getattr(model.prior, name)
        torch.testing.assert_close(after[3:], before[3:], atol=1e-4, rtol=0)
    assert MixturePosterior(model, x).num_occupied == 3


@both_priors
def test_split_clusters_are_joined_again(weights, monkeypatch):
    """Where every start has two components in each cluster, those are taken out."""
    labels = torch.arange(90) % 6
    monkeypatch.setattr("ppl_models.mixtures.mean_field.kmeans", lambda *_: labels[None])
    x, model = clusters(), BayesianGaussianMixture(2, 7, weights=weights).double()
    split = ascend(model.prior, x, one_hot(labels, 7))
    assert (split.responsibilities.sum(0) > 1).sum() > 3
    rows = model.mean_field(x).strength - 0.01
    torch.testing.assert_close(rows[:3], torch.full((3,), 30.0).double(), atol=0.5, rtol=0)
    assert rows[3:].max() < 0.1


@both_priors
@every_kind
def test_the_density_of_the_joint_normal_by_change_of_variables(covariance, weights):
    """Jacobians by differentiation, at a draw, with two components empty and with none."""
    x = clusters(rows=45)
    transform = biject_to(InverseWishart(torch.tensor(5.0), torch.eye(2)).support)
    rows, columns = torch.tril_indices(2, 2)

    def below(free):  # the elements of a covariance that are free
        return transform(free)[rows, columns]

    for components in (3, 5):
        model = build(components, covariance, weights)
        guide = MixturePosterior(model, x)
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.normal_(0, 0.1)
        nodes = poutine.trace(guide).get_trace(x).nodes
        got = sum(n["fn"].log_prob(n["value"]).sum() for n in nodes.values() if "fn" in n)
        value = {name: n["value"].detach() for name, n in nodes.items() if "fn" in n}

        root = guide.lower.tril(-1) + guide.log_scale.exp().diag()
        joint = torch.distributions.MultivariateNormal(
            guide.center + guide.spread @ guide.loc, scale_tril=guide.spread @ root
        )
        expected = joint.log_prob(value["_joint"])
        found, mixed = guide.mean_field.shared, value["_joint"][:2]  # three clusters: two sticks

        rest = found.sticks[2:]
        if weights == "dirichlet":
            concentration = torch.cat([rest[:, 0], rest[-1:, 1]]) if components > 3 else None
            left = value["weights"][2:].sum()
            inside = value["weights"][2:] / left

            def place(v, components=components):
                last = 1 - v[2:].sum() if components > 3 else v.new_ones(())
                within = torch.cat([v[2:], last[None]])
                a, b = v[:2].sigmoid()
                whole = torch.cat([a[None], ((1 - a) * b)[None], (1 - a) * (1 - b) * within])
                return whole[:-1]

            free = torch.cat([mixed, inside[:-1]])
            torch.testing.assert_close(place(free), value["weights"][:-1])
            slope = torch.autograd.functional.jacobian(place, free)
            expected = expected - slope.slogdet()[1]
            if concentration is not None:
                expected = expected + torch.distributions.Dirichlet(concentration).log_prob(inside)
        else:
            first, others = value["sticks"][:2], value["sticks"][2:]
            torch.testing.assert_close(first.logit(), mixed)
            expected = expected - (first * (1 - first)).log().sum()
            law = torch.distributions.Beta(rest[:, 0], rest[:, 1], validate_args=False)
            expected = expected + law.log_prob(others).sum()

        for k in range(components):
            sigma, mu = value["covariances"][k], value["locs"][k]
            if k >= 3:  # empty, as in the mean field
                matrix = sigma if covariance == "full" else sigma.expand(2).diag()
                normal = torch.distributions.MultivariateNormal(
                    found.loc[k], matrix / found.strength[k]
                )
                expected = expected + normal.log_prob(mu)
                if covariance == "full":
                    law = stats.invwishart(found.df[k].item(), found.scale[k, 0].numpy())
                    expected = expected + law.logpdf(sigma.numpy())
                else:
                    law = dist.InverseGamma(found.df[k] / 2, found.scale[k, :, 0, 0] / 2)
                    expected = expected + law.log_prob(sigma).sum()
            elif covariance == "full":
                free = transform.inv(sigma)
                slope = torch.autograd.functional.jacobian(below, free)
                expected = expected - slope.slogdet()[1]
            else:
                expected = expected - sigma.log().sum()
        torch.testing.assert_close(got, expected, atol=1e-8, rtol=0)


def test_a_joint_normal_starts_at_the_mean_field():
    model, x = build(4), clusters()
    field, joint = MeanFieldMixture(model, x), MixturePosterior(model, x)
    draws = [
        torch.stack([poutine.trace(g).get_trace().nodes["locs"]["value"] for _ in range(300)])
        for g in (field, joint)
    ]
    means, sds = [d.mean(0)[:3] for d in draws], [d.std(0)[:3] for d in draws]
    assert ((means[0] - means[1]) / sds[0]).abs().max() < 0.3
    torch.testing.assert_close(sds[1] / sds[0], torch.ones(3, 2).double(), atol=0.2, rtol=0)
    covariance = (joint.spread @ joint.spread.T)[-6:, -6:]  # of the centers of three components
    together = torch.block_diag(*[torch.ones(2, 2)] * 3).bool()
    assert covariance[~together].abs().max() < 1e-15
    assert covariance[together].abs().min() > 0


def gibbs(model, x, sweeps: int) -> torch.Tensor:
    """Draws of the centers, (S, K, D), from the exact posterior."""
    posterior, draws = model.mean_field(x), []
    for _ in range(sweeps):
        with pyro.validation_enabled(False):
            weights, locs, root = model.sample_shared(posterior)
            rows = dist.MultivariateNormal(locs, scale_tril=root)
        logits = weights.log() + rows.log_prob(x[:, None])
        z = torch.multinomial(logits.softmax(1), 1)[:, 0]
        posterior = model.prior.given(x, one_hot(z, model.num_components))
        draws.append(locs)
    return torch.stack(draws[sweeps // 10 :])


def test_the_joint_normal_is_as_wide_as_the_posterior_where_the_mean_field_is_not():
    """Beside Gibbs sampling, where components overlap."""
    torch.manual_seed(1)
    x = clusters(0.55, rows=300)
    x = (x - x.mean(0)) / x.std(0)
    model = BayesianGaussianMixture(2, 3).double()
    exact = gibbs(model, x, 800).std(0)
    joint = MixturePosterior(model, x)
    run = fit(elbo(model, joint), x, steps=200, lr=0.03, seed=0, schedule=CosineAnnealingLR)
    ratio = []
    for guide in (joint.mean_field, joint):
        nodes = [poutine.trace(guide).get_trace().nodes for _ in range(300)]
        ratio.append(torch.stack([n["locs"]["value"].detach() for n in nodes]).std(0) / exact)
    assert ratio[0].min() < 0.75  # in the direction in which two overlap
    assert ratio[1].min() > ratio[0].min() + 0.1
    assert 0.85 < ratio[1].mean() < 1.1
    assert np.mean(run.history["loss"][-50:]) < np.mean(run.history["loss"][:50])


def test_the_gradient_is_quiet_where_the_guide_is_right():
    """The score, zero on average, is left out: only what is wrong with the guide remains."""
    model, x = build(1), clusters(0.2, rows=300)
    guide = MixturePosterior(model, x)  # nearly exact
    slopes = []
    for _ in range(20):
        elbo(model, guide).loss(x, size=300).backward()
        slopes.append(guide.loc.grad.clone() * 300)
        guide.zero_grad()
    # With the score the gradient of a whitened location is as large as a standard normal draw.
    assert torch.stack(slopes).pow(2).mean() < 0.1


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
@every_kind
def test_autoguides_take_the_program(kind, covariance):
    model, x = build(3, covariance, "stick-breaking"), clusters()
    guide = kind(poutine.block(model, hide=["z"]))
    run = fit(elbo(model, guide), x, steps=2, seed=0)
    assert all(map(math.isfinite, run.history["loss"]))


def test_fitting_in_minibatches():
    model, x = build(4), clusters(rows=120)
    guide = MixturePosterior(model, x[:60])
    run = fit(elbo(model, guide), x, epochs=3, batch_size=32, lr=0.02, seed=0)
    assert all(p.isfinite().all() for p in guide.parameters())
    assert math.isfinite(run.history["loss"][-1])


def test_a_guide_can_be_saved(tmp_path):
    model, x = build(4), clusters()
    guide = MixturePosterior(model, x)
    fit(elbo(model, guide), x, steps=2, seed=0)
    save(tmp_path / "guide.safetensors", guide=guide)
    again = MixturePosterior(model, x)
    load(tmp_path / "guide.safetensors", guide=again)
    for left, right in zip(guide.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(left, right)


# The posterior of the components of rows


def test_drawn_components_have_their_exact_probabilities():
    torch.manual_seed(3)
    model, x = build(3), clusters(0.4, rows=40)
    latents = shared_draw(model)
    latents["locs"] = torch.tensor([[-0.5, 0.0], [0.4, 0.4], [0.4, -0.4]]).double()
    latents["covariances"] = 0.2 * torch.eye(2).double().expand(3, 2, 2)
    latents["weights"] = torch.tensor([0.5, 0.3, 0.2]).double()

    def guide(x, size=None):
        pyro.sample("weights", dist.Delta(latents["weights"], event_dim=1))
        with pyro.plate("component", 3, dim=-1):
            pyro.sample("covariances", dist.Delta(latents["covariances"], event_dim=2))
            pyro.sample("locs", dist.Delta(latents["locs"], event_dim=1))

    data = from_pyro_svi(model, guide, x, num_samples=200, seed=0)
    z = data["posterior"]["z"].values[0]  # (S, N)
    assert z.shape == (200, 40)
    assert z.dtype.kind == "i"
    exact = log_rows(model, latents, x).softmax(1)
    found = torch.stack([torch.from_numpy(z == k).double().mean(0) for k in range(3)], 1)
    error = (exact * (1 - exact) / 200).sqrt().clamp(min=1e-3)
    assert ((found - exact) / error).abs().max() < 4.5
    assert 0.1 < exact.max(1).values.min() < 0.9  # some rows are in doubt
    log_likelihood = data["log_likelihood"]["x"].values[0]
    expected = log_rows(model, latents, x).logsumexp(1)
    np.testing.assert_allclose(log_likelihood, expected.expand(200, 40), atol=1e-10)


def test_one_component_has_all_rows():
    model, x = build(1), clusters(rows=30)
    data = from_pyro_svi(model, MeanFieldMixture(model, x), x, num_samples=2)
    assert data["posterior"]["z"].shape == (1, 2, 30)
    assert not data["posterior"]["z"].values.any()
    np.testing.assert_array_equal(data["posterior"]["weights"].values, 1.0)


def test_names_for_arviz():
    model, x = build(3, "full", "stick-breaking"), clusters(rows=30)
    guide = MixturePosterior(model, x)
    posterior = from_pyro_svi(model, guide, x, num_samples=2)["posterior"]
    dims = {name: variable.dims[2:] for name, variable in posterior.items()}
    assert dims == {
        "sticks": ("stick",),
        "weights": ("component",),
        "covariances": ("component", "feature", "other_feature"),
        "locs": ("component", "feature"),
        "scales": ("component", "feature"),
        "z": ("data",),
    }
    weights = weights_of(torch.from_numpy(posterior["sticks"].values))
    np.testing.assert_allclose(posterior["weights"].values, weights)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 0}, "num_components: expected a positive whole number, got 0"),
        ({"num_features": 0}, "num_features"),
        ({"num_components": 2.5}, "num_components"),
        ({"covariance": "tied"}, "expected one of 'full', 'diag', 'spherical', got 'tied'"),
        ({"weights": "uniform"}, "weights: expected 'dirichlet' or 'stick-breaking'"),
        ({"concentration": 0.0}, "concentration: expected a positive number"),
        ({"concentration": math.inf}, "concentration"),
        ({"concentration": torch.ones(3)}, "concentration"),
        ({"prior_strength": -1.0}, "prior_strength: expected a positive number"),
        ({"prior_df": 3.0}, "prior_df: expected a finite number above 3, got 3.0"),
        ({"prior_df": 2.0, "covariance": "diag"}, "above 2"),
        ({"prior_loc": torch.zeros(3)}, r"prior_loc: .* or 2 of them.*shape \(3,\)"),
        ({"prior_loc": math.nan}, "prior_loc"),
        ({"prior_scale": torch.ones(2, 2)}, r"prior_scale.*shape \(2, 2\)"),
        ({"prior_scale": 0.0}, "prior_scale: expected positive numbers"),
        ({"prior_scale": torch.tensor([1.0, -1.0])}, "prior_scale: expected positive numbers"),
        ({"prior_scale": torch.ones(2), "covariance": "spherical"}, "prior_scale.*one for all"),
    ],
)
def test_priors_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        BayesianGaussianMixture(**({"num_features": 2, "num_components": 3} | arguments))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 2), "at least 3 rows of finite numbers, got 2"),
        (torch.zeros(1, 2), "got 1. Try more rows"),
        (torch.zeros(0, 2), "got 0. Try more rows"),
        (torch.tensor([[0.0, math.nan]] * 9), "9 of 9 rows hold NaN"),
        (torch.full((9, 2), math.inf), "9 of 9 rows hold NaN or infinity"),
        (torch.zeros(9, 3), "2 features"),
        (torch.zeros(9, 2, dtype=torch.long), "floating-point"),
        (torch.zeros(9, 2, dtype=torch.float64), "rows of torch.float32.*Try model.double"),
    ],
)
def test_rows_are_checked(x, message):
    model = BayesianGaussianMixture(2, 3)
    for guide in (MeanFieldMixture, MixturePosterior):
        with pytest.raises((ValueError, TypeError), match=message):
            guide(model, x)


def test_a_joint_normal_that_is_too_large_is_refused():
    model = BayesianGaussianMixture(70, 2).double()
    x = torch.randn(60, 70).double() + 9 * (torch.arange(60) % 2)[:, None]
    with pytest.raises(ValueError, match=r"2 components have 5111 free.*covariance='diag'"):
        MixturePosterior(model, x)
    diagonal = BayesianGaussianMixture(70, 2, covariance="diag").double()
    assert MixturePosterior(diagonal, x).num_occupied == 2


ODD = {
    "one row, one component": (torch.randn(1, 2), 1),
    "all rows the same": (torch.ones(20, 2), 3),
    "two distinct rows": (torch.ones(20, 2) * (torch.arange(20) % 2)[:, None], 4),
    "a constant column": (torch.randn(20, 2) * torch.tensor([1.0, 0.0]), 3),
    "as many components as rows": (torch.randn(4, 2), 4),
    "a far row": (torch.cat([torch.randn(20, 2), torch.full((1, 2), 1e3)]), 3),
}


@pytest.mark.parametrize("name", ODD)
@both_priors
@every_kind
def test_odd_data_have_a_proper_posterior(name, weights, covariance):
    """The prior keeps every covariance away from zero."""
    x, components = ODD[name]
    model = BayesianGaussianMixture(2, components, covariance, weights).double()
    guide = MixturePosterior(model, x.double())
    run = fit(elbo(model, guide), x.double(), steps=2, seed=0)
    assert all(map(math.isfinite, run.history["loss"]))
    assert all(p.isfinite().all() for p in guide.parameters())


def test_single_precision_works():
    x = clusters().float()
    model = BayesianGaussianMixture(2, 8)
    guide = MixturePosterior(model, x)
    run = fit(elbo(model, guide), x, steps=20, lr=0.02, seed=0)
    assert guide.num_occupied == 3
    assert math.isfinite(run.history["loss"][-1])
