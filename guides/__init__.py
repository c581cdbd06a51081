"""Inference programs: what `pyro.infer.autoguide` lacks."""

from guides.amortized import AmortizedNormal
from guides.conditional import ConditionalNormal, LabelNormal
from guides.exact import ExactPosterior
from guides.factor_normal import FactorNormal
from guides.factorisation import FactorisationNormal
from guides.factorisation_gamma import FactorisationGamma
from guides.ladder import BottomUpNormal, LadderNormal
from guides.mixture import MeanFieldMixture, MixturePosterior

__all__ = [
    "AmortizedNormal",
    "BottomUpNormal",
    "ConditionalNormal",
    "ExactPosterior",
    "FactorNormal",
    "FactorisationGamma",
    "FactorisationNormal",
    "LabelNormal",
    "LadderNormal",
    "MeanFieldMixture",
    "MixturePosterior",
]
