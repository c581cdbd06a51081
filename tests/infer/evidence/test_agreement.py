"""The evidence that a model knows is taken for exact where it is that of the program that runs."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

from guides import AmortizedNormal
from ppl_models import (
    FactorAnalysis,
    GaussianMixture,
    HistogramDensity,
    data_plate,
    elbo,
    fit,
    log_evidence,
)
from ppl_models.autoregressive.made import MADE
from ppl_models.densities.bins import bin_edges
from ppl_models.infer.evidence.impute import impute
from tests.support.oracles import binary, linear_gaussian

NOT_OF_IT = "evidence.. is not of the program that runs"


def factors(kind=FactorAnalysis):
    torch.manual_seed(0)
    model = kind(4, 2).double()
    with torch.no_grad():
        model.loc.normal_()
    return model


def gaussian(mean, model):
    """The closed form of factors of mean one, or any."""
    w, scale = model.loadings.detach(), model.log_scale.detach().exp()
    covariance = w @ w.T + torch.eye(4).double() * scale.square()
    return dist.MultivariateNormal(model.loc.detach() + w @ mean, covariance)


class Moved(FactorAnalysis):
    """Inherits evidence() and posterior(x), which are of another program."""

    def forward(self, x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.ones(2).double(), 1.0).to_event(1))
            mean = self.loc + z @ self.loadings.T
            return pyro.sample("x", dist.Normal(mean, self.log_scale.exp()).to_event(1), obs=x)


class Same(FactorAnalysis):
    """Another forward, of the same program."""

    def forward(self, x=None, size=None):
        return super().forward(x, size)


class OwnPosterior(Moved):
    """With a posterior that is of it, but still an evidence that is not."""

    def posterior(self, x):
        posterior = super().posterior(x - self.loadings.sum(1))
        return dist.MultivariateNormal(posterior.mean + 1, posterior.covariance_matrix)


class Weighted(GaussianMixture):
    def forward(self, x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample(
                "z",
                dist.Categorical(torch.tensor([0.9, 0.1]).double()),
                infer={"enumerate": "parallel"},
            )
            return pyro.sample("x", dist.Normal(self.locs[z], 1.0).to_event(1), obs=x)


def weighted(x, locs):
    components = dist.Normal(locs, 1.0).to_event(1).log_prob(x[:, None])
    return (components + torch.tensor([0.9, 0.1]).double().log()).logsumexp(1)


def wide(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(torch.full((2,), 0.7).double(), 1.2).to_event(1))


def test_a_new_forward_without_a_guide_is_refused():
    model = factors(Moved)
    with pytest.raises(ValueError, match=r"Moved inherits evidence\(\).*Try an evidence\(\) in"):
        log_evidence(model, None, torch.randn(5, 4).double())


def test_a_new_forward_with_a_guide_is_weighed():
    model = factors(Moved)
    x = model(size=6).detach()
    evidence = log_evidence(model, wide, x, num_samples=20_000, seed=0)
    assert evidence.kind == "lower bound"
    truth = gaussian(torch.ones(2).double(), model).log_prob(x)
    torch.testing.assert_close(evidence.value, truth, atol=0.1, rtol=0)


def test_a_new_forward_of_the_same_program_stays_exact():
    model = factors(Same)
    x = model(size=6).detach()
    evidence = log_evidence(model, None, x)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, gaussian(torch.zeros(2).double(), model).log_prob(x))


def test_where_only_the_posterior_is_of_the_program_its_weights_are_taken():
    model = factors(OwnPosterior)
    x = model(size=6).detach()
    with pytest.warns(UserWarning, match=NOT_OF_IT):
        evidence = log_evidence(model, None, x, num_samples=3)
    torch.testing.assert_close(evidence.value, gaussian(torch.ones(2).double(), model).log_prob(x))
    assert evidence.kind == "lower bound"


@pytest.mark.parametrize("how", ["class", "object"])
def test_enumerated_programs_are_summed_where_the_closed_form_is_of_another(how):
    torch.manual_seed(0)
    x = 2 * torch.randn(9, 3).double()
    model = (Weighted if how == "class" else GaussianMixture)(3, 2).double()
    with torch.no_grad():
        model.locs.normal_()
    if how == "object":  # nothing in its class says so
        model.forward = Weighted.forward.__get__(model)
    with pytest.warns(UserWarning, match=NOT_OF_IT):
        evidence = log_evidence(model, None, x)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, weighted(x, model.locs.detach()))


def test_programs_without_latents_have_a_density_to_compare():
    class Fair(MADE):
        def forward(self, x=None, size=None):
            with data_plate(x, size):
                coins = dist.Bernoulli(torch.full((4,), 0.5)).to_event(1)
                return pyro.sample("x", coins, obs=x)

    with pytest.warns(UserWarning, match=NOT_OF_IT):
        evidence = log_evidence(Fair(4), None, binary(12))
    assert evidence.value.tolist() == pytest.approx([4 * math.log(0.5)] * 12)
    assert log_evidence(MADE(4), None, binary(12)).kind == "exact"


def test_a_density_that_is_nowhere_agrees_with_itself():
    x = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    model = HistogramDensity(*bin_edges(x, 4))
    model.maximum_likelihood(x)
    assert log_evidence(model, None, torch.tensor([[3.2], [0.5]])).kind == "exact"


def test_a_small_error_is_more_than_rounding():
    """A scale that is wrong by one in two thousand, and with it each row by as many nats."""

    class Nearly(nn.Module):
        def forward(self, x=None, size=None):
            with data_plate(x, size):
                return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def evidence(self):
            return dist.Normal(0.0, 1.0005)

    with pytest.warns(UserWarning, match=NOT_OF_IT):
        evidence = log_evidence(Nearly(), None, torch.zeros(4))
    assert evidence.mean == pytest.approx(-0.5 * math.log(2 * math.pi), abs=1e-6)


def test_rows_that_are_sorted_are_compared_from_all_parts():
    class Levels(nn.Module):
        def forward(self, x=None, size=None):
            with data_plate(x, size):
                return pyro.sample("x", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])), obs=x)

        def evidence(self):
            return dist.Categorical(torch.tensor([0.5, 0.25, 0.25]))

    x = torch.tensor([0.0] * 20 + [1.0] * 10 + [2.0] * 10)
    with pytest.warns(UserWarning, match=NOT_OF_IT):
        evidence = log_evidence(Levels(), None, x)
    assert evidence.value.exp().unique().tolist() == pytest.approx([0.2, 0.3, 0.5])


def linear(x=None, size=None, mean=0.0):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Known(nn.Module):
    """Its evidence cannot be compared: it knows no posterior."""

    def forward(self, x=None, size=None):
        return linear(x, size)

    def evidence(self):
        return dist.Normal(0.0, 2**0.5)


class KnownNoMore(Known):
    def forward(self, x=None, size=None):
        return linear(x, size, mean=3.0)


class CalledOtherwise:
    """No module: it is called, and has no forward."""

    def __call__(self, x=None, size=None):
        return linear(x, size)

    def evidence(self):
        return dist.Normal(0.0, 2**0.5)


class CalledOtherwiseAnew(CalledOtherwise):
    def __call__(self, x=None, size=None):
        return linear(x, size, mean=3.0)


def guess(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal((x + 3) / 2, 1.0))


@pytest.mark.parametrize("kind", [Known, CalledOtherwise])
def test_what_cannot_be_compared_is_taken_where_both_were_written_together(kind):
    x = torch.randn(6)
    evidence = log_evidence(kind(), None, x)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, dist.Normal(0.0, 2**0.5).log_prob(x).double())


class Mistaken(Known):
    """Both were written together, and are not of one another."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x=None, size=None):
        return super().forward(x, size)

    def evidence(self):
        return dist.Normal(0.0, self.scale)


def near(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x / 2 + 0.2, 0.8))


def aside(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x / 2 + 1.5, 0.5))


@pytest.mark.filterwarnings("ignore:log_evidence. 1000 draws")
@pytest.mark.parametrize(
    ("scale", "guide", "found"),
    [
        (2**0.5, near, "exact"),
        (1.6, near, "lower bound"),  # too high in some rows, too low in others
        (1.25, near, "lower bound"),
        (2**0.5, aside, "exact"),  # whose draws are a bound, and no more
        (0.3, aside, "lower bound"),  # below a bound
    ],
)
def test_what_only_a_guide_can_compare_is_compared_with_its_draws(scale, guide, found):
    torch.manual_seed(0)
    x = 2 * torch.randn(40).double()
    if found == "exact":
        evidence = log_evidence(Mistaken(scale), guide, x)
    else:
        with pytest.warns(UserWarning, match=NOT_OF_IT + r".*by draws of the guide"):
            evidence = log_evidence(Mistaken(scale), guide, x)
    assert evidence.kind == found


def nowhere(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Uniform(1e30, 2e30))


def test_a_guide_that_draws_nothing_likely_contradicts_nothing():
    assert log_evidence(Mistaken(0.3), nowhere, torch.randn(6).double()).kind == "exact"


class EitherSign(nn.Module):
    """x is near |z|, so that z has two modes of which a guide may have one."""

    def forward(self, x=None, size=None):
        with data_plate(x, size):
            components = dist.Normal(torch.tensor([-5.0, 5.0]).double(), 1.0)
            halves = dist.Categorical(torch.ones(2).double())
            z = pyro.sample("z", dist.MixtureSameFamily(halves, components))
            return pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=x)

    def evidence(self):
        return dist.Normal(torch.tensor(5.0).double(), 1.25**0.5)


def of_one_sign(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal((5 + 4 * x) / 5, 0.2**0.5))


def test_a_guide_of_one_mode_contradicts_nothing():
    """Its weights are all alike, and yet half of the posterior is missing."""
    torch.manual_seed(0)
    x = EitherSign()(size=50)
    with pytest.warns(UserWarning, match="or the guide leaves out a part of the posterior"):
        evidence = log_evidence(EitherSign(), of_one_sign, x)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value, EitherSign().evidence().log_prob(x))


def of_a_point(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Delta(x))


def of_other_rows(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(torch.zeros(100) + x, 1.0))


def of_two(x, y, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x, 1.0))


def by_numpy(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x / 2 + 0.1 * np.random.rand(), 0.8))


def with_a_parameter(x, size=None):
    loc = pyro.param("loc of each row", lambda: x.clone())
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize("guide", [of_a_point, of_other_rows, of_two, by_numpy, with_a_parameter])
def test_a_guide_that_is_not_asked_for_is_not_in_the_way(guide):
    """What it cannot do here is no error, and nothing is left behind."""
    before = np.random.get_state()[1].copy()
    assert log_evidence(Mistaken(2**0.5), guide, torch.randn(100).double()).kind == "exact"
    assert (np.random.get_state()[1] == before).all()
    assert "loc of each row" not in pyro.get_param_store()


def test_an_autoguide_is_still_to_be_fitted():
    model, x = Mistaken(2**0.5), torch.randn(100)
    guide = AutoNormal(model)
    assert log_evidence(model, guide, x).kind == "exact"
    fit(elbo(model, guide), x, steps=2, progress=False)


@pytest.mark.parametrize("kind", [KnownNoMore, CalledOtherwiseAnew])
def test_what_cannot_be_compared_is_refused_where_one_of_both_is_new(kind):
    x = torch.randn(6)
    with pytest.raises(ValueError, match="inherits evidence"):
        log_evidence(kind(), None, x)
    evidence = log_evidence(kind(), guess, x, num_samples=20_000, seed=0)
    truth = dist.Normal(3.0, 2**0.5).log_prob(x).double()
    torch.testing.assert_close(evidence.value, truth, atol=0.03, rtol=0)


def test_an_object_with_a_forward_of_its_own_is_refused():
    model = Known()
    model.forward = KnownNoMore.forward.__get__(model)
    with pytest.raises(ValueError, match="inherits evidence"):
        log_evidence(model, None, torch.randn(6))


def test_a_conditioned_model_is_another_program():
    model, x = linear_gaussian(rows=7)
    given = poutine.condition(model, data={"z": torch.zeros(7, 2).double()})
    evidence = log_evidence(given, None, x)
    expected = dist.Normal(model.loc, model.log_scale.exp()).to_event(1).log_prob(x)
    expected -= math.log(2 * math.pi)  # and of z, which it observes
    torch.testing.assert_close(evidence.value, expected.detach())


def test_rounding_is_no_difference():
    """In float32 the terms of the program are large, and their difference loses its digits."""
    torch.manual_seed(0)
    model = FactorAnalysis(30, 3)
    with torch.no_grad():
        model.log_scale.fill_(-6.0)
        model.loadings.mul_(10)
    x = model(size=20).detach()
    assert log_evidence(model, None, x).kind == "exact"


def test_rows_with_holes_are_compared_with_their_holes():
    model = FactorAnalysis(4, 2, missing="marginalise").double()
    x = torch.randn(20, 4).double()
    x[torch.rand(x.shape) < 0.3] = math.nan
    assert log_evidence(model, None, x).kind == "exact"


def test_the_generator_and_the_modes_stay():
    model, x = linear_gaussian()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    log_evidence(model, None, x)
    assert torch.equal(torch.rand(4), expected)
    assert model.training


def test_what_is_missing_is_not_drawn_by_another_program():
    x = torch.tensor([[0.5, 0.0, 1.0, 0.0]]).double()
    model = factors()
    model.forward = Moved.forward.__get__(model)
    with pytest.raises(ValueError, match="is not the posterior of the program"):
        impute(model, None, x)


def test_labels_beside_the_rows_are_for_the_program():
    """`evidence()` is of rows alone, and is not asked."""
    model = Known()
    with pytest.raises(TypeError, match="cannot be called with them"):
        log_evidence(model, AmortizedNormal(1, 1), torch.randn(6), torch.zeros(6))


class Failing(nn.Module):
    """Knows an evidence that is of another program, which fails for the rows that are compared."""

    def forward(self, x=None, size=None):
        if len(x) in (4, 8):
            raise ValueError("an error of the program")
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)

    def evidence(self):
        return dist.Normal(2.0, 1.0).expand([3]).to_event(1)


def test_what_fails_where_it_is_compared_comes_up_as_itself():
    x = torch.zeros(8, 3)
    with pytest.raises(ValueError, match="an error of the program"):
        log_evidence(Failing(), None, x)
    with pytest.warns(UserWarning, match=NOT_OF_IT):
        found = log_evidence(Failing(), None, x[:5])
    torch.testing.assert_close(found.value, dist.Normal(0.0, 1.0).log_prob(x[:5]).sum(1).double())
