"""The reversed gradient by hand, and features from which a domain can no longer be read."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ppl_models import Classifier, DomainAdversarial, domain_adversarial, fit, log_evidence
from ppl_models.adaptation.adversarial import reverse

KNOWN = torch.tensor([1, 0, 2, -1, -1, -1])
DOMAIN = torch.tensor([0, 0, 0, 1, 1, 1])


def model():
    return DomainAdversarial(4, 3, num_hidden=5).double()


def rows(count=6):
    return torch.randn(count, 4, dtype=torch.float64)


def test_the_gradient_of_a_reversal_is_reversed_and_scaled():
    x = rows().requires_grad_()
    y = reverse(x, 0.3)
    assert torch.equal(y, x)
    (y * torch.arange(4)).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * torch.arange(4.0).double().expand(6, 4))


def test_loss_and_gradient_by_hand():
    """The critic descends its loss; the features descend that of labels, and climb the critic's."""
    classifier, x = model(), rows()
    objective = domain_adversarial(classifier, weight=0.3)
    loss = objective.loss(x, KNOWN, DOMAIN)
    loss.backward()
    got = {name: p.grad.clone() for name, p in classifier.named_parameters()}
    classifier.zero_grad()

    features = classifier.features(x)
    labels = cross_entropy(classifier.head(features)[:3], KNOWN[:3])
    critic = cross_entropy(classifier.critic(features), DOMAIN)
    assert loss.item() == pytest.approx((labels + critic).item())
    assert objective.reports["critic"].item() == pytest.approx(critic.item())
    network = list(classifier.network.parameters())
    first = torch.autograd.grad(labels, network, retain_graph=True)
    second = torch.autograd.grad(critic, network, retain_graph=True)
    for (name, _), one, other in zip(
        classifier.network.named_parameters(), first, second, strict=True
    ):
        torch.testing.assert_close(got[f"network.{name}"], one - 0.3 * other)
    (labels + critic).backward()
    for name, parameter in classifier.named_parameters():
        if name.startswith(("critic", "head")):
            torch.testing.assert_close(got[name], parameter.grad)


def test_rows_without_labels_count_for_the_critic_alone():
    classifier, x = model(), rows()
    objective = domain_adversarial(classifier)
    labelled = objective.loss(x[:3], KNOWN[:3], DOMAIN[:3]) - objective.reports["critic"]
    together = objective.loss(x, KNOWN, DOMAIN) - objective.reports["critic"]
    torch.testing.assert_close(labelled, together)
    none = objective.loss(x[3:], KNOWN[3:], DOMAIN[3:])  # a minibatch may have no labels
    torch.testing.assert_close(none, objective.reports["critic"])


def stretched(rows=600):
    """Two classes by the first feature, whose domain alone the second tells."""
    y, d = torch.arange(rows) % 2, (torch.arange(rows) >= rows // 2).long()
    x = torch.randn(rows, 2)
    x[:, 0] += 4.0 * y - 2
    x[:, 1] += 4.0 * d - 2
    return x, y, d


@pytest.mark.slow
def test_features_lose_the_domain_and_keep_the_label():
    x, y, d = stretched()
    known = y.where(d == 0, -1)
    losses = {}
    for weight in (1e-6, 1.0):
        torch.manual_seed(0)
        network = nn.Linear(2, 1, bias=False)
        classifier = DomainAdversarial(2, 2, num_hidden=1, network=network)
        options = {"epochs": 60, "batch_size": 100, "lr": 1e-2, "seed": 0, "progress": False}
        run = fit(domain_adversarial(classifier, weight), (x, known, d), **options)
        losses[weight] = run.history["critic"][-1]
        direction = network.weight[0] / network.weight[0].norm()
        losses[weight, "domain"] = direction[1].abs().item()
        assert (classifier.predict(x) == y).double().mean() > 0.9
    assert losses[1.0] > 0.9 * math.log(2)
    assert losses[1.0, "domain"] < 0.1


def test_labels_have_an_evidence_and_rows_of_a_target_have_none():
    classifier, x = model(), rows()
    found = log_evidence(classifier, None, x[:3], KNOWN[:3])
    assert found.kind == "exact"
    expected = classifier.conditional(x[:3]).log_prob(KNOWN[:3])
    torch.testing.assert_close(found.value, expected.detach())
    for data in ((x,), (x, KNOWN, DOMAIN)):
        with pytest.raises(ValueError, match=r"no density, and so no evidence: .*compare_labels"):
            log_evidence(classifier, None, *data)


def test_refusals():
    classifier, x = DomainAdversarial(4, 3), rows().float()
    objective = domain_adversarial(classifier)
    before = {name: p.clone() for name, p in classifier.named_parameters()}
    bad = {
        "no labels of the target, which are not used, got 1 of 3 rows with one": (
            (x, torch.tensor([1, 0, 2, -1, 2, -1]), DOMAIN)
        ),
        r"labels of the source, domain 0, got none": (x, torch.full((6,), -1), DOMAIN),
        "and of a target, got rows of domain 0 alone": (x, KNOWN, torch.zeros(6).long()),
        "domains: expected labels that are whole numbers from 0 to 1": (x, KNOWN, 2 * DOMAIN),
        "whole numbers from 0 to 2, got 1 of 6": (x, KNOWN.where(KNOWN != 2, 3), DOMAIN),
        r"expected rows, labels and domains, got 2 tensors": (x, KNOWN),
        "expected rows of 4 features": (x[:, :3], KNOWN, DOMAIN),
    }
    for message, data in bad.items():
        with pytest.raises(ValueError, match=message):
            fit(objective, data, epochs=1, progress=False)
    assert all(torch.equal(p, before[name]) for name, p in classifier.named_parameters())
    with pytest.raises(TypeError, match="a classifier with a critic of domains, got Classifier"):
        domain_adversarial(Classifier(4, 3))
    for weight in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="weight: expected a positive number"):
            domain_adversarial(classifier, weight)
    with pytest.raises(ValueError, match="num_domains: expected a whole number, 2 or more, got 1"):
        DomainAdversarial(4, 3, num_domains=1)
