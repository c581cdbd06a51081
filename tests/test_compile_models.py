"""Every kind of objective, model and guide of the library: compiled, or eager with a reason."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)

from guides import (
    AmortizedNormal,
    BottomUpNormal,
    ConditionalNormal,
    ExactPosterior,
    LabelNormal,
    LadderNormal,
)
from ppl_models import (
    GAN,
    MADE,
    VAE,
    AutoEncoder,
    BayesianFactorAnalysis,
    BayesianGaussianMixture,
    Classifier,
    ConditionalVAE,
    DenoisingAutoEncoder,
    Diffusion,
    FactorAnalysis,
    GaussianDiscriminant,
    GaussianMixture,
    HierarchicalVAE,
    LinearRegression,
    LogisticRegression,
    MixturePrior,
    PixelCNN,
    PixelRNN,
    ProbabilisticPCA,
    SemiSupervisedVAE,
    SoftmaxRegression,
    VampPrior,
    adversarial,
    data_plate,
    denoising,
    elbo,
    iwae,
    reconstruction,
)
from ppl_models.corruption import GaussianNoise
from ppl_models.engine.data import Batch
from ppl_models.engine.descend import Descent
from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture, Normal
from ppl_models.nn import TimeMLP


@pytest.fixture(autouse=True)
def _small_compiler(monkeypatch):
    """Graphs run as they are: a compiler takes seconds for each."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


X = torch.randn(24, 4)
BINARY = (X > 0).float()
GREY = (3 * torch.rand(24, 4)).round() / 3
LABELS = torch.arange(24) % 3
SOME = LABELS.where(torch.arange(24) % 2 == 0, -1)
HOLES = X.where(torch.rand(24, 4) > 0.2, torch.nan)


def mixture(**settings):
    return BayesianGaussianMixture(4, 2, **settings)


def vae(likelihood, prior=lambda guide: None, num_features=4):
    guide = AmortizedNormal(num_features, 2)
    return elbo(VAE(num_features, 2, likelihood, prior=prior(guide)), guide)


def with_auto(model, kind):
    return elbo(model, kind(poutine.block(model, hide=["z"])))


def regression(kind, estimator=None):
    model = LinearRegression(4)
    return elbo(model, kind(model), estimator)


COMPILED = {
    "FactorAnalysis": (lambda: exact(FactorAnalysis(4, 2)), (X,)),
    "FactorAnalysis, missing": (lambda: exact(FactorAnalysis(4, 2, "marginalise")), (HOLES,)),
    "ProbabilisticPCA": (lambda: exact(ProbabilisticPCA(4, 2)), (X,)),
    "GaussianMixture": (lambda: elbo(GaussianMixture(4, 2)), (X,)),
    "GaussianMixture, tied": (lambda: elbo(GaussianMixture(4, 2, "tied")), (X,)),
    "GaussianMixture, diag": (lambda: elbo(GaussianMixture(4, 2, "diag")), (X,)),
    "GaussianDiscriminant": (lambda: elbo(GaussianDiscriminant(4, 3)), (X, LABELS)),
    "BayesianGaussianMixture, AutoNormal": (lambda: with_auto(mixture(), AutoNormal), (X,)),
    "BayesianGaussianMixture, diag, stick-breaking": (
        lambda: with_auto(mixture(covariance="diag", weights="stick-breaking"), AutoNormal),
        (X,),
    ),
    "BayesianFactorAnalysis": (lambda: with_auto(BayesianFactorAnalysis(4, 2), AutoNormal), (X,)),
    "LinearRegression, AutoNormal": (lambda: regression(AutoNormal), (X, X.sum(1))),
    "LinearRegression, AutoMultivariateNormal": (
        lambda: regression(AutoMultivariateNormal),
        (X, X.sum(1)),
    ),
    "LinearRegression, AutoLowRankMultivariateNormal": (
        lambda: regression(AutoLowRankMultivariateNormal),
        (X, X.sum(1)),
    ),
    "LinearRegression, AutoIAFNormal": (lambda: regression(AutoIAFNormal), (X, X.sum(1))),
    "LinearRegression, AutoStructured": (lambda: regression(AutoStructured), (X, X.sum(1))),
    "LogisticRegression": (lambda: with_auto(LogisticRegression(4), AutoNormal), (X, LABELS % 2)),
    "SoftmaxRegression": (lambda: with_auto(SoftmaxRegression(4, 3), AutoNormal), (X, LABELS)),
    "Classifier": (lambda: elbo(Classifier(4, 3)), (X, LABELS)),
    "VAE, Bernoulli": (lambda: vae(Bernoulli()), (BINARY,)),
    "VAE, Normal": (lambda: vae(Normal()), (X,)),
    "VAE, Normal with own scales": (lambda: vae(Normal(own_scale=True)), (X,)),
    "VAE, Categorical": (lambda: vae(Categorical(4)), (GREY,)),
    "VAE, LogisticMixture": (lambda: vae(LogisticMixture(4, 2)), (GREY,)),
    "VAE, mixture prior": (lambda: vae(Bernoulli(), lambda _: MixturePrior(2, 3)), (BINARY,)),
    "VAE, VampPrior": (lambda: vae(Bernoulli(), lambda g: VampPrior(BINARY[:5], g)), (BINARY,)),
    "iwae": (lambda: iwae(VAE(4, 2), AmortizedNormal(4, 2), 3), (BINARY,)),
    "HierarchicalVAE, bottom-up": (
        lambda: elbo(HierarchicalVAE(4, 2, 2), BottomUpNormal(4, 2, 2)),
        (BINARY,),
    ),
    "HierarchicalVAE, ladder": (lambda: ladder(), (BINARY,)),
    "ConditionalVAE": (
        lambda: elbo(ConditionalVAE(4, 3, 2), ConditionalNormal(4, 3, 2)),
        (BINARY, LABELS),
    ),
    "MADE": (lambda: elbo(MADE(4)), (BINARY,)),
    "PixelCNN": (lambda: elbo(PixelCNN(2, 2, Bernoulli(), 4, 2)), (BINARY,)),
    "PixelRNN": (lambda: elbo(PixelRNN(2, 2, Bernoulli(), "diagonal", 4, 1)), (BINARY,)),
    "Diffusion": (lambda: denoising(Diffusion(4)), (X,)),
    "Diffusion, labels": (
        lambda: denoising(Diffusion(4, TimeMLP(4, 4, num_classes=3))),
        (X, LABELS),
    ),
    "AutoEncoder": (lambda: reconstruction(AutoEncoder(4, 2)), (X,)),
    "DenoisingAutoEncoder": (
        lambda: reconstruction(DenoisingAutoEncoder(4, 2, noise=GaussianNoise(0.1))),
        (X,),
    ),
    "four particles": (
        lambda: regression(AutoNormal, Trace_ELBO(num_particles=4)),
        (X, X.sum(1)),
    ),
}


def exact(model):
    return elbo(model, ExactPosterior(model))


def ladder():
    model = HierarchicalVAE(4, 2, 2)
    return elbo(model, LadderNormal(model, 4, 2, 2))


def compare(objective, data):
    """The reason to run eagerly, after the same loss and gradient were seen twice."""
    batch = Batch(data, torch.arange(len(data[0])), 10 * len(data[0]))
    descent = Descent(objective, compile=True)
    descent.start(batch)
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
    make, data = COMPILED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare(make(), data) is None


def test_players_of_a_game_run_eagerly():
    assert "players share" in compare(adversarial(GAN(4, 2))[1], (X,))


def test_labels_that_are_not_known():
    """Rows are told apart by their labels, which no graph can do."""
    objective = elbo(SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2))
    with pytest.warns(UserWarning, match="cannot be traced"):
        assert compare(objective, (BINARY, SOME)) is not None


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
    make, data = COMPILED[name]
    assert compare(make(), data) is None


def test_the_triangle_of_a_correlation_is_filled_by_indices(monkeypatch):
    """By a mask, as torch does it, a GPU would have to be waited for."""
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graphs.append(graph) or graph)
    assert compare(correlated(), (X,)) is None
    assert "index_put_" in graphs[0].code
    assert ".lt." not in graphs[0].code
