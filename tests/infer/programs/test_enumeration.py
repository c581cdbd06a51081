"""What is enumerated in parallel is summed out, and nothing else passes for it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, TraceTMC_ELBO, config_enumerate
from torch import nn

from ppl_models import data_plate, elbo, fit, from_pyro_svi, iwae, log_evidence
from tests.support.oracles import LOCS, WEIGHTS, mixture_evidence

X = torch.tensor([-2.2, 0.3, 3.1, -0.7, 1.5], dtype=torch.float64)


class Mixture(nn.Module):
    """Its component is marked by `infer`; with `latent` rows have a continuous latent, too."""

    def __init__(self, latent=False, **infer):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()).double())
        self.latent, self.infer = latent, infer

    def forward(self, x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(self.shift, 1e-6)) if self.latent else self.shift
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=dict(self.infer))
            return pyro.sample("x", dist.Normal(z + LOCS[k], 1.0), obs=x)


def plain(x=None, size=None):
    return UNMARKED(x, size)


UNMARKED = Mixture()

NOT_SUMMED = {
    "sequential": Mixture(enumerate="sequential"),
    "flat": Mixture(enumerate="flat"),
    "by config": config_enumerate(plain, default="sequential"),
    "draws": config_enumerate(plain, num_samples=7),
    "draws, expanded": config_enumerate(plain, num_samples=7, expand=True),
}
SAID = r"'k' are marked for an enumeration that sums over nothing .*'parallel'"


@pytest.mark.parametrize("name", NOT_SUMMED)
def test_other_marks_are_refused_everywhere(name):
    model = NOT_SUMMED[name]
    calls = (
        lambda: log_evidence(model, None, X),
        lambda: log_evidence(model, None, X, method="importance"),
        lambda: from_pyro_svi(model, None, X, num_samples=3),
        lambda: elbo(model).loss(X),
        lambda: fit(elbo(model), X, epochs=1),
        lambda: fit(elbo(model, None, TraceEnum_ELBO(max_plate_nesting=1)), X, epochs=1),
    )
    for call in calls:
        with pytest.raises((ValueError, NotImplementedError), match=SAID):
            call()


@pytest.mark.parametrize("infer", [{"enumerate": "sequential"}, {"enumerate": "flat"}])
def test_iwae_refuses_them(infer):
    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1e-6))

    with pytest.raises(ValueError, match=SAID):
        iwae(Mixture(latent=True, **infer), guide, 3).loss(X)
    with pytest.raises(ValueError, match=SAID):
        log_evidence(Mixture(latent=True, **infer), guide, X)
    loss = iwae(Mixture(latent=True, enumerate="parallel"), guide, 3).loss(X)
    assert loss.item() == pytest.approx(-mixture_evidence(X).mean().item(), abs=1e-4)


@pytest.mark.parametrize("infer", [{}, {"expand": True}])
def test_parallel_ones_are_summed(infer):
    model = Mixture(enumerate="parallel", **infer)
    evidence = log_evidence(model, None, X)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, mixture_evidence(X))
    torch.testing.assert_close(elbo(model).loss(X), -mixture_evidence(X).mean())


@pytest.mark.parametrize("infer", [{}, {"enumerate": "sequential"}])
def test_a_guide_may_enumerate_in_turn(infer):
    """With the posterior as guide every estimate is the evidence."""

    def guide(x, size=None):
        with data_plate(x, size):
            logits = WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(x[:, None])
            pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "sequential"})

    model = Mixture(**infer)
    truth = mixture_evidence(X)
    torch.testing.assert_close(elbo(model, guide).loss(X), -truth.mean())
    evidence = log_evidence(model, guide, X, num_samples=3)
    assert evidence.kind == "lower bound"
    torch.testing.assert_close(evidence.value, truth)


def test_pyro_s_estimator_of_draws_still_takes_them():
    model = config_enumerate(plain, num_samples=20_000, expand=True)
    objective = elbo(model, None, TraceTMC_ELBO(max_plate_nesting=1))
    objective.prepare(X, size=len(X))
    with torch.no_grad():
        loss = objective.loss(X).item()
    assert loss == pytest.approx(-mixture_evidence(X).mean().item(), abs=0.05)
