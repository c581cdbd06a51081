"""Diffusion: the Pyro program and its guide beside the closed-form variational bound."""

import math
from itertools import pairwise

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
from ppl_models.diffusion.preconditioning import TARGETS, precondition
from ppl_models.diffusion.samplers import ddim, guided, heun
from ppl_models.diffusion.schedules import Cosine, Learned, LogLinear, alpha_sigma
from ppl_models.likelihoods import Bernoulli, Categorical
from ppl_models.nn import MLP, Condition, ResNet, TimeMLP, UNet
from tests.support.oracles import binary
from tests.support.runs import quiet

F64 = torch.float64
POINTS = 32
SHORT = LogLinear(3.0, -3.0)
KINDS = [
    {"target": "v"},
    {"target": "eps"},
    {"target": "x0", "loc": 0.3, "scale": 1.7},
    {"target": "v", "likelihood": Categorical(5)},
    {"target": "levels", "likelihood": Categorical(5)},
    {"target": "v", "schedule": Learned(3.0, -3.0)},
    {"target": "edm", "data_scale": 0.7},
]


def every_kind(function):
    name = lambda kind: "-".join(  # noqa: E731
        type(v).__name__ if k in ("likelihood", "schedule") else str(v) for k, v in kind.items()
    )
    return pytest.mark.parametrize("kind", KINDS, ids=name)(function)


def small(num_features=2, num_steps=2, **kind):
    """A model with a random network, in float64."""
    return Diffusion(num_features, num_steps=num_steps, **{"schedule": SHORT} | kind).double()


def rows(count, num_features, kind):
    if kind.get("likelihood"):
        return torch.randint(5, (count, num_features)).to(F64) / 4
    return torch.randn(count, num_features, dtype=F64)


class GaussianDenoiser(nn.Module):
    """The exact E[x | z_t] where the rows are independent normals of given variances."""

    def __init__(self, variances):
        super().__init__()
        self.variances = nn.Parameter(variances)

    def forward(self, z, log_snr):
        alpha, sigma = alpha_sigma(log_snr[:, None])
        return alpha * self.variances / (alpha**2 * self.variances + sigma**2) * z


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


def gaussian(num_steps, variances=(0.4, 0.2, 0.1)):
    variances = torch.tensor(variances, dtype=F64)
    model = Diffusion(3, GaussianDenoiser(variances), Cosine(10, -10), "x0", num_steps).double()
    return model, variances


def exact_bound(model, variances, num_steps):
    """The bound averaged over the rows too, in closed form: all is Gaussian."""
    log_snr = model.log_snrs(num_steps)
    (alpha, sigma), noise = alpha_sigma(log_snr), (-log_snr[0]).exp()
    left = (
        variances * sigma[1:, None] ** 2 / (alpha[1:, None] ** 2 * variances + sigma[1:, None] ** 2)
    )
    steps = (log_snr[:-1].exp() - log_snr[1:].exp()) @ left / 2  # (D,)
    prior = (alpha[-1] ** 2 * variances + sigma[-1] ** 2 - 1) / 2 - sigma[-1].log()
    reading = -(2 * torch.pi * noise).log() / 2 - 0.5
    return (reading - prior - steps).sum()


@pytest.mark.parametrize("num_steps", [3, 1000])
def test_bound_on_a_gaussian_is_its_closed_form(num_steps):
    model, variances = gaussian(num_steps)
    with torch.no_grad():
        x = torch.randn(4000, 3, dtype=F64) * variances.sqrt()
        got = variational_bound(model, x, num_samples=20, seed=1)
        expected = exact_bound(model, variances, num_steps).item()
    assert abs(got.mean - expected) < 4 * (got.standard_error + got.monte_carlo_error)


def test_bound_rises_with_the_steps_to_the_evidence():
    """In shape as in table 2 of Variational Diffusion Models: first fast, then slowly."""
    model, variances = gaussian(10)
    with torch.no_grad():
        bounds = [exact_bound(model, variances, steps).item() for steps in (10, 100, 1000, 10_000)]
    entropy = -(0.5 * (2 * torch.pi * torch.e * variances).log()).sum().item()
    gains = [b - a for a, b in pairwise(bounds)]
    assert gains[0] > 5 * gains[1] > 25 * gains[2] > 0
    assert bounds[-1] < entropy
    assert bounds[-1] == pytest.approx(entropy, abs=0.1)


def test_step_of_the_bound_is_jensens_not_the_evidence():
    """log_evidence of the program weights its draws, and lies between the bound and the truth."""
    model, variances = gaussian(3)
    x = torch.randn(60, 3, dtype=F64) * variances.sqrt()
    truth = torch.distributions.Normal(0.0, variances.sqrt()).log_prob(x).sum(1).mean().item()
    weighted = log_evidence(model, model.noising, x, num_samples=400, seed=0)
    bound = variational_bound(model, x, num_samples=400, seed=0)
    assert weighted.kind == bound.kind == "lower bound"
    assert bound.mean < weighted.mean < truth + 3 * weighted.monte_carlo_error
    one = log_evidence(model, model.noising, x.repeat(400, 1), num_samples=1, seed=0)
    assert one.mean == pytest.approx(bound.mean, abs=5 * one.value.std().item() / 24_000**0.5)


@every_kind
def test_variational_bound_is_the_mean_of_the_bound(kind):
    model, x = small(num_steps=5, **kind), rows(8, 2, kind)
    with torch.no_grad():
        draws = model.bound(x.repeat(2000, 1)).view(2000, 8)
        error = draws.var(0).sum().sqrt().item() / 2000**0.5 / 8
    every = variational_bound(model, x, num_samples=1000, seed=0)
    assert "lower bound (1000 draws, Monte Carlo error" in str(every)
    few = variational_bound(model, x, num_samples=2, seed=0)
    for got in (every, few):
        tolerance = 5 * (error + got.monte_carlo_error)
        assert got.mean == pytest.approx(draws.mean().item(), abs=tolerance)
    assert every.monte_carlo_error < few.monte_carlo_error / 5
    assert every.num_features == (2 if kind.get("likelihood") else None)
    again = variational_bound(model, x, num_samples=1000, batch_size=500, seed=0)
    assert again.mean == pytest.approx(every.mean, abs=5 * every.monte_carlo_error)


def test_monte_carlo_error_of_the_bound_is_that_of_seeds():
    model, x = small(num_steps=50), torch.randn(20, 2, dtype=F64)
    bounds = [variational_bound(model, x, num_samples=10, seed=seed) for seed in range(40)]
    spread = torch.tensor([b.mean for b in bounds]).std().item()
    stated = sum(b.monte_carlo_error for b in bounds) / len(bounds)
    assert 0.75 * spread < stated < 1.6 * spread


@every_kind
def test_denoising_has_the_mean_of_the_bound(kind):
    model, x = small(num_steps=5, **kind), rows(8, 2, kind)
    objective = denoising(model)
    with torch.no_grad():
        losses = torch.stack([objective.loss(x.repeat(100, 1)) for _ in range(40)])
        bounds = model.bound(x.repeat(2000, 1))
    error = (losses.var() / 40 + bounds.var() / 16_000).sqrt().item()
    assert losses.mean().item() == pytest.approx(-bounds.mean().item(), abs=5 * error)


def test_gradient_of_denoising_is_zero_at_the_exact_denoiser():
    """The variances of the data are the best, whatever the step: up to the noise of the draws."""
    variances = torch.tensor([0.4, 0.2, 0.1], dtype=F64)
    network = GaussianDenoiser(variances.clone())
    model = Diffusion(3, network, LogLinear(2.0, -2.0), "x0", num_steps=20).double()
    objective = denoising(model)
    x = torch.randn(50_000, 3, dtype=F64) * variances.sqrt()
    grads = []
    for factor in (1.0, 1.2):
        with torch.no_grad():
            model.network.variances.copy_(factor * variances)
        model.zero_grad()
        objective.loss(x).backward()
        grads.append(model.network.variances.grad.clone())
    assert (grads[0].abs() < 0.2 * grads[1].abs()).all()
    assert (grads[1] > 0).all()


def test_simple_weights_are_the_error_of_the_noise():
    model, x = small(num_steps=6, target="eps"), torch.randn(5, 2, dtype=F64)
    torch.manual_seed(0)
    loss = denoising(model, weights="simple").loss(x)
    torch.manual_seed(0)
    u = torch.rand(()) + torch.arange(5) / 5
    log_snr = model.log_snrs()[1 + ((u % 1) * 6).long()]
    alpha, sigma = alpha_sigma(log_snr[:, None])
    noise = torch.randn_like(x)
    expected = noise - model.network(alpha * x + sigma * noise, log_snr)
    torch.testing.assert_close(loss, expected.square().sum(1).mean())


def test_edm_is_the_preconditioning_of_karras():
    """c_skip, c_out and c_in of table 1 there, in the coordinates z / alpha."""
    model = small(target="edm", data_scale=0.7)
    z, log_snr = torch.randn(6, 2, dtype=F64), torch.linspace(-3, 3, 6, dtype=F64)
    sigma, data = (-log_snr[:, None] / 2).exp(), 0.7  # of Karras et al.
    total = (sigma**2 + data**2).sqrt()
    skip, out, into = data**2 / total**2, sigma * data / total, 1 / total
    y = z / alpha_sigma(log_snr[:, None])[0]
    expected = skip * y + out * model.network(into * y, log_snr)
    torch.testing.assert_close(model.denoise(z, log_snr), expected)


def test_edm_of_unit_variance_is_v():
    log_snr = torch.linspace(-3, 3, 6, dtype=F64)
    edm, v = precondition("edm", log_snr, 1.0), precondition("v", log_snr)
    torch.testing.assert_close(edm.c_in, v.c_in)
    torch.testing.assert_close(edm.c_skip, v.c_skip)
    torch.testing.assert_close(edm.c_out, -v.c_out)


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_that_knows_its_target_gives_the_row(target):
    """x0, the noise, v = alpha e - sigma x; and under edm what is left of x, in its units."""
    x, noise = torch.randn(2, 6, 3, dtype=F64)
    log_snr = torch.linspace(-3, 3, 6, dtype=F64)
    alpha, sigma = alpha_sigma(log_snr[:, None])
    z = alpha * x + sigma * noise
    left = (x - alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * z) / (sigma * 0.5)
    knows = {
        "x0": x,
        "eps": noise,
        "v": alpha * noise - sigma * x,
        "edm": left * (alpha**2 * 0.25 + sigma**2).sqrt(),
    }
    model = Diffusion(3, lambda z, log_snr: knows[target], SHORT, target).double()
    torch.testing.assert_close(model.denoise(z, log_snr), x)


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


def test_a_learned_schedule_is_learned():
    model = Diffusion(2, schedule=Learned(4.0, -4.0), num_steps=8)
    before = model.log_snrs().detach()
    fit(denoising(model), torch.randn(200, 2), steps=20, lr=1e-2, seed=0, progress=False)
    assert (model.log_snrs() - before).abs().max() > 0.05
    assert (model.log_snrs().diff() < 0).all()


def test_fit_resumes_bit_for_bit(tmp_path):
    x = torch.randint(5, (40, 3)) / 4.0

    def train(steps, path, resume=False):
        torch.manual_seed(0)
        model = Diffusion(3, target="levels", likelihood=Categorical(5), num_steps=6)
        options = {"batch_size": 16, "seed": 0, "checkpoint": path, "resume": resume}
        fit(denoising(model), x, steps=steps, progress=False, **options)
        return model.state_dict()

    whole = train(9, tmp_path / "a")
    train(4, tmp_path / "b")
    parts = train(9, tmp_path / "b", resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    "network", [ResNet((4, 4), channels=4, num_blocks=2), UNet((4, 4), channels=(4, 8))]
)
def test_convolutional_networks_see_every_pixel_and_the_time(network):
    """Whatever they start as: each output depends on each input, and on the log-SNR."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 16)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, torch.zeros(1)), x)
    assert (jacobian[0, :, 0].abs() > 0).all()
    assert not torch.equal(network(x, torch.zeros(1)), network(x, torch.ones(1)))
    two = network(x.repeat(2, 1), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(two[1:], network(x, torch.ones(1)))


@pytest.mark.parametrize("kind", [ResNet, UNet])
def test_outputs_of_a_pixel_are_next_to_one_another(kind):
    """In the order of `Categorical`: pixel by pixel, level by level."""
    torch.manual_seed(0)
    network = kind((4, 4), num_outputs=3)
    head = network.end[-1]
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    output = network(torch.zeros(1, 16), torch.zeros(1))
    torch.testing.assert_close(output, torch.tensor([1.0, 2.0, 3.0]).repeat(16)[None])


def with_labels(num_features=2, num_classes=3, **kind):
    num_outputs = num_features * (5 if kind.get("target") == "levels" else 1)
    network = TimeMLP(num_features, num_outputs, num_classes=num_classes)
    return small(num_features, network=network, **kind).eval()


@pytest.mark.parametrize(
    "network",
    [
        TimeMLP(16, 16, num_classes=3),
        ResNet((4, 4), channels=4, num_blocks=2, num_classes=3),
        UNet((4, 4), channels=(4, 8), num_classes=3),
    ],
    ids=lambda network: type(network).__name__,
)
def test_networks_see_the_label_of_each_row(network):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.eval()
    x, log_snr = torch.randn(1, 16).expand(4, 16), torch.zeros(4)
    known = network(x, log_snr, torch.tensor([0, 1, 2, 1]))
    unknown = network(x, log_snr)
    torch.testing.assert_close(known[1], known[3])
    assert ((known[:3] - torch.cat([known[1:3], unknown[:1]])).abs().amax(1) > 1e-3).all()


def test_labels_are_left_out_in_training_alone():
    condition = Condition(8, num_classes=3, left_out=0.25)
    log_snr, y = torch.zeros(8000), torch.ones(8000, dtype=torch.long)
    unknown, known = condition(log_snr[:1])[0], condition.eval()(log_snr, y)
    assert torch.equal(known, known[:1].expand(8000, 8))
    drawn = condition.train()(log_snr, y)
    left_out = (drawn == unknown).all(1)
    assert left_out.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(drawn[~left_out], known[~left_out])


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
        (torch.tensor([0, 3]), ValueError, "expected 0 to 2, got 0 to 3"),
        (torch.tensor([-1, 0]), ValueError, "expected 0 to 2, got -1 to 0"),
        (torch.tensor([0.0, 1.0]), TypeError, r"Try y\.long"),
        (1, TypeError, "tensor of whole numbers"),
        (torch.tensor([0, 1, 2]), ValueError, "one for each of 2 rows, got 3"),
    ],
)
def test_labels_are_checked(y, error, message):
    with pytest.raises(error, match=message):
        with_labels().sample(2, heun, y=y)


def test_labels_are_checked_before_the_first_step():
    y = torch.tensor([0] * 9 + [3])
    model, x = with_labels(), torch.randn(10, 2, dtype=F64)
    with pytest.raises(ValueError, match="expected 0 to 2, got 0 to 3"):
        fit(denoising(model), (x, y), steps=1, batch_size=2)
    with pytest.raises(ValueError, match="expected 0 to 2, got 0 to 3"):
        variational_bound(model, x, y)
    with pytest.raises(ValueError, match="expected 0 to 2, got 0 to 3"):
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


def test_unet_refuses_odd_sizes():
    with pytest.raises(ValueError, match="multiples of 2, got 7 x 8"):
        UNet((7, 8))
    with pytest.raises(ValueError, match="8 x 8 = 64 pixels, got 49"):
        UNet((8, 8))(torch.zeros(1, 49), torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "score"}, ValueError, "expected one of x0, eps, v, edm, levels"),
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
    with pytest.raises(ValueError, match="bound, simple"):
        denoising(Diffusion(3), weights="snr")
    with pytest.raises(ValueError, match="learned"):
        denoising(Diffusion(3, schedule=Learned()), weights="simple")
    with pytest.raises(ValueError, match="even number"):
        variational_bound(Diffusion(3), torch.zeros(10, 3), num_samples=5)
    with pytest.raises(ValueError, match="num_steps"):
        variational_bound(Diffusion(3), torch.zeros(10, 3), num_steps=0)


class Overflows(nn.Linear):
    def forward(self, z, log_snr):
        return super().forward(z) / 0.0


def test_a_loss_that_is_not_finite_names_its_term():
    model = Diffusion(3)
    with torch.no_grad():
        model.network.body[0].weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"body\.0\.weight is not finite"):
        fit(denoising(model), torch.zeros(10, 3), steps=1, progress=False)
    with pytest.raises(FloatingPointError, match="the denoising, in 10 of 10 rows"):
        fit(denoising(Diffusion(3, Overflows(3, 3))), torch.ones(10, 3), steps=1, progress=False)


LABELS = torch.arange(12) % 3


@pytest.mark.parametrize(
    ("network", "target"),
    [
        (ResNet((2, 2), channels=8), "levels"),  # one logit for all levels says nothing
        (TimeMLP(4, 1), "v"),
        (TimeMLP(4, 12), "levels"),
    ],
)
def test_a_network_of_another_shape_is_told_what_is_expected(network, target):
    diffusion = Diffusion(4, network, target=target, likelihood=Categorical(2), num_steps=3)
    with pytest.raises(ValueError, match=r"network: expected outputs of shape \(12, \d\) for"):
        quiet(denoising(diffusion), binary(12), epochs=1, seed=0)


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
    with pytest.raises(TypeError, match=r"labels: expected a tensor of whole numbers"):
        quiet(denoising(diffusion), (binary(12), LABELS.bool()), epochs=1, seed=0)
