r"""Ranks of what was drawn first among draws, with ties broken at random.

.. math::
    r = \#\{l : f(z_l) < f(z^*)\} + U, \qquad
    U \sim \mathrm{Uniform}\{0, \dots, \#\{l : f(z_l) = f(z^*)\}\}

for a quantity f. Where a simulation has fewer draws than others, as many as its chains are worth,
its rank is spread at random over those that belong to it among `L` draws.

Shapes: `S` simulations, `L` draws for each, `B` draws of some of them.

References:
    | Simulation-Based Calibration Checking for Bayesian Computation (Modrák et al., 2023)
    | https://doi.org/10.1214/23-BA1404
"""

import torch
from torch import Tensor


class Counts:
    """Counts the draws below what was drawn first, and those equal to it.

    Arguments:
        truth: Quantities of each simulation, each `(S, *)`.
    """

    def __init__(self, truth: dict[str, Tensor]) -> None:
        self.truth = truth
        self.below = {n: torch.zeros(x.shape, dtype=torch.int64) for n, x in truth.items()}
        self.equal = {n: torch.zeros(x.shape, dtype=torch.int64) for n, x in truth.items()}

    def add(self, which: Tensor, values: dict[str, Tensor], rounding: dict[str, Tensor]) -> None:
        """Counts some draws.

        Arguments:
            which: The simulations that they are for, `(B,)`.
            values: The quantities of each, `(B, *)`.
            rounding: How far equal ones may be apart, where they may be.
        """
        for name, value in values.items():
            difference = value.double() - self.truth[name].double()[which]
            if (broken := difference.isnan()).any():
                raise FloatingPointError(
                    f"{name}: {int(broken.sum())} of {broken.numel()} values of draws are no "
                    f"numbers, or infinite as the truth is, and have no rank. Expected densities "
                    f"and latents that are finite. Try double precision, or a guide with the "
                    f"support of the latents."
                )
            near = difference.abs() <= rounding.get(name, torch.zeros(()))
            self.equal[name].index_add_(0, which, near.long())
            self.below[name].index_add_(0, which, ((difference < 0) & ~near).long())

    def ranks(self, number: Tensor, num_draws: int) -> dict[str, Tensor]:
        """The ranks, each of 0, ..., L.

        Arguments:
            number: How many draws each simulation has, `(S,)`.
            num_draws: How many they have at most, `L`.
        """
        found = {}
        for name, below in self.below.items():
            each = number.reshape(-1, *[1] * (below.dim() - 1))
            ties = torch.rand(below.shape, dtype=torch.float64) * (self.equal[name] + 1)
            rank = below + ties.long().minimum(self.equal[name])
            place = (rank + torch.rand(below.shape, dtype=torch.float64)) / (each + 1)
            spread = (place * (num_draws + 1)).long().clamp(max=num_draws)
            found[name] = torch.where(each == num_draws, rank, spread)
        return found
