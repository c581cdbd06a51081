"""Draws of chains, as many as they are worth.

They depend on each other, and ranks among them would not be uniform. Those of the least effective
size of all latents, evenly spaced over all chains, are as good as independent.

References:
    | Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al.,
    | 2018), section 5.1, https://arxiv.org/abs/1804.06788
"""

from typing import Any

import numpy as np


def thinned(posterior: Any, num_draws: int) -> dict[str, np.ndarray]:
    """Draws of an ArviZ object, so many, or fewer if its chains are not worth them.

    Raises:
        TypeError: If it has no draws.
    """
    try:
        variables = posterior["posterior"].data_vars
    except (TypeError, KeyError, AttributeError) as error:
        raise TypeError(
            f"refit: expected a guide, or an ArviZ object with the group 'posterior', got "
            f"{type(posterior).__name__}. Try refit=lambda model, x: nuts(model, x, "
            f"progress=False), or a function that fits a guide and returns it."
        ) from error
    values = {str(name): np.asarray(array.values) for name, array in variables.items()}
    chains, draws = next(iter(values.values())).shape[:2]
    worth = min(map(effective_size, values.values()))
    kept = max(1, int(min(num_draws, chains * draws, worth)))
    chosen = np.linspace(0, chains * draws - 1, kept).round().astype(int)
    return {name: x.reshape(-1, *x.shape[2:])[chosen] for name, x in values.items()}


def effective_size(values: np.ndarray) -> float:
    """The least effective number of draws of what moves among `(chain, draw, *)`."""
    import arviz

    flat = values.reshape(*values.shape[:2], -1).astype(float)
    moving = [entry for entry in np.moveaxis(flat, -1, 0) if np.ptp(entry) > 0]
    return min((float(arviz.ess(entry)) for entry in moving), default=np.inf)
