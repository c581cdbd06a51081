"""Mixtures of Poissons: sums to one, the enumerated evidence, EM, and counts that are real."""

import pytest
import torch
from scipy.stats import poisson
from torch.distributions import Poisson

from ppl_models import compare, elbo, fit, fit_em, log_evidence
from ppl_models.mixtures.poisson import PoissonMixture

RATES = torch.tensor([[1.0, 8.0], [6.0, 2.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def model() -> PoissonMixture:
    """One whose parameters are known."""
    found = PoissonMixture(2, 2).double()
    found.logits.data, found.log_rates.data = WEIGHTS.log(), RATES.log()
    return found


def counts(num_rows: int) -> torch.Tensor:
    return model()(size=num_rows).detach()


def test_the_density_sums_to_one():
    every = torch.cartesian_prod(*[torch.arange(60.0, dtype=torch.float64)] * 2)
    torch.testing.assert_close(model().evidence().log_prob(every).logsumexp(0).exp().item(), 1.0)


def test_the_evidence_is_that_of_scipy():
    x = counts(20)
    parts = poisson.pmf(x.numpy()[:, None], RATES.numpy()).prod(2) @ WEIGHTS.numpy()
    evidence = log_evidence(model(), None, x)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, torch.from_numpy(parts).log())


def test_the_enumerated_bound_is_the_evidence():
    x = counts(20)
    loss = elbo(model()).loss(x[:7], size=20)
    torch.testing.assert_close(loss, -model().evidence().log_prob(x[:7]).mean())


def test_a_step_of_em_is_that_by_hand():
    x, moved = counts(50), model()
    shares = model().posterior(x).probs
    moved.em_step(x)
    torch.testing.assert_close(moved.weights, shares.mean(0))
    torch.testing.assert_close(moved.rates, shares.T @ x / shares.sum(0)[:, None])


def test_batches_are_the_whole():
    x, whole, parts = counts(50), model(), model()
    torch.testing.assert_close(whole.em_step(x), parts.em_step(x.split(17)))
    torch.testing.assert_close(whole.rates, parts.rates)


@pytest.mark.slow
def test_em_and_gradient_end_alike():
    x, by_em = counts(400), PoissonMixture(2, 2).double()
    run = fit_em(by_em, x, restarts=3, tolerance=1e-10, seed=0)
    assert run.history["loss"][-1] < -model().evidence().log_prob(x).mean()
    loss = elbo(by_em).loss(x)
    slopes = torch.autograd.grad(loss, list(by_em.parameters()))
    assert max(slope.abs().max().item() for slope in slopes) < 1e-4
    by_gradient = model()
    history = fit(elbo(by_gradient), x, steps=300, lr=0.02, seed=0, progress=False).history
    assert abs(history["loss"][-1] - run.history["loss"][-1]) < 1e-4


def test_a_feature_that_is_never_counted_rules_nothing_out():
    x = torch.cat([counts(100), torch.zeros(100, 1, dtype=torch.float64)], 1)
    found = PoissonMixture(3, 2).double()
    fit_em(found, x, seed=0)
    seen_at_last = torch.tensor([[3.0, 3.0, 1.0]], dtype=torch.float64)
    assert found.evidence().log_prob(seen_at_last).isfinite().all()
    assert found.log_rates.isfinite().all()


def test_a_component_without_rows_stays_where_it_is():
    x, empty = counts(20), model()
    empty.logits.data = torch.tensor([0.0, -800.0], dtype=torch.float64)
    empty.em_step(x)
    torch.testing.assert_close(empty.rates, torch.stack([x.mean(0), RATES[1]]))


def test_parameters_are_counted():
    assert PoissonMixture(5, 3).num_parameters == 2 + 15


def test_as_many_components_as_there_are_are_chosen():
    candidates = {k: PoissonMixture(2, k).double() for k in (1, 2, 3)}
    result = compare(candidates, counts(300), folds=3, restarts=2, seed=0, progress=False)
    assert result.best("bic") == 2
    one, two, three = result.held_out_rows
    assert (two - one).mean() > 0.5
    gain = three - two  # of a component that finds nothing: chance
    assert gain.mean() < 2 * gain.std() / 300**0.5


@pytest.mark.parametrize("value", [-1.0, 0.5, float("inf")])
def test_what_are_no_counts(value):
    x = counts(10)
    x[3, 1] = value
    with pytest.raises(ValueError, match=r"expected rows of counts|hold NaN or infinity"):
        fit_em(PoissonMixture(2, 2).double(), x, progress=False)
    with pytest.raises(ValueError, match=r"1 of 10 rows (lie outside the support|hold NaN or inf)"):
        fit(elbo(PoissonMixture(2, 2).double()), x, steps=1, progress=False)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="num_components: expected a positive whole number"):
        PoissonMixture(2, 0)
    with pytest.raises(ValueError, match="expected rows of 2 features"):
        PoissonMixture(2, 2).posterior(torch.zeros(3, 4))


def test_one_component_is_a_poisson():
    single = PoissonMixture(2, 1).double()
    x = counts(30)
    fit_em(single, x, seed=0)
    torch.testing.assert_close(single.rates[0], x.mean(0))
    expected = Poisson(x.mean(0)).log_prob(x).sum(1)
    torch.testing.assert_close(single.evidence().log_prob(x), expected)
