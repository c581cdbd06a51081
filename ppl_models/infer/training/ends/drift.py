r"""Whether a loss still falls: its drift over the last half of a run, against its noise.

The losses of the last half of the epochs are cut into `M` batches with means

.. math::
    \bar{\ell}_m = \alpha - \beta m + \varepsilon_m, \qquad
    \mathrm{gain} = M \hat\beta, \qquad
    \mathrm{se}(\hat\beta)^2 = \frac{\hat\sigma^2}{\sum_m (m - \bar{m})^2}
        \cdot \frac{1 + \hat\rho}{1 - \hat\rho}

where :math:`\hat\rho` is what is left of the correlation of an error with the one before it: most
of it is inside of the batches. It has converged where the gain is no larger than its standard
error, and this is small itself: at most a hundredth of what the loss fell by since the first epoch,
or a tenth of the noise of an epoch. Without the second, a run would end before it has begun, as a
slow descent is hidden in the noise of a few epochs.

A run is looked at after :math:`n_0 = 2 M` epochs, and then after each tenth more of them; it ends
where it has converged at two looks, so that chance seldom ends it. That depends on counts and
losses alone: a run with a seed ends at the same step each time, resumed or not.

References:
    | Robust, Automated, and Accurate Black-box Variational Inference (Welandawe et al., 2022)
    | https://arxiv.org/abs/2203.15945
    | Batch Size Effects in the Analysis of Simulation Output (Schmeiser, 1982)
    | https://doi.org/10.1287/opre.30.3.556
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ppl_models.checks import listed
from ppl_models.prompt.lines import in_words
from ppl_models.user_line import warn

BATCHES = 10
LEAST = 2 * BATCHES  # epochs, before which nothing can be told
SHARE = 1.1  # from one look to the next
SMALL = 1e-2  # of all that a loss fell by
OF_NOISE = 0.1


@dataclass(frozen=True)
class Convergence:
    """How much a loss fell over the last half of a run, in nats per row.

    Attributes:
        gain: By how much it fell, by the trend of its last half; negative where it rose.
        standard_error: That of the gain, with what errors of neighbours have in common.
        limit: The largest standard error with which that is known well enough.
        epochs: The epochs of that half.

    Example:
        >>> found = Convergence(gain=0.02, standard_error=0.05, limit=0.1, epochs=100)
        >>> found.converged
        True
    """

    gain: float
    standard_error: float
    limit: float
    epochs: int

    __repr__ = in_words

    @property
    def converged(self) -> bool:
        """Whether the gain is no larger than its error, which is small, nor a rise than two."""
        moves = not -2 * self.standard_error <= self.gain <= self.standard_error
        return not moves and self.standard_error <= self.limit

    def __str__(self) -> str:
        text = f"over the last {self.epochs} epochs the loss "
        size = f"by {abs(self.gain):.2g} ± {self.standard_error:.2g} nats per row"
        if self.converged:
            return f"converged: {text}moved {size}"
        if self.gain > 2 * self.standard_error:
            return f"not converged: {text}still fell {size}"
        if self.gain < -2 * self.standard_error:
            return f"getting worse: {text}rose {size}"
        return f"not known: {text}moved {size}, which more epochs would tell from none"


def drift(losses: Sequence[float]) -> Convergence:
    """The drift of the losses of epochs.

    Raises:
        ValueError: If there are too few, or some are not finite.

    Example:
        >>> print(drift([1.0 / n for n in range(1, 101)]))
        not converged: over the last 50 epochs the loss still fell by 0.0094 ± 0.00098 nats per row
    """
    _check_losses(losses)
    width = len(losses) // LEAST
    window = list(losses[-BATCHES * width :])
    means = [sum(window[n * width :][:width]) / width for n in range(BATCHES)]
    slope, errors = _trend(means)
    error = BATCHES * math.sqrt(_variance(errors) / _spread(BATCHES))
    fall = losses[0] - means[-1]
    rounding = 1e-7 * max(abs(fall), *map(abs, means))  # of numbers in single precision
    _, of_epochs = _trend(window)
    noise = math.sqrt(sum(e * e for e in of_epochs) / len(window))
    limit = max(SMALL * fall, OF_NOISE * noise, rounding)
    return Convergence(-BATCHES * slope, max(error, rounding), limit, len(window))


def _trend(values: list[float]) -> tuple[float, list[float]]:
    """The slope of a line through some values, and how far these are from it."""
    middle, level = (len(values) - 1) / 2, sum(values) / len(values)
    slope = sum((n - middle) * x for n, x in enumerate(values)) / _spread(len(values))
    return slope, [x - level - slope * (n - middle) for n, x in enumerate(values)]


def _spread(number: int) -> float:
    """The sum of the squares of so many places in a row, around their middle."""
    return number * (number**2 - 1) / 12


def _variance(errors: list[float]) -> float:
    """The variance of errors around a trend, larger where neighbours are alike."""
    square = sum(e * e for e in errors)
    together = sum(a * b for a, b in pairwise(errors))
    alike = min(max(together / square, 0.0), 0.9) if square else 0.0
    return square / (BATCHES - 2) * (1 + alike) / (1 - alike)


def _check_losses(losses: Sequence[float]) -> None:
    if len(losses) < LEAST:
        raise ValueError(
            f"convergence: expected the losses of {LEAST} epochs or more, whose last half is cut "
            f"into {BATCHES}, got {len(losses)}. Try more epochs, or a larger batch_size with as "
            f"many steps."
        )
    bad = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        raise ValueError(
            f"convergence: expected losses that are finite, got others in epochs {listed(bad)}. "
            f"Try a smaller lr, or clip=1.0."
        )


class UntilConverged:
    """What ends a run whose loss no longer falls.

    Arguments:
        name: That of the objective, as its history may have it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def next_look(self, epoch: int) -> int:
        """The epoch after which it is looked at next."""
        return next_look(epoch)

    def looks(self, epoch: int) -> bool:
        """Whether it is looked at after an epoch."""
        return epoch >= LEAST and next_look(epoch - 1) == epoch

    def reached(self, history: dict[str, list[float]]) -> bool:
        """Whether the run ends after its last epoch: at a look that is the second such one."""
        losses = losses_of(history, self.name)
        looks = list(_looks(len(losses)))[-2:]
        return len(looks) == 2 and all(drift(losses[:look]).converged for look in looks)

    def converged(self, history: dict[str, list[float]], warned: bool) -> bool:
        """Whether it has converged at the end, with a warning where it has not."""
        losses = losses_of(history, self.name)
        if len(losses) < LEAST:
            found = f"after {len(losses)} epochs it is not known, as {LEAST} are looked at first"
        elif (last := drift(losses)).converged:
            return True
        else:
            found = f"after {len(losses)} epochs it is {last}"
        if warned:
            warn(f"fit: {found}. Try more epochs, or a smaller lr where the loss is noisy.")
        return False


def losses_of(history: Mapping[str, Sequence[float]], name: str | None = None) -> Sequence[float]:
    """What is descended, epoch by epoch, in a history.

    Raises:
        ValueError: If there are several losses.
    """
    for key in ("loss", name):
        if key is not None and key in history:
            return history[key]
    rest = [key for key in history if key != "validation"]
    if rest:
        raise ValueError(
            f"convergence: expected the history of one objective, got those of "
            f"{', '.join(map(repr, rest))}. Try convergence(run.history[{rest[0]!r}])."
        )
    return []


def next_look(epoch: int) -> int:
    """The epoch after which a run is looked at next.

    Example:
        >>> next_look(0), next_look(20), next_look(22)
        (20, 22, 25)
    """
    look = LEAST
    while look <= epoch:
        look = math.ceil(SHARE * look)
    return look


def _looks(most: int) -> Iterator[int]:
    """The epochs up to a last one after which there are looks."""
    look = LEAST
    while look <= most:
        yield look
        look = next_look(look)
