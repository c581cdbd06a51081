"""Inference programs: what `pyro.infer.autoguide` lacks."""

from guides.amortized import (
    AmortizedFlow,
    AmortizedLowRankNormal,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
)
from guides.blocks import BlockPosterior
from guides.conditional import ConditionalNormal, LabelNormal
from guides.domain import DomainNormal
from guides.exact import ExactPosterior
from guides.factor_normal import FactorNormal
from guides.factorization import FactorizationNormal
from guides.factorization_gamma import FactorizationGamma
from guides.graph import GraphNormal
from guides.groups import GroupNormal
from guides.ladder import BottomUpNormal, LadderNormal
from guides.mixture import MeanFieldMixture, MixturePosterior
from guides.shared import SharedAndLocal

__all__ = [
    "AmortizedFlow",
    "AmortizedLowRankNormal",
    "AmortizedMixture",
    "AmortizedMultivariateNormal",
    "AmortizedNormal",
    "BlockPosterior",
    "BottomUpNormal",
    "ConditionalNormal",
    "DomainNormal",
    "ExactPosterior",
    "FactorNormal",
    "FactorizationGamma",
    "FactorizationNormal",
    "GraphNormal",
    "GroupNormal",
    "LabelNormal",
    "LadderNormal",
    "MeanFieldMixture",
    "MixturePosterior",
    "SharedAndLocal",
]


def __dir__() -> list[str]:
    return __all__
