"""Learned priors: densities that integrate to one, draws that follow them, bounds that hold."""

import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Distribution

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo, fit, load, log_evidence, save
from ppl_models.infer.objectives.iwae import iwae
from ppl_models.likelihoods import Bernoulli, Normal
from ppl_models.priors import FlowPrior, MixturePrior, StandardNormal, VampPrior, check_prior


def vamp(num_latents):
    x = torch.randn(6, 4)
    return VampPrior(x, AmortizedNormal(4, num_latents))


def flow(num_latents):
    pytest.importorskip("zuko")
    return FlowPrior(num_latents, num_transforms=2, hidden=(16,))


def mixture(num_latents):
    prior = MixturePrior(num_latents, 5)
    with torch.no_grad():
        prior.logits.normal_()
        prior.log_scales.uniform_(-1, 0.5)
    return prior


PRIORS = {"normal": StandardNormal, "mixture": mixture, "vamp": vamp, "flow": flow}
each = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())


def grid(points=301, reach=14.0):
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(line, line), (line[1] - line[0]) ** 2


@each
def test_its_density_integrates_to_one(make):
    z, cell = grid()
    with torch.no_grad():
        total = make(2).double()().log_prob(z).exp().sum() * cell
    assert total.item() == pytest.approx(1.0, abs=2e-3)


@each
def test_its_draws_follow_its_density(make):
    z, cell = grid()
    with torch.no_grad():
        density = make(2).double()()
        p = density.log_prob(z).exp() * cell  # (grid points,)
        draws = density.sample((20_000,))
    assert draws.shape == (20_000, 2)
    mean = p @ z
    torch.testing.assert_close(draws.mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(draws.square().mean(0), p @ z.square(), atol=0.15, rtol=0.05)
    inside = ((draws - mean).abs() < 0.5).all(1).double().mean()
    expected = p[((z - mean).abs() < 0.5).all(1)].sum().item()
    assert inside.item() == pytest.approx(expected, abs=0.02)


@each
@pytest.mark.parametrize("objective", [elbo, lambda m, g: iwae(m, g, 3)], ids=["elbo", "iwae"])
def test_a_vae_learns_it_and_its_evidence_is_a_bound(make, objective):
    """One latent, two binary pixels: the evidence of each of the four rows by integration."""
    torch.manual_seed(1)
    guide = AmortizedNormal(2, 1)
    prior = VampPrior(torch.randn(6, 2), guide) if make is vamp else make(1)
    vae = VAE(2, 1, Bernoulli(), nn.Linear(1, 2), prior=prior)
    x = torch.cartesian_prod(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    before = {name: p.clone() for name, p in prior.named_parameters()}
    fit(objective(vae, guide), x.repeat(20, 1), epochs=3, batch_size=16, lr=1e-2, seed=0)
    for name, parameter in prior.named_parameters():
        assert not torch.equal(parameter, before[name]), name

    vae, guide, x = vae.double(), guide.double(), x.double()
    z = torch.linspace(-14, 14, 20_001, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        joint = vae.prior().log_prob(z) + vae.likelihood(vae.decoder(z)).log_prob(x.unsqueeze(1))
    exact = joint.logsumexp(1) + (z[1] - z[0]).log()
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=2e-3)

    def wide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 4.0).to_event(1))

    evidence = log_evidence(vae, wide, x, num_samples=20_000, seed=0)
    torch.testing.assert_close(evidence.value, exact, atol=0.06, rtol=0)
    one = log_evidence(vae, guide, x.repeat(1000, 1), num_samples=1, seed=0)
    assert one.mean < exact.mean() + 0.01
    assert evidence.kind == "lower bound"


def test_the_mean_of_all_posteriors_is_the_best_vamp_prior():
    """With the rows themselves as pseudo-inputs the prior is the aggregate, in closed form."""
    x = torch.randn(7, 4, dtype=torch.float64)
    guide = AmortizedNormal(4, 3).double()
    prior = VampPrior(x, guide)
    z = torch.randn(50, 3, dtype=torch.float64)
    each = torch.stack([guide.posterior(row.unsqueeze(0)).log_prob(z) for row in x])
    torch.testing.assert_close(prior().log_prob(z), each.logsumexp(0) - math.log(7))
    assert torch.equal(prior.pseudo_inputs, x)
    prior.pseudo_inputs.data += 1
    assert not torch.equal(prior.pseudo_inputs, x)  # a copy: the data stay as they are


def test_the_vamp_prior_shares_the_encoder():
    x, guide = torch.rand(30, 4).round(), AmortizedNormal(4, 2)
    vae = VAE(4, 2, prior=VampPrior(x[:5], guide))
    objective = elbo(vae, guide)
    objective.loss(x).backward()
    named = list(objective.named_parameters())
    assert len({id(p) for _, p in named}) == len(named)  # each trained once
    assert vae.prior.pseudo_inputs.grad.abs().sum() > 0
    expected = [p for m in (vae, guide) for p in m.parameters()]
    assert {id(p) for _, p in named} == {id(p) for p in expected}


@each
def test_files_hold_it(make, tmp_path):
    prior = make(2)
    vae = VAE(4, 2, prior=prior)
    file = tmp_path / "vae.safetensors"
    save(file, vae=vae)
    torch.manual_seed(8)
    other = VAE(4, 2, prior=make(2))
    load(file, vae=other)
    z = torch.randn(3, 2)
    torch.testing.assert_close(other.prior().log_prob(z), prior().log_prob(z))


def test_a_fit_with_a_shared_encoder_resumes(tmp_path):
    x = torch.rand(40, 4).round()

    def run(epochs, **options):
        torch.manual_seed(0)
        guide = AmortizedNormal(4, 2)
        vae = VAE(4, 2, prior=VampPrior(x[:5], guide))
        return fit(
            elbo(vae, guide), x, epochs=epochs, batch_size=16, lr=1e-2, seed=1, **options
        ).history["loss"]

    file = tmp_path / "vae.safetensors"
    run(2, checkpoint=file)
    assert run(4, checkpoint=file, resume=True) == run(4)


@each
def test_the_rows_it_samples(make):
    vae = VAE(4, 2, Normal(), prior=make(2))
    torch.manual_seed(0)
    x = vae(size=7)
    assert x.shape == (7, 4)
    assert len(x.unique(dim=0)) == 7


def test_a_prior_of_ones_own():
    class Uniform(nn.Module):
        def forward(self):
            return dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1)

    assert VAE(4, 2, prior=Uniform())(size=3).shape == (3, 4)


class Gives(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self):
        return self.value


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (dist.Normal(torch.zeros(2), 1.0), TypeError, "expected a module whose call"),
        (Gives(torch.zeros(2)), TypeError, "call of Gives to give a distribution of Pyro"),
        (MixturePrior(3, 4), ValueError, r"2 latents.*got \(\) and \(3,\).*num_latents=3"),
        (Gives(dist.Normal(torch.zeros(2), 1.0)), ValueError, r"\(2,\) and \(\).*to_event\(1\)"),
    ],
)
def test_what_is_no_prior(prior, error, message):
    with pytest.raises(error, match=message):
        VAE(4, 2, prior=prior)
    with pytest.raises(error, match=message):
        check_prior(prior, 2)


def test_refusals():
    guide = AmortizedNormal(4, 2)
    with pytest.raises(ValueError, match="num_components: expected a positive whole number"):
        MixturePrior(2, 0)
    with pytest.raises(TypeError, match="a module with posterior"):
        VampPrior(torch.rand(3, 4), lambda x: x)
    with pytest.raises(TypeError, match="floating-point"):
        VampPrior(torch.ones(3, 4).long(), guide)
    with pytest.raises(ValueError, match=r"shape \(0, 4\)"):
        VampPrior(torch.rand(0, 4), guide)
    with pytest.raises(ValueError, match="1 numbers that are not finite"):
        VampPrior(torch.tensor([[0.0, 1.0, torch.nan, 1.0]]), guide)
    with pytest.raises(ValueError, match="4 features"):
        VAE(5, 2, prior=VampPrior(torch.rand(3, 5), guide))


def test_the_checks_of_distributions_stay_on(monkeypatch):
    """Importing zuko switches them off for everyone."""
    pytest.importorskip("zuko")
    for name in [name for name in sys.modules if name.split(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    Distribution.set_default_validate_args(True)
    FlowPrior(2)
    assert "zuko" in sys.modules
    assert Distribution._validate_args
