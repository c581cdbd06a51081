"""Rows with labels, and rows of which few have one: sums over labels by hand, and integrals."""

import math

import pyro.distributions as dist
import pytest
import torch

from guides import AmortizedNormal
from guides.conditional import ConditionalNormal, LabelNormal
from ppl_models import elbo, fit, from_pyro_svi, log_evidence
from ppl_models.autoencoders.conditional import ConditionalVAE
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.infer.objectives.iwae import iwae
from ppl_models.infer.objectives.weighted import weighted
from ppl_models.likelihoods import Bernoulli, Categorical
from ppl_models.nn import ConvDecoder, ConvEncoder

LABELS = torch.tensor([1, -1, 0, 2, -1])


def small(rows=5):
    """Rows of 3 binary pixels, 3 classes, one latent; float64."""
    model = SemiSupervisedVAE(3, 3, 1).double()
    with torch.no_grad():
        model.logits.normal_()
        for parameter in model.decoder.parameters():
            parameter.mul_(3)  # so that labels and latents matter
    x = torch.bernoulli(torch.full((rows, 3), 0.5, dtype=torch.float64))
    return model, LabelNormal(3, 3, 1).double(), x


def integral(model, x, y):
    """log p(x, y) of rows with known labels, log p(x) of others, by integration over z."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1)
    prior = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + (z[1, 0] - z[0, 0]).log()
    classes = []
    for k in range(model.num_classes):
        p = model.mean(z, torch.full((len(z),), k))  # (Z, D)
        log_p = dist.Bernoulli(p).log_prob(x.unsqueeze(1)).sum(2)  # (B, Z)
        classes.append((log_p + prior).logsumexp(1) + model.logits.log_softmax(0)[k])
    classes = torch.stack(classes, 1)  # (B, C)
    known = classes.gather(1, y.clamp(min=0).unsqueeze(1))[:, 0]
    return torch.where(y < 0, classes.logsumexp(1), known).detach()


@pytest.mark.parametrize("size", [5, 50])
def test_the_bound_is_the_sum_over_labels_by_hand(size):
    model, guide, x = small()
    objective = elbo(model, guide)
    objective.loss(x, LABELS, size=size)  # has chosen its estimator
    torch.manual_seed(4)
    loss = objective.loss(x, LABELS, size=size)
    loss.backward()
    got = {name: p.grad.clone() for name, p in objective.named_parameters()}
    model.zero_grad()
    guide.zero_grad()

    torch.manual_seed(4)
    noise = torch.randn(3, 5, 1, dtype=x.dtype)  # for each class
    q = guide.classifier(x).softmax(1)  # (B, C)
    bounds = []
    for k in range(3):
        label = torch.full((5,), k)
        given = torch.cat([x, torch.eye(3, dtype=x.dtype)[label]], 1)
        loc, log_scale = guide.encoder(given).chunk(2, 1)
        z = loc + log_scale.exp() * noise[k]
        p = model.decoder(torch.cat([z, torch.eye(3, dtype=x.dtype)[label]], 1)).sigmoid()
        bounds.append(
            (x * p.log() + (1 - x) * (1 - p).log()).sum(1)
            + dist.Normal(0.0, 1.0).log_prob(z[:, 0])
            + model.logits.log_softmax(0)[k]
            - dist.Normal(loc, log_scale.exp()).log_prob(z)[:, 0]
        )
    bounds = torch.stack(bounds, 1)  # L(x, y), (B, C)
    unknown = (q * (bounds - q.log())).sum(1)
    known = bounds.gather(1, LABELS.clamp(min=0).unsqueeze(1))[:, 0]
    by_hand = -torch.where(LABELS < 0, unknown, known).mean()
    torch.testing.assert_close(loss, by_hand)
    by_hand.backward()
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", "amortized"])
def test_its_evidence_converges_to_the_integral(kind):
    """Labels in the guide, or summed over in the model; known and unknown ones together."""
    model, guide, x = small()
    if kind == "amortized":
        guide = AmortizedNormal(3, 1).double()
    exact = integral(model, x, LABELS)
    evidence = log_evidence(model, guide, x, LABELS, num_samples=5000, seed=0)
    assert evidence.kind == "lower bound"
    torch.testing.assert_close(evidence.value, exact, atol=0.1, rtol=0)
    many = log_evidence(model, guide, x.repeat(400, 1), LABELS.repeat(400), num_samples=1, seed=0)
    assert many.mean < exact.mean() + 0.01

    without = log_evidence(model, guide, x, num_samples=5000, seed=0)
    expected = integral(model, x, torch.full((5,), -1))
    torch.testing.assert_close(without.value, expected, atol=0.1, rtol=0)


def test_labels_summed_over_in_the_model_can_be_weighted():
    model, _, x = small()
    guide = AmortizedNormal(3, 1).double()
    loss = iwae(model, guide, 3000).loss(x, LABELS)
    exact = -integral(model, x, LABELS).mean()
    assert loss.item() == pytest.approx(exact.item(), abs=0.03)
    with pytest.raises(ValueError, match=r"'y' of the guide .* without a reparameterisation"):
        iwae(model, LabelNormal(3, 3, 1).double(), 5).loss(x, LABELS)


def test_known_labels_are_themselves_in_the_posterior():
    model, guide, x = small()
    posterior = from_pyro_svi(model, guide, x, LABELS, num_samples=400, seed=0)["posterior"]
    y = torch.as_tensor(posterior["y"].values[0])  # (S, B)
    assert posterior["z"].shape == (1, 400, 5, 1)
    for n, label in enumerate(LABELS.tolist()):
        if label >= 0:
            assert (y[:, n] == label).all()
        else:
            share = y[:, n].long().bincount(minlength=3) / 400
            expected = guide.label(x).probs[n].detach().float()
            torch.testing.assert_close(share, expected, atol=0.1, rtol=0)


def test_rows_of_each_label_and_rows_without():
    model, _, _ = small()
    assert model(y=torch.tensor([0, 1, 2, 2])).shape == (4, 3)
    assert model(size=7).shape == (7, 3)
    many = torch.cat([model(y=torch.full((4000,), 1))]).mean(0)
    z = torch.randn(4000, 1, dtype=torch.float64)
    expected = model.mean(z, torch.full((4000,), 1)).mean(0)
    torch.testing.assert_close(many, expected, atol=0.05, rtol=0)


def test_the_classifier_learns_from_the_labels_alone():
    """`classify` scores the rows whose labels are known, and no others."""
    _, guide, x = small()
    objective = elbo(guide.classify)
    log_q = guide.classifier(x).log_softmax(1)
    expected = -(log_q[0, 1] + log_q[2, 0] + log_q[3, 2]) / 5
    torch.testing.assert_close(objective.loss(x, LABELS), expected)
    torch.testing.assert_close(objective.loss(x, LABELS, size=50), expected)


def test_a_weighted_sum_of_objectives():
    model, guide, x = small()
    first, second = elbo(guide.classify), elbo(model, AmortizedNormal(3, 1).double())
    both = weighted({first: 2.0, second: 0.5})
    second.loss(x, LABELS)
    torch.manual_seed(1)
    expected = 2 * first.loss(x, LABELS) + 0.5 * second.loss(x, LABELS)
    torch.manual_seed(1)
    torch.testing.assert_close(both.loss(x, LABELS), expected)
    names = [name for name, _ in both.named_parameters()]
    parts = [p for o in (first, second) for _, p in o.named_parameters()]
    assert {id(p) for _, p in both.named_parameters()} == {id(p) for p in parts}
    assert len(set(names)) == len(names)
    losses = fit(both, (x, LABELS), epochs=60, lr=1e-2, seed=0).history["loss"]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    with pytest.raises(ValueError, match="expected objectives, got none"):
        weighted({})
    with pytest.raises(TypeError, match="expected objectives with their weights, got a list"):
        weighted([first, second])
    with pytest.raises(TypeError, match="expected objectives, got SemiSupervisedVAE"):
        weighted({model: 1.0})
    with pytest.raises(TypeError, match="expected a number as the weight of 'elbo', got 'a'"):
        weighted({first: "a"})
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a positive weight of 'elbo'"):
            weighted({first: weight})


def stripes(rows=120):
    """Images of two stripes: their place is the class, and the pixels are noisy."""
    y = torch.arange(rows) % 3
    x = torch.full((rows, 3, 4), 0.1)
    x[torch.arange(rows), y] = 0.9
    return torch.bernoulli(x.flatten(1)), y


@pytest.mark.slow
def test_labels_of_few_rows_reach_the_others():
    x, y = stripes()
    torch.manual_seed(0)
    model, guide = SemiSupervisedVAE(12, 3, 2), LabelNormal(12, 3, 2)
    some = torch.where(torch.arange(len(y)) < 9, y, -1)
    objective = weighted({elbo(model, guide): 1.0, elbo(guide.classify): 5.0})
    run = fit(objective, (x, some), epochs=30, batch_size=40, lr=5e-3, seed=0)
    assert run.history["loss"][-1] < run.history["loss"][0]
    right = guide.label(x[9:]).probs.argmax(1) == y[9:]
    assert right.double().mean() > 0.9
    assert fit(objective, (x, some), epochs=1, validation=(x, y), seed=0).history["validation"]


def test_networks_for_images():
    """Enumerated labels become rows: convolutions take one dimension of those."""
    model = SemiSupervisedVAE(64, 3, 2, Categorical(3), ConvDecoder(5, 8, 8, 3, channels=(4,)))
    encoder = torch.nn.Sequential(torch.nn.Linear(67, 64), ConvEncoder(8, 8, 4, channels=(4,)))
    guide = LabelNormal(64, 3, 2, encoder, ConvEncoder(8, 8, 3, channels=(4,)))
    x = model(size=5)
    assert torch.isfinite(elbo(model, guide).loss(x, LABELS))


def test_a_conditional_vae_is_given_its_labels():
    model = ConditionalVAE(3, 3, 1).double()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    guide = ConditionalNormal(3, 3, 1).double()
    x = torch.bernoulli(torch.full((6, 3), 0.5, dtype=torch.float64))
    y = torch.arange(6) % 3
    evidence = log_evidence(model, guide, x, y, num_samples=5000, seed=0)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64).unsqueeze(1)
    prior = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + (z[1, 0] - z[0, 0]).log()
    for n in range(6):
        p = model.mean(z, y[n].expand(len(z)))
        exact = (dist.Bernoulli(p).log_prob(x[n]).sum(1) + prior).logsumexp(0).item()
        assert evidence.value[n].item() == pytest.approx(exact, abs=0.1)
    # The density of all rows given a label is one.
    rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    total = log_evidence(model, guide, rows, torch.full((8,), 2), num_samples=5000, seed=0)
    assert total.value.exp().sum().item() == pytest.approx(1.0, abs=0.05)


def test_a_conditional_vae_draws_what_it_is_asked_for():
    x, y = stripes()
    torch.manual_seed(0)
    model, guide = ConditionalVAE(12, 3, 2), ConditionalNormal(12, 3, 2)
    fit(elbo(model, guide), (x, y), epochs=25, batch_size=40, lr=5e-3, seed=0)
    drawn = model(y=torch.arange(3).repeat(50)).view(50, 3, 3, 4).mean((0, 3))  # class, stripe
    assert torch.equal(drawn.argmax(1), torch.arange(3))
    assert model.mean(torch.zeros(3, 2), torch.arange(3)).shape == (3, 12)
    objective = iwae(model, guide, 3)
    assert torch.isfinite(objective.loss(x, y))


def test_refusals():
    x, y = torch.ones(4, 3), torch.tensor([0, 1, 2, 1])
    conditional, semi = ConditionalVAE(3, 3, 1), SemiSupervisedVAE(3, 3, 1)
    pair = conditional, ConditionalNormal(3, 3, 1)
    with pytest.raises(ValueError, match=r"expected labels, got none.*model\(y=y\)"):
        conditional(x)
    with pytest.raises(ValueError, match="whole numbers from 0 to 2, got 1 of 4"):
        fit(elbo(*pair), (x, torch.tensor([0, 1, 3, 1])), epochs=1)
    with pytest.raises(ValueError, match="whole numbers from 0 to 2, got 2 of 4"):
        fit(elbo(*pair), (x, torch.tensor([0, -1, -1, 1])), epochs=1)  # all must be known
    with pytest.raises(ValueError, match="whole numbers from 0 to 2, got 1 of 4"):
        fit(elbo(semi, LabelNormal(3, 3, 1)), (x, torch.tensor([0, -2, -1, 1])), epochs=1)
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        semi(y=torch.tensor([0, -1]))  # which class should it draw?
    with pytest.raises(ValueError, match="one label for each row"):
        semi(x, y[:3])
    with pytest.raises(TypeError, match="a tensor of labels"):
        semi(x, y > 0)
    with pytest.raises(ValueError, match="num_classes: expected a positive whole number"):
        SemiSupervisedVAE(3, 0, 1)
    with pytest.raises(ValueError, match="num_classes: expected a positive whole number"):
        ConditionalVAE(3, 0, 1)
    with pytest.raises(TypeError, match="likelihood: expected an object"):
        SemiSupervisedVAE(3, 2, 1, Bernoulli)
    with pytest.raises(ValueError, match="prior: expected a distribution"):
        ConditionalVAE(3, 2, 1, prior=ConditionalVAE(3, 2, 2).prior)
