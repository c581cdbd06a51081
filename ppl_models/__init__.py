"""Generative models as Pyro programs, and what it takes to fit them and to trust the fit."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppl_models import _moved
from ppl_models.adaptation.adversarial import DomainAdversarial, domain_adversarial
from ppl_models.adaptation.compare_labels import LabelComparison, compare_labels
from ppl_models.adaptation.coral import Coral
from ppl_models.adaptation.label_shift import LabelShift
from ppl_models.autoencoders.aggregate import aggregate
from ppl_models.autoencoders.autoencoder import AutoEncoder, DenoisingAutoEncoder
from ppl_models.autoencoders.conditional import ConditionalVAE
from ppl_models.autoencoders.domain import DomainVAE
from ppl_models.autoencoders.hierarchical import HierarchicalVAE
from ppl_models.autoencoders.reconstruction import reconstruction
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.autoencoders.surgery import Aggregate
from ppl_models.autoencoders.vae import VAE
from ppl_models.autoregressive.made import MADE
from ppl_models.autoregressive.model import Autoregressive, AutoregressiveModel
from ppl_models.autoregressive.pixelcnn import PixelCNN
from ppl_models.autoregressive.pixelrnn import PixelRNN
from ppl_models.densities.bins import bin_edges
from ppl_models.densities.histogram import HistogramDensity
from ppl_models.diffusion.bound import variational_bound
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.flow import probability_flow
from ppl_models.diffusion.latent import LatentDiffusion
from ppl_models.diffusion.model import Diffusion
from ppl_models.embeddings.any_order import AnyOrderWords
from ppl_models.embeddings.clusters import ClusteredVAE
from ppl_models.embeddings.distances import DistanceEmbedding
from ppl_models.embeddings.masked import MaskedWords
from ppl_models.embeddings.procrustes import procrustes
from ppl_models.embeddings.sentences import SentenceClassifier
from ppl_models.embeddings.tables import distance_pairs
from ppl_models.embeddings.vocabulary import Vocabulary, ngrams
from ppl_models.factors.analysis import FactorAnalysis
from ppl_models.factors.bayesian import BayesianFactorAnalysis
from ppl_models.factors.pca import PCA
from ppl_models.factors.probabilistic_pca import ProbabilisticPCA
from ppl_models.factors.rotation import align, varimax, varimax_draws
from ppl_models.gan.game import adversarial
from ppl_models.gan.model import GAN
from ppl_models.graphs.batches import balanced
from ppl_models.graphs.blocks import StochasticBlockModel
from ppl_models.graphs.classifier import NodeClassifier
from ppl_models.graphs.graph import Graph, read_graph
from ppl_models.graphs.links import hold_out
from ppl_models.graphs.positions import LatentPositions
from ppl_models.graphs.vae import VGAE, FeaturePrior, InnerProduct, Nearness
from ppl_models.infer.diagnostics.calibration.result import Calibration
from ppl_models.infer.diagnostics.check import Check, check
from ppl_models.infer.diagnostics.convergence import Convergence, convergence
from ppl_models.infer.diagnostics.gap import InferenceGap, inference_gap
from ppl_models.infer.diagnostics.khat import Khat, khat
from ppl_models.infer.diagnostics.loo import LeftOut, loo
from ppl_models.infer.diagnostics.rhat import Rhat, rhat
from ppl_models.infer.diagnostics.sandwich import Sandwich, sandwich
from ppl_models.infer.diagnostics.sbc import sbc
from ppl_models.infer.diagnostics.tarp import tarp
from ppl_models.infer.diagnostics.unlike import PredictivePvalues, predictive_pvalues
from ppl_models.infer.drop_in.svi import SVI
from ppl_models.infer.evidence.arviz import from_pyro_svi
from ppl_models.infer.evidence.evidence import log_evidence
from ppl_models.infer.evidence.impute import impute
from ppl_models.infer.evidence.mcmc import from_pyro_mcmc
from ppl_models.infer.evidence.numbers.difference import Difference
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.evidence.predict import predict
from ppl_models.infer.evidence.predictive import log_predictive
from ppl_models.infer.objectives.elbo import elbo
from ppl_models.infer.objectives.iwae import iwae
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.objectives.weighted import weighted
from ppl_models.infer.sampling.nuts import nuts
from ppl_models.infer.sampling.rows import draw_rows
from ppl_models.infer.selection.compare import compare
from ppl_models.infer.selection.evidences import EvidenceComparison
from ppl_models.infer.selection.table import Comparison
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.descent import descend
from ppl_models.infer.training.em import fit_em
from ppl_models.infer.training.files import load, save
from ppl_models.infer.training.fit import Run, fit
from ppl_models.infer.training.start.every_row import check_data
from ppl_models.infer.training.together.as_one import as_one_process
from ppl_models.infer.transfer.freeze import freeze, unfreeze
from ppl_models.infer.transfer.posterior_as_prior import posterior_as_prior
from ppl_models.infer.transfer.warm_start import WarmStart, warm_start
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.components import component_summary, num_active
from ppl_models.mixtures.gaussian import GaussianMixture
from ppl_models.mixtures.poisson import PoissonMixture
from ppl_models.mixtures.relabel import relabel
from ppl_models.plates import data_plate
from ppl_models.priors import FlowPrior, MixturePrior, VampPrior
from ppl_models.processes import ProcessError
from ppl_models.recommender.ease import EASE
from ppl_models.recommender.factorization import MatrixFactorization
from ppl_models.recommender.poisson import PoissonFactorization
from ppl_models.supervised.classifier import Classifier
from ppl_models.supervised.discriminant import GaussianDiscriminant
from ppl_models.supervised.logistic import LogisticRegression, SoftmaxRegression
from ppl_models.supervised.regression import LinearRegression
from ppl_models.transformed import Transformed

if TYPE_CHECKING:
    from ppl_models import datasets as datasets
    from ppl_models import guides as guides
    from ppl_models import likelihoods as likelihoods
    from ppl_models import metrics as metrics
    from ppl_models import nn as nn
    from ppl_models import pictures as pictures
    from ppl_models import priors as priors
    from ppl_models import sklearn as sklearn

__version__ = "0.1.0"

__all__ = [
    "EASE",
    "GAN",
    "MADE",
    "PCA",
    "SVI",
    "VAE",
    "VGAE",
    "Aggregate",
    "AnyOrderWords",
    "AutoEncoder",
    "Autoregressive",
    "AutoregressiveModel",
    "Batch",
    "BayesianFactorAnalysis",
    "BayesianGaussianMixture",
    "Calibration",
    "Check",
    "Classifier",
    "ClusteredVAE",
    "Comparison",
    "ConditionalVAE",
    "Convergence",
    "Coral",
    "DenoisingAutoEncoder",
    "Difference",
    "Diffusion",
    "DistanceEmbedding",
    "DomainAdversarial",
    "DomainVAE",
    "Evidence",
    "EvidenceComparison",
    "FactorAnalysis",
    "FeaturePrior",
    "FlowPrior",
    "GaussianDiscriminant",
    "GaussianMixture",
    "Graph",
    "HierarchicalVAE",
    "HistogramDensity",
    "InferenceGap",
    "InnerProduct",
    "Khat",
    "LabelComparison",
    "LabelShift",
    "LatentDiffusion",
    "LatentPositions",
    "LeftOut",
    "LinearRegression",
    "LogisticRegression",
    "MaskedWords",
    "MatrixFactorization",
    "MixturePrior",
    "Nearness",
    "NodeClassifier",
    "Objective",
    "PixelCNN",
    "PixelRNN",
    "PoissonFactorization",
    "PoissonMixture",
    "PredictivePvalues",
    "ProbabilisticPCA",
    "ProcessError",
    "Rhat",
    "Run",
    "Sandwich",
    "SemiSupervisedVAE",
    "SentenceClassifier",
    "SoftmaxRegression",
    "StochasticBlockModel",
    "Transformed",
    "VampPrior",
    "Vocabulary",
    "WarmStart",
    "adversarial",
    "aggregate",
    "align",
    "as_one_process",
    "balanced",
    "bin_edges",
    "check",
    "check_data",
    "compare",
    "compare_labels",
    "component_summary",
    "convergence",
    "data_plate",
    "denoising",
    "descend",
    "distance_pairs",
    "domain_adversarial",
    "draw_rows",
    "elbo",
    "fit",
    "fit_em",
    "freeze",
    "from_pyro_mcmc",
    "from_pyro_svi",
    "hold_out",
    "impute",
    "inference_gap",
    "iwae",
    "khat",
    "load",
    "log_evidence",
    "log_predictive",
    "loo",
    "ngrams",
    "num_active",
    "nuts",
    "posterior_as_prior",
    "predict",
    "predictive_pvalues",
    "probability_flow",
    "procrustes",
    "read_graph",
    "reconstruction",
    "relabel",
    "rhat",
    "sandwich",
    "save",
    "sbc",
    "tarp",
    "unfreeze",
    "variational_bound",
    "varimax",
    "varimax_draws",
    "warm_start",
    "weighted",
]

# Public, too, and imported at first use: scikit-learn alone takes a second.
_SUBPACKAGES = [
    *("datasets", "guides", "likelihoods", "metrics", "nn", "pictures", "priors", "sklearn"),
]


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])


if not TYPE_CHECKING:  # for which every name would then be known

    def __getattr__(name: str) -> Any:
        if name in _SUBPACKAGES:
            return import_module(f"ppl_models.{name}")
        return _moved.old_module(name)


_moved.install()
