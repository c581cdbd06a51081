r"""Sums over the posteriors of all rows, at the draws of each or on a grid. See `aggregate`.

.. math:: \log q(z) = \log \sum_n q(z \mid x_n) - \log N

Shapes: `R` of the `N` rows, `S` draws, `K` latents, `P` points.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ppl_models.autoencoders.gaussians import Gaussians, num_components
from ppl_models.autoencoders.surgery import Aggregate, Nats, mean_of

AT_ONCE = 2**18  # numbers in a table of points and rows: those that fit a cache
OF_PRIOR = 2**14  # draws of the prior, for pictures and for moments that no formula gives
OF_MANY = 2**9  # of them at once: a mixture draws from all of its components
FINEST = 2**16  # points of a grid


class Posteriors(NamedTuple):
    """The posteriors of some rows."""

    rows: slice
    density: TorchDistributionMixin  # with batch shape (R,)


def measure(
    z: Tensor,
    log_q: Tensor,
    log_p: Tensor,
    posteriors: list[Posteriors],
    prior: TorchDistributionMixin,
) -> Aggregate:
    """Returns how far the aggregate of posteriors is from a prior.

    Arguments:
        z: Draws of each posterior, `(S, N, *event)`.
        log_q: Their log-densities under their own posterior, `(S, N)`, in float64.
        log_p: Those under the prior, likewise.
        posteriors: The posteriors of all rows, in their order.
        prior: The prior, with a batch shape of some rows that are alike.
    """
    draws = z.flatten(2) if z.dim() > 2 else z.unsqueeze(2)  # (S, N, K)
    every = draws.double()
    fresh = _fresh(prior)
    known, normal = _all_known(posteriors), _prior(prior)
    means, second = _moments(known, every)
    mean = means.mean(0)
    kl = _divergences(known, normal)
    terms = _integrated(posteriors, prior, known, normal)
    if terms is None:
        terms = _drawn(log_q, log_aggregate(posteriors, z), log_p, kl)
    prior_mean, prior_second = _moments_of_prior(normal, fresh.double())
    return Aggregate(
        mean_kl=terms.mean_kl,
        information=terms.information,
        prior_gap=terms.prior_gap,
        kl_by_latent=_by_latent(known, normal, every),
        mean=mean,
        covariance=second - mean.outer(mean),
        prior_mean=prior_mean,
        prior_variance=prior_second - prior_mean.square(),
        activity=_activity(means, every, exact=bool(known)),
        num_rows=z.shape[1],
        draws=draws,
        prior_draws=fresh,
        log_prior=log_p,
    )


def _fresh(prior: TorchDistributionMixin) -> Tensor:
    """Draws of a prior, `(P, K)`."""
    parts = [prior.sample((OF_MANY,))[:, 0] for _ in range(OF_PRIOR // OF_MANY)]
    return torch.cat(parts).reshape(OF_PRIOR, -1)


class Terms(NamedTuple):
    """The mean KL, and its two parts."""

    mean_kl: Nats
    information: Nats
    prior_gap: Nats


def _all_known(posteriors: list[Posteriors]) -> list[Gaussians]:
    """The posteriors as Gaussians; none, where one is something else."""
    known = [Gaussians.of(density) for _, density in posteriors]
    return [part for part in known if part is not None] if None not in known else []


def _prior(prior: TorchDistributionMixin) -> Gaussians | None:
    """The prior of one of its rows, which are alike."""
    found = Gaussians.of(prior)
    if found is None:
        return None
    return Gaussians(found.logits[:1], found.locs[:1], found.covariances[:1])


def _moments_of_prior(normal: Gaussians | None, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """The means of `z` and of its squares, `(K,)` each."""
    if normal is None:
        return fresh.mean(0), fresh.square().mean(0)
    mean, second = normal.moments()
    return mean[0], second[0].diagonal()


def _drawn(log_q: Tensor, log_all: Tensor, log_p: Tensor, kl: Tensor | None) -> Terms:
    """The terms by draws; their sum by its formula, where there is one."""
    information = mean_of(log_q - log_all)
    if kl is None:
        return Terms(mean_of(log_q - log_p), information, mean_of(log_all - log_p))
    total = kl.mean().item()
    gap = Nats(total - information.value, information.error)
    return Terms(Nats(total, 0.0), information, gap)


def _divergences(parts: list[Gaussians], prior: Gaussians | None) -> Tensor | None:
    """The KL divergence of each row from the prior, `(N,)`, if both are Gaussian."""
    if prior is None or not parts or not prior.is_normal or not parts[0].is_normal:
        return None
    return torch.cat([part.divergence(prior) for part in parts])


def _by_latent(parts: list[Gaussians], prior: Gaussians | None, z: Tensor) -> Tensor | None:
    """The mean KL of each latent, `(K,)`, by its formula, or of draws."""
    if prior is None or not parts:
        return None
    single, total, start = prior.coordinates(), z.new_zeros(z.shape[2]), 0
    for part in parts:
        rows = slice(start, start + len(part.logits))
        density = part.coordinates()
        if part.is_normal and prior.is_normal:
            value = torch.distributions.kl_divergence(density, single)  # (R, K)
        else:
            ratios = [density.log_prob(one) - single.log_prob(one) for one in z[:, rows]]
            value = torch.stack(ratios).mean(0)
        total, start = total + value.sum(0), rows.stop
    return total / z.shape[1]


def _moments(parts: list[Gaussians], z: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each posterior, `(N, K)`, and the mean over all of `z z'`, `(K, K)`."""
    if not parts:
        every = z.flatten(0, 1)
        return z.mean(0), every.mT @ every / len(every)
    means, totals = zip(*(_sums(part) for part in parts), strict=True)
    return torch.cat(means), sum(totals[1:], totals[0]) / z.shape[1]


def _sums(part: Gaussians) -> tuple[Tensor, Tensor]:
    mean, second = part.moments()
    return mean, second.sum(0)


def _activity(means: Tensor, z: Tensor, exact: bool) -> Tensor:
    """The variance of the means over rows, without what draws add to it, `(K,)`."""
    found = means.var(0, unbiased=False)
    return found if exact else (found - z.var(0).mean(0) / len(z)).clamp(min=0)


def _integrated(
    posteriors: list[Posteriors],
    prior: TorchDistributionMixin,
    parts: list[Gaussians],
    normal: Gaussians | None,
) -> Terms | None:
    """The mean KL and its two parts of one dimension, on a grid; None where that is too fine.

    The trapezoid rule, at ten points for the narrowest Gaussian, is exact to rounding.
    """
    if normal is None or not parts or parts[0].locs.shape[-1] > 1:
        return None
    grid = _grid(parts, normal)
    if grid is None:
        return None
    rows, step = posteriors[-1].rows.stop, (grid[1] - grid[0]).item()
    information, gap = 0.0, 0.0
    for some in grid.split(AT_ONCE // 2**10):
        points = some.reshape(-1, *prior.event_shape)
        log_all = log_aggregate(posteriors, points)
        gap += _expectation(log_all, log_all - log_first(prior, points)) * step
        for part in posteriors:
            log_q = at(part.density, points)  # (P, R)
            information += _expectation(log_q, log_q - log_all[:, None]) * step / rows
    return Terms(Nats(information + gap, 0.0), Nats(information, 0.0), Nats(gap, 0.0))


def _expectation(log_density: Tensor, value: Tensor) -> float:
    """The sum of a value by densities, where they are not zero."""
    density = log_density.exp()
    return (density * value).where(density > 0, 0.0).sum().item()


def _grid(parts: list[Gaussians], prior: Gaussians) -> Tensor | None:
    """Points where posteriors are not zero; None where there would be too many."""
    locs = torch.cat([part.locs.flatten() for part in parts])
    scales = torch.cat([part.covariances.flatten() for part in parts]).sqrt()
    low, high = (locs - 10 * scales).min(), (locs + 10 * scales).max()
    narrowest = torch.minimum(scales.min(), prior.covariances.min().sqrt())
    count = ((high - low) / narrowest * 10).ceil().item()
    if not count <= FINEST:
        return None
    return torch.linspace(
        low.item(), high.item(), int(count) + 1, dtype=locs.dtype, device=locs.device
    )


def at(density: TorchDistributionMixin, z: Tensor) -> Tensor:
    """The log-densities of rows, `(R,)`, at points, `(*, *event)`: `(*, R)`."""
    return density.log_prob(z.unsqueeze(z.dim() - len(density.event_shape))).double()


def in_parts(of: Callable[[Tensor], Tensor], density: TorchDistributionMixin, z: Tensor) -> Tensor:
    """A function of points, `(*, *event)`, as many at once as make no large table with the rows."""
    batch = z.shape[: z.dim() - len(density.event_shape)]
    table = density.batch_shape[0] * density.event_shape.numel() * num_components(density)
    most = max(1, AT_ONCE // table)
    points = z.flatten(0, len(batch) - 1).split(most)
    return torch.cat([of(part) for part in points]).unflatten(0, batch)


def log_aggregate(posteriors: list[Posteriors], z: Tensor) -> Tensor:
    r"""The log-density of the aggregate, :math:`\log q(z)`, at points."""
    total = torch.tensor(-math.inf, dtype=torch.float64, device=z.device)
    for _, density in posteriors:
        summed = partial(_log_sum, density)
        total = torch.logaddexp(total, in_parts(summed, density, z))
    return total - math.log(posteriors[-1].rows.stop)


def _log_sum(density: TorchDistributionMixin, z: Tensor) -> Tensor:
    """The log of the sum of the densities of rows at points."""
    return at(density, z).logsumexp(-1)


def log_first(density: TorchDistributionMixin, z: Tensor) -> Tensor:
    """The log-densities of the first of some rows at points."""
    return at(density, z)[..., 0]
