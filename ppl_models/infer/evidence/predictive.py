r"""How well a fitted guide predicts rows that it has not seen, in nats.

.. math::
    \log p(y_n' \mid y) = \log \int p(y_n' \mid \theta) \, p(\theta \mid y) \, d\theta
    \approx \log \frac{1}{S} \sum_{s=1}^{S} p(y_n' \mid \theta_s), \qquad \theta_s \sim q(\theta)

where :math:`\theta` are the latents that all rows share. Each new row is predicted by itself, from
the fitted rows alone.

References:
    | Bayesian Data Analysis, chapter 7.1 (Gelman et al., 2013)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.likelihood import factors_of_data, likelihoods
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.trials.conditionals import pseudo_likelihoods
from ppl_models.infer.trials.same import check_same


class Predictive(Evidence):
    """The log predictive density of new rows, in nats: an `Evidence` of kind `"estimate"`.

    It is that of the guide, and on average too low by the doubt of its draws: see
    `monte_carlo_error`.
    """

    def __str__(self) -> str:
        return super().__str__().replace("log evidence", "log predictive density", 1)


def log_predictive(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *new: Tensor,
    num_samples: int = 500,
    batch_size: int = 4096,
    seed: int | None = None,
) -> Predictive:
    r"""Returns the log predictive density of each new row, given what a guide has learned.

    It compares models by rows held out, where `log_evidence` compares them by those that were
    fitted. A density and a probability do not compare: round both to the same levels.

    Processes share the draws, as in `log_evidence`.

    Arguments:
        model: A Pyro program whose latents are shared by all rows.
        guide: Its fitted guide.
        new: The new rows, as the model takes them, with what is to be predicted.
        num_samples: The number of draws from the guide.
        batch_size: How many draws are evaluated at once, as in `log_evidence`.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Raises:
        ValueError: If rows have latents of their own, or a row has no likelihood of its own, or
            was not observed.

    Example:
        >>> from guides import MeanFieldMixture
        >>> from ppl_models import BayesianGaussianMixture
        >>> model, x = BayesianGaussianMixture(2, 1).double(), torch.randn(50, 2).double()
        >>> guide = MeanFieldMixture(model, x)
        >>> log_predictive(model, guide, torch.randn(9, 2).double(), num_samples=20).kind
        'estimate'
    """
    check_count(num_samples=num_samples, batch_size=batch_size)
    check_same(
        "log_predictive",
        (model, guide),
        new,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
    )
    with sampling(model, guide, new, seed) as joint:
        checks.check_observed(joint.first.model)
        _check_shared(joint)
        check_density(joint, "log_predictive")
        value, variance = _mean_likelihood(joint, num_samples, batch_size)
    return Predictive(
        value,
        kind="estimate",
        num_rows=joint.num_rows,
        num_samples=num_samples,
        num_features=None,
        row_variance=variance,
        weighted=False,
    )


def _check_shared(joint: Joint) -> None:
    """Raises where the guide draws latents that belong to single rows."""
    drawn = joint.latent.keys() - joint.enumeration.names
    own = [name for name in drawn if sites.in_data_plate(joint.latent[name])]
    if own:
        raise ValueError(
            f"log_predictive: site(s) {', '.join(map(repr, sorted(own)))} belong to single rows, "
            f"and would be inferred from what is to be predicted. Try log_evidence(model, guide, "
            f"*new), which is that of new rows too."
        )


def check_density(joint: Joint, where: str) -> None:
    """Raises where what is observed has no density: each entry would be given the others."""
    if pseudo := pseudo_likelihoods(joint.first.model):
        raise ValueError(
            f"{where}: site(s) {', '.join(map(repr, pseudo))} are pseudo-likelihoods, each "
            f"entry given the others, and no density of rows. Try log_evidence, which says so."
        )


def _mean_likelihood(joint: Joint, num_samples: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """The log of the mean likelihood of each row, and its variance by the delta method."""
    first = torch.full((joint.num_rows,), -math.inf, dtype=torch.float64)
    second = first.clone()  # log sums of the likelihoods, and of their squares
    for _, results in joint.evaluate(likelihood_of_rows, num_samples, batch_size):
        likelihood = results["log_likelihood"].double().cpu()  # (K, N)
        first = torch.logaddexp(first, likelihood.logsumexp(0))
        second = torch.logaddexp(second, (2 * likelihood).logsumexp(0))
    spread = (second - 2 * first).exp() * num_samples - 1
    return first - math.log(num_samples), spread.clamp(min=0) / max(1, num_samples - 1)


def likelihood_of_rows(draws: Draws, where: str = "log_predictive") -> Results:
    """The log-likelihood of each row, all that is observed of it together."""
    if beside := factors_of_data(draws):
        raise ValueError(
            f"{where}: the pyro.factor site(s) {', '.join(map(repr, beside))} lie in the "
            f"plates of the data, and may be a part of the likelihood of a row, as where data are "
            f"censored. Expected all of it at sites that observe. Try a distribution whose "
            f"log_prob holds that part."
        )
    total: Any = 0
    for part in likelihoods(draws):
        if part.mask is not None and not part.mask.all():
            raise ValueError(
                f"{where}: a mask leaves out {int((~part.mask).sum())} of "
                f"{part.mask.numel()} entries of {', '.join(map(repr, part.names))}, which would "
                f"count as predicted perfectly. Expected rows that were observed. Try those rows."
            )
        if part.value is None or [frame.name for frame in part.frames] != ["data"]:
            raise ValueError(
                f"{where}: the likelihood of {', '.join(map(repr, part.names))} is not one "
                f"of single rows. Expected sites in the plate 'data' alone, and rows that are "
                f"independent given the draws. Try log_evidence."
            )
        total = total + part.value
    return {"log_likelihood": total[None]}
