"""Two layers of latents: a linear model with exact posteriors, then training."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from guides.ladder import BottomUpNormal, LadderNormal
from ppl_models import VAE, data_plate, elbo, fit, from_pyro_svi, log_evidence
from ppl_models.autoencoders.hierarchical import HierarchicalVAE
from ppl_models.infer.objectives.iwae import iwae
from ppl_models.likelihoods import Normal


class Affine(nn.Module):
    """From `(B, K)` to means `weight * input + bias` and constant log-scales."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        loc = self.weight * x + self.bias
        return loc if self.scale is None else torch.cat([loc, self.scale.log().expand_as(loc)], -1)


def linear(rows=6):
    r"""Each of 3 coordinates by itself: z2 ~ N(0, 1), z ~ N(a z2 + b, s^2), x ~ N(w z + c, r^2)."""
    a, b, w, c = torch.randn(4, 3, dtype=torch.float64)
    s = torch.rand(3, dtype=torch.float64) + 0.3
    model = HierarchicalVAE(3, 3, 3, Normal(), Affine(w, c), Affine(a, b, s)).double()
    r = model.likelihood(torch.zeros(1, 3, dtype=torch.float64)).stddev[0].detach()
    x = model(size=rows).detach()
    evidence = dist.Normal(w * b + c, (w**2 * (a**2 + s**2) + r**2).sqrt()).to_event(1)
    # q(z2 | x), with x ~ N(w a z2 + w b + c, v)
    v = w**2 * s**2 + r**2
    precision = 1 + (w * a) ** 2 / v
    top = Affine(w * a / v / precision, -(w * b + c) * w * a / v / precision, precision**-0.5)
    return model, x, evidence, top, (a, b, s, w, c, r)


def ladder(model, top, truth):
    _, _, _, w, c, r = truth
    said = Affine(1 / w, -c / w, r / w.abs())  # what x says of z alone
    return LadderNormal(model, 3, 3, 3, encoder=said, top_encoder=top)


def test_the_exact_ladder_closes_the_gap_for_any_draw():
    model, x, evidence, top, truth = linear()
    guide = ladder(model, top, truth)
    expected = -evidence.log_prob(x).mean()
    for objective in (elbo(model, guide), iwae(model, guide, 3)):
        torch.testing.assert_close(objective.loss(x), expected)
        torch.testing.assert_close(objective.loss(x, size=60), expected)


def test_the_exact_bottom_up_guide_closes_the_gap_too():
    """q(z | x) and q(z2 | z), from the joint Gaussian of each coordinate."""
    model, x, evidence, _, (a, b, s, w, c, r) = linear()
    prior = a**2 + s**2  # the variance of z
    precision = 1 / prior + w**2 / r**2
    encoder = Affine(w / r**2 / precision, (b / prior - w * c / r**2) / precision, precision**-0.5)
    above = 1 + a**2 / s**2
    top = Affine(a / s**2 / above, -a * b / s**2 / above, above**-0.5)
    guide = BottomUpNormal(3, 3, 3, encoder, top)
    torch.testing.assert_close(elbo(model, guide).loss(x), -evidence.log_prob(x).mean())


def test_the_ladder_multiplies_two_gaussians():
    model, x, _, top, truth = linear()
    guide = ladder(model, top, truth)
    z2 = torch.randn(len(x), 3, dtype=torch.float64)
    q = guide.posterior(x, z2)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64).view(7, 1, 1)
    said = dist.Normal(*guide.encoder(x).chunk(2, 1))
    said = dist.Normal(said.loc, said.scale.exp())
    product = said.log_prob(z) + model.conditional(z2).base_dist.log_prob(z)
    got = q.base_dist.log_prob(z)
    torch.testing.assert_close(got - got[:1], product - product[:1])  # up to a constant


def test_a_wrong_guide_gives_a_bound_that_converges():
    model, x, evidence, _, _ = linear(rows=4)

    def guide(x, size=None):
        with data_plate(x, size):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            prior = model.conditional(z2).base_dist
            pyro.sample("z", dist.Normal(prior.loc, 1.5 * prior.scale).to_event(1))

    exact = evidence.log_prob(x)
    bound = log_evidence(model, guide, x, num_samples=20_000, seed=0)
    torch.testing.assert_close(bound.value, exact, atol=0.15, rtol=0)
    assert log_evidence(model, guide, x, num_samples=1, seed=0).mean < exact.mean()
    assert bound.kind == "lower bound"


@pytest.mark.parametrize("kind", ["bottom-up", "ladder"])
def test_it_trains(kind):
    x = torch.bernoulli(torch.rand(40, 1).expand(40, 10))
    model = HierarchicalVAE(10, 3, 2)
    guide = BottomUpNormal(10, 3, 2) if kind == "bottom-up" else LadderNormal(model, 10, 3, 2)
    objective = elbo(model, guide)
    names = [name for name, _ in objective.named_parameters()]
    assert any("top_decoder" in name for name in names)
    assert len({id(p) for _, p in objective.named_parameters()}) == len(names)
    run = fit(objective, x, epochs=25, batch_size=20, lr=1e-2, seed=0)
    assert run.history["loss"][-1] < run.history["loss"][0] - 0.5
    posterior = from_pyro_svi(model, guide, x[:3], num_samples=4)["posterior"]
    assert posterior["z"].shape == (1, 4, 3, 3)
    assert posterior["z2"].shape == (1, 4, 3, 2)


def test_the_ladder_does_not_hold_the_model():
    model = HierarchicalVAE(10, 3, 2)
    guide = LadderNormal(model, 10, 3, 2)
    mine = {id(p) for p in guide.parameters()}
    assert not mine & {id(p) for p in model.parameters()}
    elbo(model, guide).loss(torch.ones(4, 10)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_refusals():
    with pytest.raises(TypeError, match=r"VAE has no conditional.*HierarchicalVAE"):
        LadderNormal(VAE(4, 2), 4, 2, 1)
    with pytest.raises(TypeError, match="likelihood: expected an object"):
        HierarchicalVAE(4, 2, 1, likelihood="bernoulli")
    model = HierarchicalVAE(4, 2, 1)
    for guide in (BottomUpNormal(4, 2, 1), LadderNormal(model, 4, 2, 1)):
        with pytest.raises(ValueError, match="4 features"):
            fit(elbo(model, guide), torch.ones(6, 5), epochs=1)
    with pytest.raises(ValueError, match="'z2'"):
        fit(elbo(model, lambda x: None), torch.ones(6, 4), epochs=1)


def test_gradients_reach_through_both_layers():
    """The layer drawn second depends on the one drawn first, and so on what drew that."""
    x = torch.randn(4, 10)
    model = HierarchicalVAE(10, 3, 2)
    guides = {"z2": BottomUpNormal(10, 3, 2), "z": LadderNormal(model, 10, 3, 2)}
    for site, guide in guides.items():
        value = poutine.trace(guide).get_trace(x).nodes[site]["value"]
        first = guide.encoder if site == "z2" else guide.top_encoder
        gradients = torch.autograd.grad(value.sum(), list(first.parameters()))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_copy_of_a_ladder_has_a_copy_of_its_model():
    model = HierarchicalVAE(4, 2, 1)
    guide = LadderNormal(model, 4, 2, 1)
    for alone in (guide, (guide, model)):  # in that order the model is not yet copied
        with pytest.raises(ValueError, match=r"LadderNormal: a copy of it alone.*deepcopy\(\("):
            copy.deepcopy(alone)
    other, its_guide = copy.deepcopy((model, guide))
    assert its_guide.conditional.__self__ is other
    assert guide.conditional.__self__ is model
    x = torch.ones(20, 4)
    torch.manual_seed(0)
    fit(elbo(other, its_guide), x, steps=3, seed=0)
    torch.manual_seed(1)
    expected = elbo(other, its_guide).loss(x)
    model.load_state_dict(other.state_dict())
    guide.load_state_dict(its_guide.state_dict())
    torch.manual_seed(1)
    torch.testing.assert_close(elbo(model, guide).loss(x), expected)
