"""Evidence: exact values, bounds that are bounds, and their errors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import AmortizedNormal, ExactPosterior
from guides.conditional import LabelNormal
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit, log_evidence
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.autoregressive.made import MADE
from ppl_models.likelihoods import Categorical, Normal
from tests.support.oracles import binary, linear_gaussian, mixture, mixture_evidence
from tests.support.refusals import spoiled, vae


def test_closed_form_is_exact():
    model, x = linear_gaussian()
    evidence = log_evidence(model, None, x)
    torch.testing.assert_close(evidence.value, model.evidence().log_prob(x).detach())
    assert (evidence.kind, evidence.monte_carlo_error) == ("exact", 0.0)
    expected = evidence.value.std().item() / math.sqrt(len(x))
    assert evidence.standard_error == pytest.approx(expected)


def test_weights_of_the_exact_posterior_are_the_evidence():
    """Every weight is p(x): one sample is enough, and the spread is zero."""
    model, x = linear_gaussian()
    guide = ExactPosterior(model)
    evidence = log_evidence(model, guide, x, num_samples=7, method="importance", batch_size=50)
    expected = model.evidence().log_prob(x).detach()
    torch.testing.assert_close(evidence.value, expected, atol=1e-10, rtol=0)
    assert evidence.kind == "lower bound"
    assert evidence.monte_carlo_error < 1e-6


class Wide:
    """The exact posterior with its scales doubled, and shifted."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x, size=None):
        exact = self.model.posterior(x)
        scale = 2 * exact.variance.sqrt()
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(exact.mean + scale / 2, scale).to_event(1))


@pytest.mark.slow
def test_a_wrong_guide_stays_below_and_converges():
    model, x = linear_gaussian(rows=200)
    exact = log_evidence(model, None, x).mean
    means, errors = [], []
    for num_samples in (1, 10, 100, 10_000):
        options = {"num_samples": num_samples, "method": "importance"}
        bounds = [log_evidence(model, Wide(model), x, seed=seed, **options) for seed in range(6)]
        means.append(sum(bound.mean for bound in bounds) / 6)
        errors.append(bounds[0].monte_carlo_error / 6**0.5)
    assert means == sorted(means)
    assert means[0] < exact - 0.3
    assert abs(means[-1] - exact) < 4 * errors[-1] < 0.01
    assert math.isnan(errors[0])  # one draw says nothing of its spread


@pytest.mark.slow
def test_the_monte_carlo_error_is_the_spread_over_seeds():
    model, x = linear_gaussian(rows=20)
    runs = [
        log_evidence(model, Wide(model), x, num_samples=300, method="importance", seed=seed)
        for seed in range(60)
    ]
    spread = torch.tensor([run.mean for run in runs]).std().item()
    stated = sum(run.monte_carlo_error for run in runs) / len(runs)
    assert stated == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("batch_size", [1, 7, 100_000])
def test_batches_do_not_matter(batch_size):
    model, x = linear_gaussian(rows=5)
    evidence = log_evidence(
        model, ExactPosterior(model), x, num_samples=3, method="importance", batch_size=batch_size
    )
    torch.testing.assert_close(evidence.value, model.evidence().log_prob(x).detach())


def test_enumerated_sites_are_summed_over():
    x = torch.randn(9, dtype=torch.float64)
    evidence = log_evidence(mixture, None, x)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, mixture_evidence(x))


def test_shared_latents_have_one_evidence():
    """Gamma-Poisson: the evidence of all rows together is known, and tempting to split."""

    def model(x=None, size=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])

    def guide(x=None, size=None):
        pyro.sample("rate", dist.Gamma(2.0 + x.sum(), 1.0 + len(x)))

    total = x.sum().item()
    exact = (
        math.lgamma(2 + total)
        - (2 + total) * math.log(1 + len(x))
        - sum(math.lgamma(1 + k) for k in x.tolist())
    )
    evidence = log_evidence(model, guide, x, num_samples=3)
    assert evidence.value.tolist() == pytest.approx([exact], abs=1e-4)
    assert evidence.mean == pytest.approx(exact / 5, abs=1e-4)
    assert math.isnan(evidence.standard_error)
    assert "of all 5 rows" in str(evidence)


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_guides_with_parameters_for_each_row(rows):
    """Draws are not tiled then: row n keeps its own parameters."""
    model, x = linear_gaussian(rows)
    exact = model.posterior(x)

    def guide(x, size=None):
        with data_plate(x, size):
            mean = pyro.param("mean", exact.mean.detach(), event_dim=1)
            pyro.sample("z", dist.MultivariateNormal(mean, exact.covariance_matrix[0].detach()))

    evidence = log_evidence(model, guide, x, num_samples=4, method="importance")
    torch.testing.assert_close(evidence.value, model.evidence().log_prob(x).detach())


def test_a_guide_over_all_rows_together_has_one_weight():
    """Rows are independent in the model, not in the guide: no row has a weight of its own."""
    model, x = linear_gaussian(rows=3)
    guide = AutoMultivariateNormal(model)
    fit(elbo(model, guide), x, epochs=400, lr=0.05, seed=0, schedule=CosineAnnealingLR)
    evidence = log_evidence(model, guide, x, num_samples=2000, method="importance", seed=0)
    assert evidence.value.shape == (1,)
    exact = model.evidence().log_prob(x).sum().item()
    assert evidence.value.item() == pytest.approx(exact, abs=0.05)


def test_bits_per_dim_of_discrete_data_only():
    vae, guide = VAE(6, 2, Categorical(4)), AmortizedNormal(6, 2)
    x = vae(size=10)
    evidence = log_evidence(vae, guide, x, num_samples=10)
    assert evidence.bits_per_dim == pytest.approx(-evidence.mean / (6 * math.log(2)))
    assert "bits/dim" in str(evidence)

    model, x = linear_gaussian()
    with pytest.raises(ValueError, match="density"):
        _ = log_evidence(model, None, x).bits_per_dim


def test_dropout_is_off_and_modes_return():
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Dropout(0.9))
    vae, guide = VAE(6, 2, decoder=decoder), AmortizedNormal(6, 2)
    x = vae(size=4)
    a, b = (log_evidence(vae, guide, x, num_samples=5, seed=3).mean for _ in range(2))
    assert a == b
    assert vae.training
    assert decoder[1].training


def test_a_seed_leaves_the_generator_alone():
    vae, guide, x = VAE(6, 2), AmortizedNormal(6, 2), torch.ones(3, 6)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    log_evidence(vae, guide, x, num_samples=5, seed=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "'auto', 'exact' or 'importance'"),
        ({"num_samples": 0}, "num_samples: expected a positive"),
        ({"batch_size": -1}, "batch_size: expected a positive"),
        ({"method": "exact"}, "no closed form is known"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        log_evidence(VAE(6, 2), AmortizedNormal(6, 2), torch.ones(3, 6), **options)


def test_bad_rows():
    vae, guide = VAE(6, 2), AmortizedNormal(6, 2)
    with pytest.raises(ValueError, match=r"1 of 3 rows hold NaN or infinity \(row 2\)"):
        log_evidence(vae, guide, torch.tensor([[1.0] * 6, [0.0] * 6, [math.nan] * 6]))
    with pytest.raises(ValueError, match="6 features"):
        log_evidence(vae, guide, torch.ones(3, 5))
    with pytest.raises(ValueError, match="at least one row"):
        log_evidence(vae, guide, torch.ones(0, 6))
    with pytest.raises(ValueError, match="at least one tensor"):
        log_evidence(vae, guide)
    with pytest.raises(ValueError, match="latent site"):
        log_evidence(vae, None, torch.ones(3, 6))
    with pytest.raises(ValueError, match=r"the data are on cpu, but .* is on meta"):
        log_evidence(vae.to("meta"), guide, torch.ones(3, 6))


def test_evidence_of_bad_rows():
    pair = vae(Normal())
    with pytest.raises(ValueError, match=r"1 of 9 rows hold NaN"):
        log_evidence(*pair, spoiled(3), num_samples=2)


LABELS = torch.arange(12) % 3


def test_grey_levels_have_no_exact_evidence_where_checks_are_off():
    grey = binary(12).clone()
    grey[11, 3] = 0.5
    for enabled in (True, False):
        with (
            pyro.validation_enabled(enabled),
            pytest.raises(ValueError, match=r"1 of 12 rows lie outside .* binarize\(x\)"),
        ):
            log_evidence(MADE(4), None, grey)


def test_bits_per_dim_leave_labels_out():
    """log p(x, y) over the pixels of x alone would be no bits per pixel."""
    model, guide = SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2)
    joint = log_evidence(model, guide, binary(12), LABELS, num_samples=5)
    with pytest.raises(ValueError, match="rows without their labels"):
        _ = joint.bits_per_dim
    rows = log_evidence(model, guide, binary(12), num_samples=5)
    assert rows.bits_per_dim == pytest.approx(-rows.mean / (4 * math.log(2)))


@pytest.mark.parametrize("how", ["handler", "distribution"])
def test_bits_per_dim_are_refused_where_pixels_are_masked(how):
    """Bits over all pixels of what half of them say would flatter by two."""
    mask = torch.tensor([True, True, False, False])

    def model(x=None, size=None):
        with data_plate(x, size) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pixels = dist.Bernoulli(logits=torch.zeros(len(z), 4))
            if how == "distribution":
                return pyro.sample("x", pixels.mask(mask.expand(len(z), 4)).to_event(1), obs=x)
            with poutine.mask(mask=rows % 2 == 0):
                return pyro.sample("x", pixels.to_event(1), obs=x)

    evidence = log_evidence(model, AmortizedNormal(4, 2), binary(12), num_samples=5)
    with pytest.raises(ValueError, match="missing or masked"):
        _ = evidence.bits_per_dim
    assert "bits" not in str(evidence)


@pytest.mark.parametrize("rows", [3, 20])
def test_a_point_is_no_bound(rows):
    model, x = linear_gaussian(rows)
    guide = AutoDelta(model)
    guide(x)
    with pytest.raises(ValueError, match=r"guide: its site 'z' is a point.*AutoNormal"):
        log_evidence(model, guide, x, method="importance")
    spread = AutoNormal(model)
    spread(x)
    assert log_evidence(model, spread, x, num_samples=2, method="importance").mean < 0


def test_scaled_densities_have_no_evidence():
    model, x = linear_gaussian(rows=30)

    def some(x):
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([10]), obs=x[rows])

    with pytest.raises(ValueError, match=r"site 'x'.*counts 3 times.*subsample|draws some"):
        log_evidence(some, None, x[:, 0])
    tempered = poutine.scale(model, 0.1)
    with pytest.raises(ValueError, match=r"counts 0\.1 times, by poutine\.scale"):
        log_evidence(tempered, ExactPosterior(model), x)


def test_bits_per_dim_with_a_plate_of_pixels():
    def coins(x=None, size=None):
        with data_plate(x, size), pyro.plate("pixels", 64, dim=-2):
            return pyro.sample("x", dist.Bernoulli(0.5), obs=x if x is None else x.T)

    evidence = log_evidence(coins, None, torch.ones(10, 64))
    assert evidence.num_features == 64
    assert evidence.bits_per_dim == pytest.approx(1.0)


def test_a_factor_outside_of_the_rows_counts_once():
    model, x = linear_gaussian(rows=10)

    def with_factor(x=None, size=None):
        pyro.factor("penalty", torch.tensor(-1.0))
        return model(x, size)

    evidence = log_evidence(with_factor, ExactPosterior(model), x, num_samples=3)
    exact = model.evidence().log_prob(x).sum().item() - 1
    assert evidence.value.tolist() == pytest.approx([exact], abs=1e-8)


def test_the_closed_form_makes_the_checks_of_the_model():
    model = FactorAnalysis(5, 2)
    for x in (torch.randn(10, 2, 5), torch.randn(5), torch.randn(10, 4)):
        with pytest.raises(ValueError, match=r"FactorAnalysis: expected rows of 5 features"):
            log_evidence(model, None, x)


@pytest.mark.parametrize("extra", [0, 2])
def test_bits_per_dim_count_what_is_observed_of_some_rows(extra):
    """A chain of coins, whose first is a site of its own, and perhaps others that are no rows."""
    x = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])

    def model(x, size=None):
        pyro.sample("first", dist.Bernoulli(0.5), obs=x[0])
        with pyro.plate("steps", len(x) - 1):
            pyro.sample("next", dist.Bernoulli(0.25 + 0.5 * x[:-1]), obs=x[1:])
        with pyro.plate("more", len(x) + extra):
            pyro.sample("more_", dist.Bernoulli(0.5), obs=torch.ones(len(x) + extra))

    evidence = log_evidence(model, None, x)
    nats = 0.5**6 * 0.25 * 0.75 * 0.25 * 0.75
    assert evidence.value.sum().item() == pytest.approx(math.log(nats) - extra * math.log(2))
    if extra:  # 12 coins are no number of coins for each of 5 rows
        with pytest.raises(ValueError, match="bits_per_dim"):
            evidence.bits_per_dim  # noqa: B018
    else:
        assert evidence.bits_per_dim == pytest.approx(-math.log2(nats) / 10)
