r"""Density from counts: a histogram, in one dimension or two.

Of `N` rows, `n_j` fall into bin `j`. Counts become proportions, and proportions a density:

.. math::
    \pi_j = \frac{n_j}{N}, \qquad
    p(x) = \frac{\pi_j}{|B_j|} \quad \text{for } x \in B_j

where :math:`|B_j|` is the width of the bin, or in two dimensions its area. No other proportions fit
the rows as well, because the mean log-density falls short of its maximum by a divergence:

.. math::
    \frac{1}{N} \sum_n \log p(x_n) = -H - \mathrm{KL}(n / N \,\|\, \pi), \qquad
    H = -\sum_j \frac{n_j}{N} \log \frac{n_j / N}{|B_j|}

Shapes: `B` rows, `D` features (1 or 2), `J_d` bins of feature `d`.

References:
    | Multivariate Density Estimation (Scott, 2015), chapter 3
    | https://doi.org/10.1002/9781118575574
"""

import math
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from ppl_models.densities.bins import PiecewiseConstant, check_countable, check_shape, locate
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class HistogramDensity(nn.Module):
    r"""A density that is constant in each bin; no latents. Its evidence is exact.

    Empty bins have no density: a new row in one of them has log evidence minus infinity, and so
    has one outside of the edges. A pseudo-count helps the first, wider edges the second.

    Arguments:
        edges: For each feature the edges of its bins, in increasing order; one or two features.
            Their dtype is that of the model. `bin_edges` finds them by a rule.

    Attributes:
        logits: The unnormalised log-probabilities of the bins, with shape `(J_1,)` or `(J_1, J_2)`.
            At first all bins have the same.

    Raises:
        ValueError: If edges do not increase, are fewer than two or not finite, or are given for
            no feature or more than two.

    Example:
        >>> x = torch.tensor([[0.1], [0.2], [0.3], [1.5]])
        >>> model = HistogramDensity([0.0, 1.0, 3.0]).maximum_likelihood(x)
        >>> model.proportions
        tensor([0.7500, 0.2500])
        >>> model.evidence().log_prob(x).detach().exp()  # 3/4 on a width of 1, 1/4 on 2
        tensor([0.7500, 0.7500, 0.7500, 0.1250])
    """

    __repr__ = in_a_line

    def __init__(self, *edges: Tensor | Sequence[float]) -> None:
        super().__init__()
        if len(edges) not in (1, 2):
            raise ValueError(
                f"HistogramDensity: expected edges of one feature or two, got {len(edges)}: in "
                f"more dimensions nearly all bins are empty. Try a model of the features, such as "
                f"FactorAnalysis."
            )
        tensors = [torch.as_tensor(e) for e in edges]
        for d, e in enumerate(tensors):
            if e.ndim != 1 or len(e) < 2 or not e.isfinite().all() or (e.diff() <= 0).any():
                raise ValueError(
                    f"HistogramDensity: expected two or more finite edges in increasing order for "
                    f"feature {d}, got {_brief(e)}. Try edges.unique(), which sorts them, or "
                    f"bin_edges(x) for edges by a rule."
                )
        dtype = torch.cat(tensors).dtype
        dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
        for d, e in enumerate(tensors):
            self.register_buffer(f"edges_{d}", e.to(dtype, copy=True))  # (J_d + 1,)
        uniform = torch.zeros([len(e) - 1 for e in tensors], dtype=dtype, device=tensors[0].device)
        self.logits = nn.Parameter(uniform)  # (J_1,) or (J_1, J_2)

    @property
    def edges(self) -> tuple[Tensor, ...]:
        """The edges of the bins of each feature."""
        return tuple(self.get_buffer(f"edges_{d}") for d in range(self.logits.ndim))

    @property
    def proportions(self) -> Tensor:
        r"""The probabilities of the bins, :math:`\pi`, with shape `(J_1,)` or `(J_1, J_2)`."""
        return self.evidence().logits.exp().detach()

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        if x is not None:
            check_shape(x, self.logits.ndim, "HistogramDensity")
        with data_plate(x, size):
            return pyro.sample("x", self.evidence(), obs=x)

    def evidence(self) -> PiecewiseConstant:
        r"""Returns :math:`p(x)`, over rows of shape `(D,)`."""
        return PiecewiseConstant(self.logits, self.edges)

    @torch.no_grad()
    def maximum_likelihood(self, x: Tensor, pseudo_count: float = 0.0) -> "HistogramDensity":
        r"""Sets the proportions to those of `x`, and returns the model.

        With a pseudo-count :math:`\alpha` they are no longer the maximum of the likelihood but the
        posterior mean under a prior :math:`\mathrm{Dirichlet}(\alpha)` (Laplace smoothing), and no
        bin is without density:

        .. math:: \pi_j = \frac{n_j + \alpha}{N + \alpha J}

        Raises:
            TypeError: If `x` holds integers.
            ValueError: If `x` is empty, not finite, of another shape, or outside of the edges, or
                the pseudo-count is negative.
        """
        check_countable(x, self.logits.ndim, "HistogramDensity")
        if not (pseudo_count >= 0 and math.isfinite(pseudo_count)):
            raise ValueError(
                f"HistogramDensity: expected a pseudo-count of 0 or more, got {pseudo_count!r}. "
                f"Try 0 for the maximum of the likelihood, 1 for Laplace smoothing."
            )
        index, inside = locate(x, self.edges)
        if not inside.all():
            ranges = [
                f"feature {d} goes from {column.min():g} to {column.max():g}, its edges from "
                f"{edges[0]:g} to {edges[-1]:g}"
                for d, (column, edges) in enumerate(zip(x.T, self.edges, strict=True))
            ]
            raise ValueError(
                f"HistogramDensity: {int((~inside).sum())} of {len(x)} rows lie outside of the "
                f"bins: {'; '.join(ranges)}. Try wider edges, or bin_edges(x)."
            )
        counts = torch.bincount(index, minlength=self.logits.numel()).double() + pseudo_count
        self.logits.copy_((counts / counts.sum()).log().reshape(self.logits.shape))
        return self

    @torch.no_grad()
    def marginal(self, dim: int) -> "HistogramDensity":
        r"""Returns the density of feature `dim` alone, :math:`p(x_d) = \int p(x) \, dx_{d'}`.

        Raises:
            ValueError: If the model has one feature only, or no feature `dim`.
        """
        self._check_dim(dim)
        return self._with_logits(self.edges[dim], self.evidence().logits.logsumexp(1 - dim))

    @torch.no_grad()
    def conditional(self, dim: int, value: float) -> "HistogramDensity":
        r"""Returns the density of the other feature where feature `dim` has a value.

        .. math:: p(x_{d'} \mid x_d = v) = \frac{p(x_d = v, x_{d'})}{p(x_d = v)}

        Raises:
            ValueError: If the model has one feature only, or no feature `dim`, or the density of
                that feature is zero at `value`.

        Example:
            >>> model = HistogramDensity([0.0, 1.0, 2.0], [0.0, 5.0, 10.0])
            >>> x = torch.tensor([[0.5, 1.0], [0.6, 9.0], [0.7, 8.0], [1.5, 2.0]])
            >>> model.maximum_likelihood(x).conditional(0, value=0.9).proportions
            tensor([0.3333, 0.6667])
        """
        self._check_dim(dim)
        edges = self.edges[dim]
        row = torch.as_tensor(value, dtype=edges.dtype, device=edges.device).reshape(1, 1)
        index, inside = locate(row, [edges])
        logits = self.evidence().logits.select(dim, int(index))
        if not inside.all() or logits.isneginf().all():
            raise ValueError(
                f"HistogramDensity: the density of feature {dim} is zero at {float(value):g}, so "
                f"that nothing is conditional on it. Try a value in a bin with rows, or a "
                f"pseudo-count, or wider bins; the edges go from {edges[0]:g} to {edges[-1]:g}."
            )
        return self._with_logits(self.edges[1 - dim], logits)

    def _with_logits(self, edges: Tensor, logits: Tensor) -> "HistogramDensity":
        model = HistogramDensity(edges)
        model.logits.copy_(logits)
        return model

    def _check_dim(self, dim: int) -> None:
        if self.logits.ndim != 2 or dim not in (0, 1):
            raise ValueError(
                f"HistogramDensity: expected feature 0 or 1 of two, got dim={dim!r} of "
                f"{self.logits.ndim}. Try a model with edges of two features."
            )


def _brief(edges: Tensor) -> str:
    """A few of the edges, for errors."""
    if edges.ndim != 1:
        return f"a tensor of shape {tuple(edges.shape)}"
    numbers = [f"{e:g}" for e in edges[:6].tolist()]
    return f"[{', '.join(numbers)}{', ...' if len(edges) > 6 else ''}]"
