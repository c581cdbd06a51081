"""Generative models as Pyro programs, and what it takes to fit them and to trust the fit."""

from ppl_models.bayesian_factor_analysis import BayesianFactorAnalysis
from ppl_models.bayesian_mixture import BayesianGaussianMixture
from ppl_models.bins import bin_edges
from ppl_models.discriminant import GaussianDiscriminant
from ppl_models.engine.checkpoint import load, save
from ppl_models.engine.compare import compare
from ppl_models.engine.comparison import Comparison
from ppl_models.engine.components import component_summary, num_active
from ppl_models.engine.data import Batch, Transformed
from ppl_models.engine.descend import descend
from ppl_models.engine.em import fit_em
from ppl_models.engine.evidence import Evidence, log_evidence
from ppl_models.engine.fit import Run, fit
from ppl_models.engine.inference_data import from_pyro_mcmc, from_pyro_svi
from ppl_models.engine.objectives import Objective, elbo
from ppl_models.engine.relabel import relabel
from ppl_models.factor_analysis import FactorAnalysis, ProbabilisticPCA
from ppl_models.gaussian_mixture import GaussianMixture
from ppl_models.histogram import HistogramDensity
from ppl_models.pca import PCA
from ppl_models.plates import data_plate
from ppl_models.regression import LinearRegression, LogisticRegression, SoftmaxRegression
from ppl_models.rotation import align, varimax, varimax_draws
from ppl_models.vae import VAE

__all__ = [
    "PCA",
    "VAE",
    "Batch",
    "BayesianFactorAnalysis",
    "BayesianGaussianMixture",
    "Comparison",
    "Evidence",
    "FactorAnalysis",
    "GaussianDiscriminant",
    "GaussianMixture",
    "HistogramDensity",
    "LinearRegression",
    "LogisticRegression",
    "Objective",
    "ProbabilisticPCA",
    "Run",
    "SoftmaxRegression",
    "Transformed",
    "align",
    "bin_edges",
    "compare",
    "component_summary",
    "data_plate",
    "descend",
    "elbo",
    "fit",
    "fit_em",
    "from_pyro_mcmc",
    "from_pyro_svi",
    "load",
    "log_evidence",
    "num_active",
    "relabel",
    "save",
    "varimax",
    "varimax_draws",
]
