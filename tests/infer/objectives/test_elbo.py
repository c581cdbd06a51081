"""The evidence lower bound: the right number by every estimator, and what is no bound refused."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor, nn

from guides import ExactPosterior
from ppl_models import FactorAnalysis, data_plate, elbo, fit, log_evidence
from ppl_models.infer.objectives.estimators import DirectELBO
from tests.support.programs import modules
from tests.support.refusals import vae
from tests.support.runs import quiet


def analysis(rows: int = 7) -> tuple[FactorAnalysis, Tensor]:
    model = FactorAnalysis(5, 2).double()
    return model, model(size=rows).detach()


ESTIMATORS = {
    "default": lambda: None,
    "particles": lambda: Trace_ELBO(num_particles=5),
    "vectorised": lambda: Trace_ELBO(
        num_particles=5, vectorize_particles=True, max_plate_nesting=1
    ),
    "guessed": lambda: Trace_ELBO(num_particles=5, vectorize_particles=True),
    "mean field": lambda: TraceMeanField_ELBO(),
    "mean field, particles": lambda: TraceMeanField_ELBO(num_particles=3),
    "enumerating": lambda: TraceEnum_ELBO(),
}


# Pyro's remark on an estimator that enumerates nothing: here on purpose
unused = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")


@unused
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("gradient", [True, False])
def test_exact_posterior_closes_the_gap(estimator, gradient):
    model, x = analysis()
    objective = elbo(model, ExactPosterior(model), ESTIMATORS[estimator]())
    with torch.set_grad_enabled(gradient):
        loss = objective.loss(x, size=70)  # a minibatch of 7 rows out of 70
    expected = -model.evidence().log_prob(x).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("gradient", [True, False])
def test_a_program_without_size_counts_the_rows_of_its_batch(gradient):
    class Plain(FactorAnalysis):
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Plain(5, 2).double(), torch.randn(20, 5, dtype=torch.float64)
    exact = ExactPosterior(model)
    objective = elbo(model, lambda x: exact(x))
    with torch.set_grad_enabled(gradient):
        loss = objective.loss(x[:5], size=20)
    expected = -model.evidence().log_prob(x)
    torch.testing.assert_close(loss, expected[:5].mean(), atol=1e-10, rtol=0)
    run = quiet(objective, x, epochs=1, batch_size=5, lr=1e-12)
    assert run.history["loss"] == pytest.approx([expected.mean().item()])


@unused
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_trains(estimator):
    case = modules()
    objective = elbo(case.model, case.guide, ESTIMATORS[estimator]())
    run = quiet(objective, case.data, epochs=15, batch_size=4, lr=2e-2, seed=0)
    assert run.history["loss"][-1] < run.history["loss"][0] - 0.2


class Mixture(nn.Module):
    """Three Gaussians, and which of them is enumerated."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.locs = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))

    def forward(self, x: Tensor | None = None, size: int | None = None) -> None:
        with data_plate(x, size):
            infer = {"enumerate": "parallel"}
            k = pyro.sample("k", dist.Categorical(logits=self.logits), infer=infer)
            locs = self.locs[k]  # (3, 1, 2) enumerated, (B, 2) sampled
            pyro.sample("x", dist.Normal(locs, 0.7).to_event(1), obs=x)

    def evidence(self, x: Tensor) -> Tensor:
        components = dist.Normal(self.locs, 0.7).to_event(1).log_prob(x[:, None])  # (B, 3)
        return (self.logits.log_softmax(0) + components).logsumexp(-1)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("wrap", [lambda model: model, config_enumerate])
def test_enumerated_sites_are_summed_over(wrap, gradient):
    model, x = Mixture(), torch.randn(7, 2, dtype=torch.float64)
    with torch.set_grad_enabled(gradient):
        loss = elbo(wrap(model)).loss(x, size=70)
    expected = -model.evidence(x).mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-12, rtol=0)
    if gradient:
        for parameter in (model.logits, model.locs):
            (got,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            (wanted,) = torch.autograd.grad(expected, parameter, retain_graph=True)
            torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_enumerated_sites_under_shuffled_minibatches():
    model, x = Mixture(), torch.randn(11, 2, dtype=torch.float64) + 2
    run = quiet(elbo(model), x, epochs=30, batch_size=4, lr=0.05, seed=0)
    assert run.history["loss"][-1] < run.history["loss"][0] - 0.5


def test_enumeration_beside_a_sampled_latent():
    """The default takes the same estimator as a reader of Pyro's manual would."""

    @config_enumerate
    def model(x: Tensor, size: int | None = None) -> None:
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        with data_plate(x, size):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(locs[..., k], 1.0), obs=x)

    x = torch.randn(12)
    guide = AutoDelta(poutine.block(model, expose=["locs"]), init_loc_fn=init_to_median)
    loss = elbo(model, guide).loss(x)
    pyro.clear_param_store()
    expected = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, x) / 12
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO, DirectELBO])
def test_an_estimator_that_would_sample_enumerated_sites_is_refused(estimator):
    with pytest.raises(ValueError, match=r"samples the site.* 'k'.*TraceEnum_ELBO"):
        quiet(elbo(Mixture(), None, estimator()), torch.randn(5, 2).double(), steps=1)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_mean_field_estimators_that_drop_a_change_of_variables_are_refused(kind):
    """Of a scale they would take the density of its logarithm, 0.35 nats too low a loss."""

    def model(x: Tensor, size: int | None = None) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    x = torch.randn(5)
    with pytest.raises(ValueError, match=r"TraceMeanField_ELBO leaves out .*'scale'.*Trace_ELBO"):
        quiet(elbo(model, kind(model), TraceMeanField_ELBO()), x, steps=1)

    def real(x: Tensor, size: int | None = None) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide, values = kind(real), []
    for objective in (elbo(real, guide, TraceMeanField_ELBO()), elbo(real, guide)):
        objective.prepare(x, size=5)
        torch.manual_seed(0)
        values.append(objective.loss(x))
    torch.testing.assert_close(*values)


def test_an_estimator_without_a_differentiable_loss_is_refused():
    with pytest.raises(TypeError, match=r"estimator: expected .* TraceMeanField_ELBO"):
        elbo(Mixture(), None, TraceGraph_ELBO())


def test_subsampling_inside_the_program():
    """All rows are alike here, so that any three of them stand for all exactly."""
    x = torch.full((12,), 2.0, dtype=torch.float64)
    sizes = []

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.5, dtype=torch.float64))
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            sizes.append(len(rows))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    expected = -dist.Normal(0.5, 1.0).log_prob(x[0])
    torch.testing.assert_close(elbo(model).loss(x), expected, atol=1e-12, rtol=0)
    quiet(elbo(model), x, steps=60, lr=0.1, seed=0)
    assert set(sizes) == {3}
    assert abs(pyro.param("loc").item() - 2) < 0.1


@pytest.mark.parametrize("estimator", ["Trace_ELBO", pyro.infer.Trace_ELBO, 3])
def test_estimators_that_are_none(estimator):
    with pytest.raises(TypeError, match=r"estimator: expected an ELBO of Pyro.*Trace_ELBO\(num"):
        elbo(*vae(), estimator)


# --- a class of autoguide -------------------------------------------------------------------------


def counts_of_two_kinds(x=None, size=None):
    """A rate of each kind, and the kinds of the rows, which are summed over."""
    rate = pyro.sample("rate", dist.Gamma(torch.tensor([2.0, 60.0]), 1.0).to_event(1))
    with data_plate(x, size):
        kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}).long()
        return pyro.sample("x", dist.Poisson(rate[kind]), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (AutoNormal, AutoNormal),
        (partial(AutoDiagonalNormal, init_scale=0.05), AutoDiagonalNormal),
        (AutoLowRankMultivariateNormal, AutoLowRankMultivariateNormal),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_class_of_autoguide_is_made_for_the_model(kind, made, batch_size):
    x = torch.tensor([1.0, 3.0, 2.0, 2.0] * 5 + [60.0, 55.0, 66.0, 59.0] * 5)
    objective = elbo(counts_of_two_kinds, kind)
    assert type(objective.guide) is made
    assert objective.model is counts_of_two_kinds
    settings = {"lr": 0.02, "seed": 0, "progress": False}
    fit(objective, x, steps=800, batch_size=batch_size, **settings)
    # The kinds are plain from the counts: each rate has the posterior of its own rows.
    shape = torch.tensor([2.0, 60.0]) + torch.stack([x[:20].sum(), x[20:].sum()])
    torch.testing.assert_close(objective.guide.median()["rate"], shape / 21, rtol=0.06, atol=0)
    evidence = log_evidence(counts_of_two_kinds, objective.guide, x, num_samples=200, seed=0)
    exact = -torch.lgamma(x + 1).sum() - 40 * math.log(2)
    first = torch.tensor([2.0, 60.0])
    exact = exact + (torch.lgamma(shape) - torch.lgamma(first) - shape * math.log(21)).sum()
    assert evidence.mean == pytest.approx(exact.item() / 40, abs=0.02)


@pytest.mark.parametrize("annotated", [config_enumerate, lambda model: model])
def test_a_class_on_a_model_in_handlers_or_a_module(annotated):
    class Model(nn.Module):
        def forward(self, x=None, size=None):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with data_plate(x, size):
                return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.full((15,), 2.0)
    objective = elbo(annotated(Model()), AutoNormal)
    fit(objective, x, steps=400, lr=0.05, batch_size=6, seed=0, progress=False)
    assert objective.guide.median()["loc"].item() == pytest.approx(30 / 16, abs=0.15)
    assert objective.guide(x, size=15).keys() == {"loc"}


def test_without_a_guide_there_is_none():
    assert elbo(counts_of_two_kinds).guide is None
