"""A VAE with a diffusion prior: its ELBO by its parts, and a case where all is Gaussian."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from guides import AmortizedNormal
from ppl_models import VAE, Transformed, elbo, fit, log_evidence
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.latent import LatentDiffusion
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.samplers import heun
from ppl_models.diffusion.schedules import LogLinear, alpha_sigma
from ppl_models.likelihoods import Bernoulli, Categorical, Normal
from ppl_models.nn import MLP, TimeMLP

F64 = torch.float64
VARIANCES = torch.tensor([0.5, 2.0], dtype=F64)  # of the latents


class Exact(nn.Module):
    """E[z | z_t] of independent normals."""

    def forward(self, z, log_snr):
        alpha, sigma = alpha_sigma(log_snr[:, None])
        return alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2) * z


def gaussian(num_steps):
    """x = W z + b + noise, with z from a diffusion model of N(0, VARIANCES); p(x); q(z | x)."""
    torch.manual_seed(0)
    vae = VAE(3, 2, Normal(min_scale=0.5), nn.Linear(2, 3)).double()
    with torch.no_grad():
        vae.likelihood.log_scale.fill_(-30.0)  # a scale of 0.5
        weight, bias = vae.decoder.weight, vae.decoder.bias
        diffusion = Diffusion(2, Exact(), LogLinear(8.0, -12.0), "x0", num_steps).double()
        covariance = weight * VARIANCES @ weight.T + 0.25 * torch.eye(3, dtype=F64)
        evidence = torch.distributions.MultivariateNormal(bias, covariance)
        precision = (1 / VARIANCES).diag() + weight.T @ weight / 0.25

    class Posterior(nn.Module):
        """The exact one, with correlations."""

        def posterior(self, x):
            loc = torch.linalg.solve(precision, weight.detach().T @ (x - bias.detach()).T / 0.25)
            return dist.MultivariateNormal(loc.T, precision_matrix=precision)

    return LatentDiffusion(vae, diffusion), evidence, Posterior()


def test_elbo_is_that_of_the_vae_with_the_bound_of_the_prior():
    """log p(x | z) - log q(z | x), and the program of the diffusion model on z."""
    torch.manual_seed(1)
    vae, guide = VAE(4, 2, Bernoulli()).double(), AmortizedNormal(4, 2).double()
    diffusion = Diffusion(2, schedule=LogLinear(3.0, -3.0), num_steps=3).double()
    model, x = LatentDiffusion(vae, diffusion), torch.randint(2, (6, 4)).to(F64)
    noising = model.noising(guide)
    with torch.no_grad():
        torch.manual_seed(2)
        loss = elbo(model, noising).loss(x, size=60)
        torch.manual_seed(2)
        drawn = poutine.trace(noising).get_trace(x, size=60)
        z = drawn.nodes["z"]["value"]
        prior = poutine.trace(poutine.replay(diffusion, drawn)).get_trace(z)
        above = poutine.trace(poutine.replay(diffusion.noising, drawn)).get_trace(z)
        bound = prior.log_prob_sum() - above.log_prob_sum()
        reading = vae.likelihood(vae.decoder(z)).log_prob(x).sum()
        entropy = guide.posterior(x).log_prob(z).sum()
    assert loss.item() == pytest.approx(-(reading - entropy + bound).item() / 6, abs=1e-9)
    assert {f"z_{t}" for t in range(4)} | {"z"} <= set(drawn.nodes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_evidence. .* draws are as good as")
def test_evidence_of_a_gaussian_is_a_bound_that_closes():
    gaps = []
    for steps, draws in ((5, 20), (60, 20), (60, 400)):
        model, evidence, posterior = gaussian(steps)
        x = evidence.sample((50,))
        got = log_evidence(model, model.noising(posterior), x, num_samples=draws, seed=2)
        assert got.kind == "lower bound"
        gaps.append(evidence.log_prob(x).mean().item() - got.mean)
    assert gaps[0] > 2 * gaps[1] > 2 * gaps[2] > -4 * got.monte_carlo_error
    assert gaps[2] < 0.1


def test_samples_have_the_moments_of_the_rows():
    """Those of the program, and means given fresh latents, which have no noise of their own."""
    model, evidence, _ = gaussian(400)
    with torch.no_grad():
        drawn = {0.0: model(size=20_000), 0.25: model.sample(20_000, heun, 40)}
    for noise, x in drawn.items():
        covariance = evidence.covariance_matrix - noise * torch.eye(3, dtype=F64)
        torch.testing.assert_close(x.mean(0), evidence.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(torch.cov(x.T), covariance, atol=0.05, rtol=0)


@pytest.mark.slow
def test_two_stages_mend_the_prior():
    """Latents at -2 and 2, where N(0, 1) says 0: the diffusion model has learned where they are."""
    torch.manual_seed(0)
    z = 2.0 * torch.randint(2, (500, 1)) - 1 + 0.1 * torch.randn(500, 1)
    x = torch.cat([2 * z, -z], 1) + 0.2 * torch.randn(500, 2)
    vae, guide = VAE(2, 1, Normal(), MLP(1, 2, (16,))), AmortizedNormal(2, 1, MLP(2, 2, (16,)))
    fit(elbo(vae, guide), x, steps=300, lr=1e-2, seed=0, progress=False)
    network = TimeMLP(1, 1, (64, 64))
    diffusion = Diffusion(1, network, LogLinear(6.0, -5.0), num_steps=40)
    draws = Transformed(x, transform=lambda x: guide.posterior(x).sample())
    fit(denoising(diffusion), draws, steps=300, lr=5e-3, seed=0, progress=False)
    model = LatentDiffusion(vae, diffusion)
    before = log_evidence(vae, guide, x, num_samples=50, seed=1)
    after = log_evidence(model, model.noising(guide), x, num_samples=50, seed=1)
    assert after.mean > before.mean + 0.2

    def stray(rows):  # where no row has been: between the two
        return (rows[:, 0].abs() < 0.8).double().mean().item()

    with torch.no_grad():
        assert stray(model.sample(500, heun, 20)) < 0.5 * stray(vae.mean(torch.randn(500, 1)))


def test_what_does_not_fit_is_refused():
    vae = VAE(4, 2)
    with pytest.raises(ValueError, match="expected rows of 2 numbers"):
        LatentDiffusion(vae, Diffusion(3))
    with pytest.raises(TypeError, match="latent vectors are real"):
        LatentDiffusion(vae, Diffusion(2, likelihood=Categorical(5)))
    model = LatentDiffusion(vae, Diffusion(2))
    with pytest.raises(TypeError, match=r"posterior\(x\), got Linear"):
        model.noising(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="4 features"):
        model(torch.zeros(3, 5))
