"""Inference programs: what `pyro.infer.autoguide` lacks."""

from guides.amortized import AmortizedNormal
from guides.blocks import BlockPosterior
from guides.conditional import ConditionalNormal, LabelNormal
from guides.domain import DomainNormal
from guides.exact import ExactPosterior
from guides.factor_normal import FactorNormal
from guides.factorisation import FactorisationNormal
from guides.factorisation_gamma import FactorisationGamma
from guides.graph import GraphNormal
from guides.ladder import BottomUpNormal, LadderNormal
from guides.mixture import MeanFieldMixture, MixturePosterior

__all__ = [
    "AmortizedNormal",
    "BlockPosterior",
    "BottomUpNormal",
    "ConditionalNormal",
    "DomainNormal",
    "ExactPosterior",
    "FactorNormal",
    "FactorisationGamma",
    "FactorisationNormal",
    "GraphNormal",
    "LabelNormal",
    "LadderNormal",
    "MeanFieldMixture",
    "MixturePosterior",
]
