r"""The log evidence of rows under a model, and what kind of number it is.

.. math::
    \log p(x) = \log \mathbb{E}_{q(z \mid x)} \left[ \frac{p(x, z)}{q(z \mid x)} \right]
    \ge \mathbb{E} \left[ \log \frac{1}{S} \sum_{s=1}^{S} \frac{p(x, z_s)}{q(z_s \mid x)} \right]

References:
    | Importance Weighted Autoencoders (Burda et al., 2016)
    | https://arxiv.org/abs/1509.00519
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_models.checks import allows_missing, check_count, check_devices, check_tensors
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.exact.agreement import few, is_exact
from ppl_models.infer.evidence.exact.closed_forms import HasEvidence
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.numbers.evidence import Evidence
from ppl_models.infer.evidence.streamed.parts import check_apart, parts_of, together
from ppl_models.infer.evidence.sums import WeightSums
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.not_finite import first_not_finite
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.tables import as_rows
from ppl_models.infer.trials.conditionals import check_conditionals, pseudo_likelihoods
from ppl_models.infer.trials.points import check_no_point
from ppl_models.infer.trials.precision import check_density
from ppl_models.infer.trials.same import check_same
from ppl_models.scoped import modes, own_rng
from ppl_models.user_line import warn

if TYPE_CHECKING:
    pass

NO_MEAN = 0.7  # of k, that any number of draws may know; few draws tell k badly, so no less
RUNS = 4  # of a program that may draw by itself, by which that shows
ROUNDING = 1e-5  # of its number, relative to its size


def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *data: Any,
    num_samples: int = 1000,
    method: str = "auto",
    batch_size: int = 4096,
    seed: int | None = None,
    progress: bool = True,
) -> Evidence:
    r"""Returns the log evidence of rows of data, in nats, and says which kind of number it is.

    It is exact where the model has `evidence()`, which is compared with the program on a few rows,
    or no latents but enumerated ones, and draws nothing by itself. Otherwise it is the
    importance-weighted lower bound, which rises to the exact value as the number of samples grows.
    Where an observed site says that it is a pseudo-likelihood, so does the number, after a trial
    of whether it is one.
    Modules are in evaluation mode meanwhile.

    Processes that compute together, as `torchrun` starts them, share the draws: those that are made
    at once are made by one of them, with random numbers of their own, so that all have the numbers
    that one process has. Closed forms, trials and what is summed at the end are not shared. With
    fewer batches than processes some have nothing to do: try a smaller `batch_size`.

    A guide that leaves out a part of the posterior leaves out its evidence, and no error tells:
    the components of a mixture have :math:`K!` labelings, all alike, and with a guide of one of
    them, well apart from the others, :math:`\log K!` nats of the whole data are missing. Where few
    draws carry the weight, it says "unreliable" (`Evidence.is_unreliable`), and warns.

    Arguments:
        model: A Pyro program.
        guide: Its guide. It may be None where the evidence is exact, or the posterior is known.
        data: The rows, as the model takes them; arrays and data frames become tensors. Arrays on
            disk (`numpy.memmap`), a `Dataset` (of Hugging Face, too) or a `DataLoader` in the order
            of its rows are read a part at a time, each evaluated by itself: the latents must then
            belong to rows, and the guide take any of them.
        num_samples: The number of draws from the guide for each row.
        method: `"auto"`, `"exact"`, or `"importance"` for the weighted value even where the
            exact one is known.
        batch_size: How many draws are evaluated at once: the memory that this takes depends on it
            alone, but for a trial of at most 4096 rows. With latents shared by all rows, and with
            guides that have parameters for each row, a draw is one of the whole data, and counts
            once for every 1024 numbers of its largest tensor (of many small ones, for every 65536
            of all); where a program does not allow more than a few, they are evaluated one by one.
        seed: Seeds draws of their own; by default they come from torch's generator.
        progress: Whether to show a progress bar (on a terminal), if it takes more than a second.

    Raises:
        ValueError: If there is no such evidence, or the data do not fit the model.

    Example:
        >>> from ppl_models import FactorAnalysis
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> log_evidence(model, None, torch.zeros(10, 5)).kind
        'exact'
    """
    if method not in ("auto", "exact", "importance"):
        raise ValueError(f"method: expected 'auto', 'exact' or 'importance', got {method!r}.")
    check_count(num_samples=num_samples, batch_size=batch_size)
    if (parts := parts_of(data, model, guide)) is not None:
        found = partial(_evidence, model, guide, num_samples, method, batch_size, None)
        evidence = together(parts, found, seed, progress)
    else:
        bar = "log_evidence" if progress else None
        evidence = _evidence(model, guide, num_samples, method, batch_size, bar, data, seed, False)
    if evidence.num_samples:
        _warn_where_few_carry(evidence)
    return evidence


def _evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    num_samples: int,
    method: str,
    batch_size: int,
    progress: str | None,
    data: tuple[Any, ...],
    seed: int | None,
    of_parts: bool,
) -> Evidence:
    """The log evidence of rows, which are all there are, or a part of them by itself."""
    numbers = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed}
    check_same("log_evidence", (model, guide), data, method=method, **numbers)
    data = as_rows(data, modules_of_programs(model, guide))
    # `evidence()` is a density of rows; labels beside them are for the program.
    if isinstance(model, HasEvidence) and method != "importance" and len(data) == 1:
        known = _closed_form(model, guide, data, batch_size)
        if known is not None:
            return known

    with sampling(model, guide, data, seed) as joint:
        if of_parts:
            check_apart(joint)
        checks.check_observed(joint.first.model)
        enumerated = set(joint.latent) == joint.enumeration.names
        exact = enumerated and _is_certain(joint)
        if method == "exact" and not exact:
            raise ValueError(_why_not_exact(model, joint, enumerated))
        pseudo = _is_pseudo(joint, method)
        if not exact:
            check_weights(joint)
        count = 1 if exact else num_samples
        sums = _importance(joint, count, batch_size, progress)
        if of_parts:  # which many rows at once may have shown
            check_apart(joint)
        _check_number(joint, sums.log_mean)
    return Evidence(
        sums.log_mean,
        kind="pseudo-likelihood" if pseudo else "exact" if exact else "lower bound",
        num_rows=joint.num_rows,
        num_samples=0 if exact else count,
        num_features=num_discrete(joint),
        row_variance=torch.zeros_like(sums.variance) if exact else sums.variance,
        tails=None if exact else sums.tails,
        row_size=row_size(joint),
    )


def _why_not_exact(model: Callable[..., Any], joint: Joint, enumerated: bool) -> str:
    name = type(model).__name__
    if enumerated:
        return (
            f"method: no exact value is known for {name}, which draws what is no latent site of "
            f"it, such as by ConjugateReparam, and another number each time. Try "
            f"method='importance', the bound over such draws."
        )
    latents = ", ".join(map(repr, joint.latent))
    return (
        f"method: no closed form is known for {name} with latent site(s) {latents}. Try "
        f"method='importance' and a guide."
    )


def _warn_where_few_carry(evidence: Evidence) -> None:
    """Warns where the bound may be off by more than its error says."""
    draws = evidence.num_samples
    if evidence._are_few():
        found = f"are as good as {evidence._carrying():.1f} (Evidence.effective_draws)"
    elif evidence._typical_k() > NO_MEAN:
        found = "have weights of infinite variance (Evidence.pareto_k)"
    else:
        return
    warn(
        f"log_evidence: {draws} draws {found}, as a few carry most of the weight. The bound is one "
        f"on average: this run may be off either way, by more than its Monte Carlo error says. Try "
        f"more draws (num_samples), or a guide that is nearer to the posterior; one that is too "
        f"wide loses less than one that is too narrow."
    )


@torch.no_grad()
def _closed_form(
    model: Any, guide: Callable[..., Any] | None, data: tuple[Tensor, ...], batch_size: int
) -> Evidence | None:
    """The evidence that a model knows as a distribution over rows, if it is of its program."""
    modules = Program(model, "model").modules()
    check_devices(modules, data)
    check_tensors(data, allows_missing([model]))
    with own_rng("a trial", 0, data[0].device), modes(modules.values(), training=False):
        batch = (few(data[0]),)
        with pyro.validation_enabled(False), checks.noting_batch(batch):
            trace = poutine.trace(model).get_trace(*batch)  # its checks, and errors of its own
        density = model.evidence()
        with checks.noting_batch(data):
            if density.support.is_discrete:  # what is no outcome would be rounded, or worse
                checks.check_support(trace, batch, data)
                for x in data[0].split(batch_size):
                    check_density(density, x)
            if not is_exact(model, guide, data[0]):
                return None
            value = torch.cat([density.log_prob(x) for x in data[0].split(batch_size)])
        value = value.double().cpu()
    return Evidence(
        value,
        kind="exact",
        num_rows=len(value),
        num_samples=0,
        num_features=data[0][0].numel() if density.support.is_discrete else None,
        row_variance=torch.zeros_like(value),
        row_size=data[0][0].numel(),
    )


def check_weights(joint: Joint) -> None:
    """Raises where draws of the guide have no weights: at points, or without a known density."""
    joint.check_points(check_no_point)
    joint.check_known()


def _is_certain(joint: Joint) -> bool:
    """Whether a program without latents to draw has the same number each time that it runs.

    It has not where it draws by itself, as `poutine.reparam` makes it do: the weight of such a
    draw is an estimate, and exact if all have the same.
    """
    rows = slice(0, 8) if joint.tiled else joint.all_rows
    weights = []
    for seed in range(RUNS):
        with own_rng("a trial", seed, joint.data[0].device):
            draws = joint.draw(rows, 1)
        weights.append(draws.log_weight)
    error = (torch.stack(weights) - weights[0]).abs()
    same = torch.stack([weight == weights[0] for weight in weights])
    return bool((same | (error <= ROUNDING * (1 + draws.log_p.abs()))).all())


def _is_pseudo(joint: Joint, method: str) -> bool:
    """Whether there is a pseudo-likelihood among the observed sites; an error where it is none."""
    found = pseudo_likelihoods(joint.first.model)
    if found and method == "exact":
        raise ValueError(
            f"method: the site(s) {', '.join(map(repr, found))} have a pseudo-likelihood, and rows "
            f"no density, so that there is no exact value. Try method='auto', or AnyOrderWords, "
            f"whose bound is of a density."
        )
    check_conditionals(joint.first.model)
    return bool(found)


def _importance(
    joint: Joint, num_samples: int, batch_size: int, progress: str | None
) -> WeightSums:
    """The weights of all draws, of each row or of the whole data."""
    sums = WeightSums(num_samples, joint.num_rows if joint.by_row else 1)
    for which, results in joint.evaluate(weights_of, num_samples, batch_size, progress):
        rows = which if joint.by_row else slice(None)
        sums.add(rows, results["log_weight"].cpu(), results["rounding"].cpu())
    return sums


def _check_number(joint: Joint, value: Tensor) -> None:
    """Raises where a value is none: zero density of all draws is one, minus infinity."""
    wrong = value.isnan() | (value == math.inf)
    if wrong.any():
        first = first_not_finite(joint.first.model, joint.first.guide)
        seen = f" In a first run, {first}." if first.startswith("the first site") else ""
        raise FloatingPointError(
            f"log_evidence: {int(wrong.sum())} of {len(value)} values are "
            f"{value[wrong][0].item()}.{seen} Expected log-densities that are finite numbers, or "
            f"minus infinity. Try other data, a guide with less extreme draws, or double "
            f"precision: model.double(), guide.double(), x.double()."
        )


def weights_of(draws: Draws) -> Results:
    """The weights of draws, and what their last digits are."""
    return {"log_weight": draws.log_weight, "rounding": draws.rounding}


def row_size(joint: Joint) -> int | None:
    """How many numbers of a row are observed, where all rows have as many."""
    total = sum(site["value"].numel() for site in joint.observed.values())
    size, rest = divmod(total, joint.first.num_rows)
    return None if rest else size


def num_discrete(joint: Joint) -> int | None:
    """The number of features of a row, where all are discrete, none is missing, and no other."""
    if any(x.is_floating_point() and bool(x.isnan().any()) for x in joint.data):
        return None
    if any(sites.is_factor(site) for site in sites.random_sites(joint.first.model)):
        return None  # its term is of something beside the features, such as known labels
    total = 0
    for site in joint.observed.values():
        if not sites.is_discrete(site) or sites.is_masked(site):
            return None
        total += site["value"].numel()
    features, rest = divmod(total, joint.first.num_rows)
    return None if rest else features or None  # they may be spread over sites of some rows
