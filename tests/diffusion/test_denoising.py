"""Denoising: the mean of the bound, and its gradient."""

import pytest
import torch
from torch import nn

from ppl_models import fit
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.schedules import Learned, LogLinear, alpha_sigma
from ppl_models.likelihoods import Categorical
from ppl_models.nn import ResNet, TimeMLP
from tests.support.diffusion import F64, GaussianDenoiser, every_kind, rows, small
from tests.support.oracles import binary
from tests.support.runs import quiet


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
