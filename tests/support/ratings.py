"""Ratings of a known model, each pair once."""

import torch
from torch import Tensor

from ppl_models import MatrixFactorization


def ratings(num_users: int = 12, num_items: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """About half of all pairs, and what they were given, in float64; one user rated nothing."""
    generator = torch.Generator().manual_seed(seed)
    rated = torch.rand(num_users, num_items, generator=generator) < 0.5
    rated[-1] = False
    x = rated.nonzero()
    w, v = torch.randn(2, max(num_users, num_items), 3, generator=generator).double()
    y = 3 + w[x[:, 0], 0] + (w[x[:, 0], 1:] * v[x[:, 1], 1:]).sum(1)
    return x, y + 0.3 * torch.randn(len(x), generator=generator).double()


def model(likelihood=None, num_factors: int = 2, **sizes: int) -> MatrixFactorization:
    """One with priors that are not standard, in float64."""
    sizes = {"num_users": 12, "num_items": 9} | sizes
    made = MatrixFactorization(**sizes, num_factors=num_factors, likelihood=likelihood).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for root in (made.user_root, made.item_root):
            root.add_(0.2 * torch.randn(root.shape, generator=generator))
        made.offset[0] = 3.0
    return made
