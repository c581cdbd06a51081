r"""Where a guide fails: the shape of the tail of its importance weights.

.. math::
    w = \frac{p(x, z)}{q(z \mid x)}, \qquad
    \mathbb{E}_{p(z \mid x)} [f(z)] \approx \frac{\sum_s \tilde{w}_s f(z_s)}{\sum_s \tilde{w}_s}

where :math:`\tilde{w}` are the weights after their tail was smoothed. Latents of rows that are
independent have weights and a :math:`\hat{k}` of each row; latents that rows share have one.

What it catches: a guide that is too narrow, or shifted by three standard deviations and more, as
then some draws weigh much more than others. What it cannot: a guide that is too wide, whose weights
are bounded, and what a guide leaves out wholly, such as a mode, where no draw falls. See `sbc`.

Shapes: `N` rows, `S` draws of each.

References:
    | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
    | https://www.jmlr.org/papers/v25/19-556.html
    | Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018)
    | https://arxiv.org/abs/1802.02538
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.evidence import check_weights, num_discrete, row_size, weights_of
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.numbers.evidence import NO_VARIANCE, Evidence
from ppl_models.infer.evidence.pareto import Smoothed, check_enough, smoothed_mean, threshold
from ppl_models.infer.evidence.sums import WeightSums
from ppl_models.infer.evidence.weights import Draws, row_dim
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.trials.same import check_same
from ppl_models.pictures.drawing import drawing, figure_of
from ppl_models.pictures.rows import sorted_rows
from ppl_models.prompt.lines import in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 10  # rows that are named


@dataclass(frozen=True)
class Khat:
    r"""The shapes of the tails of importance weights, and what follows from them.

    Attributes:
        value: :math:`\hat{k}` of each row, `(N,)`, or of the whole data, `(1,)`, where latents are
            shared.
        threshold: Above which `S` draws are too few: :math:`\min(1 - 1 / \log_{10} S, 0.7)`.
        num_samples: The number of draws, `S`.
        evidence: The log evidence with smoothed weights, of the kind `"estimate"`: no bound.
        mean: The posterior means of the latents with smoothed weights, by their sites,
            `(N, *event)`, or with their own shapes where they are shared.
        std: The posterior standard deviations, likewise.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis, khat
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> found = khat(model, ExactPosterior(model), torch.zeros(3, 5), seed=0)
        >>> found.value.shape, found.failing.tolist(), found.mean["z"].shape
        (torch.Size([3]), [], torch.Size([3, 2]))
    """

    value: Tensor
    threshold: float
    num_samples: int
    evidence: Evidence
    mean: dict[str, Tensor]
    std: dict[str, Tensor]

    __repr__ = in_words

    @property
    def failing(self) -> Tensor:
        """The rows whose weights are too heavy in their tail, the worst first."""
        order = self.value.argsort(descending=True)
        return order[self.value[order] > self.threshold]

    def plot(self, axes: "Axes | None" = None) -> "Figure":
        """Draws k of each row, sorted, beside the threshold, and names the worst rows.

        Arguments:
            axes: Where to draw. By default in a figure of its own, which pyplot does not hold.

        Example:
            >>> from ppl_models import FactorAnalysis
            >>> from guides import ExactPosterior
            >>> model = FactorAnalysis(num_features=5, num_factors=2)
            >>> found = khat(model, ExactPosterior(model), torch.zeros(3, 5))
            >>> found.plot().axes[0].get_ylabel()
            "Pareto's k"
        """
        with drawing(axes) as axes:
            label = f"threshold {self.threshold:.2f}"
            axes.axhline(self.threshold, color="C1", linestyle="--", label=label)
            sorted_rows(axes, self.value, lambda row: f"{self.value[row]:.2f}", rising=False)
            above = f"{len(self.failing)} of {len(self.value)} rows above the threshold"
            axes.set(ylabel="Pareto's k", title=f"{above}, {self.num_samples} draws each")
        return figure_of(axes)

    def __str__(self) -> str:
        found, limit = self.value, f"{self.threshold:.2f}"
        draws = f"{self.num_samples} draws"
        if len(found) == 1:
            verdict = "too heavy: the guide fails" if len(self.failing) else "fine"
            if not len(self.failing) and found.item() > NO_VARIANCE:
                verdict = "usable, with an error that is hard to know"
            return f"k {found.item():.2f} of {draws}, {verdict} (threshold {limit})"
        text = f"k of {len(found)} rows, {draws} each: median {found.median().item():.2f}, "
        text += f"largest {found.max().item():.2f}; {len(self.failing)} above {limit}"
        if len(self.failing):
            rows = ", ".join(map(str, self.failing[:SHOWN].tolist()))
            text += f", where the guide fails: rows {rows}"
            text += ", ..." if len(self.failing) > SHOWN else ""
        return text


def khat(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *data: Tensor,
    num_samples: int = 1000,
    batch_size: int = 4096,
    seed: int | None = None,
    progress: bool = True,
) -> Khat:
    r"""Returns Pareto's :math:`\hat{k}` of the importance weights of a guide.

    Weights that differ by no more than the rounding of their densities are constant: k = 0, as with
    the exact posterior. Processes share the draws, as in `log_evidence`.

    Arguments:
        model: A Pyro program.
        guide: Its guide; None where the model knows its posterior.
        data: The rows, as the model takes them.
        num_samples: The number of draws from the guide for each row, 25 or more.
        batch_size: How many draws are evaluated at once, as in `log_evidence`.
        seed: Seeds draws of their own; by default they come from torch's generator.
        progress: Whether to show a progress bar (on a terminal), if it takes more than a second.

    Raises:
        ValueError: If there are no latents to draw, or too few draws, or the data do not fit.
        FloatingPointError: If all weights of a row are zero.

    Example:
        >>> from ppl_models import FactorAnalysis
        >>> from guides import ExactPosterior
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> print(khat(model, ExactPosterior(model), torch.zeros(3, 5)))
        k of 3 rows, 1000 draws each: median 0.00, largest 0.00; 0 above 0.67
    """
    check_count(num_samples=num_samples, batch_size=batch_size)
    check_same(
        "khat", (model, guide), data, num_samples=num_samples, batch_size=batch_size, seed=seed
    )
    check_enough(num_samples)
    with sampling(model, guide, data, seed) as joint:
        checks.check_observed(joint.first.model)
        _check_latents(joint)
        check_weights(joint)
        latents = _Latents(joint, num_samples)
        bar = "khat" if progress else None
        for rows, results in joint.evaluate(latents.statistics, num_samples, batch_size, bar):
            latents.add(rows if joint.by_row else slice(None), results)
        features, size = num_discrete(joint), row_size(joint)
    sums, tails = latents.sums, latents.tails
    _check_weigh(sums.log_mean)
    smoothed = tails.smoothed()
    evidence = Evidence(
        smoothed_mean(sums.log_mean, tails, smoothed),
        kind="estimate",
        num_rows=joint.num_rows,
        num_samples=num_samples,
        num_features=features,
        row_variance=sums.variance,
        tails=tails,
        row_size=size,
    )
    moments = latents.moments(smoothed)
    return Khat(
        smoothed.k,
        threshold(num_samples),
        num_samples,
        evidence,
        mean={name: first for name, (first, _) in moments.items()},
        std={name: second for name, (_, second) in moments.items()},
    )


def _check_latents(joint: Joint) -> None:
    """Raises where there is nothing that the guide draws."""
    if set(joint.latent) == joint.enumeration.names:
        summed = ", ".join(map(repr, sorted(joint.enumeration.names)))
        beside = f" but {summed}, which are summed out" if summed else ""
        raise ValueError(
            f"khat: expected latents that a guide draws, got a model without any{beside}. Its "
            f"evidence needs no draws: try log_evidence(model, None, *data)."
        )


def _check_weigh(log_mean: Tensor) -> None:
    """Raises where a row has no weight at all."""
    lost = (~log_mean.isfinite()).nonzero().flatten()
    if len(lost):
        rows = ", ".join(map(str, lost[:SHOWN].tolist()))
        what = f"rows {rows}{', ...' if len(lost) > SHOWN else ''}" if len(log_mean) > 1 else "data"
        raise FloatingPointError(
            f"khat: all weights of the {what} are zero or no numbers: the model gives no density "
            f"to any draw of the guide. Expected draws that the model may have made. Try a guide "
            f"with the support of the latents, or double precision."
        )


class _Latents:
    """The weights of draws, and weighted moments of latents, summed as the draws come.

    The draws of the tail are kept, as their weights are smoothed at the end.

    Arguments:
        joint: The programs.
        num_samples: The number of draws.
    """

    def __init__(self, joint: Joint, num_samples: int) -> None:
        self.joint = joint
        self.sums = WeightSums(num_samples, joint.num_rows if joint.by_row else 1)
        assert self.sums.tails is not None
        self.tails = self.sums.tails
        self.means: dict[str, Tensor] = {}  # of values and their squares, (R, 2, *event)
        self.tail: dict[str, Tensor] = {}  # the values of the largest weights, (M + 1, R, *event)

    def statistics(self, draws: Draws) -> Results:
        """What is summed, with the draws in front."""
        found = weights_of(draws)
        for name, site in sites.latent_sites(draws.guide).items():
            if name in self.joint.latent and site["value"].is_floating_point():
                found["value", name] = self._by_rows(draws, site)
        return found

    def _by_rows(self, draws: Draws, site: dict) -> Tensor:
        """The values of a site, `(K, R, *event)`."""
        value, event_dim = site["value"], site["fn"].event_dim
        drawn = self.joint.unstack(draws, site, value, event_dim)
        dim = row_dim(site)
        if not self.joint.by_row or dim is None:
            return drawn.unsqueeze(1)
        return drawn.movedim(drawn.dim() - event_dim + dim, 1)

    def add(self, rows: slice, results: Results) -> None:
        """Takes some draws of some rows."""
        log_weight = results["log_weight"].cpu()
        before = self.sums.first[rows].clone()
        largest = self.sums.add(rows, log_weight, results["rounding"].cpu())
        assert largest is not None
        total = self.sums.first[rows]
        share = (log_weight - total).exp().nan_to_num(0.0)
        kept = (before - total).exp().nan_to_num(0.0)
        for key, value in results.items():
            if isinstance(key, tuple):
                self._add(key[1], rows, value.double().cpu(), share, kept, largest)

    def _add(
        self,
        name: str,
        rows: slice,
        value: Tensor,
        share: Tensor,
        kept: Tensor,
        largest: Tensor,
    ) -> None:
        event = value.shape[2:]
        if name not in self.means:
            number = len(self.sums.first)
            self.means[name] = torch.zeros(number, 2, *event, dtype=torch.float64)
            room = (len(self.tails.largest), number, *event)
            self.tail[name] = torch.zeros(room, dtype=torch.float64)
        both = torch.stack([value, value.square()], 2)
        new = torch.einsum("kr,kr...->r...", share, both)
        self.means[name][rows] = self.means[name][rows] * _as(kept, new) + new
        together = torch.cat([self.tail[name][:, rows], value])
        self.tail[name][:, rows] = together.take_along_dim(_as(largest, together), 0)

    def moments(self, smoothed: Smoothed) -> dict[str, tuple[Tensor, Tensor]]:
        """Means and standard deviations of the latents, with the weights of the tail smoothed."""
        raw = (self.tails.largest[:-1] - self.sums.first).exp()
        change = (smoothed.log_weights - self.sums.first).exp() - raw  # in shares of the total
        found = {}
        for name, mean in self.means.items():
            tail = self.tail[name][:-1]
            moved = torch.einsum("mr,mr...->r...", change, torch.stack([tail, tail.square()], 2))
            first, second = ((mean + moved) / _as(1 + change.sum(0), mean)).unbind(1)
            std = (second - first.square()).clamp(min=0).sqrt()
            one = not self.joint.by_row
            found[name] = (first[0], std[0]) if one else (first, std)
        return found


def _as(x: Tensor, like: Tensor) -> Tensor:
    """A tensor with as many dimensions as another, ones at the end."""
    return x.reshape(*x.shape, *[1] * (like.dim() - x.dim()))
