"""What was found of an aggregate posterior: numbers, a table, a picture. See `aggregate`."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ppl_models.pictures.drawing import look, own_figure
from ppl_models.priors import check_prior
from ppl_models.prompt.tables import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACTIVE = 1e-2  # the variance over rows of the mean of a unit that is used (Burda et al., 2016)
BINS, POINTS = 40, 2000  # of a histogram, of a cloud
SHOWN = 12  # latents of a table or a picture
CROWDED = 0.5  # nats from log N at which rows hardly overlap


class Nats(NamedTuple):
    """A number of nats per row, and its Monte Carlo error: over other draws, of the same rows."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:8.3f} ± {self.error:.3f}"


@dataclass(frozen=True, eq=False)
class Aggregate:
    r"""How far the aggregate posterior of some rows is from the prior.

    Attributes:
        mean_kl: The mean over rows of :math:`\mathrm{KL}(q(z \mid x_n) \,\|\, p(z))`, in nats: the
            sum of the next two.
        information: :math:`I(n; z)`, in nats: at most :math:`\log N`.
        prior_gap: :math:`\mathrm{KL}(q(z) \,\|\, p(z))`, in nats per row: the most by which a
            learned prior could raise the ELBO of these rows.
        kl_by_latent: The mean over rows of :math:`\mathrm{KL}(q(z_k \mid x_n) \,\|\, p(z_k))`,
            `(K,)`, in nats; None where a density of single latents is not known, as of a flow.
        mean: That of :math:`q(z)`, `(K,)`.
        covariance: That of :math:`q(z)`, `(K, K)`.
        prior_mean: That of the prior, `(K,)`; of draws, where no formula gives it.
        prior_variance: That of the prior, `(K,)`; likewise.
        activity: The variance over rows of :math:`\mathbb{E}[z_k \mid x_n]`, `(K,)`.
        num_rows: The number of rows, `N`.
        draws: Those of the guide, `(S, N, K)`.
        prior_draws: Some of the prior, `(P, K)`.
        log_prior: The log-density of the prior at the draws of the guide, `(S, N)`.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import ProbabilisticPCA, aggregate
        >>> x = torch.randn(50, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        >>> model = ProbabilisticPCA(num_features=6, num_factors=2).maximum_likelihood(x)
        >>> found = aggregate(model, ExactPosterior(model), x, seed=0)
        >>> parts = found.information.value + found.prior_gap.value
        >>> abs(found.mean_kl.value - parts) < 1e-6
        True
    """

    mean_kl: Nats
    information: Nats
    prior_gap: Nats
    kl_by_latent: Tensor | None
    mean: Tensor
    covariance: Tensor
    prior_mean: Tensor
    prior_variance: Tensor
    activity: Tensor
    num_rows: int
    draws: Tensor
    prior_draws: Tensor
    log_prior: Tensor

    @property
    def variance(self) -> Tensor:
        """That of each latent under :math:`q(z)`, `(K,)`."""
        return self.covariance.diagonal()

    @property
    def active(self) -> Tensor:
        """Which latents are used: those whose `activity` is above 0.01, `(K,)`."""
        return self.activity > ACTIVE

    def closed_by(self, prior: nn.Module) -> Nats:
        r"""Returns how much of the gap another prior closes, in nats per row.

        .. math:: \mathbb{E}_{q(z)}[\log p'(z) - \log p(z)]
            = \mathrm{KL}(q \,\|\, p) - \mathrm{KL}(q \,\|\, p')

        The ELBO of these rows rises by as much, with the same guide and decoder. Of rows that the
        prior was fitted to it is too good: give `aggregate` others.

        Arguments:
            prior: A module whose call gives a distribution, such as `MixturePrior`, `VampPrior` or
                `FlowPrior`.

        Raises:
            TypeError: If it is none.
            ValueError: If it is one of vectors of another length.
        """
        check_prior(prior, self.draws.shape[-1])
        with torch.no_grad():
            density = prior()
            other = torch.stack([density.log_prob(z).double() for z in self.draws])  # (S, N)
        return mean_of(other - self.log_prior)

    def plot(self) -> "Figure":
        """Draws q(z) over p(z): two latents of the most nats together, and each by itself."""
        with look():
            return self._panels()

    def _panels(self) -> "Figure":
        z, prior, order = self.draws.flatten(0, 1), self.prior_draws, self._order()[:SHOWN]
        panels = len(order) + (len(order) > 1)
        columns = math.ceil(math.sqrt(panels)) if panels > 3 else panels
        rows = -(-panels // columns)
        figure = own_figure(3.2 * columns, 2.9 * rows)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        if len(order) > 1:
            _scatter(axes[0], z, prior, order[0], order[1])
        for ax, k in zip(axes[panels - len(order) :], order, strict=False):
            _densities(ax, z[:, k], prior[:, k], k)
        for ax in axes[panels:]:
            ax.remove()
        axes[0].legend(loc="upper right", fontsize="small", markerscale=3)
        figure.suptitle(
            f"KL(q(z) || p(z)) = {self.prior_gap.value:.2f} nats\n"
            f"I(n; z) = {self.information.value:.2f} nats of at most {math.log(self.num_rows):.2f}"
        )
        return figure

    def __repr__(self) -> str:
        return (
            f"Aggregate({self.num_rows} rows, I(n; z) {self.information.value:.3f} + "
            f"KL(q(z) || p(z)) {self.prior_gap.value:.3f} nats per row, "
            f"{int(self.active.sum())} of {len(self.mean)} units active)"
        )

    def _repr_html_(self) -> str:
        lines = [self._cells(k) for k in self._order()[:SHOWN]]
        head = ["unit", "KL", "variance of the mean", "mean (prior)", "variance (prior)"]
        return table(head, lines, above=repr(self))

    def __str__(self) -> str:
        limit, used, count = math.log(self.num_rows), int(self.active.sum()), len(self.mean)
        lines = [
            f"aggregate posterior of {self.num_rows} rows, in nats per row (± Monte Carlo error)",
            f"  mean KL(q(z | x) || p(z)) {self.mean_kl}",
            f"  = I(n; z)                 {self.information}, at most log N = {limit:.3f}",
            f"  + KL(q(z) || p(z))        {self.prior_gap}, the most that a learned prior saves",
            f"  {used} of {count} units active",
            "  unit      KL  var of mean  mean (prior)  variance (prior)",
            *(self._line(k) for k in self._order()[:SHOWN]),
        ]
        if count > SHOWN:
            lines.append(f"  ... and {count - SHOWN} more")
        if self.information.value > limit - CROWDED:
            lines.append(
                "I(n; z) is at its limit: these rows hardly overlap, and with more of them "
                "KL(q(z) || p(z)) would be less."
            )
        return "\n".join(lines)

    def _order(self) -> list[int]:
        """The latents, those of the most nats first."""
        size = self.activity if self.kl_by_latent is None else self.kl_by_latent
        found: list[int] = size.argsort(descending=True, stable=True).tolist()
        return found

    def _cells(self, k: int) -> tuple[str, str, str, str, str]:
        kl = "-" if self.kl_by_latent is None else f"{self.kl_by_latent[k]:.3f}"
        mean = f"{self.mean[k]:.2f} ({self.prior_mean[k]:5.2f})"
        variance = f"{self.variance[k]:.2f} ({self.prior_variance[k]:5.2f})"
        return f"{k}", kl, f"{self.activity[k]:.4f}", mean, variance

    def _line(self, k: int) -> str:
        unit, kl, activity, mean, variance = self._cells(k)
        return f"  {unit:>4} {kl:>7}  {activity:>11}  {mean:>13}  {variance:>16}"


def mean_of(values: Tensor) -> Nats:
    """The mean over draws and rows, `(S, N)`, and its error over draws."""
    error = (values.var(0) / len(values)).sum().sqrt() / values.shape[1]
    return Nats(values.mean().item(), error.item())


def _scatter(ax: "Axes", z: Tensor, prior: Tensor, i: int, j: int) -> None:
    """Draws of both over each other, as many of the one as of the other."""
    for draws, name, colour in ((prior, "p(z)", "0.65"), (z, "q(z)", "C0")):
        some = draws[:: max(1, len(draws) // POINTS)][:POINTS].cpu()
        ax.scatter(some[:, i], some[:, j], s=5, c=colour, label=name, linewidths=0, alpha=0.6)
    ax.set(xlabel=f"$z_{{{i}}}$", ylabel=f"$z_{{{j}}}$")


def _densities(ax: "Axes", z: Tensor, prior: Tensor, k: int) -> None:
    """Histograms of a latent under both."""
    ends = torch.stack([*z.aminmax(), *prior.aminmax()])
    bins = torch.linspace(ends.min().item(), ends.max().item(), BINS + 1).tolist()
    ax.hist(z.cpu().numpy(), bins, density=True, color="C0", alpha=0.6, label="q(z)")
    ax.hist(prior.cpu().numpy(), bins, density=True, color="0.3", histtype="step", label="p(z)")
    ax.set(xlabel=f"$z_{{{k}}}$", yticks=[])
