"""One of each kind of objective, model and guide of the library, with data for it.

What is made here resumes, is saved, has the evidence and the draws that it says (`test_models`),
and is checked compiled, recorded and on another device (`infer/compiled`): a new model is one row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
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
from torch import Tensor

from guides import (
    AmortizedFlow,
    AmortizedLowRankNormal,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    BlockPosterior,
    BottomUpNormal,
    ConditionalNormal,
    DomainNormal,
    ExactPosterior,
    FactorizationGamma,
    FactorizationNormal,
    FactorNormal,
    GraphNormal,
    GroupNormal,
    LabelNormal,
    LadderNormal,
    MixturePosterior,
    SharedAndLocal,
)
from ppl_models import (
    GAN,
    MADE,
    VAE,
    VGAE,
    AnyOrderWords,
    AutoEncoder,
    BayesianFactorAnalysis,
    BayesianGaussianMixture,
    Classifier,
    ClusteredVAE,
    ConditionalVAE,
    Coral,
    DenoisingAutoEncoder,
    Diffusion,
    DistanceEmbedding,
    DomainAdversarial,
    DomainVAE,
    FactorAnalysis,
    FeaturePrior,
    FlowPrior,
    GaussianDiscriminant,
    GaussianMixture,
    HierarchicalVAE,
    LabelShift,
    LatentDiffusion,
    LatentPositions,
    LinearRegression,
    LogisticRegression,
    MaskedWords,
    MatrixFactorization,
    MixturePrior,
    Nearness,
    NodeClassifier,
    PixelCNN,
    PixelRNN,
    PoissonFactorization,
    PoissonMixture,
    ProbabilisticPCA,
    SemiSupervisedVAE,
    SentenceClassifier,
    SoftmaxRegression,
    StochasticBlockModel,
    VampPrior,
    adversarial,
    data_plate,
    denoising,
    domain_adversarial,
    elbo,
    iwae,
    reconstruction,
    weighted,
)
from ppl_models.autoencoders.corruption import GaussianNoise, MaskingNoise, SaltAndPepper
from ppl_models.embeddings.neighbours import BagOfNeighbours, Neighbours, SelfMaskedTransformer
from ppl_models.embeddings.networks import TextCNN
from ppl_models.likelihoods import (
    Bernoulli,
    Categorical,
    LogisticMixture,
    Multinomial,
    Normal,
    Ordered,
    Poisson,
)
from ppl_models.nn import (
    ConvDecoder,
    ConvEncoder,
    GraphNetwork,
    MaskedPatches,
    ResNet,
    TimeMLP,
    UNet,
    VisionTransformer,
)


class Row(NamedTuple):
    """What makes an objective, its data, and the kind of evidence that its model has."""

    make: Callable[[], Any]
    data: tuple[Tensor, ...]
    evidence: str | None  # None where the model has none, and says why


_generator = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=_generator)
BINARY = (X > 0).float()
GREY = (3 * torch.rand(24, 4, generator=_generator)).round() / 3
IMAGES = torch.rand(8, 64, generator=_generator).round()
COUNTS = (3 * X.abs()).floor()
LABELS = torch.arange(24) % 3
SOME = LABELS.where(torch.arange(24) % 2 == 0, -1)
PAIRS = torch.combinations(torch.arange(8))[:24]
NODES = torch.triu_indices(6, 6, offset=1).T.contiguous()  # all pairs of them
INDEX = torch.cat([NODES, NODES.flip(1)])[::2].T.contiguous()
EDGES = (NODES.sum(1) % 3 == 0).float()
RATED = torch.stack([torch.arange(24) % 6, torch.arange(24) // 6], 1)  # of a user and an item
DOMAINS = (torch.arange(24) % 2 == 1).long()
HALVES = LABELS.where(DOMAINS == 0, -1)
SHARES = X[:, :3].softmax(1)
HOLES = X.where(torch.rand(24, 4, generator=_generator) > 0.2, torch.nan)
WORDS = torch.randint(1, 6, (24, 4), generator=_generator)


def mixture(**settings: Any) -> BayesianGaussianMixture:
    return BayesianGaussianMixture(4, 2, **settings)


def vae(likelihood: Any, prior: Any = lambda guide: None, **remedies: Any) -> Any:
    guide = AmortizedNormal(4, 2)
    return elbo(VAE(4, 2, likelihood, prior=prior(guide)), guide, **remedies)


def with_auto(model: Any, kind: Any) -> Any:
    return elbo(model, kind(poutine.block(model, hide=["z"])))


def regression(kind: Any, estimator: Any = None) -> Any:
    model = LinearRegression(4)
    return elbo(model, kind(model), estimator)


def distances() -> Any:
    model = DistanceEmbedding(8, 2)
    return elbo(model, AutoNormal(model, init_scale=0.05))


def any_order() -> Any:
    model = AnyOrderWords(5, 4, SelfMaskedTransformer(5, 4, 8, 1, 2))
    return elbo(model, model.masking)


def exact(model: Any) -> Any:
    return elbo(model, ExactPosterior(model))


def ladder() -> Any:
    model = HierarchicalVAE(4, 2, 2)
    return elbo(model, LadderNormal(model, 4, 2, 2))


def images() -> Any:
    decoder, encoder = ConvDecoder(2, 8, 8, 1, (4, 2)), ConvEncoder(8, 8, 4, (2, 4))
    return elbo(VAE(64, 2, decoder=decoder), AmortizedNormal(64, 2, encoder))


def transformer(num_outputs: int | None = None) -> VisionTransformer:
    return VisionTransformer(8, num_outputs, patch=4, width=8, num_layers=1, num_heads=2)


def every_step() -> Any:
    model = Diffusion(4, num_steps=3)
    return elbo(model, model.noising)


def latent_diffusion() -> Any:
    guide = AmortizedNormal(4, 2)
    model = LatentDiffusion(VAE(4, 2), Diffusion(2, num_steps=3))
    return elbo(model, model.noising(guide))


def factor_normal() -> Any:
    model = BayesianFactorAnalysis(4, 2)
    return elbo(model, FactorNormal(model.initial_values(X)))


def factorisation(kind: str, likelihood: Any = None) -> Any:
    model = MatrixFactorization(6, 4, 2, likelihood)
    return elbo(model, FactorizationNormal(model, kind))


def poisson_factorisation() -> Any:
    model = PoissonFactorization(6, 4, 2)
    return elbo(model, FactorizationGamma(model))


def mixture_posterior(kind: Any) -> Any:
    model = mixture()
    return elbo(model, kind(model, X))


def graph_vae(**settings: Any) -> Any:
    encoder = GraphNetwork(4, 4, num_hidden=3, dropout=0.2)
    return elbo(VGAE(6, 2, **settings), GraphNormal(X[:6], INDEX, 2, encoder))


def node_classifier() -> Any:
    return elbo(NodeClassifier(X[:6], INDEX, 3, GraphNetwork(4, 3, num_hidden=3, hops=2)))


def positions(similarity: str) -> Any:
    model = LatentPositions(6, 2, similarity)
    return elbo(model, AutoNormal(model))


def blocks(**settings: Any) -> Any:
    model = StochasticBlockModel(6, 2, **settings)
    return elbo(model, BlockPosterior(model, NODES, EDGES, restarts=2))


def semi_supervised() -> tuple[Any, Any]:
    return SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2)


def with_classifier() -> Any:
    model, guide = semi_supervised()
    return weighted({elbo(model, guide): 1.0, elbo(guide.classify): 2.0})


def player(number: int, **settings: Any) -> Any:
    return adversarial(GAN(4, 2), **settings)[number]  # type: ignore[arg-type]


class AroundAMean(torch.nn.Module):
    """Rows around a mean that they share."""

    zeros: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(4))

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        scale = torch.ones_like(self.zeros)
        loc = pyro.sample("loc", dist.Normal(self.zeros, scale).to_event(1))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            return pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)


def shared_and_local() -> Any:
    model = AroundAMean()
    shared = AutoNormal(poutine.block(model, hide=["z"]))
    return elbo(model, SharedAndLocal(shared, AmortizedNormal(8, 4), ["loc"]))


class InGroups(torch.nn.Module):
    """Rows around the mean of their group."""

    zeros: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(4))

    def forward(
        self, x: Tensor | None = None, group: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        if group is None:
            group = torch.arange(size or 3, device=self.zeros.device) % 3
        scale = torch.ones_like(self.zeros)
        with pyro.plate("group", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(self.zeros, scale).to_event(1))
        with data_plate(x, size):
            loc = z.index_select(-2, group)
            return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def in_groups() -> Any:
    return elbo(InGroups(), GroupNormal(4, 4, 3, data=(X, LABELS)))


def programs(objective: Any) -> tuple[Any, Any]:
    """The model that an objective trains, and its guide, or None."""
    if hasattr(objective, "parts"):  # of a weighted sum
        return programs(objective.parts[0][0])
    if hasattr(objective, "guide"):
        return objective.model, objective.guide
    for name in ("diffusion", "classifier", "autoencoder", "gan"):
        if hasattr(objective, name):
            model = getattr(objective, name)
            return model, getattr(model, "noising", None)
    raise TypeError(f"{objective}: which model does it train?")


COMPILED: dict[str, Row] = {
    "FactorAnalysis": Row(lambda: exact(FactorAnalysis(4, 2)), (X,), "exact"),
    "FactorAnalysis, missing": Row(
        lambda: exact(FactorAnalysis(4, 2, "marginalise")), (HOLES,), "exact"
    ),
    "ProbabilisticPCA": Row(lambda: exact(ProbabilisticPCA(4, 2)), (X,), "exact"),
    "PoissonMixture": Row(lambda: elbo(PoissonMixture(4, 2)), (COUNTS,), "exact"),
    "GaussianMixture": Row(lambda: elbo(GaussianMixture(4, 2)), (X,), "exact"),
    "GaussianMixture, tied": Row(lambda: elbo(GaussianMixture(4, 2, "tied")), (X,), "exact"),
    "GaussianMixture, diag": Row(lambda: elbo(GaussianMixture(4, 2, "diag")), (X,), "exact"),
    "GaussianDiscriminant": Row(lambda: elbo(GaussianDiscriminant(4, 3)), (X, LABELS), "exact"),
    "BayesianGaussianMixture, AutoNormal": Row(
        lambda: with_auto(mixture(), AutoNormal), (X,), "lower bound"
    ),
    "BayesianGaussianMixture, diag, stick-breaking": Row(
        lambda: with_auto(mixture(covariance="diag", weights="stick-breaking"), AutoNormal),
        (X,),
        "lower bound",
    ),
    "BayesianGaussianMixture, MixturePosterior": Row(
        lambda: mixture_posterior(MixturePosterior), (X,), "lower bound"
    ),
    "BayesianFactorAnalysis": Row(
        lambda: with_auto(BayesianFactorAnalysis(4, 2), AutoNormal), (X,), "lower bound"
    ),
    "BayesianFactorAnalysis, FactorNormal": Row(lambda: factor_normal(), (X,), "lower bound"),
    "MatrixFactorization": Row(lambda: factorisation("full"), (RATED, X[:, 0]), "lower bound"),
    "MatrixFactorization, diag": Row(
        lambda: factorisation("diag"), (RATED, X[:, 0]), "lower bound"
    ),
    "MatrixFactorization, Ordered": Row(
        lambda: factorisation("full", Ordered([0, 1, 2, 3], own_cutpoints=True)),
        (RATED, COUNTS[:, 0].clamp(max=3)),
        "lower bound",
    ),
    "MatrixFactorization, Poisson": Row(
        lambda: factorisation("diag", Poisson()), (RATED, COUNTS[:, 0]), "lower bound"
    ),
    "PoissonFactorization": Row(
        lambda: poisson_factorisation(), (RATED, COUNTS[:, 0]), "lower bound"
    ),
    "VAE, Multinomial": Row(lambda: vae(Multinomial()), (COUNTS,), "lower bound"),
    "LinearRegression, AutoNormal": Row(
        lambda: regression(AutoNormal), (X, X.sum(1)), "lower bound"
    ),
    "LinearRegression, AutoMultivariateNormal": Row(
        lambda: regression(AutoMultivariateNormal), (X, X.sum(1)), "lower bound"
    ),
    "LinearRegression, AutoLowRankMultivariateNormal": Row(
        lambda: regression(AutoLowRankMultivariateNormal), (X, X.sum(1)), "lower bound"
    ),
    "LinearRegression, AutoIAFNormal": Row(
        lambda: regression(AutoIAFNormal), (X, X.sum(1)), "lower bound"
    ),
    "LinearRegression, AutoStructured": Row(
        lambda: regression(AutoStructured), (X, X.sum(1)), "lower bound"
    ),
    "LogisticRegression": Row(
        lambda: with_auto(LogisticRegression(4), AutoNormal), (X, LABELS % 2), "lower bound"
    ),
    "SoftmaxRegression": Row(
        lambda: with_auto(SoftmaxRegression(4, 3), AutoNormal), (X, LABELS), "lower bound"
    ),
    "Coral": Row(lambda: elbo(Coral(4).maximum_likelihood(X, X * 2 + 1)), (X,), "exact"),
    "LabelShift": Row(lambda: elbo(LabelShift(SHARES)), (SHARES,), "exact"),
    "Classifier": Row(lambda: elbo(Classifier(4, 3)), (X, LABELS), "exact"),
    "Classifier, vision transformer": Row(
        lambda: elbo(Classifier(64, 3, 8, transformer())), (IMAGES, LABELS[:8]), "exact"
    ),
    "DistanceEmbedding": Row(lambda: distances(), (PAIRS, 0.5 + X.norm(dim=1)), "lower bound"),
    "SentenceClassifier": Row(lambda: elbo(SentenceClassifier(5, 3, 4)), (WORDS, LABELS), "exact"),
    "SentenceClassifier, convolutions": Row(
        lambda: elbo(SentenceClassifier(5, 3, 4, TextCNN(4, (2, 3), 4))), (WORDS, LABELS), "exact"
    ),
    "MaskedWords": Row(
        lambda: elbo(MaskedWords(5, 4, Neighbours(5, 4, 2, 8))), (WORDS,), "pseudo-likelihood"
    ),
    "MaskedWords, bag": Row(
        lambda: elbo(MaskedWords(5, 4, BagOfNeighbours(5, 4))), (WORDS,), "pseudo-likelihood"
    ),
    "AnyOrderWords": Row(lambda: any_order(), (WORDS,), "lower bound"),
    "VAE, Bernoulli": Row(lambda: vae(Bernoulli()), (BINARY,), "lower bound"),
    "VAE, Normal": Row(lambda: vae(Normal()), (X,), "lower bound"),
    "VAE, Normal with own scales": Row(lambda: vae(Normal(own_scale=True)), (X,), "lower bound"),
    "VAE, Categorical": Row(lambda: vae(Categorical(4)), (GREY,), "lower bound"),
    "VAE, LogisticMixture": Row(lambda: vae(LogisticMixture(4, 2)), (GREY,), "lower bound"),
    "VAE, mixture prior": Row(
        lambda: vae(Bernoulli(), lambda _: MixturePrior(2, 3)), (BINARY,), "lower bound"
    ),
    "VAE, VampPrior": Row(
        lambda: vae(Bernoulli(), lambda g: VampPrior(BINARY[:5], g)), (BINARY,), "lower bound"
    ),
    "VAE, FlowPrior": Row(
        lambda: vae(Bernoulli(), lambda _: FlowPrior(2, 1, (8,))), (BINARY,), "lower bound"
    ),
    "VAE, beta and warm-up": Row(
        lambda: vae(Bernoulli(), beta=2.0, warm_up=3), (BINARY,), "lower bound"
    ),
    "VAE, free bits": Row(lambda: vae(Normal(), free_bits=0.1), (X,), "lower bound"),
    "ClusteredVAE": Row(
        lambda: elbo(ClusteredVAE(4, 3, 2), AmortizedNormal(4, 2)), (BINARY,), "lower bound"
    ),
    "VAE, convolutions": Row(lambda: images(), (IMAGES,), "lower bound"),
    "VAE, vision transformer": Row(
        lambda: elbo(VAE(64, 2), AmortizedNormal(64, 2, transformer(4))),
        (IMAGES,),
        "lower bound",
    ),
    "VAE, AmortizedMultivariateNormal": Row(
        lambda: elbo(VAE(4, 2), AmortizedMultivariateNormal(4, 2)), (BINARY,), "lower bound"
    ),
    "VAE, AmortizedLowRankNormal": Row(
        lambda: elbo(VAE(4, 2), AmortizedLowRankNormal(4, 2)), (BINARY,), "lower bound"
    ),
    "VAE, AmortizedMixture": Row(
        lambda: elbo(VAE(4, 2), AmortizedMixture(4, 2)), (BINARY,), "lower bound"
    ),
    "VAE, AmortizedFlow": Row(
        lambda: elbo(VAE(4, 2), AmortizedFlow(4, 2, hidden=(8,))), (BINARY,), "lower bound"
    ),
    "SharedAndLocal": Row(lambda: shared_and_local(), (X,), "lower bound"),
    "GroupNormal": Row(lambda: in_groups(), (X, LABELS), "lower bound"),
    "iwae": Row(lambda: iwae(VAE(4, 2), AmortizedNormal(4, 2), 3), (BINARY,), "lower bound"),
    "iwae, doubly reparameterised": Row(
        lambda: iwae(VAE(4, 2), AmortizedNormal(4, 2), 3, doubly_reparameterised=True),
        (BINARY,),
        "lower bound",
    ),
    "HierarchicalVAE, bottom-up": Row(
        lambda: elbo(HierarchicalVAE(4, 2, 2), BottomUpNormal(4, 2, 2)), (BINARY,), "lower bound"
    ),
    "HierarchicalVAE, ladder": Row(lambda: ladder(), (BINARY,), "lower bound"),
    "ConditionalVAE": Row(
        lambda: elbo(ConditionalVAE(4, 3, 2), ConditionalNormal(4, 3, 2)),
        (BINARY, LABELS),
        "lower bound",
    ),
    "MADE": Row(lambda: elbo(MADE(4)), (BINARY,), "exact"),
    "PixelCNN": Row(lambda: elbo(PixelCNN(2, 2, Bernoulli(), 4, 2)), (BINARY,), "exact"),
    "PixelRNN": Row(
        lambda: elbo(PixelRNN(2, 2, Bernoulli(), "diagonal", 4, 1)), (BINARY,), "exact"
    ),
    "PixelRNN, row": Row(
        lambda: elbo(PixelRNN(2, 2, Bernoulli(), "row", 4, 1)), (BINARY,), "exact"
    ),
    "Diffusion": Row(lambda: denoising(Diffusion(4)), (X,), "lower bound"),
    "Diffusion, bound": Row(lambda: denoising(Diffusion(4), "bound"), (X,), "lower bound"),
    "Diffusion, levels": Row(
        lambda: denoising(Diffusion(4, target="levels", likelihood=Categorical(4)), "bound"),
        (GREY,),
        "lower bound",
    ),
    "Diffusion, labels": Row(
        lambda: denoising(Diffusion(4, TimeMLP(4, 4, num_classes=3), num_steps=9)),
        (X, LABELS),
        "lower bound",
    ),
    "Diffusion, ResNet": Row(
        lambda: denoising(Diffusion(64, ResNet((8, 8), channels=4, num_blocks=2), num_steps=9)),
        (IMAGES,),
        "lower bound",
    ),
    "Diffusion, UNet": Row(
        lambda: denoising(Diffusion(64, UNet((8, 8), 1, (4, 8)), num_steps=9)),
        (IMAGES,),
        "lower bound",
    ),
    "AutoEncoder": Row(lambda: reconstruction(AutoEncoder(4, 2)), (X,), None),
    "DenoisingAutoEncoder": Row(
        lambda: reconstruction(DenoisingAutoEncoder(4, 2, noise=GaussianNoise(0.1))), (X,), None
    ),
    "DenoisingAutoEncoder, masking": Row(
        lambda: reconstruction(DenoisingAutoEncoder(4, 2, noise=MaskingNoise(0.1))), (X,), None
    ),
    "DenoisingAutoEncoder, salt and pepper": Row(
        lambda: reconstruction(DenoisingAutoEncoder(4, 2, noise=SaltAndPepper(0.1))), (X,), None
    ),
    "MaskedPatches": Row(lambda: reconstruction(MaskedPatches(transformer())), (IMAGES,), None),
    "LatentPositions": Row(lambda: positions("distance"), (NODES, EDGES), "lower bound"),
    "LatentPositions, inner product": Row(
        lambda: positions("inner product"), (NODES, EDGES), "lower bound"
    ),
    "VGAE": Row(lambda: graph_vae(), (NODES, EDGES), "lower bound"),
    "VGAE, features": Row(
        lambda: graph_vae(decoder=Nearness(), prior=FeaturePrior(X[:6], 2, torch.nn.Linear(4, 4))),
        (NODES, EDGES),
        "lower bound",
    ),
    "NodeClassifier": Row(lambda: node_classifier(), (torch.arange(6), LABELS[:6]), "exact"),
    "StochasticBlockModel, degrees": Row(
        lambda: blocks(degree_corrected=True, learn_prior=True), (NODES, EDGES), "lower bound"
    ),
    "four particles": Row(
        lambda: regression(AutoNormal, Trace_ELBO(num_particles=4)), (X, X.sum(1)), "lower bound"
    ),
    "DomainAdversarial": Row(
        lambda: domain_adversarial(DomainAdversarial(4, 3)), (X, HALVES, DOMAINS), None
    ),
}

EAGER: dict[str, Row] = {
    # Compiled as players of a game: alone they warn of what they do not train.
    "GAN, discriminator": Row(lambda: player(0), (X,), None),
    "GAN, discriminator with noise": Row(
        lambda: player(0, loss="hinge", instance_noise=(0.3, 0.1, 10)), (X,), None
    ),
    "GAN, generator": Row(lambda: player(1), (X,), None),
    "SemiSupervisedVAE": Row(lambda: elbo(*semi_supervised()), (BINARY, SOME), "lower bound"),
    "DomainVAE": Row(
        lambda: elbo(DomainVAE(4, 3, 2), DomainNormal(4, 3, 2)),
        (BINARY, HALVES, DOMAINS),
        "lower bound",
    ),
    "SemiSupervisedVAE, weighted": Row(lambda: with_classifier(), (BINARY, SOME), "lower bound"),
    "StochasticBlockModel": Row(lambda: blocks(), (NODES, EDGES), "lower bound"),
    "Diffusion, every step": Row(lambda: every_step(), (X,), "lower bound"),
    "LatentDiffusion": Row(lambda: latent_diffusion(), (BINARY,), "lower bound"),
}

ALL = {**COMPILED, **EAGER}
