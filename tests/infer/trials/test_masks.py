"""Latents of which a mask leaves out some: the guide counts what the model counts, or is refused.

With the exact posterior as the guide, each draw says the evidence of what counts.
"""

import functools
import math

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.infer.autoguide.utils import deep_setattr
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroParam
from torch.distributions import constraints

from ppl_models import data_plate, elbo, fit, from_pyro_svi, iwae, log_evidence
from ppl_models.infer.objectives.weighted import weighted
from ppl_models.infer.trials.independence import Trial

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor(
    [[0.3, -0.4, 50.0], [1.0, -70.0, 90.0], [0.8, 1.2, -0.5], [2.0, 0.1, 80.0]]
).double()
LENGTHS = torch.tensor([2, 1, 3, 2])
AUXILIARY = {"is_auxiliary": True}
MASK = torch.arange(3) < LENGTHS[:, None]
TRUTH = (dist.Normal(0.0, 2.0**0.5).log_prob(X) * MASK).sum(1)  # of each series


def plates(x, size):
    count = len(x)
    return pyro.plate("data", size or count, subsample_size=count, dim=-2), pyro.plate("time", 3)


def by_handler(x=None, mask=None, size=None):
    rows, time = plates(x, size)
    with rows, time, poutine.mask(mask=mask):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_distribution(x=None, mask=None, size=None):
    rows, time = plates(x, size)
    with rows, time:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).mask(mask))
        pyro.sample("x", dist.Normal(z, 1.0).mask(mask), obs=x)


def inside_of_an_event(x=None, mask=None, size=None):
    with pyro.plate("data", size or len(x), subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).mask(mask).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).mask(mask).to_event(1), obs=x)


def positive(x=None, mask=None, size=None):
    """The same, of a latent that is changed to the unconstrained."""
    rows, time = plates(x, size)
    with rows, time, poutine.mask(mask=mask):
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)


MODELS = [by_handler, by_distribution, inside_of_an_event, positive]


def exact(model):
    """The exact posterior of what counts, written by hand; anything elsewhere."""

    def guide(x=None, mask=None, size=None):
        gain = pyro.param("gain", torch.ones(()))
        here = torch.where(mask, gain * x / 2, torch.tensor(3.0)), 0.5**0.5
        if model is inside_of_an_event:
            with pyro.plate("data", size or len(x), subsample_size=len(x)):
                pyro.sample("z", dist.Normal(*here).to_event(1))
            return
        kind = dist.LogNormal if model is positive else dist.Normal
        rows, time = plates(x, size)
        with rows, time:
            pyro.sample("z", kind(*here))

    return guide


def exact_auto(model):
    """The same as an `AutoNormal`."""
    guide = AutoNormal(model)
    guide(X, MASK)
    depth = 1 if model is inside_of_an_event else 0
    deep_setattr(guide.locs, "z", PyroParam(X / 2, constraints.real, depth))
    scales = torch.full_like(X, 0.5**0.5)
    deep_setattr(guide.scales, "z", PyroParam(scales, guide.scale_constraint, depth))
    return guide


def close(got, expected):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("make", [exact, exact_auto])
class TestExactPosterior:
    def test_elbo(self, model, make):
        close(elbo(model, make(model)).loss(X, MASK), -TRUTH.mean())

    def test_elbo_of_minibatches(self, model, make):
        objective, rows = elbo(model, make(model)), torch.tensor([2, 0])
        if make is exact:
            close(objective.loss(X[rows], MASK[rows], size=4), -TRUTH[rows].mean())
        run = fit(objective, (X, MASK), epochs=1, batch_size=2, lr=1e-12, seed=0)
        close(run.history["loss"][0], -TRUTH.mean())

    def test_evidence(self, model, make):
        evidence = log_evidence(model, make(model), X, MASK, num_samples=3)
        assert evidence.kind == "lower bound"
        close(evidence.value, TRUTH if len(evidence.value) > 1 else TRUTH.sum()[None])

    def test_posterior(self, model, make):
        data = from_pyro_svi(model, make(model), X, MASK, num_samples=400)
        stats = data["sample_stats"]
        close((stats["log_p"] - stats["log_q"]).values, TRUTH.sum().expand(1, 400))
        z = torch.as_tensor(data["posterior"]["z"].values)[0]
        z = z.log() if model is positive else z
        mean = torch.where(MASK, X / 2, torch.tensor(0.0))  # nobody learned of what is masked
        sd = torch.where(MASK, 0.5**0.5, 1.0)
        assert ((z.mean(0) - mean).abs() < 5 * sd / 20).all()
        assert ((z.std(0) / sd - 1).abs() < 0.2).all()

    def test_weighted(self, model, make):
        both = weighted({elbo(model, make(model)): 1.0, elbo(model, exact(model)): 2.0})
        close(both.loss(X, MASK), -3 * TRUTH.mean())

    def test_compiled(self, model, make, graphs_as_traced):
        run = fit(elbo(model, make(model)), (X, MASK), epochs=3, lr=1e-12, compile=True)
        close(run.history["loss"], -TRUTH.mean().expand(3))


@pytest.mark.parametrize("model", MODELS)
def test_importance_weighted_bounds(model):
    close(iwae(model, exact(model), 3).loss(X, MASK), -TRUTH.mean())


@pytest.mark.parametrize("model", MODELS)
def test_an_estimator_of_pyro(model):
    close(elbo(model, exact(model), Trace_ELBO(num_particles=3)).loss(X, MASK), -TRUTH.mean())


@pytest.mark.parametrize("model", [by_handler, inside_of_an_event])
def test_an_estimator_that_integrates(model):
    """Pyro's own number of a guide that is masked by hand."""

    def masked(x, mask, size=None):
        rows, time = plates(x, size)
        with rows, time, poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(torch.where(mask, x / 2, torch.tensor(3.0)), 0.5**0.5))

    torch.manual_seed(0)
    expected = TraceMeanField_ELBO().loss(by_handler, masked, X, MASK) / 4
    objective = elbo(model, exact(model), TraceMeanField_ELBO())
    objective.loss(X, MASK)
    torch.manual_seed(0)
    close(objective.loss(X, MASK).detach(), expected)


SEEN = torch.tensor([2.1, 3.3, 2.7, 4.0, 3.1, 2.2])
SOME = torch.tensor([*SEEN, 99.0, -50.0, 0.0, 7.0]).double()
OBSERVED = torch.arange(10) < 6
EVIDENCE = dist.MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double() + 9.0)


def imputing(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with data_plate(x, size):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x, obs_mask=OBSERVED)


def imputed(x=None, size=None):
    """Its exact posterior, what is missing included."""
    m = pyro.sample("m", dist.Normal(SEEN.double().sum() / (6 + 1 / 9), (6 + 1 / 9) ** -0.5))
    with data_plate(x, size):
        pyro.sample("x_unobserved", dist.Normal(m, 1.0))


# Entries that are missing depend on one another by what they share, and the guide's do not.
OF_A_MEAN_FIELD = pytest.mark.filterwarnings("ignore:log_evidence. 4000 draws have weights")


class TestObservedInPart:
    truth = EVIDENCE.log_prob(SEEN.double())

    def test_exactly(self):
        close(elbo(imputing, imputed).loss(SOME), -self.truth / 10)
        close(log_evidence(imputing, imputed, SOME, num_samples=2).value, self.truth[None])

    @OF_A_MEAN_FIELD
    def test_fitted(self):
        guide = AutoNormal(imputing)
        run = fit(elbo(imputing, guide), SOME, epochs=500, lr=0.05, seed=0)
        assert min(run.history["loss"]) > -self.truth.item() / 10 - 0.5
        evidence = log_evidence(imputing, guide, SOME, num_samples=4000, seed=0)
        assert evidence.value.item() == pytest.approx(self.truth.item(), abs=0.1)

    def test_what_was_seen_stays_and_the_rest_is_drawn(self):
        data = from_pyro_svi(imputing, imputed, SOME, num_samples=100, seed=0)
        x = torch.as_tensor(data["posterior"]["x"].values)[0]
        assert torch.equal(x[:, :6], SEEN.double().expand(100, 6))
        rest = torch.as_tensor(data["posterior"]["x_unobserved"].values)[0]
        assert torch.equal(x[:, 6:], rest[:, 6:])
        assert (rest.mean(0) - 2.85).abs().max() < 0.5

    def test_loo_counts_what_was_seen(self):
        data = from_pyro_svi(imputing, imputed, SOME, num_samples=100, seed=0)
        assert az.loo(data).n_data_points == 6


JOINT = [
    *(AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDiagonalNormal, AutoIAFNormal),
    *(AutoLaplaceApproximation, AutoGaussian),
]


@pytest.mark.parametrize("kind", JOINT)
def test_joint_guides_are_refused(kind):
    guide = kind(imputing)
    for call in (
        lambda: fit(elbo(imputing, guide), SOME, epochs=1),
        lambda: elbo(imputing, guide).loss(SOME),
        lambda: log_evidence(imputing, guide, SOME, num_samples=2),
        lambda: from_pyro_svi(imputing, guide, SOME, num_samples=2),
    ):
        with pytest.raises(ValueError, match=r"(?s)'x_unobserved'.*Try AutoNormal"):
            call()


@OF_A_MEAN_FIELD
def test_a_joint_guide_beside_one_of_entries_is_taken():
    guide = AutoGuideList(imputing)
    guide.append(AutoMultivariateNormal(poutine.block(imputing, expose=["m"])))
    guide.append(AutoNormal(poutine.block(imputing, expose=["x_unobserved"])))
    fit(elbo(imputing, guide), SOME, epochs=500, lr=0.05, seed=0)
    evidence = log_evidence(imputing, guide, SOME, num_samples=4000, seed=0)
    assert evidence.value.item() == pytest.approx(TestObservedInPart.truth.item(), abs=0.1)


@OF_A_MEAN_FIELD
def test_a_structured_guide_is_joint_once_it_has_learned():
    """Its entries read one another with weights that are zero before the first step."""
    for options in ({}, {"conditionals": "mvn", "dependencies": {}}):
        with pytest.raises(ValueError, match=r"(?s)^guide: .*'x_unobserved'.*Try AutoNormal"):
            elbo(imputing, AutoStructured(imputing, **options)).loss(SOME)
    guide = AutoStructured(imputing, conditionals="normal", dependencies={})
    fit(elbo(imputing, guide), SOME, epochs=500, lr=0.05, seed=0)
    evidence = log_evidence(imputing, guide, SOME, num_samples=4000, seed=0)
    assert evidence.value.item() == pytest.approx(TestObservedInPart.truth.item(), abs=0.1)


@pytest.mark.parametrize("kind", [elbo, lambda model, guide: iwae(model, guide, 2)])
def test_what_is_read_with_a_weight_that_is_zero_before_the_first_step(kind):
    def model(x=None, mask=None, size=None):
        weight = pyro.param("weight", torch.zeros(()))
        rows, time = plates(x, size)
        with rows, time:
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    with pytest.raises(ValueError, match="model: its site 'x' depends on entries of 'z'"):
        kind(model, exact(model)).loss(X, MASK)
    assert pyro.param("weight") == 0.0
    log_evidence(model, exact(model), X, MASK, num_samples=2)  # right, as it is


def test_a_density_of_a_whole_row_is_refused():
    """Of a guide by hand, where no auxiliary site tells."""

    def guide(x, mask, size=None):
        with pyro.plate("data", len(x)):
            scale = torch.eye(3) + 0.2
            pyro.sample("z", dist.MultivariateNormal(x / 2, scale))

    for call in (elbo(inside_of_an_event, guide).loss, iwae(inside_of_an_event, guide, 2).loss):
        with pytest.raises(ValueError, match="the density of its site 'z' depends on entries of"):
            call(X, MASK)


def test_a_guide_that_reads_what_is_masked_is_refused():
    def guide(x, mask, size=None):
        rows, _ = plates(x, size)
        with rows:
            previous = torch.zeros(len(x), 1)
            for t in (2, 1, 0):
                with pyro.plate(f"time_{t}", 1):
                    previous = pyro.sample(f"z_{t}", dist.Normal(previous, 1.0))

    def model(x, mask, size=None):
        rows, _ = plates(x, size)
        with rows:
            for t in range(3):
                with pyro.plate(f"time_{t}", 1), poutine.mask(mask=mask[:, t : t + 1]):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t : t + 1])

    with pytest.raises(ValueError, match="guide: the density of its site 'z_1' depends on entries"):
        elbo(model, guide).loss(X, MASK)


def test_points_need_no_mask():
    guide = AutoDelta(by_handler)
    loss = elbo(by_handler, guide).loss(X, MASK)
    z = guide(X, MASK)["z"]
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X)
    close(loss, -(log_p * MASK).sum() / 4)


class TestRead:
    """Masked latents that something reads which counts have no prior."""

    @pytest.mark.parametrize("which", ["all", "one", "mask of its own"])
    def test_by_data(self, which):
        other = torch.ones_like(MASK)
        if which == "one":  # of the last series alone
            other = MASK.clone()
            other[3, 2] = True

        def model(x, mask, size=None):
            rows, time = plates(x, size)
            with rows, time:
                with poutine.mask(mask=mask):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                data = other if len(x) == 4 else torch.ones_like(mask)
                with poutine.mask(mask=True if which == "all" else data):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        said = "model: its site 'x' depends on entries of 'z' that a mask leaves out"
        guide = AutoNormal(model)
        for call in (
            lambda: fit(elbo(model, guide), (X, MASK), epochs=1),
            lambda: log_evidence(model, guide, X, MASK, num_samples=2),
            lambda: log_evidence(model, exact(model), X, MASK, num_samples=2),
            lambda: iwae(model, exact(model), 2).loss(X, MASK),
            lambda: from_pyro_svi(model, guide, X, MASK, num_samples=2),
        ):
            with pytest.raises(ValueError, match=said):
                call()

    @pytest.mark.parametrize("count", [40, 38])  # of which the last batch has fewer
    def test_in_a_minibatch_that_comes_later(self, count):
        def model(x=None, mask=None, late=None, size=None):
            rows, time = plates(x, size)
            with rows, time:
                with poutine.mask(mask=mask):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with poutine.mask(mask=mask | late[:, None]):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x=None, mask=None, late=None, size=None):
            exact(model)(x, mask, size)

        x, mask = X.repeat(10, 1)[:count], MASK.repeat(10, 1)[:count]
        late = torch.arange(count) == 37
        with pytest.raises(ValueError, match="its site 'x' depends on entries of 'z'"):
            fit(elbo(model, guide), (x, mask, late), epochs=1, batch_size=4)

    def test_by_another_latent(self):
        def model(x, mask, size=None):
            rows, time = plates(x, size)
            with rows:
                with time, poutine.mask(mask=mask):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with pyro.plate("one", 1):
                    pyro.sample("w", dist.Normal(z.sum(-1, keepdim=True), 1.0))

        with pytest.raises(ValueError, match="model: its site 'w' depends on entries of 'z'"):
            elbo(model, AutoNormal(model)).loss(X, MASK)

    def test_binary_latents(self):
        def model(x, mask, size=None):
            rows, time = plates(x, size)
            with rows, time:
                with poutine.mask(mask=mask):
                    z = pyro.sample("z", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x, mask, size=None):
            rows, time = plates(x, size)
            with rows, time:
                pyro.sample("z", dist.Bernoulli(0.5))

        with pytest.raises(ValueError, match="model: its site 'x' depends on entries of 'z'"):
            log_evidence(model, guide, X, MASK, num_samples=2)


def walk(x=None, mask=None, size=None):
    """A state is read by the next, which is masked where it is."""
    z = torch.zeros(len(x))
    with data_plate(x, size):
        for t in range(3):
            with poutine.mask(mask=mask[:, t]):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])


def test_states_of_ragged_series():
    covariance = torch.minimum(*torch.meshgrid(*[torch.arange(1.0, 4.0)] * 2, indexing="ij"))
    covariance = covariance.double() + torch.eye(3).double()
    x = torch.where(MASK, X, torch.tensor(40.0).double())
    truth = sum(
        dist.MultivariateNormal(torch.zeros(n).double(), covariance[:n, :n]).log_prob(row[:n])
        for row, n in zip(x, LENGTHS.tolist(), strict=True)
    )
    guide = AutoNormal(walk)
    fit(elbo(walk, guide), (x, MASK), epochs=400, lr=0.05, seed=0)
    evidence = log_evidence(walk, guide, x, MASK, num_samples=4000, seed=0)
    assert evidence.value.sum().item() == pytest.approx(truth.item(), abs=0.1)


class TestMasksOfTheGuide:
    def guide(self, mask_of):
        def guide(x=None, mask=None, size=None):
            rows, time = plates(x, size)
            with rows, time, poutine.mask(mask=mask_of(mask)):
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

        return guide

    def test_the_same(self):
        guide = self.guide(lambda mask: mask)
        close(elbo(by_handler, guide).loss(X, MASK), -TRUTH.mean())
        close(log_evidence(by_handler, guide, X, MASK, num_samples=2).value, TRUTH)

    def test_fewer_are_masked(self):
        guide = self.guide(lambda mask: mask | (torch.arange(3) < 1))
        close(log_evidence(by_handler, guide, X, MASK, num_samples=2).value, TRUTH)

    def test_others_are_masked(self):
        guide = self.guide(lambda mask: ~mask)
        with pytest.raises(ValueError, match="guide: a mask leaves out entries of its site 'z'"):
            elbo(by_handler, guide).loss(X, MASK)

    def test_the_guide_alone_is_masked(self):
        def model(x=None, mask=None, size=None):
            by_handler(x, torch.ones_like(mask), size)

        guide = self.guide(lambda mask: mask)
        auto = AutoNormal(model)
        for each in (guide, poutine.mask(guide, mask=False), poutine.mask(auto, mask=MASK)):
            for call in (elbo(model, each).loss, lambda *x, g=each: log_evidence(model, g, *x)):
                with pytest.raises(ValueError, match="guide: a mask leaves out entries of its"):
                    call(X, MASK)

    def test_an_auxiliary_site_is_masked(self):
        """Which is no latent of the model: all of it counts, also that of a `pyro.factor`."""

        def of_site(x=None, mask=None, size=None):
            rows, time = plates(x, size)
            with rows, time:
                with poutine.mask(mask=mask):
                    a = pyro.sample("a", dist.Normal(x / 2, 0.5**0.5), infer=AUXILIARY)
                pyro.sample("z", dist.Delta(a))

        def of_factor(x=None, mask=None, size=None):
            rows, time = plates(x, size)
            with rows, time:
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
                with poutine.mask(mask=mask):
                    pyro.factor("a", torch.ones_like(x), has_rsample=True)

        def model(x=None, mask=None, size=None):
            by_handler(x, torch.ones_like(mask), size)

        for each in (of_site, of_factor):
            for call in (elbo(model, each).loss, lambda *x, g=each: log_evidence(model, g, *x)):
                with pytest.raises(ValueError, match="a mask leaves out entries of its site 'a'"):
                    call(X, MASK)


def test_parameters_of_rows_in_a_batch_by_hand_are_of_no_known_rows():
    def guide(x=None, mask=None, size=None):
        rows, time = plates(x, size)
        with rows as which, time:
            loc = pyro.param("loc", X / 2)
            pyro.sample("z", dist.Normal(loc[which], 0.5**0.5))

    objective = elbo(by_handler, guide)
    with pytest.raises(ValueError, match="it is not known which rows these are"):
        objective.loss(X[1:], MASK[1:], size=4)
    close(elbo(by_handler, guide).loss(X, MASK), -TRUTH.mean())


def test_masks_that_depend_on_latents_are_refused():
    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with data_plate(x, size), poutine.mask(mask=(m > 0).expand(len(x))):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x=None, size=None):  # on one side of zero
        pyro.sample("m", dist.Normal(5.0, 0.1))
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(5.0, 1.0))

    for call in (elbo(model, guide).loss, lambda x: log_evidence(model, guide, x)):
        with pytest.raises(ValueError, match="the mask of its latent site 'z' depends on latents"):
            call(SOME)


@pytest.mark.parametrize("observed", [False, True])
def test_masks_larger_than_a_site_are_refused(observed):
    """A latent that all rows share would have as many priors as there are entries."""

    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        if observed:
            with poutine.mask(mask=OBSERVED):
                pyro.sample("y", dist.Normal(m, 1.0), obs=torch.tensor(1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    masked = model if observed else poutine.mask(model, mask=OBSERVED)
    guide = AutoNormal(model)
    for call in (elbo(masked, guide).loss, lambda x: from_pyro_svi(masked, guide, x)):
        with pytest.raises(ValueError, match=r"its mask has shape \(10,\), and its log-density"):
            call(SOME)


def hidden(x=None, mask=None, size=None, steps=3, inside=False):
    """A hidden Markov model of ragged series, with its states summed out."""
    probs, locs = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double(), torch.tensor([-1.0, 2.0])
    z = torch.tensor(0)
    with data_plate(x, size):
        for t in pyro.markov(range(steps)):
            with poutine.mask(mask=True if inside else mask[:, t]):
                fn = dist.Categorical(probs[z])
                fn = fn.mask(mask[:, t]) if inside else fn
                z = pyro.sample(f"z_{t}", fn, infer={"enumerate": "parallel"})
                fn = dist.Normal(locs.double()[z], 1.0)
                pyro.sample(f"x_{t}", fn.mask(mask[:, t]), obs=x[:, t])


def test_enumerated_states_of_ragged_series():
    values = []
    for row, length in zip(X, LENGTHS.tolist(), strict=True):
        short = functools.partial(hidden, steps=length)
        every = torch.ones(1, length, dtype=torch.bool)
        values.append(log_evidence(short, None, row[None, :length], every).value)
    close(log_evidence(hidden, None, X, MASK).value, torch.cat(values))
    close(elbo(hidden).loss(X, MASK), -torch.cat(values).mean())


def test_outcomes_of_a_masked_distribution_would_count_one_each():
    model = functools.partial(hidden, inside=True)
    for call in (elbo(model).loss, lambda *data: log_evidence(model, None, *data)):
        with pytest.raises(ValueError, match=r"(?s)site 'z_\d': its distribution is masked and en"):
            call(X, MASK)


def test_enumerated_states_that_are_read_have_no_prior():
    def model(x=None, mask=None, size=None):
        with data_plate(x, size):
            with poutine.mask(mask=mask[:, 1]):
                k = pyro.sample("k", dist.Bernoulli(0.1), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k, 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match="model: its site 'x' depends on entries of 'k'"):
        log_evidence(model, None, X, MASK)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_a_latent_whose_density_is_a_factor(kind):
    """`.mask(False)`, and a prior of one's own: nothing is left out."""

    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0).mask(False))
        pyro.factor("prior", dist.Normal(0.0, 3.0).log_prob(m))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    guide = kind(model)
    fit(elbo(model, guide), SEEN.double(), epochs=500, lr=0.05, seed=0)
    evidence = log_evidence(model, guide, SEEN.double(), num_samples=2000, seed=0)
    assert evidence.value.item() == pytest.approx(TestObservedInPart.truth.item(), abs=0.02)


def test_a_masked_latent_that_nothing_reads_says_nothing():
    """Beside a factor of another one."""

    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        pyro.sample("w", dist.Normal(0.0, 1.0).mask(False))
        pyro.factor("none", 0.0 * m)
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    guide = AutoNormal(model)
    fit(elbo(model, guide), SEEN.double(), epochs=500, lr=0.05, seed=0)
    evidence = log_evidence(model, guide, SEEN.double(), num_samples=2000, seed=0)
    assert evidence.value.item() == pytest.approx(TestObservedInPart.truth.item(), abs=0.02)


PROBS = torch.tensor([0.1, 0.6, 0.3]).double()


@pytest.mark.parametrize("enumerate_", [None, "parallel"])
def test_discrete_latents_of_the_guide(enumerate_):
    """Beside a latent that counts, in the same plates."""
    locs = torch.tensor([-1.0, 0.0, 2.0])

    def model(x=None, mask=None, size=None):
        rows, time = plates(x, size)
        with rows, time:
            with poutine.mask(mask=mask):
                k = pyro.sample("k", dist.Categorical(PROBS))
                pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(w, 1.0), obs=torch.ones_like(x))

    def guide(x=None, mask=None, size=None):
        rows, time = plates(x, size)
        logits = PROBS.log() + dist.Normal(locs, 1.0).log_prob(x[..., None])
        with rows, time:
            infer = {"enumerate": enumerate_} if enumerate_ else {}
            pyro.sample("k", dist.Categorical(logits=logits * mask[..., None]), infer=infer)
            pyro.sample("w", dist.Normal(torch.tensor(0.5), 0.5**0.5))

    seen = (PROBS.log() + dist.Normal(locs, 1.0).log_prob(X[..., None])).logsumexp(-1)
    truth = (seen * MASK).sum(1) + 3 * dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor(1.0))
    close(elbo(model, guide).loss(X, MASK), -truth.mean())
    close(log_evidence(model, guide, X, MASK, num_samples=2).value, truth)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("surely", [False, True])
def test_discrete_latents_that_are_a_function_in_the_guide(inside, surely):
    """Another draw of an auxiliary site may be the same, and surely is where all are near one."""
    seen, x = torch.tensor([True, False, False]), torch.tensor([0.3, -1.2, 2.0]).double()
    joint = torch.stack([dist.Normal(z, 1.0).log_prob(x) for z in (0.0, 1.0)]) - math.log(2)
    logits = torch.where(seen, joint[1] - joint[0], 20.0 if surely else 0.0)

    def model(x, size=None):
        with data_plate(x, size), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        if inside:
            with pyro.plate("data", len(x)):
                a = pyro.sample(
                    "a", dist.Bernoulli(logits=logits[:, None]).to_event(1), infer=AUXILIARY
                )
                pyro.sample("z", dist.Delta(a[:, 0]))
            return
        with data_plate(x, size):
            a = pyro.sample("a", dist.Bernoulli(logits=logits), infer=AUXILIARY)
            pyro.sample("z", dist.Delta(a))

    truth = joint.logsumexp(0) * seen
    for seed in range(10):
        pyro.set_rng_seed(seed)
        close(elbo(model, guide).loss(x), -truth.mean())
        close(log_evidence(model, guide, x, num_samples=2).value, truth)


def test_binary_data_observed_in_part():
    """What is missing is enumerated, and where nothing is missing it is masked."""

    @config_enumerate
    def model(x=None, size=None):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Bernoulli(p), obs=x, obs_mask=OBSERVED)

    def guide(x=None, size=None):
        pyro.sample("p", dist.Beta(torch.tensor(6.0), torch.tensor(4.0)))

    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    truth = math.log(math.gamma(4) * math.gamma(6) * math.gamma(4) / math.gamma(10))
    close(log_evidence(model, guide, x, num_samples=2).value, [truth])
    close(elbo(model, guide).loss(x), -truth / 10)
    posterior = from_pyro_svi(model, guide, x, num_samples=300, seed=0)["posterior"]
    assert (posterior["x"].values[0, :, :6] == x[:6].numpy()).all()
    assert abs(posterior["x"].values[0, :, 6:].mean() - 0.6) < 0.1


def test_what_was_not_seen_and_no_guide_has():
    """The advice is followed: `config_enumerate`, a mask, the site in the guide."""
    x, infer = torch.tensor([0, 2, 1, 1, 0, 2, 2, 2, 2, 2]), {"enumerate": "parallel"}
    fn = dist.Categorical(torch.tensor([0.2, 0.3, 0.5]).double())

    def model(x=None, size=None):
        with data_plate(x, size):
            pyro.sample("x", fn, obs=x, obs_mask=OBSERVED, infer=infer)

    def masked(x=None, size=None):
        with data_plate(x, size), poutine.mask(mask=OBSERVED):
            pyro.sample("x", fn, obs=x)

    def guide(x=None, size=None):
        with data_plate(x, size):
            pyro.sample("x_unobserved", fn)

    with pytest.raises(ValueError, match=r"obs_mask leaves out .* Try pyro.sample\('x_unobserved'"):
        log_evidence(model, None, x)
    truth = fn.log_prob(x) * OBSERVED
    for tried in ((config_enumerate(model), None), (masked, None), (model, guide)):
        close(log_evidence(*tried, x, num_samples=2).value, truth)


def test_a_density_over_rows_that_are_independent_in_it():
    """The guide has the entries in an event, the model has them in its plates."""

    def guide(x=None, mask=None, size=None):
        pyro.sample("z", dist.Normal(X / 2, 0.5**0.5).to_event(2))

    close(log_evidence(by_handler, guide, X, MASK, num_samples=2).value, TRUTH.sum()[None])


def test_reparameterised_sites():
    """What is masked is another latent then, that the guide has, and the posterior both."""
    model = poutine.reparam(by_handler, config={"z": LocScaleReparam(0.0)})
    guide = AutoNormal(model)
    guide(X, MASK)
    deep_setattr(guide.locs, "z_decentered", PyroParam(X / 2, constraints.real, 0))
    scales = torch.full_like(X, 0.5**0.5)
    deep_setattr(guide.scales, "z_decentered", PyroParam(scales, guide.scale_constraint, 0))
    close(elbo(model, guide).loss(X, MASK), -TRUTH.mean())
    posterior = from_pyro_svi(model, guide, X, MASK, num_samples=300, seed=0)["posterior"]
    sd = torch.as_tensor(posterior["z"].values)[0].std(0)
    assert ((sd / torch.where(MASK, 0.5**0.5, 1.0) - 1).abs() < 0.2).all()


def test_a_simplex_has_fewer_unconstrained_numbers():
    def model(x=None, mask=None, size=None):
        with data_plate(x, size), poutine.mask(mask=mask):
            w = pyro.sample("w", dist.Dirichlet(torch.tensor([1.0, 2.0, 5.0])))
            pyro.sample("x", dist.Categorical(w), obs=x)

    x, mask = torch.tensor([0, 1, 2, 2]), torch.tensor([True, True, False, True])
    guide = AutoNormal(model)
    fit(elbo(model, guide), (x, mask), epochs=500, lr=0.05, seed=0)
    truth = torch.tensor([1 / 8, 2 / 8, 5 / 8]).log()[x[mask]].sum().item()
    evidence = log_evidence(model, guide, x, mask, num_samples=4000, seed=0)
    assert evidence.value.sum().item() == pytest.approx(truth, abs=0.05)


def test_a_change_of_variables_of_a_whole_row_is_refused():
    def model(x=None, mask=None, size=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros_like(x), 1.0).mask(mask).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).mask(mask).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"(?s)guide: the density of its site 'z'.*a plate of ent"):
        elbo(model, AutoNormal(model)).loss(X, MASK)


def test_what_is_not_masked_is_not_tried(monkeypatch):
    def model(x=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with data_plate(x, size), poutine.mask(mask=OBSERVED):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    monkeypatch.setattr(Trial, "run", None)
    guide = AutoNormal(model)
    fit(elbo(model, guide), SOME, epochs=1)
    log_evidence(model, guide, SOME, num_samples=2)
