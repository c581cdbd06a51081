"""Every kind of objective, model and guide of the library: compiled, or eager with a reason."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from ppl_models import data_plate, elbo
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.descent import Descent
from tests.support.every_objective import COMPILED, SOME, X, semi_supervised

pytestmark = pytest.mark.usefixtures("graphs_as_traced")


def compare(objective, data):
    """The reason to run eagerly, after the same loss and gradient were seen twice."""
    batch = Batch(data, torch.arange(len(data[0])), 10 * len(data[0]))
    descent = Descent(objective, batch, compile=True)
    for module in descent.modules():
        module.train()
    parameters = [p for _, p in objective.named_parameters()]
    for seed in range(2):
        results = []
        for loss in (lambda: descent.evaluate(objective, batch), lambda: descent._loss(0, batch)):
            torch.manual_seed(seed)
            value = loss()
            results.append((value, *torch.autograd.grad(value, parameters, allow_unused=True)))
        for eager, other in zip(*results, strict=True):
            assert (eager is None) == (other is None)
            if eager is not None:
                torch.testing.assert_close(other, eager, rtol=1e-5, atol=1e-6)
    return descent.compiled[0].reason


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    make, data, _ = COMPILED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare(make(), data) is None


def test_labels_that_are_not_known():
    """Rows are told apart by their labels, which no graph can do."""
    with pytest.warns(UserWarning, match="cannot be traced"):
        assert compare(elbo(*semi_supervised()), ((X > 0).float(), SOME)) is not None


def correlated():
    def model(x=None, size=None):
        scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0).expand([4]).to_event(1))
        root = pyro.sample("correlations", dist.LKJCholesky(4, 2.0))
        with data_plate(x, size):
            law = dist.MultivariateNormal(torch.zeros(4), scale_tril=scales[..., None] * root)
            return pyro.sample("x", law, obs=x)

    return elbo(model, AutoNormal(model))


@pytest.mark.parametrize("name", ["BayesianGaussianMixture, AutoNormal", "VAE, Normal"])
def test_the_compiler_takes_the_graph_whole(name, monkeypatch):
    """A break, as at a mask of the elements of a triangle, would leave it in slower pieces."""
    whole = torch._dynamo.optimize("eager", nopython=True, dynamic=False)
    monkeypatch.setattr(torch, "compile", lambda graph, **_: whole(graph))
    make, data, _ = COMPILED[name]
    assert compare(make(), data) is None


def test_the_triangle_of_a_correlation_is_filled_by_indices(monkeypatch):
    """By a mask, as torch does it, a GPU would have to be waited for."""
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graphs.append(graph) or graph)
    assert compare(correlated(), (X,)) is None
    assert "index_put_" in graphs[0].code
    assert ".lt." not in graphs[0].code
