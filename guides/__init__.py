"""Inference programs: what `pyro.infer.autoguide` lacks."""

from guides.amortized import AmortizedNormal
from guides.exact import ExactPosterior
from guides.factor_normal import FactorNormal
from guides.mixture import MeanFieldMixture, MixturePosterior

__all__ = [
    "AmortizedNormal",
    "ExactPosterior",
    "FactorNormal",
    "MeanFieldMixture",
    "MixturePosterior",
]
