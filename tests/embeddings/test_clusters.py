"""A cluster above a latent vector: the density of the mixture prior, and clusters that are read."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    ClusteredVAE,
    MixturePrior,
    elbo,
    from_pyro_svi,
    log_evidence,
    warm_start,
)
from ppl_models.likelihoods import Normal
from ppl_models.nn import MLP
from tests.support.runs import quiet


def pair() -> tuple[ClusteredVAE, AmortizedNormal]:
    model = ClusteredVAE(4, num_clusters=3, num_latents=2, likelihood=Normal()).double()
    with torch.no_grad():
        model.logits.normal_()
        model.log_scales.normal_(std=0.3)
    return model, AmortizedNormal(4, 2).double()


def test_rows_have_the_density_of_a_mixture_prior():
    model, guide = pair()
    prior = MixturePrior(2, 3).double()
    vae = VAE(4, 2, model.likelihood, model.decoder, prior)
    with torch.no_grad():
        names = dict(prior.named_parameters())
        for own, theirs in ((model.logits, "logits"), (model.locs, "locs")):
            names[theirs].copy_(own)
        names["log_scales"].copy_(model.log_scales)
    x = model(size=7).detach()
    found = []
    for program in (model, vae):
        torch.manual_seed(1)
        found.append(elbo(program, guide).loss(x))
    torch.testing.assert_close(*found)


def test_the_cluster_of_a_latent_is_by_bayes():
    model, _ = pair()
    z = torch.randn(5, 2, dtype=torch.float64)
    joint = torch.stack(
        [
            model.logits.softmax(0)[c]
            * torch.distributions.Normal(model.locs[c], model.log_scales[c].exp())
            .log_prob(z)
            .sum(1)
            .exp()
            for c in range(3)
        ],
        1,
    )
    torch.testing.assert_close(model.cluster(z).probs, joint / joint.sum(1, keepdim=True))


def test_clusters_reach_arviz_as_often_as_they_are_assigned():
    model, guide = pair()
    x = model(size=6).detach()
    posterior = from_pyro_svi(model, guide, x, num_samples=4000, seed=0)["posterior"]
    drawn = nn.functional.one_hot(torch.from_numpy(posterior["cluster"].values[0]), 3)
    assigned = model.assignments(guide, x, num_samples=4000)
    torch.testing.assert_close(drawn.double().mean(0), assigned, atol=0.05, rtol=0)


@pytest.mark.filterwarnings("ignore:log_evidence. 20 draws")
def test_clusters_on_a_curved_sheet_are_found():
    """Three of them in four dimensions; by way of a VAE, as the docstring says."""
    y = torch.arange(300) % 3
    centers = 2 * torch.tensor([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]])
    u, v = (centers[y] + 0.4 * torch.randn(300, 2)).unbind(1)
    x = torch.stack([u, v, u * v, u**2 - v], 1) / 2 + 0.1 * torch.randn(300, 4)
    guide, vae = AmortizedNormal(4, 2, MLP(4, 4, (32,))), VAE(4, 2, Normal(), MLP(2, 4, (32,)))
    quiet(elbo(vae, guide), x, epochs=30, batch_size=50, lr=5e-3, seed=0)
    model = ClusteredVAE(4, 3, 2, Normal(), MLP(2, 4, (32,)))
    warm_start(model, from_=vae)
    with torch.no_grad():
        model.initialise(guide.posterior(x).sample())
    before = log_evidence(model, guide, x, num_samples=20, seed=0).mean
    quiet(elbo(model, guide), x, epochs=20, batch_size=50, lr=3e-3, seed=0)
    assert log_evidence(model, guide, x, num_samples=20, seed=0).mean > before
    assert adjusted_rand_score(y, model.assignments(guide, x).argmax(1)) > 0.9


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_clusters"):
        ClusteredVAE(4, 1, 2)
    model = ClusteredVAE(4, 3, 2)
    with pytest.raises(ValueError, match="at least 4 rows"):
        model.initialise(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="rows of 2 features"):
        model.initialise(torch.zeros(9, 4))
    with pytest.raises(ValueError, match="ClusteredVAE: expected rows of 4 features"):
        quiet(elbo(model, AmortizedNormal(5, 2)), torch.zeros(9, 5), steps=1)
