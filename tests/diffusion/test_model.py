"""Diffusion: the Pyro program and its guide beside the closed-form variational bound."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from ppl_models import elbo, fit, log_evidence
from ppl_models.diffusion.bound import variational_bound
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.samplers import ddim, guided, heun
from ppl_models.diffusion.schedules import Learned, LogLinear, alpha_sigma
from ppl_models.likelihoods import Bernoulli, Categorical
from ppl_models.nn import MLP, TimeMLP
from tests.support.diffusion import F64, SHORT, every_kind, rows, small
from tests.support.oracles import binary
from tests.support.runs import quiet

POINTS = 32


def replayed(model, x, size=None):
    """The sites of the guide, and of the model on what it drew."""
    guide = poutine.trace(model.noising).get_trace(x, size=size)
    trace = poutine.trace(poutine.replay(model, guide)).get_trace(x, size=size)
    guide.compute_log_prob()
    trace.compute_log_prob()
    return guide, trace


def gauss_hermite(points):
    """Points and weights of E[f(e)] for standard normal e, on a grid in three dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    grid = torch.cartesian_prod(nodes, nodes, nodes)
    return grid, torch.cartesian_prod(weights, weights, weights).prod(1)


@every_kind
def test_elbo_of_the_program_is_the_closed_form_bound(kind, monkeypatch):
    """Both are integrated over their noise by quadrature: one feature, two steps, three draws.

    The program's draws are z_2, z_1 and z_0. The bound needs z_2 for the second step, z_1 for the
    first and z_0 for the reading, each from its own noise.
    """
    model, x = small(num_features=1, **kind), rows(1, 1, kind)
    grid, weights = gauss_hermite(POINTS)  # e, (G, 3)
    every = x.expand(len(grid), 1)

    def program():
        """log p - log q at the draws that these noises make."""
        used = iter(grid.T)
        with monkeypatch.context() as patch:
            normal = pyro.distributions.Normal
            patch.setattr(
                normal, "rsample", lambda d, shape=(): d.loc + d.scale * next(used)[:, None]
            )
            guide, trace = replayed(model, every)
        sites = [s for s in trace.nodes.values() if s["type"] == "sample" and s["name"] != "data"]
        log_p = sum(s["log_prob"] for s in sites)
        log_q = sum(guide.nodes[f"z_{t}"]["log_prob"] for t in (2, 1, 0))
        return (weights * (log_p - log_q)).sum()

    def bound():
        used = iter(grid.T)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda like: next(used)[:, None])
            return (weights * model.bound(every)).sum()

    with torch.no_grad():
        torch.testing.assert_close(program(), bound(), atol=1e-6, rtol=0)


@every_kind
def test_mean_field_elbo_is_the_bound_draw_by_draw(kind):
    """With Pyro's KL between Gaussians, at any draw of the guide."""
    model, x = small(num_steps=4, **kind), rows(7, 2, kind)
    with torch.no_grad():
        torch.manual_seed(3)
        loss = elbo(model, model.noising, TraceMeanField_ELBO()).loss(x, size=70)
        torch.manual_seed(3)
        guide, trace = replayed(model, x)
        inside, log_snr = model.standardise(x), model.log_snrs()
        expected = trace.nodes["x"]["log_prob"] - model.prior_divergence(x)
        for t in range(1, 5):
            x_hat = model.denoise(guide.nodes[f"z_{t}"]["value"], log_snr[t])
            weight = (log_snr[t - 1].exp() - log_snr[t].exp()) / 2
            expected = expected - weight * (inside - x_hat).square().sum(1)
    assert loss.item() == pytest.approx(-expected.mean().item(), abs=1e-9)


@every_kind
def test_each_term_is_pyros_divergence(kind):
    model, x = small(num_steps=3, **kind), rows(6, 2, kind)
    guide, trace = replayed(model, x)
    first = torch.distributions.kl_divergence(guide.nodes["z_3"]["fn"], trace.nodes["z_3"]["fn"])
    torch.testing.assert_close(model.prior_divergence(x), first)
    for t in (1, 2, 3):
        q, p = (traced.nodes[f"z_{t - 1}"]["fn"] for traced in (guide, trace))
        expected = torch.distributions.kl_divergence(q, p)
        z = guide.nodes[f"z_{t}"]["value"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "noisy", lambda x, log_snr, z=z: z)
            got = model.step_divergence(x, torch.full((6,), t))
        torch.testing.assert_close(got, expected)


@every_kind
def test_the_guide_draws_from_the_noising_process(kind):
    """Each z_t by itself is q(z_t | x), although it was drawn given the later ones."""
    model, x = small(num_steps=3, **kind), rows(1, 2, kind)
    with torch.no_grad():
        guide, _ = replayed(model, x.expand(40_000, 2))
        alpha, sigma = alpha_sigma(model.log_snrs())
        for t in range(4):
            z = guide.nodes[f"z_{t}"]["value"]
            expected = alpha[t] * model.standardise(x[0])
            torch.testing.assert_close(z.mean(0), expected, atol=0.02, rtol=0)
            torch.testing.assert_close(z.std(0), sigma[t].expand(2), atol=0.02, rtol=0)
    assert not [n for n, s in guide.nodes.items() if s["type"] == "param"]


def test_a_denoiser_that_knows_the_row_leaves_the_prior_and_the_reading():
    """No step costs anything, at any draw."""

    class Knows(nn.Module):
        def forward(self, z, log_snr):
            return x

    x = torch.randn(6, 3, dtype=F64)
    model = Diffusion(3, Knows(), SHORT, "x0", num_steps=5).double()
    guide, trace = replayed(model, x)
    expected = trace.nodes["x"]["log_prob"] + trace.nodes["z_5"]["log_prob"]
    expected = expected - guide.nodes["z_5"]["log_prob"]
    loss = sum(s["log_prob"] for s in trace.nodes.values() if "log_prob" in s)
    loss = loss - sum(guide.nodes[f"z_{t}"]["log_prob"] for t in range(6))
    torch.testing.assert_close(loss, expected)


def test_reading_is_proportional_to_the_noising_process():
    """p(x | z_0) = q(z_0 | x) / sum over the levels of q(z_0 | x)."""
    model, z = small(target="v", likelihood=Categorical(3)), torch.randn(4, 2, dtype=F64)
    alpha, sigma = alpha_sigma(model.log_snrs()[0])
    levels = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
    q = torch.distributions.Normal(alpha * levels, sigma).log_prob(z[..., None]).exp()  # (B, D, L)
    x = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.0, 0.0]], dtype=F64)
    index = (2 * x).long()[..., None]
    expected = (q / q.sum(-1, keepdim=True)).gather(-1, index).log().sum((1, 2))
    torch.testing.assert_close(model.read(z).log_prob(x), expected)


def test_reading_of_real_rows_is_in_their_units():
    """q(z_0 | x), normalised over x."""
    model = small(loc=0.3, scale=1.7)
    x, z = torch.randn(2, 6, 2, dtype=F64)
    alpha, sigma = alpha_sigma(model.log_snrs()[0])
    q = torch.distributions.Normal(alpha * (x - 0.3) / 1.7, sigma).log_prob(z).sum(1)
    torch.testing.assert_close(model.read(z).log_prob(x), q + 2 * (alpha / 1.7).log())


def test_levels_of_a_silent_network_are_bayes_rule_under_uniform_levels():
    class Silent(nn.Module):
        def forward(self, z, log_snr):
            return z.new_zeros(len(z), 3 * 2)

    model = Diffusion(2, Silent(), SHORT, "levels", 2, Categorical(3)).double()
    z, log_snr = torch.randn(4, 2, dtype=F64), torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=F64)
    alpha, sigma = alpha_sigma(log_snr[:, None, None])
    levels = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
    q = torch.distributions.Normal(alpha * levels, sigma).log_prob(z[..., None]).exp()
    torch.testing.assert_close(model.denoise(z, log_snr), (q @ levels) / q.sum(-1))


@pytest.mark.slow
def test_program_learns_a_gaussian_by_its_elbo_and_by_denoising():
    torch.manual_seed(0)
    x = 0.5 * torch.randn(500, 2) + torch.tensor([1.0, -1.0])
    truth = torch.distributions.Normal(torch.tensor([1.0, -1.0]), 0.5).log_prob(x).sum(1).mean()
    for objective in ("elbo", "denoising"):
        model = Diffusion(2, schedule=LogLinear(4.0, -4.0), num_steps=8)
        chosen = elbo(model, model.noising) if objective == "elbo" else denoising(model)
        before = variational_bound(model, x, num_samples=16, seed=0).mean
        fit(chosen, x, steps=120, batch_size=100, lr=1e-2, seed=0, progress=False)
        after = variational_bound(model, x, num_samples=16, seed=0).mean
        assert before < after - 2
        assert truth - 2.5 < after < truth


def with_labels(num_features=2, num_classes=3, **kind):
    num_outputs = num_features * (5 if kind.get("target") == "levels" else 1)
    network = TimeMLP(num_features, num_outputs, num_classes=num_classes)
    return small(num_features, network=network, **kind).eval()


@pytest.mark.parametrize(
    "kind",
    [{"target": "v"}, {"target": "levels", "likelihood": Categorical(5)}],
    ids=["v", "levels"],
)
def test_program_and_bound_of_rows_with_labels_agree(kind):
    """And are those of the unlabelled program with the network given the label."""
    model, x = with_labels(num_steps=3, **kind), rows(6, 2, kind)
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    with torch.no_grad():
        losses, bounds = [], torch.zeros(6, dtype=F64)
        for one in (0, 1, 2):
            fixed = lambda z, log_snr, one=one: model.network(  # noqa: E731
                z, log_snr, torch.full((len(z),), one)
            )
            plain = Diffusion(2, fixed, SHORT, num_steps=3, **kind).double()
            torch.manual_seed(3)
            trace = poutine.trace(plain.noising).get_trace(x)
            joint = poutine.trace(poutine.replay(plain, trace)).get_trace(x)
            joint.compute_log_prob(), trace.compute_log_prob()
            log_p = sum(s["log_prob"] for s in joint.nodes.values() if "log_prob" in s)
            log_q = sum(s["log_prob"] for s in trace.nodes.values() if "log_prob" in s)
            losses.append((log_p - log_q)[y == one].sum())
            torch.manual_seed(4)
            bounds[y == one] = plain.bound(x)[y == one]
        torch.manual_seed(3)
        loss = elbo(model, model.noising).loss(x, y)
        assert loss.item() == pytest.approx(-sum(losses).item() / 6, abs=1e-9)
        torch.manual_seed(4)
        torch.testing.assert_close(model.bound(x, y), bounds)

        draws = model.bound(x.repeat(3000, 1), y.repeat(3000)).view(3000, 6)
        error = draws.var(0).sum().sqrt().item() / 3000**0.5 / 6
        objective = denoising(model)
        trained = torch.stack([objective.loss(x.repeat(100, 1), y.repeat(100)) for _ in range(40)])
    sampled = variational_bound(model, x, y, num_samples=1000, seed=0)
    tolerance = 4 * (error + sampled.monte_carlo_error)
    assert sampled.mean == pytest.approx(draws.mean().item(), abs=tolerance)
    tolerance = 4 * (error + trained.std().item() / 40**0.5)
    assert -trained.mean().item() == pytest.approx(draws.mean().item(), abs=tolerance)


@pytest.mark.slow
def test_labels_are_learned():
    """Rows at -1, 0 and 1 by their label."""
    y = torch.arange(300) % 3
    x = (y - 1.0)[:, None] + 0.05 * torch.randn(300, 1)
    torch.manual_seed(0)
    network = TimeMLP(1, 1, (64, 64), num_classes=3)
    model = Diffusion(1, network, LogLinear(6.0, -5.0), num_steps=100)
    fit(denoising(model), (x, y), steps=400, lr=5e-3, seed=0, progress=False)
    known = variational_bound(model, x, y, seed=0).mean
    unknown = variational_bound(model, x, seed=0).mean
    truth = -math.log(0.05) - math.log(2 * math.pi * math.e) / 2  # given the label
    assert truth - 0.6 < known < truth
    assert unknown < truth - math.log(3)
    drawn = model.sample(300, heun, 20, y=y)[:, 0]
    assert ((drawn - (y - 1)).abs() < 0.4).double().mean() > 0.95
    strong = model.sample(300, heun, 20, y=y, guidance=3.0)[:, 0]
    assert (strong[y == 2].mean() - strong[y == 0].mean()) > 1.8
    torch.manual_seed(1)
    plain = model.sample(50, heun, 20, y=y[:50])
    torch.manual_seed(1)
    torch.testing.assert_close(model.sample(50, heun, 20, y=y[:50], guidance=1.0), plain)
    torch.manual_seed(1)
    without = model.sample(50, heun, 20, y=y[:50], guidance=0.0)
    torch.manual_seed(1)
    torch.testing.assert_close(without, model.sample(50, heun, 20))


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.tensor([0, 3]), ValueError, "from 0 to 2, got 1 of 2 others, such as 3"),
        (torch.tensor([-1, 0]), ValueError, "from 0 to 2, got 1 of 2 others, such as -1"),
        (torch.tensor([0.0, 1.0]), TypeError, r"Try y\.long"),
        (1, TypeError, "a tensor of labels, got int"),
        (torch.tensor([0, 1, 2]), ValueError, r"shape \(2,\), got \(3,\)"),
    ],
)
def test_labels_are_checked(y, error, message):
    with pytest.raises(error, match=message):
        with_labels().sample(2, heun, y=y)


def test_labels_are_checked_before_the_first_step():
    y = torch.tensor([0] * 9 + [3])
    model, x = with_labels(), torch.randn(10, 2, dtype=F64)
    with pytest.raises(ValueError, match="from 0 to 2, got 1 of 10 others, such as 3"):
        fit(denoising(model), (x, y), steps=1, batch_size=2)
    with pytest.raises(ValueError, match="from 0 to 2, got 1 of 10 others, such as 3"):
        variational_bound(model, x, y)
    with pytest.raises(ValueError, match="from 0 to 2, got 1 of 10 others, such as 3"):
        log_evidence(model, model.noising, x, y, num_samples=1)
    with pytest.raises(ValueError, match="same number of rows"):
        variational_bound(model, x, y[:5])


def test_guidance_needs_a_conditional_model():
    with pytest.raises(ValueError, match="TimeMLP takes none"):
        Diffusion(3).sample(2, heun, y=torch.tensor([0, 1]), guidance=2.0)
    with pytest.raises(ValueError, match="labels that it leads to, got y=None"):
        with_labels().sample(2, heun, guidance=2.0)
    with pytest.raises(ValueError, match="the network takes none"):
        TimeMLP(3, 3)(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="number of classes"):
        TimeMLP(3, 3, num_classes=-1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "score"}, ValueError, "expected one of 'x0', 'eps', 'v', 'edm', 'levels'"),
        ({"target": "levels"}, ValueError, "got likelihood=None"),
        ({"likelihood": Bernoulli()}, TypeError, r"Try Categorical\(2\)"),
        ({"schedule": lambda t: t}, ValueError, "log-SNRs that fall"),
        ({"schedule": LogLinear}, TypeError, "callable from times"),
        ({"num_steps": 0}, ValueError, "positive whole number"),
        ({"scale": 0.0}, ValueError, "scale: expected a positive number"),
        ({"data_scale": -1.0}, ValueError, "data_scale: expected a positive number"),
    ],
)
def test_diffusion_refuses(options, error, message):
    with pytest.raises(error, match=message):
        Diffusion(3, **options)


def test_rows_are_checked_before_the_first_step():
    levels = Diffusion(3, likelihood=Categorical(5))
    real = Diffusion(3)
    for model in (levels, real):
        with pytest.raises(ValueError, match="3 features"):
            fit(denoising(model), torch.zeros(10, 4), steps=1)
        with pytest.raises(ValueError, match="3 features"):
            variational_bound(model, torch.zeros(10, 4))
        with pytest.raises(ValueError, match="finite"):
            variational_bound(model, torch.full((10, 3), torch.nan))
    with pytest.raises(ValueError, match=r"10 of 10 rows lie outside the support .*5 grey levels"):
        fit(denoising(levels), torch.full((10, 3), 0.3), steps=1)
    with pytest.raises(ValueError, match="outside the support"):
        variational_bound(levels, torch.full((10, 3), 0.3))
    with pytest.raises(TypeError, match="rows and their labels"):
        fit(denoising(real), (torch.zeros(10, 3), torch.zeros(10), torch.zeros(10)), steps=1)
    with pytest.raises(ValueError, match="TimeMLP takes none"):
        fit(denoising(real), (torch.zeros(10, 3), torch.zeros(10)), steps=1)


def test_other_mistakes_are_told():
    with pytest.raises(TypeError, match="got MLP"):
        denoising(MLP(3, 3))
    with pytest.raises(TypeError, match="expected a diffusion model"):
        variational_bound(nn.Linear(3, 3), torch.zeros(10, 3))
    with pytest.raises(ValueError, match="expected 'bound' or 'simple'"):
        denoising(Diffusion(3), weights="snr")
    with pytest.raises(ValueError, match="learned"):
        denoising(Diffusion(3, schedule=Learned()), weights="simple")
    with pytest.raises(ValueError, match="even number"):
        variational_bound(Diffusion(3), torch.zeros(10, 3), num_samples=5)
    with pytest.raises(ValueError, match="num_steps"):
        variational_bound(Diffusion(3), torch.zeros(10, 3), num_steps=0)


LABELS = torch.arange(12) % 3


def test_samples_of_a_diffusion_model_drop_nothing():
    class Mode(TimeMLP):
        def forward(self, x, log_snr, y=None):
            assert not self.training
            return super().forward(x, log_snr, y)

    diffusion = Diffusion(4, Mode(4, 4, num_classes=3)).train()
    diffusion.sample(3, ddim, 4, y=LABELS[:3])
    assert diffusion.network.training


def test_nan_is_no_black_picture():
    diffusion = Diffusion(4, likelihood=Categorical(2))
    with torch.no_grad():
        next(diffusion.network.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="3 of 3 rows hold NaN"):
        diffusion.sample(3, ddim, 4)
    for strength in (math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match="guidance: expected a finite strength"):
            guided(lambda z, log_snr: z, lambda z, log_snr: z, strength)


def test_schedules_and_labels_that_do_not_fit():
    with pytest.raises(TypeError, match="expected a tensor of log-SNRs"):
        Diffusion(4, schedule=lambda t: 3.0)
    diffusion = Diffusion(4, TimeMLP(4, 4, num_classes=3))
    with pytest.raises(TypeError, match=r"Diffusion: expected a tensor of labels, got torch\.bool"):
        quiet(denoising(diffusion), (binary(12), LABELS.bool()), epochs=1, seed=0)
