r"""How well each row is predicted by all others, from one fit: leave-one-out, by a guide's draws.

.. math::
    \log p(y_n \mid y_{-n}) \approx
    \log \frac{\sum_s w_{s n} \, p(y_n \mid \theta_s)}{\sum_s w_{s n}}, \qquad
    w_{s n} = \frac{p(\theta_s, y)}{q(\theta_s)} \frac{1}{p(y_n \mid \theta_s)}

with the weights of each row smoothed in their tail. The first factor makes draws of the guide ones
of the posterior, the second leaves the row out: `az.loo` has the second alone, and takes the draws
to be the posterior's.

What it catches: rows that a model predicts badly, rows that decide the fit by themselves, and
guides too narrow for either (k above its threshold). What it is not meant for: latents of a row,
whose posterior is another altogether without the row.

Shapes: `N` rows, `S` draws. It holds `S` numbers for each row.

References:
    | Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC
    | (Vehtari et al., 2017) https://arxiv.org/abs/1507.04544
    | Bayesian leave-one-out cross-validation for large data (Magnusson et al., 2019)
    | https://arxiv.org/abs/1904.10679
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.evidence import check_weights, weights_of
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.evidence.pareto import Tails, check_enough
from ppl_models.infer.evidence.predictive import check_density, likelihood_of_rows
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.trials.same import check_same

AT_ONCE = 2**22  # weights that are smoothed at once


class LeftOut(Evidence):
    """The log predictive density of each row given all others: an `Evidence`, an estimate.

    `pareto_k` is that of the weights which leave a row out.

    Example:
        >>> from guides import MeanFieldMixture
        >>> from ppl_models import BayesianGaussianMixture
        >>> model, x = BayesianGaussianMixture(2, 1).double(), torch.randn(50, 2).double()
        >>> found = loo(model, MeanFieldMixture(model, x), x, num_samples=100)
        >>> found.kind, found.num_rows
        ('estimate', 50)
    """

    _name = "leave-one-out log density"


def loo(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *data: Tensor,
    num_samples: int = 1000,
    batch_size: int = 4096,
    seed: int | None = None,
) -> LeftOut:
    r"""Returns the log density of each row given all others, from draws of a fitted guide.

    Processes share the draws, as in `log_evidence`.

    Arguments:
        model: A Pyro program whose latents are shared by all rows; enumerated ones are summed out.
        guide: Its fitted guide.
        data: The rows that it was fitted to, as the model takes them.
        num_samples: The number of draws from the guide, 25 or more.
        batch_size: How many draws are evaluated at once, as in `log_evidence`.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Raises:
        ValueError: If rows have latents of their own, or no likelihood of their own, or there are
            too few draws.

    Example:
        >>> from guides import MeanFieldMixture
        >>> from ppl_models import BayesianGaussianMixture
        >>> model, x = BayesianGaussianMixture(2, 1).double(), torch.randn(50, 2).double()
        >>> loo(model, MeanFieldMixture(model, x), x, num_samples=100).value.shape
        torch.Size([50])
    """
    check_count(num_samples=num_samples, batch_size=batch_size)
    check_same(
        "loo", (model, guide), data, num_samples=num_samples, batch_size=batch_size, seed=seed
    )
    check_enough(num_samples)
    with sampling(model, guide, data, seed) as joint:
        checks.check_observed(joint.first.model)
        _check_shared(joint)
        check_density(joint, "loo")
        check_weights(joint)
        drawn = [results for _, results in joint.evaluate(_of_draws, num_samples, batch_size)]
    weight, likelihood, rounding = (
        torch.cat([results[name].double().cpu() for results in drawn])
        for name in ("log_weight", "log_likelihood", "rounding")
    )
    rows = likelihood.split(max(1, AT_ONCE // num_samples), dim=1)
    parts = [_left_out(weight, x, rounding) for x in rows]
    values, variances, tails = zip(*parts, strict=True)
    return LeftOut(
        torch.cat(values),
        kind="estimate",
        num_rows=joint.num_rows,
        num_samples=num_samples,
        num_features=None,
        row_variance=torch.cat(variances),
        weighted=False,
        tails=_beside(tails),
    )


def _check_shared(joint: Joint) -> None:
    """Raises where the guide draws latents that belong to single rows."""
    drawn = joint.latent.keys() - joint.enumeration.names
    own = sorted(name for name in drawn if sites.in_data_plate(joint.latent[name]))
    if own:
        raise ValueError(
            f"loo: site(s) {', '.join(map(repr, own))} belong to single rows. Without its row such "
            f"a latent has its prior, far from the posterior whose draws would be weighed, so that "
            f"the weights fail. Expected latents that all rows share. Try "
            f"log_evidence(model, guide, *rows) of rows that were not fitted, which integrates "
            f"their latents out."
        )


def _of_draws(draws: Draws) -> Results:
    """The weight of each draw, and the likelihoods of all rows."""
    return weights_of(draws) | likelihood_of_rows(draws, "loo")


def _left_out(weight: Tensor, likelihood: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor, Tails]:
    """The log density of some rows, `(R,)`, its variance by the delta method, and the tails."""
    log_w = weight - likelihood  # (S, R)
    tails = Tails.of(len(log_w), log_w.shape[1])
    which = tails.add(slice(None), log_w, rounding.expand_as(log_w)) - len(tails.largest)
    log_w = log_w.scatter(0, which[:-1], tails.smoothed().log_weights)
    share = torch.softmax(log_w, 0)
    value = (share.log() + likelihood).logsumexp(0)
    ratio = (likelihood - value).exp() - 1
    return value, (share * ratio).square().sum(0), tails


def _beside(tails: Sequence[Tails]) -> Tails:
    """The tails of all rows."""
    largest, rounding = [t.largest for t in tails], [t.rounding for t in tails]
    return Tails(tails[0].num_samples, torch.cat(largest, 1), torch.cat(rounding))
