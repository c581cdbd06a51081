"""One of each kind of objective, model and guide of the library, with data for it.

What is made here is checked compiled (`test_compile_models`) and on another device
(`test_fake_cuda`, `test_cuda`): a new model is one more row.
"""

from collections.abc import Callable
from typing import Any

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
    AmortizedNormal,
    BottomUpNormal,
    ConditionalNormal,
    ExactPosterior,
    FactorNormal,
    LabelNormal,
    LadderNormal,
    MixturePosterior,
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
    FlowPrior,
    GaussianDiscriminant,
    GaussianMixture,
    HierarchicalVAE,
    LatentDiffusion,
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
    denoising,
    elbo,
    iwae,
    reconstruction,
    weighted,
)
from ppl_models.autoencoders.corruption import GaussianNoise, MaskingNoise, SaltAndPepper
from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture, Normal
from ppl_models.nn import ConvDecoder, ConvEncoder, ResNet, TimeMLP, UNet

Row = tuple[Callable[[], Any], tuple[Tensor, ...]]  # what makes an objective, and data

_generator = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=_generator)
BINARY = (X > 0).float()
GREY = (3 * torch.rand(24, 4, generator=_generator)).round() / 3
IMAGES = torch.rand(8, 64, generator=_generator).round()
LABELS = torch.arange(24) % 3
SOME = LABELS.where(torch.arange(24) % 2 == 0, -1)
HOLES = X.where(torch.rand(24, 4, generator=_generator) > 0.2, torch.nan)


def mixture(**settings: Any) -> BayesianGaussianMixture:
    return BayesianGaussianMixture(4, 2, **settings)


def vae(likelihood: Any, prior: Any = lambda guide: None) -> Any:
    guide = AmortizedNormal(4, 2)
    return elbo(VAE(4, 2, likelihood, prior=prior(guide)), guide)


def with_auto(model: Any, kind: Any) -> Any:
    return elbo(model, kind(poutine.block(model, hide=["z"])))


def regression(kind: Any, estimator: Any = None) -> Any:
    model = LinearRegression(4)
    return elbo(model, kind(model), estimator)


def exact(model: Any) -> Any:
    return elbo(model, ExactPosterior(model))


def ladder() -> Any:
    model = HierarchicalVAE(4, 2, 2)
    return elbo(model, LadderNormal(model, 4, 2, 2))


def images() -> Any:
    decoder, encoder = ConvDecoder(2, 8, 8, 1, (4, 2)), ConvEncoder(8, 8, 4, (2, 4))
    return elbo(VAE(64, 2, decoder=decoder), AmortizedNormal(64, 2, encoder))


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


def mixture_posterior(kind: Any) -> Any:
    model = mixture()
    return elbo(model, kind(model, X))


def semi_supervised() -> tuple[Any, Any]:
    return SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2)


def with_classifier() -> Any:
    model, guide = semi_supervised()
    return weighted({elbo(model, guide): 1.0, elbo(guide.classify): 2.0})


def player(number: int, **settings: Any) -> Any:
    return adversarial(GAN(4, 2), **settings)[number]  # type: ignore[arg-type]


COMPILED: dict[str, Row] = {
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
    "BayesianGaussianMixture, MixturePosterior": (
        lambda: mixture_posterior(MixturePosterior),
        (X,),
    ),
    "BayesianFactorAnalysis": (lambda: with_auto(BayesianFactorAnalysis(4, 2), AutoNormal), (X,)),
    "BayesianFactorAnalysis, FactorNormal": (lambda: factor_normal(), (X,)),
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
    "VAE, FlowPrior": (lambda: vae(Bernoulli(), lambda _: FlowPrior(2, 1, (8,))), (BINARY,)),
    "VAE, convolutions": (lambda: images(), (IMAGES,)),
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
    "PixelRNN, row": (lambda: elbo(PixelRNN(2, 2, Bernoulli(), "row", 4, 1)), (BINARY,)),
    "Diffusion": (lambda: denoising(Diffusion(4)), (X,)),
    "Diffusion, bound": (lambda: denoising(Diffusion(4), "bound"), (X,)),
    "Diffusion, levels": (
        lambda: denoising(Diffusion(4, target="levels", likelihood=Categorical(4)), "bound"),
        (GREY,),
    ),
    "Diffusion, labels": (
        lambda: denoising(Diffusion(4, TimeMLP(4, 4, num_classes=3))),
        (X, LABELS),
    ),
    "Diffusion, ResNet": (
        lambda: denoising(Diffusion(64, ResNet((8, 8), channels=4, num_blocks=2))),
        (IMAGES,),
    ),
    "Diffusion, UNet": (lambda: denoising(Diffusion(64, UNet((8, 8), 1, (4, 8)))), (IMAGES,)),
    "AutoEncoder": (lambda: reconstruction(AutoEncoder(4, 2)), (X,)),
    "DenoisingAutoEncoder": (
        lambda: reconstruction(DenoisingAutoEncoder(4, 2, noise=GaussianNoise(0.1))),
        (X,),
    ),
    "DenoisingAutoEncoder, masking": (
        lambda: reconstruction(DenoisingAutoEncoder(4, 2, noise=MaskingNoise(0.1))),
        (X,),
    ),
    "DenoisingAutoEncoder, salt and pepper": (
        lambda: reconstruction(DenoisingAutoEncoder(4, 2, noise=SaltAndPepper(0.1))),
        (X,),
    ),
    "four particles": (
        lambda: regression(AutoNormal, Trace_ELBO(num_particles=4)),
        (X, X.sum(1)),
    ),
}

EAGER: dict[str, Row] = {
    "GAN, discriminator": (lambda: player(0), (X,)),
    "GAN, discriminator with noise": (
        lambda: player(0, loss="hinge", instance_noise=(0.3, 0.1, 10)),
        (X,),
    ),
    "GAN, generator": (lambda: player(1), (X,)),
    "SemiSupervisedVAE": (lambda: elbo(*semi_supervised()), (BINARY, SOME)),
    "SemiSupervisedVAE, weighted": (lambda: with_classifier(), (BINARY, SOME)),
    "Diffusion, every step": (lambda: every_step(), (X,)),
    "LatentDiffusion": (lambda: latent_diffusion(), (BINARY,)),
}

ALL = {**COMPILED, **EAGER}
