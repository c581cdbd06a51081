"""Whether a run has come to its end: has its loss stopped falling, beyond its own noise?

What it catches: a run that was stopped too early, by the trend of the last half of its losses, and
one that gets worse. What it cannot: whether another start would have come to a better end, for
which see `rhat`; nor whether the guide, at its best, is any good: see `khat` and `sbc`.
"""

from collections.abc import Mapping, Sequence

from ppl_models.infer.training.ends.drift import Convergence, drift, losses_of
from ppl_models.infer.training.fit import Run


def convergence(
    run: Run | Mapping[str, Sequence[float]] | Sequence[float], name: str | None = None
) -> Convergence:
    """Returns by how much a loss still fell over the last half of a run, and how well one knows.

    The criterion is that of `fit(until="converged")`: the gain is no larger than its standard
    error, and this is at most a hundredth of all that the loss fell by, or a tenth of the noise of
    an epoch.

    Arguments:
        run: What `fit` or `fit_em` returned, its history, or the losses of its epochs.
        name: Which loss of a history with several, such as `"validation"`.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there are fewer than 20 epochs, or losses that are not finite, or there are
            several losses and no name.

    Example:
        >>> import torch
        >>> from ppl_models import FactorAnalysis, elbo, fit
        >>> from guides import ExactPosterior
        >>> model = FactorAnalysis(num_features=3, num_factors=1)
        >>> x = torch.randn(50, 3) @ torch.randn(3, 3)
        >>> run = fit(elbo(model, ExactPosterior(model)), x, epochs=100, lr=0.01, seed=0)
        >>> convergence(run).converged
        False
    """
    history = run.history if isinstance(run, Run) else run
    if isinstance(history, Mapping):
        return drift(_chosen(history, name))
    if isinstance(history, str) or not isinstance(history, Sequence):
        raise TypeError(
            f"convergence: expected a run, its history or its losses, got "
            f"{type(run).__name__}. Try convergence(fit(...)), or convergence(losses.tolist())."
        )
    return drift(history)


def _chosen(history: Mapping[str, Sequence[float]], name: str | None) -> Sequence[float]:
    if name is None:
        return losses_of(history)
    if name not in history:
        known = ", ".join(map(repr, history)) or "nothing"
        raise ValueError(f"name: expected one of the history, which has {known}, got {name!r}.")
    return history[name]
