"""How good samples, latents and rankings are, without outside weights: one question, one file.

None of these numbers is an evidence. Each compares rows with rows, and its docstring says what it
gives where both come from the same distribution: report that floor beside it.
"""

from ppl_models.metrics.coverage import ModeCoverage, label_coverage, mode_coverage
from ppl_models.metrics.frechet import frechet
from ppl_models.metrics.latents import LatentClassification, latent_classification
from ppl_models.metrics.maps import stress, trustworthiness
from ppl_models.metrics.prdc import PRDC, prdc
from ppl_models.metrics.ranking import ndcg_at, recall_at

__all__ = [
    "PRDC",
    "LatentClassification",
    "ModeCoverage",
    "frechet",
    "label_coverage",
    "latent_classification",
    "mode_coverage",
    "ndcg_at",
    "prdc",
    "recall_at",
    "stress",
    "trustworthiness",
]


def __dir__() -> list[str]:
    return __all__
