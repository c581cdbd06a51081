r"""What ranks say: p-values, a line, a picture, an ArviZ object.

Shapes: `S` simulations, `L` draws for each.
"""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_models.infer.diagnostics.calibration.uniform import band, counts_below, p_values, points
from ppl_models.infer.evidence.arviz import to_arviz
from ppl_models.pictures.drawing import drawing, figure_of
from ppl_models.prompt.lines import in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOUBTFUL = 0.01  # a p-value below which ranks are not taken for uniform
TINY = 1e-100  # below which it does not matter how small one is
LEVEL = 0.95  # of the band
SHOWN = 8  # curves that have a name
JOINT, DISTANCE = "log_p", "distance"  # quantities that are no sites


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""Ranks of what a model drew among draws for the data that it drew with it.

    Attributes:
        ranks: Those of each quantity, `(S, *)`: of the elements of the latents by their sites,
            of `"log_p"`, the joint log-density, or of `"distance"`, from a random point.
        num_draws: The largest rank, `L`.
        p_values: Of each quantity the probability that uniform ranks look less so, `(*)`: that of
            :math:`\gamma`, the least probability of a point of their empirical distribution.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis, sbc
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> found = sbc(model, ExactPosterior(model), num_simulations=100, seed=0)
        >>> sorted(found.ranks), found.ranks["z"].shape
        (['log_p', 'z'], torch.Size([100, 2]))
    """

    ranks: dict[str, Tensor]
    num_draws: int
    p_values: dict[str, Tensor]

    __repr__ = in_words

    @classmethod
    def of(cls, ranks: dict[str, Tensor], num_draws: int) -> "Calibration":
        """What ranks say."""
        found = {n: torch.as_tensor(p_values(r.numpy(), num_draws)) for n, r in ranks.items()}
        return cls(ranks, num_draws, found)

    @property
    def p_value(self) -> float:
        """That of the worst quantity, times how many there are (Bonferroni).

        With ranks that are uniform it is below any number with no more than that probability.
        """
        return min(1.0, self._number() * min(p.min().item() for p in self.p_values.values()))

    @property
    def worst(self) -> str:
        """The quantity whose ranks are least uniform, such as `"z[1]"`."""
        return self._names()[self._order()[0]]

    def arviz(self) -> Any:
        """Returns the ranks as ArviZ reads them: its group `prior_sbc`, one draw a simulation.

        They are scaled to numbers between 0 and 1, (r + 1/2) / (L + 1), which `plot_ecdf_pit` of
        ArviZ 1.x takes.
        """
        group = {}
        for name, rank in self.ranks.items():
            dims = ["chain", "draw", *(f"{name}_dim_{i}" for i in range(rank.dim() - 1))]
            group[name] = dims, (rank.numpy()[None] + 0.5) / (self.num_draws + 1)
        return to_arviz({"prior_sbc": group}, {}, {})

    def plot(self, axes: "Axes | None" = None) -> "Figure":
        """Draws how far each distribution of ranks is from uniform, and how far it may be.

        A curve leaves the band where the p-value of them all is below 0.05. It is above zero where
        draws are too high, below where they are too low; above on the left and below on the right
        where they are too narrow, and the other way round where they are too wide.

        Arguments:
            axes: Where to draw. By default in a figure of its own, which pyplot does not hold.
        """
        with drawing(axes, 7.6, 4.4) as axes:
            self._draw_band(axes)
            self._draw_curves(axes)
            axes.set(xlabel="rank / number of draws", ylabel="ECDF of ranks - uniform")
            axes.set_title(textwrap.fill(str(self), 70))
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
        return figure_of(axes)

    def __str__(self) -> str:
        kind = "TARP" if set(self.ranks) == {DISTANCE} else "SBC"
        simulations, number = len(next(iter(self.ranks.values()))), self._number()
        verdict = "ranks uniform" if self.p_value >= DOUBTFUL else "not calibrated"
        text = f"{kind} of {simulations} simulations, {self.num_draws} draws each: {verdict}, "
        text += f"p {self.p_value:.2g}" if self.p_value > TINY else f"p < {TINY:g}"
        if number > 1:
            text += f" of {number} quantities, the worst {self.worst}"
        return text + (f": {self._why()}" if self.p_value < DOUBTFUL else "")

    def _why(self) -> str:
        """What is wrong with the worst quantity: where its ranks are, or how wide they spread."""
        u = (self._flat()[:, self._order()[0]] + 0.5) / (self.num_draws + 1)
        shift = (u.mean() - 0.5) * (12 * len(u)) ** 0.5
        spread = (((u - 0.5) ** 2).mean() - 1 / 12) * (180 * len(u)) ** 0.5
        if self.worst == JOINT:
            return "draws less likely than the truth" if shift > 0 else "draws too likely"
        if self.worst == DISTANCE:
            return "draws too near to the points" if shift > 0 else "draws too far from the points"
        if abs(shift) > abs(spread):
            return f"draws too {'low' if shift > 0 else 'high'}"
        return f"draws too {'narrow' if spread > 0 else 'wide'}"

    def _number(self) -> int:
        return sum(p.numel() for p in self.p_values.values())

    def _flat(self) -> np.ndarray:
        """The ranks of all quantities, `(S, Q)`."""
        return np.concatenate([r.reshape(len(r), -1).numpy() for r in self.ranks.values()], 1)

    def _order(self) -> list[int]:
        """The quantities, the least uniform first."""
        return torch.cat([p.flatten() for p in self.p_values.values()]).argsort().tolist()

    def _names(self) -> list[str]:
        return [
            name + (f"[{', '.join(map(str, place))}]" if place else "")
            for name, p in self.p_values.items()
            for place in np.ndindex(*p.shape)
        ]

    def _draw_band(self, axes: "Axes") -> None:
        simulations, at = len(self._flat()), points(self.num_draws)
        found = band(simulations, self.num_draws, 1 - (1 - LEVEL) / self._number())
        low, high = (bound / simulations - at for bound in found)
        label = f"{LEVEL:.0%} of calibrated guides"
        axes.fill_between(at, low, high, color="0.88", step="mid", label=label)
        axes.axhline(0, color="0.6", linewidth=0.8)

    def _draw_curves(self, axes: "Axes") -> None:
        at, names = points(self.num_draws), self._names()
        curves = counts_below(self._flat(), self.num_draws) / len(self._flat()) - at[:, None]
        for place, n in enumerate(self._order()):
            named = place < SHOWN
            style: dict[str, Any] = (
                {} if named else {"color": "0.5", "linewidth": 0.5, "alpha": 0.5}
            )
            axes.plot(at, curves[:, n], label=names[n] if named else None, **style)
