r"""Mean-field posteriors of stochastic block models, by coordinate ascent.

.. math::
    \log p(A) \ge \mathbb{E}_q \left[
    \log \frac{p(A, b, \rho, \theta, \pi)}{q(\rho) \, q(\pi) \prod_i q(b_i) \, q(\theta_i)} \right]

Each factor in turn is set to its best beside the others, which is known in closed form. Labels go
one node after the other: all at once they would swing between two states, and the bound fall. All
restarts go side by side.

Shapes: `R` restarts, `N` nodes, `K` blocks, `M = K (K + 1) / 2`.

References:
    | A Mixture Model for Random Graphs (Daudin et al., 2008)
    | https://doi.org/10.1007/s11222-007-9046-7
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Gamma, kl_divergence

from ppl_models.graphs.densities import Densities

SHORT = 30  # steps that tell good starts from bad ones


class BlockApproximation(NamedTuple):
    """The factors of a mean-field posterior, blocks by size.

    Attributes:
        labels: Probabilities of labels, `(N, K)`.
        density: The parameters of the law of each density, `(M, 2)`.
        propensity: Those of each node's, `(N, 2)`, of Gamma distributions; ones if not latent.
        prior: The priors of the densities within blocks and between them, `(2, 2)`.
        bound: Below log p(A), in nats, with the probabilities of labels in `q`.
    """

    labels: Tensor
    density: Tensor
    propensity: Tensor
    prior: Tensor
    bound: Tensor


class State(NamedTuple):
    """The factors of all restarts, and what they say of the data."""

    labels: Tensor  # q, (R, N, K)
    propensity: Tensor  # shapes and rates, (R, N, 2)
    density: Tensor  # (R, K, K, 2)
    laws: Densities
    bound: Tensor  # (R,)


@torch.no_grad()
def ascend(
    joined: Tensor,
    known: Tensor,
    labels: Tensor,
    laws: Densities,
    max_steps: int = 500,
    tolerance: float = 1e-7,
) -> BlockApproximation:
    """Ascends from all starts for a while, and from the best of these to the end.

    Arguments:
        joined: Edges, `(N, N)`.
        known: Which pairs are known, `(N, N)`.
        labels: Probabilities of labels to start from, `(R, N, K)`.
        laws: The laws of the densities.
        max_steps: The most steps of the best.
        tolerance: It ends where a step gains less, in nats for each pair.
    """
    enough = tolerance * known.sum().item()
    state = start(joined, known, labels, laws)
    for _ in range(SHORT):
        before, state = state, step(joined, known, state)
        if (state.bound - before.bound).max() < enough:
            break
    state = _chosen(state, int(state.bound.argmax()))
    for _ in range(max_steps):
        before, state = state, step(joined, known, state)
        if (state.bound - before.bound).item() < enough:
            break
    return _by_size(state)


def start(joined: Tensor, known: Tensor, labels: Tensor, laws: Densities) -> State:
    """The best of the other factors for some labels, where all nodes are alike."""
    alike = torch.ones(*labels.shape[:2], 2, dtype=labels.dtype, device=labels.device)
    state = State(labels, alike, labels, laws, labels.new_zeros(len(labels)))
    return _with_densities(joined, known, state)


def step(joined: Tensor, known: Tensor, state: State) -> State:
    """Moves the labels (and propensities) of one node after the other, then the densities."""
    labels, propensity = state.labels.clone(), state.propensity.clone()
    on, off = state.laws.expected(state.density)
    weights = _expected_weights(labels).digamma()
    log_weight = weights - weights.new_tensor(_total(labels)).digamma()  # (R, K)
    corrected = state.laws.law is Gamma
    means = _mean(propensity)  # of theta, (R, N)
    weighed = labels * means[..., None]
    for i in range(labels.shape[1]):
        there, every = joined[i] @ labels, known[i] @ weighed  # (R, K) each
        pull = _times(off, every)
        logits = log_weight + _times(on, there) + means[:, i, None] * pull
        labels[:, i] = logits.softmax(-1)
        if corrected:
            propensity[:, i, 0] = 1 + joined[i].sum()
            propensity[:, i, 1] = 1 - (labels[:, i] * pull).sum(-1)
            means[:, i] = _mean(propensity[:, i])
        weighed[:, i] = labels[:, i] * means[:, i, None]
    return _with_densities(joined, known, state._replace(labels=labels, propensity=propensity))


def _with_densities(joined: Tensor, known: Tensor, state: State) -> State:
    """The best densities and weights for the labels, their prior, and the bound."""
    labels, laws = state.labels, state.laws
    weighed = labels * _mean(state.propensity)[..., None]
    half = 1 - 0.5 * laws.is_within.to(labels.dtype)  # a pair within a block is there twice
    there = labels.mT @ joined @ labels * half  # e, (R, K, K)
    every = weighed.mT @ known @ weighed * half  # n
    density = laws.given(there, every)
    laws = laws.relearned(density)
    on, off = laws.expected(density)

    likelihood = (there * on + every * off).triu().sum((1, 2))
    weights = Dirichlet(_expected_weights(labels))
    prior = Dirichlet(torch.ones_like(weights.concentration))
    expected = weights.concentration.digamma() - weights.concentration.sum(-1, True).digamma()
    of_labels = (labels * (expected[:, None] - labels.clamp(min=1e-300).log())).sum((1, 2))
    bound = likelihood + of_labels - kl_divergence(weights, prior) - laws.divergence(density)
    if laws.law is Gamma:
        bound = bound + _of_propensities(joined, state.propensity)
    return state._replace(density=density, laws=laws, bound=bound)


def _of_propensities(joined: Tensor, parameters: Tensor) -> Tensor:
    """What propensities add to the bound beside their mean, (R,)."""
    law = Gamma(parameters[..., 0], parameters[..., 1])
    unit = Gamma(torch.ones_like(law.rate), torch.ones_like(law.rate))
    log_mean = law.concentration.digamma() - law.rate.log()
    return (joined.sum(1) * log_mean - kl_divergence(law, unit)).sum(1)


def _expected_weights(labels: Tensor) -> Tensor:
    """The parameters of the Dirichlet posterior of the probabilities of labels, (R, K)."""
    return 1 + labels.sum(1)


def _total(labels: Tensor) -> float:
    return float(labels.shape[1] + labels.shape[2])


def _mean(gamma: Tensor) -> Tensor:
    return gamma[..., 0] / gamma[..., 1]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[..., None])[..., 0]


def _chosen(state: State, best: int) -> State:
    """One of the restarts."""
    prior = state.laws.prior
    laws = state.laws._replace(prior=prior[best if len(prior) > 1 else 0, None])
    return State(
        state.labels[best, None],
        state.propensity[best, None],
        state.density[best, None],
        laws,
        state.bound[best, None],
    )


def _by_size(state: State) -> BlockApproximation:
    order = state.labels[0].sum(0).argsort(descending=True)
    density = state.density[0][order][:, order]  # (K, K, 2)
    rows, columns = torch.triu_indices(len(order), len(order))
    return BlockApproximation(
        state.labels[0][:, order],
        density[rows, columns],
        state.propensity[0],
        state.laws.prior[0],
        state.bound[0],
    )
