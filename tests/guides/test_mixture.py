"""Guides of Bayesian mixtures: exact where that is known, else beside Gibbs sampling."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.distributions import biject_to
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides.mixture import MeanFieldMixture, MixturePosterior
from ppl_models import elbo, fit, load, log_evidence, save
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.inverse_wishart import InverseWishart
from tests.support.mixtures import both_priors, build, clusters, every_kind, one_hot


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        (torch.zeros(9, 2, dtype=torch.float64), "rows of torch.float32.*Try x.to"),
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
