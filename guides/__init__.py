"""Inference programs: what `pyro.infer.autoguide` lacks."""

from guides.amortized import AmortizedNormal
from guides.conditional import ConditionalNormal, LabelNormal
from guides.domain import DomainNormal
from guides.exact import ExactPosterior
from guides.factor_normal import FactorNormal
from guides.ladder import BottomUpNormal, LadderNormal
from guides.mixture import MeanFieldMixture, MixturePosterior

__all__ = [
    "AmortizedNormal",
    "BottomUpNormal",
    "ConditionalNormal",
    "DomainNormal",
    "ExactPosterior",
    "FactorNormal",
    "LabelNormal",
    "LadderNormal",
    "MeanFieldMixture",
    "MixturePosterior",
]
