r"""The expectation step of Gaussian mixtures: a GEMM there, and a GEMM back.

The logarithm of weight times density is linear in products of features,

.. math::
    \log \pi_k \mathcal{N}(x \mid \mu_k, \Sigma_k) = \theta_k^\top \phi(x), \qquad
    \phi(x) = [x_i x_j \; (i \le j), \; x, \; 1]

and what the maximisation step needs are the sums :math:`\sum_n r_{nk} \, \phi(x_n)`, where
:math:`r_{nk}` are the responsibilities. With diagonal covariances :math:`x^2` stands for the
products, with spherical ones :math:`\lVert x \rVert^2`; with a tied covariance the products are
the same for all components, and only their sum over the rows matters. Rows are centred first, as
the products of numbers far from zero have no digits left for their differences.

Shapes: `R` restarts, `K` components, `D` features, `P` products, `C` rows of a chunk.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.missing import complete

CHUNK = 2048  # rows: their products stay in the cache
MISSING_CHUNK = 256  # rows: each has matrices of its own


class Statistics(NamedTuple):
    """Sums over rows, in float64; entries `x` are counted from the center."""

    evidence: Tensor  # sum of log p(x_n), (R,)
    counts: Tensor  # sum of r_nk, (R, K)
    first: Tensor  # sum of r_nk x_n, (R, K, D)
    second: Tensor  # of products: full (R, K, D, D), tied (R, D, D), diag (R, K, D), or (R, K)
    rows: int


def expectation(
    batches: Iterable[Tensor],
    center: Tensor,
    log_weights: Tensor,
    locs: Tensor,
    scale: Tensor,
    covariance: str,
) -> Statistics:
    """Returns the expected sums of complete rows.

    Arguments:
        batches: Rows, with shape `(B, D)` each.
        center: A point amid the rows, `(D,)`.
        log_weights: Normalised, `(R, K)`.
        locs: `(R, K, D)`.
        scale: Cholesky factors `(R, K, D, D)` if full and `(R, 1, D, D)` if tied, standard
            deviations `(R, K, D)` if diagonal and `(R, K, 1)` if spherical.
        covariance: `"full"`, `"tied"`, `"diag"` or `"spherical"`.
    """
    theta = _coefficients(locs - center, scale, covariance)  # (R, K, P), less the weights
    theta[..., -1] += log_weights
    restarts, components, products = theta.shape
    flat = theta.flatten(0, 1)  # (R K, P)
    sums = flat.new_zeros(flat.shape)
    evidence = flat.new_zeros(restarts)
    features = len(center)
    scatter = flat.new_zeros(features, features)
    rows = 0
    buffers = flat.new_empty(products, CHUNK), flat.new_empty(len(flat), CHUNK)
    for batch in batches:
        for chunk in batch.split(CHUNK):
            x = chunk.to(flat.dtype).sub(center).T.contiguous()  # (D, C)
            phi_out, joint_out = buffers if len(chunk) == CHUNK else (None, None)
            phi = _products(x, covariance, out=phi_out)  # (P, C)
            joint = torch.mm(flat, phi, out=joint_out)  # (R K, C)
            evidence += _normalise(joint.view(restarts, components, -1))
            torch.addmm(sums, joint, phi.T, out=sums)
            if covariance == "tied":
                scatter += x @ x.T
            rows += len(chunk)
    return _unpacked(evidence, sums.view_as(theta), scatter, scale, covariance, rows)


def from_labels(x: Tensor, center: Tensor, labels: Tensor, num: int, covariance: str) -> Statistics:
    """Returns the sums where each row belongs to one component; `labels` are `(R, N)`."""
    y = (x - center).T.contiguous()  # (D, N)
    phi = _products(y, covariance)  # (P, N)
    members = torch.nn.functional.one_hot(labels, num).to(x.dtype).mT  # (R, K, N)
    evidence = x.new_zeros(len(labels))  # not known
    return _unpacked(evidence, members @ phi.T, y @ y.T, None, covariance, len(x))


def expectation_of_missing(
    batches: Iterable[Tensor],
    center: Tensor,
    log_weights: Tensor,
    locs: Tensor,
    scale: Tensor,
    covariance: str,
) -> Statistics:
    """Returns the expected sums of rows with missing entries; takes what `expectation` does.

    The products of missing entries are expected given the observed ones, under each component.
    """
    restarts, components, features = locs.shape
    if covariance in ("diag", "spherical"):
        scale = torch.diag_embed(scale.expand_as(locs))
    flat = scale.expand(*locs.shape, features).flatten(0, 1)  # (R K, D, D)
    evidence, counts = flat.new_zeros(restarts), flat.new_zeros(len(flat))
    first, second = flat.new_zeros(len(flat), features), torch.zeros_like(flat)
    rows = 0
    for batch in batches:
        for chunk in batch.split(MISSING_CHUNK):
            x = chunk.to(locs.dtype) - center  # (C, D)
            given = complete(x, (locs - center).flatten(0, 1), flat)
            joint = given.log_prob.T.reshape(restarts, components, -1) + log_weights[..., None]
            evidence += _normalise(joint)  # now responsibilities, (R, K, C)
            weights = joint.flatten(0, 1)  # (R K, C)

            places = given.places[:, None].expand(-1, len(flat), -1)  # (C, R K, M)
            filled = x.nan_to_num()[:, None].expand(-1, len(flat), -1)
            filled = filled.scatter_add(2, places, given.mean).transpose(0, 1)  # (R K, C, D)
            weighted = filled * weights[..., None]
            counts += weights.sum(1)
            first += weighted.sum(1)
            second += weighted.mT @ filled

            spread = torch.cholesky_inverse(given.factor)  # (C, R K, M, M)
            spread *= weights.T[..., None, None] * given.present[:, None, :, None]
            cells = given.places[:, :, None] * features + given.places[:, None]  # (C, M, M)
            spread = spread.transpose(0, 1).flatten(1)  # (R K, C M M)
            second.view(len(flat), -1).index_add_(1, cells.flatten(), spread)
            rows += len(chunk)
    shape = (restarts, components)
    second = second.view(*shape, features, features)
    if covariance == "tied":
        second = second.sum(1)
    elif covariance != "full":
        second = second.diagonal(dim1=-2, dim2=-1)
        second = second if covariance == "diag" else second.sum(2)
    return Statistics(evidence, counts.view(shape), first.view(*shape, -1), second, rows)


def _products(x: Tensor, covariance: str, out: Tensor | None = None) -> Tensor:
    """phi, (P, C), of centred rows (D, C)."""
    features, rows = x.shape
    squares = {"full": features * (features + 1) // 2, "diag": features, "spherical": 1, "tied": 0}
    start = squares[covariance]
    phi = x.new_empty(start + features + 1, rows) if out is None else out
    if covariance == "full":
        at = 0
        for i in range(features):
            torch.mul(x[i], x[i:], out=phi[at : at + features - i])
            at += features - i
    elif covariance == "diag":
        torch.mul(x, x, out=phi[:features])
    elif covariance == "spherical":
        torch.sum(x * x, 0, out=phi[0])
    phi[start:-1] = x
    phi[-1] = 1.0
    return phi


def _coefficients(locs: Tensor, scale: Tensor, covariance: str) -> Tensor:
    """theta of log N, (R, K, P); with a tied covariance without the term quadratic in x."""
    features = locs.shape[2]
    constant = -0.5 * features * torch.tensor(2 * torch.pi, dtype=locs.dtype).log()
    if covariance in ("diag", "spherical"):
        precision = scale**-2  # (R, K, D) or (R, K, 1)
        log_scale = scale.log().expand_as(locs).sum(2)
        linear = locs * precision
        squares = -0.5 * precision
    else:
        inverse = torch.cholesky_inverse(scale)  # (R, K, D, D) or (R, 1, D, D)
        log_scale = scale.diagonal(dim1=-2, dim2=-1).log().sum(2)
        linear = (inverse @ locs[..., None])[..., 0]
        i, j = torch.triu_indices(features, features, device=locs.device)
        squares = -inverse[..., i, j] * torch.where(i == j, 0.5, 1.0)
        if covariance == "tied":
            squares = squares[..., :0].expand(-1, locs.shape[1], -1)
    rest = constant - log_scale - 0.5 * (linear * locs).sum(2)
    return torch.cat([squares, linear, rest[..., None]], 2)


def _normalise(joint: Tensor) -> Tensor:
    """Turns log joints (R, K, C) into responsibilities, and returns the log evidence, (R,)."""
    largest = joint.amax(1, keepdim=True)
    joint.sub_(largest).exp_()
    total = joint.sum(1, keepdim=True)
    joint.div_(total)
    return (largest + total.log_()).sum((1, 2))


def _unpacked(
    evidence: Tensor,
    sums: Tensor,
    scatter: Tensor,
    scale: Tensor | None,
    covariance: str,
    rows: int,
) -> Statistics:
    features = len(scatter)
    products, first, count = sums.split([sums.shape[2] - features - 1, features, 1], 2)
    if covariance == "full":
        i, j = torch.triu_indices(features, features, device=sums.device)
        second = sums.new_empty(*sums.shape[:2], features, features)
        second[..., i, j] = products
        second[..., j, i] = products
    elif covariance == "tied":
        second = scatter.expand(len(sums), -1, -1)
        if scale is not None:
            precision = torch.cholesky_inverse(scale[:, 0])  # (R, D, D)
            evidence = evidence - 0.5 * (precision * scatter).sum((1, 2))
    else:
        second = products if covariance == "diag" else products[..., 0]
    return Statistics(evidence, count[..., 0], first, second, rows)
