"""Weighted rows: a program with `poutine.scale` trains, and has no evidence and no draws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from torch import nn

from guides import AmortizedNormal, ExactPosterior
from ppl_models import (
    FactorAnalysis,
    elbo,
    fit,
    from_pyro_mcmc,
    from_pyro_svi,
    iwae,
    log_evidence,
    predict,
)
from ppl_models.plates import data_plate

X = torch.linspace(-1.0, 2.0, 12)
WEIGHTS = torch.ones(12).index_fill(0, torch.tensor([7, 9]), 3.0)  # the first rows count once


def shared(x, w=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with data_plate(x, size), poutine.scale(scale=1.0 if w is None else w):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def of_rows(x, w=None, size=None):
    with data_plate(x, size), poutine.scale(scale=1.0 if w is None else w):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class OfWeighted(nn.Module):
    """An amortised guide that takes the weights along."""

    def __init__(self):
        super().__init__()
        self.guide = AmortizedNormal(2, 2)

    def forward(self, x, w, size=None):
        return self.guide(x, size=size)


MESSAGE = r"site 'x': its log-density counts 3 times in 2 of 12 places, by poutine.scale.*Expected "


def test_weighted_rows_have_no_evidence():
    guide = AutoNormal(shared)
    guide(X, WEIGHTS)
    for call in (log_evidence, from_pyro_svi):
        with pytest.raises(ValueError, match=MESSAGE + ".*repeat_interleave"):
            call(shared, guide, X, WEIGHTS)
        call(shared, guide, X, torch.ones(12), num_samples=5)  # weights that change nothing
    run = MCMC(NUTS(shared), num_samples=3, warmup_steps=1, disable_progbar=True)
    run.run(X, WEIGHTS)
    with pytest.raises(ValueError, match=MESSAGE):
        from_pyro_mcmc(run)


def test_weights_of_later_rows_are_seen():
    """A first run looks at two rows, and these count once."""
    x, guide = torch.randn(12, 2), OfWeighted()
    for call in (log_evidence, from_pyro_svi):
        with pytest.raises(ValueError, match=r"counts 3 times in \d+ of \d+ places"):
            call(of_rows, guide, x, WEIGHTS, num_samples=10)
    with pytest.raises(ValueError, match=r"counts 3 times in \d+ of \d+ places"):
        fit(iwae(of_rows, guide, 5), (x, WEIGHTS), epochs=1, progress=False)


@pytest.mark.parametrize("scale", [0.1, torch.tensor(2.0)])
def test_a_tempered_model_or_guide_has_no_evidence(scale):
    model = FactorAnalysis(3, 1)
    x = model(size=9).detach()
    for programs in (
        (poutine.scale(model, scale), ExactPosterior(model)),
        (model, poutine.scale(ExactPosterior(model), scale)),
    ):
        with pytest.raises(ValueError, match=r"site '[xz]': its log-density counts .* times, by"):
            log_evidence(*programs, x, method="importance")
        with pytest.raises(ValueError, match=r"counts .* times, by poutine.scale"):
            predict(*programs, x, num_samples=3)


def test_the_scale_of_a_factor_or_a_part_is_seen():
    def part(x):
        with poutine.scale(scale=0.5):
            m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    guide = AutoNormal(part)
    guide(X)
    with pytest.raises(ValueError, match=r"site 'm': .* counts 0.5 times, by"):
        log_evidence(part, guide, X)


def test_repeated_rows_are_what_weights_mean():
    """The advice is true: the loss of weighted rows is that of rows that are repeated."""
    guide = AutoNormal(shared)
    guide(X)
    losses = []
    for rows in ((X, WEIGHTS), (X.repeat_interleave(WEIGHTS.long(), 0), torch.ones(16))):
        torch.manual_seed(3)
        losses.append(elbo(shared, guide).loss(*rows).item() * len(rows[0]))
    assert losses[0] == pytest.approx(losses[1])
    run = fit(elbo(shared, guide), (X, WEIGHTS), epochs=2, progress=False)  # it trains
    assert len(run.history["loss"]) == 2
