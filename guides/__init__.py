"""Inference programs: what `pyro.infer.autoguide` lacks."""

from guides.amortized import AmortizedNormal
from guides.exact import ExactPosterior

__all__ = ["AmortizedNormal", "ExactPosterior"]
