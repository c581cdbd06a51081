"""Inference programs: what `pyro.infer.autoguide` lacks."""

from guides.amortized import AmortizedNormal
from guides.conditional import ConditionalNormal, LabelNormal
from guides.exact import ExactPosterior
from guides.factor_normal import FactorNormal
from guides.factorisation import FactorizationNormal
from guides.factorisation_gamma import FactorizationGamma
from guides.ladder import BottomUpNormal, LadderNormal
from guides.mixture import MeanFieldMixture, MixturePosterior

__all__ = [
    "AmortizedNormal",
    "BottomUpNormal",
    "ConditionalNormal",
    "ExactPosterior",
    "FactorNormal",
    "FactorizationGamma",
    "FactorizationNormal",
    "LabelNormal",
    "LadderNormal",
    "MeanFieldMixture",
    "MixturePosterior",
]
