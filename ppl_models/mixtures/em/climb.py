r"""Steps of EM for Gaussian mixtures one after the other, in sums and coefficients alone.

A step needs no parameters: the sums of a component's rows,

.. math::
    S_k = \sum_n r_{nk} \tilde x_n \tilde x_n^\top
    = \begin{pmatrix} N_k & s_k^\top \\ s_k & T_k \end{pmatrix},
    \qquad \tilde x = [1, x]

give the coefficients of its log density at once,

.. math::
    \log \mathcal{N}(x \mid \mu_k, \Sigma_k) = \frac{1 + D \log N_k - D \log 2 \pi}{2}
    - \sum_{d > 0} \log L_{dd} - \frac{N_k}{2} \tilde x^\top S_k^{-1} \tilde x,
    \qquad S_k = L L^\top

and so on where covariances are of fewer numbers. Rows are counted from the mean of all. Where a
step is none of this kind (a component without rows, one at the floor, one so narrow and so far
away that digits would go), it is left to `em_step`, and so are all that follow.

Shapes: `R` restarts, `K` components, `D` features, `P` products, `N` rows.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_models.mixtures.em import expectation
from ppl_models.mixtures.em.expectation import (
    Statistics,
    coefficients,
    expected_sums,
    largest_distance,
    precisions,
    products,
    statistics,
    triangle,
)
from ppl_models.processes import ALONE, Processes, processes_of

LIVES = 1e-10  # of the rows: a component with fewer has none


class Rows:
    """Complete rows in memory, counted from their mean, that steps go through again and again.

    Those of all processes, of which this one has some.
    """

    def __init__(
        self, x: Tensor, weight: Tensor | None, covariance: str, here: Processes = ALONE
    ) -> None:
        self.batches, self.covariance, self.here = [(x, weight)], covariance, here
        if weight is None:
            count, center = float(len(x)), x.mean(0, dtype=torch.float64)
        else:
            count = weight.sum().item()
            center = weight @ x.double() / count
        if not here.alone:
            total, every = here.totals(count * center, count)
            count, center = every.item(), total / every
        self.count, self.center = count, center
        features = len(self.center)
        squares = {"full": features * (features + 1) // 2, "diag": features, "spherical": 1}
        self.width = squares.get(covariance, 0) + features + 1  # P
        few = len(x) * self.width <= expectation.CHUNK
        self.kept = list(self.parts()) if few else None
        self.scatter = self._scatter() if covariance == "tied" else None

    def parts(self) -> Iterable[tuple[Tensor, Tensor | None]]:
        """The products of the rows, (P, C), and their weights."""
        return products(self.batches, self.center, self.covariance, self.width)

    def _scatter(self) -> Tensor:
        """The products of all rows, (D, D)."""
        total = self.center.new_zeros(len(self.center), len(self.center))
        for phi, weight in self.kept or self.parts():
            total.addmm_(phi[:-1] if weight is None else phi[:-1] * weight, phi[:-1].T)
        return self.here.total(total)

    def expected(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The log evidence, (R,), and the expected sums, (R, K, P), for coefficients."""
        evidence, sums, _ = expected_sums(self.kept or self.parts(), theta)
        return self.here.totals(evidence, sums)

    def labelled(self, labels: Tensor, components: int) -> Tensor:
        """The sums where each row belongs to one component, (R, K, P); `labels` are (R, N)."""
        names = torch.arange(components, device=labels.device)[:, None]
        start, found = 0, []
        for phi, weight in self.kept or self.parts():
            own = labels[:, None, start : start + phi.shape[1]]
            start += phi.shape[1]
            members = (own == names).to(phi.dtype)  # (R, K, C)
            found.append((members if weight is None else members * weight) @ phi.T)
        return sum(found[1:], found[0])

    def parted(self, sums: Tensor) -> Statistics:
        """The sums as the step of maximisation takes them."""
        unknown = sums.new_zeros(len(sums))
        return statistics(unknown, sums, self.scatter, self.center, self.covariance, self.count)


class Coefficients(NamedTuple):
    """The log densities, times weights, as they are linear in the products of a row."""

    theta: Tensor  # (R, K, P)
    shared: Tensor | None  # what all components take off the log evidence, if tied, (R,)


class Steps:
    """Steps of EM from where coefficients or sums are, until one is not of this kind."""

    def __init__(self, rows: Rows, floor: Tensor) -> None:
        self.rows, features = rows, len(rows.center)
        self.parts = [rows.width - features - 1, features, 1]  # of phi
        self.least = floor.square()  # the least variance of a feature, (R or 1, 1, F)
        self.constant = -0.5 * features * math.log(2 * math.pi) - math.log(rows.count)
        self.now: Coefficients | None = None
        self.sums: Tensor | None = None  # where these come from, (R, K, P)
        self.before: Tensor | None = None  # from which a step led to these

    def begin_at(self, log_weights: Tensor, locs: Tensor, scale: Tensor) -> None:
        """Begins at parameters, as `expectation` takes them."""
        covariance = self.rows.covariance
        moved, precision = locs - self.rows.center, precisions(scale, covariance)
        if largest_distance(moved, precision, covariance) <= expectation.FAR:
            theta = coefficients(log_weights, moved, scale, precision, covariance)
            self.now = Coefficients(theta, self._shared(precision))
        self.now = self._agreed(self.now, locs)

    def begin_with(self, sums: Tensor) -> None:
        """Begins at what is best for sums."""
        self.now, self.sums = self._maximised(sums), sums

    def step(self) -> tuple[Tensor, Tensor]:
        """The mean log evidence, (R,), and the sums that the next step begins with, (R, K, P)."""
        assert self.now is not None
        evidence, sums = self._expected(self.now)
        self.go_on_with(sums)
        return evidence, sums

    def leap(self, factor: float, least: float) -> tuple[Tensor, Tensor] | None:
        """Goes further from the sums before the last step through those after it.

        Sums of rows that are shared out stay so where they are extrapolated.

        Returns:
            What the next step gives, where its log evidence is no less than `least`; else None,
            and nothing has moved.
        """
        if self.now is None or self.sums is None or self.before is None or len(self.sums) > 1:
            return None
        sums = torch.lerp(self.before, self.sums, factor)
        now = self._maximised(sums)
        if now is None:
            return None
        found = self._expected(now)
        if not found[0].item() >= least:
            return None
        self.now, self.sums, self.before = now, sums, None
        return found

    def keep(self, restarts: list[int]) -> None:
        """Goes on with some of the restarts, where the floor is the same for all."""
        if self.now is not None and self.sums is not None:
            theta, shared = self.now
            chosen = torch.tensor(restarts, device=theta.device)
            self.now = Coefficients(theta[chosen], None if shared is None else shared[chosen])
            self.sums, self.before = self.sums[chosen], None

    def _expected(self, at: Coefficients) -> tuple[Tensor, Tensor]:
        """The mean log evidence, (R,), and the expected sums, (R, K, P)."""
        evidence, sums = self.rows.expected(at.theta)
        if at.shared is not None:
            evidence = evidence - at.shared
        return evidence / self.rows.count, sums

    def go_on_with(self, sums: Tensor) -> None:
        """Takes the step to what is best for sums, if that is of this kind."""
        self.now = self._maximised(sums)
        if self.now is not None:
            self.before, self.sums = self.sums, sums

    def _shared(self, precision: Tensor) -> Tensor | None:
        if self.rows.scatter is None:
            return None
        return 0.5 * (precision.view(-1, *self.rows.scatter.shape) * self.rows.scatter).sum((1, 2))

    def _maximised(self, sums: Tensor) -> Coefficients | None:
        """What is best for sums; None where that is none of this kind."""
        return self._agreed(self._best(sums), sums)

    def _agreed(self, found: Coefficients | None, like: Tensor) -> Coefficients | None:
        """What the first process has found, on all: on others a last bit may be another one."""
        if self.rows.here.alone:
            return found
        theta = like.new_zeros(*like.shape[:2], self.rows.width) if found is None else found.theta
        shared = None if found is None else found.shared
        if shared is None:
            shared = theta.new_zeros(len(theta))
        known = theta.new_tensor(found is not None)
        theta, shared, known = self.rows.here.first_of(theta, shared, known)
        if not known:
            return None
        return Coefficients(theta, None if self.rows.scatter is None else shared)

    def _best(self, sums: Tensor) -> Coefficients | None:
        counts = sums[..., -1]
        if not counts.amin().item() > LIVES * self.rows.count:
            return None
        second, mean, _ = (sums / counts[..., None]).split(self.parts, 2)
        if self.rows.covariance == "full":
            return self._full(sums, counts, mean)
        if self.rows.covariance == "tied":
            return self._tied(sums, counts, mean)
        return self._apart(second, counts, mean)

    def _full(self, sums: Tensor, counts: Tensor, mean: Tensor) -> Coefficients | None:
        features = mean.shape[2]
        pairs = triangle(features + 1, sums.device, border=True)
        second = sums.index_select(2, pairs.products).unflatten(2, (features + 1, features + 1))
        root, info = torch.linalg.cholesky_ex(second)  # of [1, x] [1, x]^T
        if info.any():
            return None
        inverse = torch.cholesky_inverse(root) * counts[..., None, None]
        if not self._holds(inverse.diagonal(dim1=2, dim2=3)[..., 1:], mean):
            return None
        log_root = root.diagonal(dim1=2, dim2=3)[..., 1:].log().sum(2)
        theta = inverse.flatten(2).index_select(2, pairs.entries).mul_(pairs.factors)
        share = (1 + 0.5 * features) * counts.log() - log_root
        theta[..., -1] += share.add_(self.constant + 0.5)
        return Coefficients(theta, None)

    def _tied(self, sums: Tensor, counts: Tensor, mean: Tensor) -> Coefficients | None:
        assert self.rows.scatter is not None
        within = (self.rows.scatter - sums[..., :-1].mT @ mean) / self.rows.count  # (R, D, D)
        root, info = torch.linalg.cholesky_ex(within)
        if info.any():
            return None
        precision = torch.cholesky_inverse(root)
        if not self._holds(precision.diagonal(dim1=1, dim2=2)[:, None], mean):
            return None
        log_root = root.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        linear = mean @ precision
        pulled = (linear * mean).sum(2)  # (R, K)
        rest = torch.add(counts.log() - log_root, pulled, alpha=-0.5).add_(self.constant)
        theta = torch.cat([linear, rest[..., None]], 2)
        return Coefficients(theta, self._shared(precision))

    def _apart(self, second: Tensor, counts: Tensor, mean: Tensor) -> Coefficients | None:
        """For diagonal and spherical covariances, whose floor holds entry by entry."""
        square = mean.square()
        if self.rows.covariance == "spherical":
            second = second / mean.shape[2]
            variance = second - square.mean(2, keepdim=True)
        else:
            variance = second - square
        variance = variance.maximum(self.least)  # (R, K, D or 1)
        precision = variance.reciprocal()
        pulled = precision * square
        if not pulled.amax().item() <= expectation.FAR:
            return None
        apart = pulled.add_(variance.log()).sum(2)
        rest = torch.add(counts.log(), apart, alpha=-0.5).add_(self.constant)
        theta = torch.cat([-0.5 * precision, precision * mean, rest[..., None]], 2)
        return Coefficients(theta, None)

    def _holds(self, precision: Tensor, mean: Tensor) -> bool:
        """Whether no component is at the floor, or narrow and far away; precisions are (R, K, D).

        The largest eigenvalue of a matrix of precisions is no more than the sum of its diagonal.
        """
        least = self.least * mean.shape[2]
        return (precision * least.maximum(mean.square() / expectation.FAR)).amax().item() <= 1


class Climb:
    """Steps of EM of a model, as many as can be without its parameters, and then by `em_step`."""

    def __init__(
        self, model: Any, x: Tensor, weight: Tensor | None, given: tuple[Any, ...]
    ) -> None:
        self.model, self.given = model, given
        rows = Rows(x, weight, model.covariance, processes_of(given[0]))
        self.steps = Steps(rows, model._floor())
        self.steps.begin_at(*model._in_float64())
        self.held = dict(model.named_buffers())
        self.ahead: tuple[Tensor, Tensor] | None = None  # what the next step gives, if known

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Takes one step; returns the mean log evidence before it, in nats per row."""
        if self.steps.now is None:
            return self.model.em_step(*self.given)
        before = self.steps.sums
        if self.ahead is None:
            value, sums = self.steps.step()
        else:
            (value, sums), self.ahead = self.ahead, None
            self.steps.go_on_with(sums)
        if self.steps.now is None:  # as a component without rows stays where it was
            if before is not None:
                self.model._maximise(self.steps.rows.parted(before))
            self.model._maximise(self.steps.rows.parted(sums))
        return value if self.model.logits.ndim == 2 else value[0]

    @torch.no_grad()
    def leap(self, factor: float, least: float) -> bool:
        """Goes so many times the last step, if the evidence is no less than `least` there."""
        if self.ahead is None:
            self.ahead = self.steps.leap(factor, least)
        return self.ahead is not None

    def state(self) -> dict[str, Tensor]:
        """What the next step begins with."""
        if self.steps.now is None or self.steps.sums is None:
            return {name: value.clone() for name, value in self.model.state_dict().items()}
        sums = self.steps.sums
        return {"sums": sums if self.model.logits.ndim == 2 else sums[0], **self.held}

    def parameters(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, as parameters."""
        if "sums" not in state:
            return state
        state = dict(state)
        sums = state.pop("sums")
        alone = sums.ndim == 2
        whole = self.steps.rows.parted(sums[None] if alone else sums)
        found = self.model._best(whole, self.model._floor()[: 1 if alone else None])
        found = {name: value[0] if alone else value for name, value in found.items()}
        return {**state, **found}
