"""A seed that is given twice is not the same noise twice."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_models import VAE, data_plate, draw_rows, from_pyro_svi, impute, log_evidence
from ppl_models.likelihoods import Bernoulli
from ppl_models.scoped import own_draws, own_rng

CPU = torch.device("cpu")


def first_of(context):
    with context:
        return torch.rand(4).tolist(), random.random(), np.random.rand()


def test_work_of_another_kind_draws_other_numbers():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    users = torch.rand(4).tolist(), random.random(), np.random.rand()
    others = [first_of(own_draws(what, 0, CPU)) for what in ("draw_rows", "evaluation")]
    for numbers in zip(users, *others, strict=True):
        assert len({str(number) for number in numbers}) == 3


def test_the_same_work_draws_the_same_numbers_wherever_it_starts():
    torch.manual_seed(3)
    found = first_of(own_draws("draw_rows", 7, CPU))
    torch.rand(2)
    assert found == first_of(own_draws("draw_rows", 7, CPU))
    with own_rng("draw_rows", 7, CPU):
        assert torch.rand(4).tolist() == found[0]
    assert found != first_of(own_draws("draw_rows", 8, CPU))


def test_seeds_may_be_large_or_negative():
    for seed in (-1, 0, 2**31, 2**62 + 1):
        first_of(own_draws("draw_rows", seed, CPU))


def vae():
    torch.manual_seed(0)
    model = VAE(2, 1, likelihood=Bernoulli(), missing="marginalise")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


model = vae()


def prior(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))


def imputed(x):
    holes = x.index_fill(1, torch.tensor([1]), torch.nan)
    return impute(model, prior, holes, num_samples=1, num_particles=1, seed=0)[0]


def replicated(x):
    data = from_pyro_svi(model, prior, x, num_samples=1, seed=0)
    return torch.tensor(data["posterior_predictive"]["x"].values[0, 0]).float()


def drawn(x):
    return draw_rows(lambda rows: model(size=len(rows)), len(x), seed=0)


@pytest.mark.parametrize("made", [imputed, replicated, drawn])
def test_rows_of_a_seed_have_an_evidence_like_any_of_that_seed(made):
    """With one draw of the prior each: noise that is met again would show at once."""
    x = made(torch.rand(2000, 2).round())
    values = [
        log_evidence(model, prior, x, num_samples=1, method="importance", seed=seed).mean
        for seed in range(12)
    ]
    first, others = values[0], torch.tensor(values[1:])
    assert abs(first - others.mean()) < 5 * others.std()
