r"""The expectation step of Gaussian mixtures: a GEMM there, and a GEMM back.

The logarithm of weight times density is linear in products of features,

.. math::
    \log \pi_k \mathcal{N}(x \mid \mu_k, \Sigma_k) = \theta_k^\top \phi(x), \qquad
    \phi(x) = [x_i x_j \; (i \le j), \; x, \; 1]

and what the maximisation step needs are the sums :math:`\sum_n r_{nk} \, \phi(x_n)`, where
:math:`r_{nk}` are the responsibilities (times the weight of a row, where rows have weights). With
diagonal covariances :math:`x^2` stands for the products, with spherical ones
:math:`\lVert x \rVert^2`; with a tied covariance the products are the same for all components, and
only their sum over the rows matters.

The products of numbers far from zero have no digits left for their differences. So rows are
counted from the mean of all, and where components are so narrow and so far from it that even this
would cost digits, from the mean of each component, at `K` times the work.

Shapes: `R` restarts, `K` components, `D` features, `P` products, `C` rows of a chunk.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.missing import Completion, complete
from ppl_models.processes import Processes
from ppl_models.row_weights import weight_of

CHUNK = 2**18  # numbers: the products of that many rows stay near, and keep several cores busy
MISSING_CHUNK = 256  # rows: each has matrices of its own
Batches = Iterable[tuple[Tensor, Tensor | None]]  # rows, and how many times each counts
FAR = 1e7  # squared distance in standard deviations, beyond which 1e-16 of it is felt


class Statistics(NamedTuple):
    """Sums over rows, in float64, with entries `x` counted from the center."""

    evidence: Tensor  # sum of log p(x_n), (R,)
    counts: Tensor  # sum of r_nk, (R, K)
    first: Tensor  # sum of r_nk x_n, (R, K, D)
    second: Tensor  # of products: full (R, K, D, D), tied (R, D, D), diag (R, K, D), or (R, K)
    center: Tensor  # (D,), or one for each component, (R, K, D)
    rows: float | Tensor  # how many, by weight


def expectation(
    batches: Batches, log_weights: Tensor, locs: Tensor, scale: Tensor, covariance: str
) -> Statistics:
    """Returns the expected sums of complete rows.

    Arguments:
        batches: Rows, with shape `(B, D)`, and their weights, `(B,)`, None for all alike.
        log_weights: Normalised, `(R, K)`.
        locs: `(R, K, D)`.
        scale: Cholesky factors `(R, K, D, D)` if full and `(R, 1, D, D)` if tied, standard
            deviations `(R, K, D)` if diagonal and `(R, K, 1)` if spherical.
        covariance: `"full"`, `"tied"`, `"diag"` or `"spherical"`.
    """
    # After a step of EM this is the mean of the rows.
    center = (log_weights.exp()[:, None] @ locs).mean((0, 1))
    moved, precision = locs - center, precisions(scale, covariance)
    if largest_distance(moved, precision, covariance) > FAR:
        return _from_each_center(batches, log_weights, locs, scale, covariance)
    theta = coefficients(log_weights, moved, scale, precision, covariance)  # (R, K, P)
    scatter = theta.new_zeros(len(center), len(center)) if covariance == "tied" else None
    evidence, sums, rows = expected_sums(
        products(batches, center, covariance, theta.shape[2]), theta, scatter
    )
    if scatter is not None:
        evidence -= 0.5 * (precision[:, 0] * scatter).sum((1, 2))
    return statistics(evidence, sums, scatter, center, covariance, rows)


def added(own: Statistics, here: Processes) -> Statistics:
    """The sums over the rows of all processes, which count from the same center."""
    evidence, counts, first, second, rows = here.totals(*own[:4], own.rows)
    return Statistics(evidence, counts, first, second, own.center, rows)


def log_joints(
    x: Tensor, log_weights: Tensor, locs: Tensor, scale: Tensor, covariance: str
) -> Tensor | None:
    """Returns log p(x, z = k) of rows, (K, B); None where digits would go.

    Takes what `expectation` does, of one restart.
    """
    center = (log_weights.exp()[:, None] @ locs).mean((0, 1))
    moved, precision = locs - center, precisions(scale, covariance)
    if not largest_distance(moved, precision, covariance) <= FAR:
        return None
    theta = coefficients(log_weights, moved, scale, precision, covariance)[0]  # (K, P)
    found = []
    for phi, _ in products([(x, None)], center, covariance, theta.shape[1]):
        joint = theta @ phi  # (K, C)
        if covariance == "tied":
            away = phi[:-1]  # (D, C)
            joint -= 0.5 * (away * (precision[0, 0] @ away)).sum(0)
        found.append(joint)
    return torch.cat(found, 1)


def products(
    batches: Batches, center: Tensor, covariance: str, width: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields phi, `(P, C)`, of a chunk of rows after the other, in the same place, and weights."""
    size = max(1024, CHUNK // width)
    buffer = center.new_empty(width, size)
    for chunk, weight in _chunks(batches, size):
        out = buffer if len(chunk) == size else None
        yield _products(chunk, center, covariance, out=out), weight


def expected_sums(
    parts: Batches, theta: Tensor, scatter: Tensor | None = None
) -> tuple[Tensor, Tensor, float | Tensor]:
    """Returns the log evidence, `(R,)`, the expected sums of phi, `(R, K, P)`, and of rows.

    Arguments:
        parts: phi of rows, `(P, C)`, and their weights.
        theta: The coefficients, `(R, K, P)`.
        scatter: Where the products of all rows are added, if tied, `(D, D)`.
    """
    restarts, components, _ = theta.shape
    flat = theta.flatten(0, 1)  # (R K, P)
    found: tuple[Tensor, Tensor] | None = None
    rows: float | Tensor = 0
    for phi, weight in parts:
        joint = flat @ phi  # (R K, C)
        evidence = _normalise(joint.view(restarts, components, -1), weight)
        if found is None:
            found = evidence, joint @ phi.T
        else:
            found = found[0] + evidence, found[1].addmm_(joint, phi.T)
        if scatter is not None:
            scatter.addmm_(_times(phi[:-1], weight), phi[:-1].T)
        rows += phi.shape[1] if weight is None else weight.sum()
    evidence, sums = found or (flat.new_zeros(restarts), torch.zeros_like(flat))
    return evidence, sums.view_as(theta), rows


def precisions(scale: Tensor, covariance: str) -> Tensor:
    """The inverses of the covariances, or of the variances, in the shape of the scale."""
    if covariance in ("diag", "spherical"):
        return scale.square().reciprocal_()
    return torch.cholesky_inverse(scale)


def largest_distance(locs: Tensor, precision: Tensor, covariance: str) -> Tensor:
    """The largest squared distance of a component from zero, in its standard deviations."""
    if covariance not in ("diag", "spherical"):
        precision = precision.diagonal(dim1=-2, dim2=-1)
    return (precision * locs.square()).amax()


def _from_each_center(
    batches: Batches, log_weights: Tensor, locs: Tensor, scale: Tensor, covariance: str
) -> Statistics:
    """The expected sums with rows counted from each component."""
    kind = covariance
    if covariance == "tied":
        kind, scale = "full", scale.expand(*locs.shape, locs.shape[-1])
    zero, precision = torch.zeros_like(locs), precisions(scale, kind)
    theta = coefficients(log_weights, zero, scale, precision, kind)  # (R, K, P)
    sums = torch.zeros_like(theta)
    evidence = theta.new_zeros(len(theta))
    rows: float | Tensor = 0
    each = [(r, k) for r in range(locs.shape[0]) for k in range(locs.shape[1])]
    for chunk, weight in _chunks(batches, max(1024, CHUNK // theta.shape[2])):
        joint = theta.new_empty(*theta.shape[:2], len(chunk))  # (R, K, C)
        for at in each:
            joint[at] = theta[at] @ _products(chunk, locs[at], kind)
        evidence += _normalise(joint, weight)
        for at in each:
            sums[at] += _products(chunk, locs[at], kind) @ joint[at]
        rows += weight_of(chunk, weight)
    result = statistics(evidence, sums, None, locs, kind, rows)
    if covariance == "tied":
        result = result._replace(second=result.second.sum(1))
    return result


def from_labels(
    x: Tensor, labels: Tensor, num: int, covariance: str, weight: Tensor | None = None
) -> Statistics:
    """Returns the sums where each row belongs to one component; `labels` are `(R, N)`."""
    center = x.mean(0)
    phi = _products(x, center, covariance)  # (P, N)
    members = torch.nn.functional.one_hot(labels, num).to(x.dtype).mT  # (R, K, N)
    evidence = x.new_zeros(len(labels))  # not known
    scatter = _times(phi[:-1], weight) @ phi[:-1].T if covariance == "tied" else None
    sums = _times(members, weight) @ phi.T
    return statistics(evidence, sums, scatter, center, covariance, weight_of(x, weight))


def expectation_of_missing(
    batches: Batches, log_weights: Tensor, locs: Tensor, scale: Tensor, covariance: str
) -> Statistics:
    """Returns the expected sums of rows with missing entries; takes what `expectation` does.

    The products of missing entries are expected given the observed ones, under each component.
    """
    restarts, components, features = locs.shape
    if covariance in ("diag", "spherical"):
        scale = torch.diag_embed(scale.expand_as(locs))
    factors = scale.expand(*locs.shape, features).flatten(0, 1)  # (R K, D, D)
    means = locs.flatten(0, 1)  # (R K, D)
    evidence, counts = means.new_zeros(restarts), means.new_zeros(len(means))
    first, second = torch.zeros_like(means), torch.zeros_like(factors)
    rows: float | Tensor = 0
    for chunk, weight, most in _with_most_missing(batches):
        x = chunk.to(locs.dtype)  # (C, D)
        given = complete(x, means, factors, most)
        joint = given.log_prob.T.reshape(restarts, components, -1) + log_weights[..., None]
        evidence += _normalise(joint, weight)  # now responsibilities, (R, K, C)
        weights = joint.flatten(0, 1)  # (R K, C)

        observed = (x[:, None] - means).nan_to_num()  # (C, R K, D)
        places = given.places[:, None].expand(-1, len(means), -1)  # (C, R K, M)
        filled = observed.scatter_add(2, places, given.shift).transpose(0, 1)  # (R K, C, D)
        weighted = filled * weights[..., None]
        counts += weights.sum(1)
        first += weighted.sum(1)
        second += weighted.mT @ filled

        _add_conditional_covariances(second, given, weights)
        rows += weight_of(chunk, weight)
    counts, first = counts.view(restarts, components), first.view_as(locs)
    second = second.view(restarts, components, features, features)
    if covariance == "tied":
        second = second.sum(1)
    elif covariance != "full":
        second = second.diagonal(dim1=-2, dim2=-1)
        second = second if covariance == "diag" else second.sum(2)
    return Statistics(evidence, counts, first, second, locs, rows)


def _add_conditional_covariances(second: Tensor, given: Completion, weights: Tensor) -> None:
    """Adds those of missing entries to the sums of products, (R K, D, D), in their places."""
    features = second.shape[-1]
    spread = torch.cholesky_inverse(given.factor)  # (C, R K, M, M)
    spread *= weights.T[..., None, None] * given.present[:, None, :, None]
    cells = given.places[:, :, None] * features + given.places[:, None]  # (C, M, M)
    spread = spread.transpose(0, 1).flatten(1)  # (R K, C M M)
    second.view(len(second), -1).index_add_(1, cells.flatten(), spread)


def _chunks(batches: Batches, rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    for batch, weight in batches:
        chunks = batch.split(rows)
        weights = [None] * len(chunks) if weight is None else weight.split(rows)
        yield from zip(chunks, weights, strict=True)


def _with_most_missing(batches: Batches) -> Iterator[tuple[Tensor, Tensor | None, int]]:
    """Chunks, and the most missing entries of a row in each: read once for all of a batch."""
    for batch in batches:
        chunks = list(_chunks([batch], MISSING_CHUNK))
        most = torch.stack([chunk.isnan().sum(1).max() for chunk, _ in chunks])
        yield from ((*chunk, n) for chunk, n in zip(chunks, most.tolist(), strict=True))


def _times(numbers: Tensor, weight: Tensor | None) -> Tensor:
    """Numbers of rows, `(*, C)`, times how often each counts."""
    return numbers if weight is None else numbers * weight


def _products(rows: Tensor, center: Tensor, covariance: str, out: Tensor | None = None) -> Tensor:
    """phi, (P, C), of rows (C, D)."""
    features = len(center)
    squares = {"full": features * (features + 1) // 2, "diag": features, "spherical": 1, "tied": 0}
    start = squares[covariance]
    phi = center.new_empty(start + features + 1, len(rows)) if out is None else out
    x = torch.sub(rows.T, center[:, None], out=phi[start:-1])  # (D, C)
    if covariance == "full":
        at = 0
        for i in range(features):
            torch.mul(x[i], x[i:], out=phi[at : at + features - i])
            at += features - i
    elif covariance == "diag":
        torch.mul(x, x, out=phi[:features])
    elif covariance == "spherical":
        torch.sum(x * x, 0, out=phi[0])
    phi[-1] = 1.0
    return phi


def coefficients(
    log_weights: Tensor, locs: Tensor, scale: Tensor, precision: Tensor, covariance: str
) -> Tensor:
    """theta of log pi N, (R, K, P); with a tied covariance without the term quadratic in x."""
    features = locs.shape[2]
    constant = -0.5 * features * math.log(2 * math.pi)
    if covariance in ("diag", "spherical"):
        log_scale = scale.log().expand_as(locs).sum(2)
        linear = locs * precision
        squares = -0.5 * precision
    else:
        log_scale = scale.diagonal(dim1=-2, dim2=-1).log().sum(2)
        linear = (precision @ locs[..., None])[..., 0]
        if covariance == "full":
            upper = triangle(features, locs.device)
            squares = precision.flatten(2).index_select(2, upper.entries) * upper.factors
        else:
            squares = locs[..., :0]
    rest = (log_weights + constant) - log_scale - 0.5 * (linear * locs).sum(2)
    return torch.cat([squares, linear, rest[..., None]], 2)


class Triangle(NamedTuple):
    """Where products of pairs are in a symmetric matrix, and it in what is summed for them."""

    entries: Tensor  # of the flat matrix, which each product is, (P,)
    factors: Tensor  # of its entries in the log density, where each pair comes once, (P,)
    products: Tensor  # which product each entry of the flat matrix is


@functools.cache
def triangle(features: int, device: torch.device, border: bool = False) -> Triangle:
    """Says where products are; with a border the matrix is that of `[1, x]`, and they are phi."""
    i, j = torch.triu_indices(features, features)
    if border:  # the first row comes last, and the one itself after it
        order = torch.cat(
            [torch.arange(features, len(i)), torch.arange(1, features), torch.tensor([0])]
        )
        i, j = i[order], j[order]
    factors = torch.where(i == j, -0.5, -1.0).double()
    places = torch.empty(features, features, dtype=torch.long)
    places[i, j] = places[j, i] = torch.arange(len(i))
    found = (i * features + j, factors, places.flatten())
    return Triangle(*(x.to(device) for x in found))


def _normalise(joint: Tensor, weight: Tensor | None) -> Tensor:
    """Turns log joints (R, K, C) into responsibilities, and returns the log evidence, (R,).

    Both are times the weights of the rows, (C,), where there are some.
    """
    largest = joint.amax(1, keepdim=True)
    joint.sub_(largest).exp_()
    total = joint.sum(1, keepdim=True)
    joint.div_(total)
    if weight is not None:
        joint.mul_(weight)
    return _times(largest + total.log_(), weight).sum((1, 2))


def statistics(
    evidence: Tensor,
    sums: Tensor,
    scatter: Tensor | None,
    center: Tensor,
    covariance: str,
    rows: float | Tensor,
) -> Statistics:
    """Parts the sums of phi, (R, K, P), with the products of all rows, if tied, (D, D)."""
    features = center.shape[-1]
    second, first, counts = sums.split([sums.shape[2] - features - 1, features, 1], 2)
    if scatter is not None:
        second = scatter.expand(len(sums), -1, -1)
    elif covariance == "full":
        places = triangle(features, sums.device).products
        second = second.index_select(2, places).unflatten(2, (features, features))
    elif covariance == "spherical":
        second = second[..., 0]
    return Statistics(evidence, counts[..., 0], first, second, center, rows)
