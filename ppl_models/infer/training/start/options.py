"""What `fit` is asked for, before anything is done: each check of its arguments."""

import math
from typing import Any

from ppl_models.checks import check_count
from ppl_models.infer.training.average import check_decay


def check_no_more(more: tuple[Any, ...]) -> None:
    """Raises where a program, its guide and the data were given, or the data in parts."""
    if more:
        raise TypeError(
            f"fit: expected an objective and the data, got {2 + len(more)} arguments. Try "
            f"fit(elbo(model, guide), x, epochs=100), or data=(x, y) for rows with labels."
        )


def check_length(epochs: int | None, steps: int | None) -> None:
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"fit: expected either epochs or steps, got epochs={epochs}, steps={steps}. "
            f"Try epochs=100."
        )
    _check_counts(epochs=epochs, steps=steps)


def check_options(
    lr: float,
    clip: float | None,
    patience: int | None,
    validation: Any,
    compile: Any,
    until: Any,
    ema: Any,
) -> None:
    _check_counts(patience=patience)
    check_decay(ema)
    if not math.isfinite(lr) or lr <= 0:
        raise ValueError(f"lr: expected a positive number, got {lr!r}. Try 1e-3.")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: expected a positive norm, got {clip!r}. Try 1.0.")
    if patience is not None and validation is None:
        raise ValueError("patience: expected validation data to wait for, got validation=None.")
    if until not in (None, "converged"):
        raise ValueError(
            f"until: expected 'converged' or None, got {until!r}. Try until='converged', with the "
            f"most epochs that it may take as epochs."
        )
    if not (isinstance(compile, bool) or compile == "auto"):
        raise ValueError(
            f"compile: expected True, False or 'auto', got {compile!r}. Try compile='auto'."
        )


def _check_counts(**counts: int | None) -> None:
    check_count(**{name: value for name, value in counts.items() if value is not None})
