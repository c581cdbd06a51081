"""The doubly reparameterised gradient: the same mean with less noise, and what has none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from guides import (
    AmortizedFlow,
    AmortizedMixture,
    AmortizedNormal,
    BottomUpNormal,
)
from ppl_models import VAE, HierarchicalVAE, data_plate, fit, iwae
from tests.support.oracles import binary, linear_gaussian

X = binary(6)


def gradients(objective, x, repeats):
    """Gradients of all parameters, one vector for each repeat, and their names."""
    names, found = zip(*objective.named_parameters(), strict=True)
    rows = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        parts = torch.autograd.grad(objective.loss(x), found, allow_unused=True)
        rows.append(torch.cat([p.flatten() for p in parts if p is not None]))
    sizes = [(n, p.numel()) for n, p in zip(names, found, strict=True)]
    return torch.stack(rows), torch.tensor(
        [n.startswith("guide") for n, k in sizes for _ in range(k)]
    )


def small(kind, **settings):
    torch.manual_seed(0)
    model, x = linear_gaussian(rows=4, features=3)
    guide = kind(3, 2, **settings)
    guide = kind(3, 2, encoder=nn.Linear(3, guide.num_outputs), **settings)
    return model, guide.double(), x


KINDS = [
    (AmortizedNormal, {}),
    (AmortizedMixture, {"num_components": 2}),
    (AmortizedFlow, {"num_context": 2, "num_transforms": 1, "hidden": (4,)}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_its_mean_is_that_of_the_plain_one(kind, settings):
    model, guide, x = small(kind, **settings)
    repeats = 200
    plain, of_guide = gradients(iwae(model, guide, 5), x, repeats)
    doubly, _ = gradients(iwae(model, guide, 5, doubly_reparameterised=True), x, repeats)
    error = ((plain.var(0) + doubly.var(0)) / repeats).sqrt() + 1e-9
    deviations = (plain.mean(0) - doubly.mean(0)) / error
    assert deviations.abs().max() < 5
    assert deviations.square().mean() < 2
    assert doubly[:, of_guide].var(0).sum() < plain[:, of_guide].var(0).sum()


def test_the_loss_and_the_gradient_of_the_model_are_the_same():
    model, guide, x = small(AmortizedNormal)
    objectives = [iwae(model, guide, 5, doubly_reparameterised=d) for d in (False, True)]
    found = []
    for objective in objectives:
        objective.loss(x)  # has looked
        torch.manual_seed(0)
        loss = objective.loss(x, size=40)
        found.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    for plain, doubly in zip(*found, strict=True):
        torch.testing.assert_close(plain, doubly)
    with torch.no_grad():
        torch.manual_seed(0)
        torch.testing.assert_close(objectives[1].loss(x), found[0][0])


def test_where_the_guide_is_the_posterior_its_gradient_is_zero():
    model, x = linear_gaussian(rows=4)
    scale = nn.Parameter(torch.ones((), dtype=x.dtype))

    def guide(x, size=None):
        pyro.module("scale", holder)
        exact = model.posterior(x)
        with data_plate(x, size):
            tril = holder.scale * exact.scale_tril.detach()
            pyro.sample("z", dist.MultivariateNormal(exact.loc.detach(), scale_tril=tril))

    holder = nn.Module()
    holder.scale = scale
    for doubly, small in ((True, 1e-9), (False, None)):
        loss = iwae(model, guide, 3, doubly_reparameterised=doubly).loss(x)
        (slope,) = torch.autograd.grad(loss, [scale])
        assert abs(slope) < small if doubly else abs(slope) > 1e-3


def test_several_sites_move_together():
    """Above and below, where the one below is what the one above is drawn from."""
    torch.manual_seed(0)
    model, guide = HierarchicalVAE(4, 2, 2).double(), BottomUpNormal(4, 2, 2).double()
    x, repeats = X.double(), 150
    plain, of_guide = gradients(iwae(model, guide, 3), x, repeats)
    doubly, _ = gradients(iwae(model, guide, 3, doubly_reparameterised=True), x, repeats)
    error = ((plain.var(0) + doubly.var(0)) / repeats).sqrt() + 1e-9
    deviations = (plain.mean(0) - doubly.mean(0)) / error
    assert deviations.square().mean() < 1.5
    assert doubly[:, of_guide].var(0).sum() < plain[:, of_guide].var(0).sum()


def test_it_trains_through_fit():
    torch.manual_seed(0)
    objective = iwae(VAE(4, 2), AmortizedNormal(4, 2), 4, doubly_reparameterised=True)
    run = fit(objective, X, epochs=60, batch_size=11, lr=5e-3, seed=0, validation=X)
    assert run.history["loss"][-1] < run.history["loss"][0] - 0.2
    assert list(run.history) == ["loss", "validation"]


def test_what_is_not_reparameterised_is_refused():
    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Drawn(dist.Normal):
        has_rsample = False

    def drawn(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", Drawn(pyro.param("loc", torch.zeros(())), 1.0))

    def moved(x, size=None):
        with data_plate(x, size):
            a = pyro.sample("a", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            scale = pyro.param("scale", torch.ones(()))
            pyro.sample("z", dist.Delta(scale * a, -scale.abs().log()))

    x = torch.randn(8)
    with pytest.raises(ValueError, match=r"'z' of the guide .* without a reparameterisation"):
        fit(iwae(model, drawn, 3, doubly_reparameterised=True), x, epochs=1)
    with pytest.raises(ValueError, match="'a' of the guide is a function of others, or one that"):
        fit(iwae(model, moved, 3, doubly_reparameterised=True), x, epochs=1)
