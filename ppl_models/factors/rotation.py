r"""Loadings that can be read: varimax, and draws of loadings aligned with one another.

Rows of a factor model tell its loadings up to a rotation only, since
:math:`W R (W R)^\top = W W^\top`. Among all rotations varimax takes the one in which each factor
has a few large loadings and many small ones, by the variance of their squares:

.. math::
    V(\Lambda) = \sum_k \left[ \frac{1}{D} \sum_d \lambda_{dk}^4
    - \left( \frac{1}{D} \sum_d \lambda_{dk}^2 \right)^2 \right], \qquad \Lambda = W R

That leaves the order and the signs of the factors. By convention those that explain most variance
come first, and the mean loading of each is positive. Draws of a posterior may each be rotated in
another way: they are aligned with a reference before they are summarised.

Shapes: `D` features, `K` factors, `M` of them to read, `S` draws.

References:
    | The Varimax Criterion for Analytic Rotation in Factor Analysis (Kaiser, 1958)
    | https://doi.org/10.1007/BF02289233
    | A Generalized Solution of the Orthogonal Procrustes Problem (Schoenemann, 1966)
    | https://doi.org/10.1007/BF02289451
"""

import torch
from torch import Tensor


def varimax_criterion(loadings: Tensor) -> Tensor:
    r"""Returns :math:`V(\Lambda)`, `(*,)`, for loadings of shape `(*, D, K)`."""
    squares = loadings**2
    return squares.var(-2, correction=0).sum(-1)


def varimax(loadings: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns loadings rotated by varimax, `(D, K)`, and the rotation, `(K, K)`.

    They are `loadings @ rotation`, and latents turn alike: `z @ rotation`. The criterion may have
    local maxima: this is the best that is found from the loadings as they are and from nine random
    rotations of them (the same at every call).

    Arguments:
        loadings: Loadings `W` of shape `(D, K)`, of standardised features: in other units those
            that vary most would decide. Only factors to be read: one of nothing but chance would
            spoil the others (see `varimax_draws`).

    Raises:
        ValueError: If the shape is another, or numbers are not finite.

    Example:
        >>> simple = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.0, 0.6]])
        >>> mixed = simple @ torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        >>> rotated, rotation = varimax(mixed)
        >>> torch.allclose(rotated, simple, atol=1e-6)
        True
    """
    _check("varimax", loadings, 2)
    num_factors = loadings.shape[1]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(9, num_factors, num_factors, generator=generator, dtype=torch.float64)
    identity = torch.eye(num_factors, dtype=torch.float64)
    rotations = torch.cat([identity[None], torch.linalg.qr(noise).Q])  # (10, K, K)
    start = loadings.detach().double().cpu()
    rotations = _planar_rotations(start, rotations, 20)
    best = varimax_criterion(start @ rotations).argmax()
    rotation = _planar_rotations(start, rotations[best], 1000)

    rotated = start @ rotation
    order = (rotated**2).sum(0).argsort(descending=True, stable=True)
    signs = torch.where(rotated.mean(0) < 0, -1.0, 1.0).double()
    rotation = (rotation * signs)[:, order].to(loadings)
    return loadings @ rotation, rotation


def align(loadings: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns each draw of loadings as near to a reference as rotation brings it, and how.

    .. math:: R_s = \arg\min_R \lVert W_s R - [\Lambda, 0] \rVert, \qquad R^\top R = I

    Orthogonal Procrustes, reflections included. A reference with fewer columns than the loadings is
    filled with zeros, and the columns next to zeros are left out.

    Arguments:
        loadings: Loadings `W` of shape `(*, D, K)`.
        reference: Loadings to be near to, of shape `(D, M)` with `M <= K`.

    Returns:
        The aligned loadings, `(*, D, M)`, which are `loadings @ rotation`, and the rotations,
        `(*, K, M)`. Latents turn alike: `z @ rotation`.

    Raises:
        ValueError: If the shapes do not match, or numbers are not finite.

    Example:
        >>> reference = torch.tensor([[0.9], [0.8], [0.7]])
        >>> draws = torch.stack([-reference, reference])  # the same but for the sign
        >>> align(draws, reference)[0][..., 0]
        tensor([[0.9000, 0.8000, 0.7000],
                [0.9000, 0.8000, 0.7000]])
    """
    _check("align", loadings)
    _check("align", reference, 2)
    if len(reference) != loadings.shape[-2] or reference.shape[1] > loadings.shape[-1]:
        raise ValueError(
            f"align: expected a reference of {loadings.shape[-2]} features and at most "
            f"{loadings.shape[-1]} factors, got shape {tuple(reference.shape)}."
        )
    u, _, vh = torch.linalg.svd(loadings.mT @ reference.to(loadings), full_matrices=False)
    rotation = u @ vh  # (*, K, M)
    return loadings @ rotation, rotation


def varimax_draws(loadings: Tensor, num_factors: int) -> tuple[Tensor, Tensor]:
    r"""Returns draws of loadings to read, and their rotations: varimax of what they share.

    The mean of :math:`W W^\top` over the draws does not depend on how each is rotated. Its first
    principal axes, rotated by varimax, are the reference with which each draw is aligned. So the
    spread of an aligned loading is that of the posterior given one orientation of the factors.

    Arguments:
        loadings: Draws of loadings `W`, of shape `(*, D, K)`, of standardised features.
        num_factors: The number of factors to read, `M <= K`, such as the most likely one.

    Returns:
        As for `align`: `(*, D, M)` and `(*, K, M)`.

    Raises:
        ValueError: If there are not so many factors, or numbers are not finite.

    Example:
        >>> draws = torch.randn(100, 6, 3)
        >>> aligned, rotation = varimax_draws(draws, num_factors=2)
        >>> aligned.shape, rotation.shape
        (torch.Size([100, 6, 2]), torch.Size([100, 3, 2]))
    """
    _check("varimax_draws", loadings)
    if not 1 <= num_factors <= min(loadings.shape[-2:]):
        raise ValueError(
            f"varimax_draws: expected from 1 to {min(loadings.shape[-2:])} factors, "
            f"got num_factors={num_factors}."
        )
    common = torch.einsum("...dk,...ek->de", loadings, loadings)  # the sum of W W', (D, D)
    values, vectors = torch.linalg.eigh(common)  # ascending
    principal = vectors[:, -num_factors:] * values[-num_factors:].clamp(min=0).sqrt()  # (D, M)
    return align(loadings, varimax(principal)[0])


def _planar_rotations(loadings: Tensor, rotation: Tensor, max_sweeps: int) -> Tensor:
    """Turns each pair of factors in its plane to the best angle, until none turns any more.

    The best angle has a closed form, so the criterion never falls. `rotation` is `(*, K, K)`.
    """
    rotation = rotation.clone()
    num_factors = rotation.shape[-1]
    for _ in range(max_sweeps):
        turned = 0.0
        for j in range(num_factors):
            for k in range(j + 1, num_factors):
                pair = rotation[..., [j, k]]  # (*, K, 2)
                a, b = (loadings @ pair).unbind(-1)  # (*, D) each
                u, v = a**2 - b**2, 2 * a * b
                u, v = u - u.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
                angle = torch.atan2(2 * (u * v).sum(-1), (u**2 - v**2).sum(-1)) / 4  # (*,)
                cos, sin = angle.cos(), angle.sin()
                plane = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
                rotation[..., [j, k]] = pair @ plane
                turned = max(turned, angle.abs().max().item())
        if turned < 1e-9:
            break
    return rotation


def _check(where: str, loadings: Tensor, ndim: int | None = None) -> None:
    wrong = loadings.ndim < 2 or (ndim is not None and loadings.ndim != ndim)
    if wrong or 0 in loadings.shape or not loadings.isfinite().all():
        shape = "(D, K)" if ndim else "(*, D, K)"
        raise ValueError(
            f"{where}: expected finite loadings of shape {shape}, got {tuple(loadings.shape)} with "
            f"{int((~loadings.isfinite()).sum())} numbers not finite. Try the loadings of one "
            f"draw, loadings[0], or varimax_draws for many."
        )
