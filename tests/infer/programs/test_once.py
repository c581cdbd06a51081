"""Networks of rows that are tiled: each row once, with the same draws, or as often as it comes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, fit, from_pyro_svi, log_evidence
from ppl_models.infer.objectives.iwae import iwae
from ppl_models.infer.programs.once import Once

ROWS, PARTICLES = 7, 6


class Noticing(nn.Module):
    """A network that notes how many rows it was given."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.seen = nn.Sequential(*layers), []

    def forward(self, x):
        self.seen.append(len(x))
        return self.layers(x)


def programs(*layers):
    encoder = Noticing(nn.Linear(5, 4), *layers)
    with torch.no_grad():  # near the prior, so that many draws carry weight
        for p in encoder.parameters():
            p.mul_(0.1)
    guide = AmortizedNormal(5, 2, encoder=encoder).double()
    return VAE(5, 2).double(), guide, torch.rand(ROWS, 5).round().double()


def by_all_rows(monkeypatch):
    monkeypatch.setattr(Once, "holds", lambda *_: False)


def loss_and_slopes(objective, x):
    objective.loss(x)
    torch.manual_seed(2)
    loss = objective.loss(x)
    return loss, *torch.autograd.grad(loss, [p for _, p in objective.named_parameters()])


def test_the_bound_and_its_gradient_are_those_of_all_rows(monkeypatch):
    model, guide, x = programs()
    found = loss_and_slopes(iwae(model, guide, PARTICLES), x)
    assert guide.encoder.seen[-1] == ROWS
    by_all_rows(monkeypatch)
    expected = loss_and_slopes(iwae(model, guide, PARTICLES), x)
    assert guide.encoder.seen[-1] == ROWS * PARTICLES
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_evidence_is_that_of_all_rows(monkeypatch):
    model, guide, x = programs()

    def evidence():
        guide.encoder.seen.clear()
        return log_evidence(model, guide, x, num_samples=50, batch_size=20, seed=1)

    found, seen = evidence(), guide.encoder.seen[:]
    by_all_rows(monkeypatch)
    expected = evidence()
    torch.testing.assert_close(found.value, expected.value, rtol=1e-9, atol=0)
    assert seen[-1] == ROWS  # of 25 batches of draws the first asks the network
    assert len(seen) < len(guide.encoder.seen) - 20


def test_batches_of_rows_have_outputs_of_their_own(monkeypatch):
    model, guide, x = programs()
    found = log_evidence(model, guide, x, num_samples=40, batch_size=3, seed=1)
    by_all_rows(monkeypatch)
    expected = log_evidence(model, guide, x, num_samples=40, batch_size=3, seed=1)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-9, atol=0)


def test_draws_for_arviz_are_those_of_all_rows(monkeypatch):
    model, guide, x = programs()
    found = from_pyro_svi(model, guide, x, num_samples=40, batch_size=25, seed=1)
    by_all_rows(monkeypatch)
    expected = from_pyro_svi(model, guide, x, num_samples=40, batch_size=25, seed=1)
    for name in ("posterior", "log_likelihood", "posterior_predictive", "sample_stats"):
        for variable, values in expected[name].items():
            ours = torch.tensor(found[name][variable].values)
            torch.testing.assert_close(ours, torch.tensor(values.values), rtol=1e-9, atol=1e-12)


def test_an_encoder_with_dropout_sees_all_rows_and_once_those_without():
    model, guide, x = programs(nn.Dropout(0.5))
    objective = iwae(model, guide, PARTICLES)
    loss_and_slopes(objective, x)
    assert guide.encoder.seen[-1] == ROWS * PARTICLES
    guide.eval()
    objective = iwae(model, guide, PARTICLES)
    loss_and_slopes(objective, x)
    assert guide.encoder.seen[-1] == ROWS
    guide.train()  # units are dropped again, for each particle others
    objective.loss(x)
    assert guide.encoder.seen[-1] == ROWS * PARTICLES


class Noisy(nn.Module):
    """A layer whose noise is switched on after a while."""

    scale = 0.0

    def forward(self, x):
        return x + self.scale * torch.randn_like(x) if self.scale else x


def test_noise_that_comes_later_is_of_each_particle():
    noise = Noisy()
    model, guide, x = programs(noise)
    objective = iwae(model, guide, PARTICLES)
    loss_and_slopes(objective, x)
    assert guide.encoder.seen[-1] == ROWS
    noise.scale = 1.0
    objective.loss(x)
    assert guide.encoder.seen[-1] == ROWS * PARTICLES


class Counting(nn.Module):
    """An encoder that gives something else than rows: how many there were."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x):
        return self.linear(x), torch.tensor(float(len(x)))


class Drawing(nn.Module):
    """A part of a guide that samples."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        loc, log_scale = self.outputs(x).chunk(2, -1)
        return pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class OfParts(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x, size=None):
        with data_plate(x, size):
            if isinstance(self.part, Drawing):
                return self.part(x)
            loc, log_scale = self.part(x)[0].chunk(2, -1)
            return pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("part", [Counting(), Drawing(nn.Linear(5, 4))], ids=["counts", "draws"])
def test_what_is_no_network_of_rows_sees_all(part, monkeypatch):
    model, _, x = programs()
    guide = OfParts(part).double()
    found = loss_and_slopes(iwae(model, guide, PARTICLES), x)
    by_all_rows(monkeypatch)
    for ours, theirs in zip(found, loss_and_slopes(iwae(model, guide, PARTICLES), x), strict=True):
        assert torch.equal(ours, theirs)


def test_the_networks_are_afterwards_as_they_were():
    model, guide, x = programs()
    torch.manual_seed(4)
    iwae(model, guide, PARTICLES).loss(x)
    assert "forward" not in vars(guide.encoder)
    objective = iwae(model, guide, PARTICLES)
    objective.loss(x)
    assert not objective._once._outputs  # which would hold a graph


@pytest.mark.parametrize("compile", [False, True])
def test_it_trains_alike(compile, monkeypatch):
    def trained():
        torch.manual_seed(0)
        model, _, x = programs()
        guide = AmortizedNormal(5, 2).double()  # the other counts, and would run eagerly
        objective = iwae(model, guide, PARTICLES)
        options = {"steps": 12, "seed": 0, "compile": compile, "progress": False}
        return fit(objective, x, **options).history["loss"]

    found = trained()
    by_all_rows(monkeypatch)
    assert found == pytest.approx(trained(), rel=1e-9)
