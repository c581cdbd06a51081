"""EM for the shares of classes against a search by scipy, and Bayes' rule of two Gaussians."""

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from ppl_models import LabelShift, elbo, fit, fit_em, log_evidence
from ppl_models.adaptation.label_shift import RowsOfClass


def gaussians(rows, share):
    """Rows of two Gaussian classes at -1 and 1, so many of the second; float64."""
    y = (torch.arange(rows) < share * rows).long()
    return torch.randn(rows, dtype=torch.float64) + 2.0 * y - 1, y


def classifier(x, share=0.5):
    """The exact posterior where so many are of the second class, (N, 2)."""
    log_odds = 2 * x + math.log(share / (1 - share))
    return torch.stack([-log_odds, log_odds], 1).div(2).softmax(1)


def balanced(rows=20_000):
    """What the classifier says of a source, whose shares are one half by symmetry."""
    x, _ = gaussians(rows // 2, 0.5)
    return classifier(torch.cat([x, -x]))


def test_the_shares_are_the_maximum_of_the_likelihood():
    source = balanced()
    target = classifier(gaussians(500, 0.8)[0])
    shift = LabelShift(source)
    run = fit_em(shift, target, tolerance=1e-14, max_steps=3000, progress=False)
    losses = run.history["loss"]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))

    def loss(share):
        return -(2 * ((1 - share) * target[:, 0] + share * target[:, 1])).log().mean().item()

    best = minimize_scalar(
        loss, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-12}
    )
    assert shift.probs[1].item() == pytest.approx(best.x, abs=1e-5)
    assert -losses[-1] == pytest.approx(-best.fun, abs=1e-10)
    assert losses[0] == pytest.approx(0, abs=1e-12)  # no shift: the odds are one


def test_a_step_is_the_mean_of_the_corrected_posteriors():
    """Equations 4 of Saerens et al., by hand, with unequal shares in the source."""
    source = torch.rand(50, 3, dtype=torch.float64).softmax(1)
    target = (4 * torch.rand(7, 3, dtype=torch.float64)).softmax(1)
    shift = LabelShift(source)
    shift.initialise(target)
    prior = source.mean(0)
    shares = prior
    for _ in range(3):
        ratio = shares / prior * target
        evidence = ratio.sum(1).log().mean()
        corrected = ratio / ratio.sum(1, keepdim=True)
        torch.testing.assert_close(shift.posterior(target).probs, corrected)
        torch.testing.assert_close(shift.em_step(target), evidence)
        shares = corrected.mean(0)
        torch.testing.assert_close(shift.probs, shares)


def test_of_a_right_classifier_evidence_and_posterior_are_exact():
    """Two Gaussians, 1 of 5 of the second class: the densities are known on both sides."""
    shift = LabelShift(balanced())
    with torch.no_grad():
        shift.logits.copy_(torch.tensor([0.8, 0.2]).log())
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor([-1.0, 1.0], dtype=x.dtype), 1.0)
    densities = normal.log_prob(x[:, None]).exp()  # (N, 2)
    ratio = (densities @ torch.tensor([0.8, 0.2], dtype=x.dtype)) / densities.mean(1)
    found = log_evidence(shift, None, classifier(x))
    assert found.kind == "exact"
    torch.testing.assert_close(found.value, ratio.log())
    torch.testing.assert_close(shift.posterior(classifier(x)).probs, classifier(x, 0.2))


def test_the_shares_of_a_target_are_found():
    shift = LabelShift(balanced())
    x, y = gaussians(20_000, 0.1)
    fit_em(shift, classifier(x), progress=False)
    assert shift.probs[1].item() == pytest.approx(0.1, abs=0.01)
    right = (shift.posterior(classifier(x)).probs.argmax(1) == y).double().mean()
    before = (classifier(x).argmax(1) == y).double().mean()
    bayes = (classifier(x, 0.1).argmax(1) == y).double().mean().item()
    assert right > before + 0.05
    assert right == pytest.approx(bayes, abs=0.005)


def test_its_gradient_is_zero_where_em_ends_and_it_can_be_fitted_by_gradient():
    source, target = balanced(2000), classifier(gaussians(500, 0.8)[0])
    shift = LabelShift(source)
    fit_em(shift, target, tolerance=1e-14, max_steps=3000, progress=False)
    elbo(shift).loss(target).backward()
    torch.testing.assert_close(shift.logits.grad, torch.zeros(2).double(), atol=1e-6, rtol=0)
    other = LabelShift(source)
    fit(elbo(other), target, epochs=300, lr=0.02, seed=0, progress=False)
    torch.testing.assert_close(other.probs, shift.probs, atol=2e-3, rtol=0)


def test_the_density_of_a_class_is_one_over_the_rows_of_the_source():
    source = torch.rand(30, 3, dtype=torch.float64).softmax(1)
    total = RowsOfClass(torch.arange(3).unsqueeze(1), source).log_prob(source).exp().mean(1)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))
    sharp = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    drawn = RowsOfClass(torch.zeros(4000, dtype=torch.int64), sharp).sample()
    assert (drawn[:, 0] == 0.9).double().mean().item() == pytest.approx(0.9, abs=0.02)


def test_weights_of_rows_count_as_many_of_them():
    source, target = balanced(2000), classifier(gaussians(40, 0.8)[0])
    weight = torch.arange(40) % 3
    first, second = LabelShift(source), LabelShift(source)
    options = {"tolerance": 1e-12, "progress": False}
    fit_em(first, target, sample_weight=weight.double(), **options)
    fit_em(second, target.repeat_interleave(weight, 0), **options)
    torch.testing.assert_close(first.probs, second.probs, atol=1e-6, rtol=0)


def test_refusals():
    source = balanced(100)
    shift, target = LabelShift(source), source[:20]
    with pytest.raises(ValueError, match=r"sum to 1 in each row, got 20 of 20.*\.softmax\(1\)"):
        fit_em(shift, target.log(), progress=False)
    with pytest.raises(ValueError, match="expected rows of 2 features"):
        fit_em(shift, torch.ones(20, 3, dtype=torch.float64) / 3, progress=False)
    with pytest.raises(TypeError, match="expected rows alone, got 2 things, such as labels"):
        shift.posterior((target, torch.zeros(20)))
    with pytest.raises(ValueError, match=r"data: expected 1 tensor.*got 2\. Try rows alone"):
        fit_em(shift, (target, torch.zeros(20)), progress=False)
    with pytest.raises(ValueError, match="source: expected probabilities"):
        LabelShift(source * 2)
    with pytest.raises(
        ValueError, match="a share of each class in the source, got none of class 1"
    ):
        LabelShift(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(TypeError, match="floating-point"):
        LabelShift(torch.eye(2).long())
    with pytest.raises(ValueError, match="NaN"):
        fit_em(shift, target.index_fill(0, torch.tensor(3), torch.nan), progress=False)
