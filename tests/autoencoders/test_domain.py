"""Rows of several domains: integrals over the latent, and two Gaussian classes with an offset."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from guides import DomainNormal
from ppl_models import (
    DomainVAE,
    SemiSupervisedVAE,
    compare_labels,
    elbo,
    fit,
    load,
    log_evidence,
    save,
    weighted,
)
from ppl_models.autoencoders.domain import OffsetDecoder
from ppl_models.likelihoods import Bernoulli, Normal

LABELS, DOMAINS = torch.tensor([1, -1, 0, 2, -1]), torch.tensor([0, 1, 0, 0, 1])


def small(rows=5):
    """Rows of 3 binary pixels, 3 classes, 2 domains, one latent; float64."""
    model = DomainVAE(3, 3, 1).double()
    with torch.no_grad():
        for parameter in (model.logits, model.domain_logits, model.decoder.offsets):
            parameter.normal_()
        for parameter in model.decoder.network.parameters():
            parameter.mul_(3)  # so that labels and latents matter
    x = torch.bernoulli(torch.full((rows, 3), 0.5, dtype=torch.float64))
    return model, DomainNormal(3, 3, 1).double(), x


def integral(model, x, y, d):
    """log p(x, y, d) of rows with known labels, log p(x, d) of others, by integration over z."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0]) + (z[1, 0] - z[0, 0]).log()
    rows = []
    for n in range(len(x)):
        classes = []
        for k in range(3):
            p = model.mean(z, torch.full((len(z),), k), d[n].expand(len(z)))
            log_p = torch.distributions.Bernoulli(p).log_prob(x[n]).sum(1)
            classes.append((log_p + prior).logsumexp(0) + model.logits.log_softmax(0)[k])
        known = classes[y[n]] if y[n] >= 0 else torch.stack(classes).logsumexp(0)
        rows.append(known + model.domain_logits.log_softmax(0)[d[n]])
    return torch.stack(rows).detach()


def test_its_evidence_converges_to_the_integral():
    model, guide, x = small()
    exact = integral(model, x, LABELS, DOMAINS)
    found = log_evidence(model, guide, x, LABELS, DOMAINS, num_samples=5000, seed=0)
    assert found.kind == "lower bound"
    torch.testing.assert_close(found.value, exact, atol=0.1, rtol=0)
    many = (x.repeat(400, 1), LABELS.repeat(400), DOMAINS.repeat(400))
    assert log_evidence(model, guide, *many, num_samples=1, seed=0).mean < exact.mean() + 0.01


def test_within_one_domain_it_is_a_semi_supervised_vae():
    """The same decoder without offsets, and the same noise: losses differ by log rho alone."""
    model, guide, x = small()
    with torch.no_grad():
        model.decoder.offsets.zero_()
    alone = SemiSupervisedVAE(3, 3, 1, decoder=model.decoder.network).double()
    alone.logits = model.logits

    class Blind(nn.Module):
        def forward(self, x, y, size=None):
            return guide(x, y, torch.zeros_like(y), size)

    here = torch.zeros_like(DOMAINS)
    losses = []
    for objective, data in (
        (elbo(model, guide), (x, LABELS, here)),
        (elbo(alone, Blind()), (x, LABELS)),
    ):
        objective.loss(*data)  # has chosen its estimator
        torch.manual_seed(2)
        losses.append(objective.loss(*data, size=50).item())
    share = model.domain_logits.log_softmax(0)[0].item()
    assert losses[0] == pytest.approx(losses[1] - share)


# Two Gaussian classes with an offset: x | y, d ~ N(mu_y + delta_d, w w' + s^2 I)

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
OFFSET = torch.tensor([0.9, -1.5])
LOADING = torch.tensor([[0.3], [0.6]])
SCALE = 0.5


class Linear(nn.Module):
    """f(z, y) of a linear Gaussian model."""

    def __init__(self, means=MEANS):
        super().__init__()
        self.weight = nn.Parameter(torch.cat([LOADING, means.T], 1))  # of z, and of y

    def forward(self, inputs):
        return inputs @ self.weight.T


def linear(means=MEANS, offset=OFFSET):
    decoder = OffsetDecoder(Linear(means), 2, 2)
    with torch.no_grad():
        decoder.offsets[1] = offset
    likelihood = Normal(min_scale=1e-9)
    with torch.no_grad():
        likelihood.log_scale.fill_(math.log(SCALE))
    return DomainVAE(2, 2, 1, likelihood=likelihood, decoder=decoder).double()


def exact_posterior(x, d):
    """Bayes' rule of the two Gaussians, (B, 2), and the evidence given the domain."""
    covariance = (LOADING @ LOADING.T + SCALE**2 * torch.eye(2)).double()
    means = MEANS.double() + d[:, None, None] * OFFSET.double()  # (B, C, D)
    logs = MultivariateNormal(means, covariance).log_prob(x[:, None]) - math.log(2)
    return logs.softmax(1), logs.logsumexp(1)


class ExactGuide(nn.Module):
    """The exact posterior, as a guide."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y, d, size=None):
        import pyro
        import pyro.distributions as dist

        from ppl_models import data_plate

        probs = exact_posterior(x, d)[0]
        with data_plate(x, size):
            label = pyro.sample("y", dist.Categorical(probs), infer={"enumerate": "parallel"})
            residual = x - (MEANS.double()[label] + d[:, None] * OFFSET.double())
            precision = 1 + LOADING.double().square().sum() / SCALE**2
            mean = residual @ LOADING.double() / SCALE**2 / precision
            pyro.sample("z", dist.Normal(mean, precision.rsqrt()).to_event(1))


def drawn(rows=400):
    y, d = torch.arange(rows) % 2, (torch.arange(rows) >= rows // 2).long()
    noise = torch.randn(rows, 1) @ LOADING.T + SCALE * torch.randn(rows, 2)
    return (MEANS[y] + d[:, None] * OFFSET + noise).double(), y, d


def test_two_classes_with_an_offset_have_the_exact_posterior():
    """With the exact posterior as guide the bound is the evidence, for any draw and minibatch."""
    x, _, d = drawn(40)
    unknown = torch.full((40,), -1)
    model = linear()
    exact = exact_posterior(x, d)[1] - math.log(2)  # and log p(d)
    loss = elbo(model, ExactGuide(model)).loss(x, unknown, d, size=400)
    assert loss.item() == pytest.approx(-exact.mean().item())
    found = log_evidence(model, ExactGuide(model), x, unknown, d, num_samples=3, seed=0)
    torch.testing.assert_close(found.value, exact)


@pytest.mark.slow
def test_rows_without_labels_teach_the_offset_and_the_posterior():
    """Labels of the source alone: those of the target follow Bayes' rule with the true offset."""
    x, y, d = drawn(2000)
    known = y.where(d == 0, -1)
    model = linear(means=torch.zeros(2, 2), offset=torch.zeros(2))
    torch.manual_seed(1)
    guide = DomainNormal(2, 2, 1, classifier=nn.Linear(2, 2), encoder=nn.Linear(6, 2)).double()
    alone = DomainNormal(2, 2, 1, classifier=nn.Linear(2, 2)).double()
    options = {"batch_size": 200, "lr": 2e-2, "seed": 0, "progress": False}
    source = (x[d == 0], y[d == 0])
    fit(elbo(alone.classify), source, epochs=30, **options)
    objective = weighted({elbo(model, guide): 1.0, elbo(guide.classify): 0.1})
    fit(objective, (x, known, d), epochs=40, **options)
    offset = (model.decoder.offsets[1] - model.decoder.offsets[0]).detach()
    torch.testing.assert_close(offset, OFFSET.double(), atol=0.15, rtol=0)
    target, truth = x[d == 1], y[d == 1]
    posterior = exact_posterior(target, torch.ones(1000))[0].argmax(1)
    labels = model_labels(model, guide, target)
    before = alone.label(target).probs.argmax(1)
    assert (labels == posterior).double().mean() > 0.97
    assert (labels == truth).sum() > (before == truth).sum() + 50
    assert compare_labels(target, before=before, after=labels, source=source).verdict == "better"


def model_labels(model, guide, x):
    """The most probable labels of the target by the model: bounds of log p(x, y, d)."""
    d = torch.ones(len(x), dtype=torch.int64)
    bounds = [
        log_evidence(model, guide, x, torch.full((len(x),), k), d, num_samples=20, seed=0).value
        for k in range(2)
    ]
    return torch.stack(bounds, 1).argmax(1)


def test_rows_of_each_label_and_domain():
    model, _, _ = small()
    assert model(size=7).shape == (7, 3)
    y, d = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 0])
    assert model(y=y, d=d).shape == (4, 3)
    many = model(y=torch.full((8000,), 1), d=torch.ones(8000).long()).mean(0)
    z = torch.randn(8000, 1, dtype=torch.float64)
    expected = model.mean(z, torch.full((8000,), 1), torch.ones(8000).long()).mean(0)
    torch.testing.assert_close(many, expected, atol=0.03, rtol=0)


def test_the_guide_classifies_without_the_domain_and_is_saved(tmp_path):
    _, guide, x = small()
    loss = elbo(guide.classify).loss(x, LABELS, DOMAINS)
    log_q = guide.classifier(x).log_softmax(1)
    torch.testing.assert_close(loss, -(log_q[0, 1] + log_q[2, 0] + log_q[3, 2]) / 5)
    save(tmp_path / "guide", guide=guide)
    other = DomainNormal(3, 3, 1).double()
    load(tmp_path / "guide", guide=other)
    given = (x, LABELS.clamp(min=0), DOMAINS)
    assert torch.equal(other.posterior(*given).mean, guide.posterior(*given).mean)
    moved = guide.posterior(x, LABELS.clamp(min=0), 1 - DOMAINS).mean
    assert not torch.equal(moved, guide.posterior(*given).mean)


def test_refusals():
    model, guide, x = DomainVAE(3, 3, 1), DomainNormal(3, 3, 1), torch.ones(5, 3)
    with pytest.raises(ValueError, match=r"the domain of each row, got none.*model\(x, y, d\)"):
        model(x, LABELS)
    with pytest.raises(ValueError, match=r"the domain of each row, got none.*model\(y=y, d=d\)"):
        model(y=LABELS.clamp(min=0))
    with pytest.raises(TypeError, match="each batch has 2 tensor"):
        fit(elbo(model, guide), (x, LABELS), epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"domains: expected labels .* from 0 to 1, got 2 of 5"):
        fit(elbo(model, guide), (x, LABELS, 2 * DOMAINS), epochs=1, progress=False)
    with pytest.raises(ValueError, match="domains: expected one label for each row"):
        model(x, LABELS, DOMAINS[:3])
    with pytest.raises(ValueError, match=r"DomainVAE: .* whole numbers from 0 to 2, got 2 of 5"):
        fit(elbo(model, guide), (x, LABELS - 1, DOMAINS), epochs=1, progress=False)
    with pytest.raises(ValueError, match="DomainNormal: expected one domain for each row"):
        guide.posterior(x, LABELS, DOMAINS[:3])
    with pytest.raises(ValueError, match="num_domains: expected a whole number, 2 or more, got 1"):
        DomainVAE(3, 3, 1, num_domains=1)
    with pytest.raises(TypeError, match="likelihood: expected an object"):
        DomainVAE(3, 2, 1, likelihood=Bernoulli)
