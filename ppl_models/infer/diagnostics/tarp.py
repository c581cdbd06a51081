r"""Coverage of random points: whether posteriors of many latents are right, by one number each.

.. math::
    f_s = \frac{1}{L} \#\{l : d(z_l, r_s) < d(z^*_s, r_s)\} \sim \mathrm{Uniform}

if the draws are of the posterior, for any point :math:`r_s` that may depend on the data and on
chance, but not on the latents :math:`z^*_s` otherwise: the ball around it that reaches to the truth
has the mass of the posterior that it should have. If it is so for all points that depend on the
data, the posterior is right.

Points that do not depend on the data would pass a guide that returns the prior. So they are what
other simulations say of these data: latents predicted by ridge regression of theirs, and moved by
one of its errors, as a posterior would be.

What it catches: faults of all latents together, such as a correlation that is ignored, where there
are so many that a test of each loses its power; `sbc` says which latents. What it cannot: faults
that leave distances from these points as they are, where data tell nothing linear of the latents.

Shapes: `S` simulations, `L` draws for each, `D` numbers of all latents.

References:
    | Sampling-Based Accuracy Testing of Posterior Estimators for General Inference
    | (Lemos et al., 2023) https://arxiv.org/abs/2302.03026
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_models.infer.diagnostics.calibration.ranks import Counts
from ppl_models.infer.diagnostics.calibration.result import DISTANCE, Calibration
from ppl_models.infer.diagnostics.calibration.simulations import Wanted, simulations
from ppl_models.prompt.bars import progress_bar
from ppl_models.scoped import seed_of

PENALTIES = tuple(10.0**power for power in range(-3, 7))  # of the regression


def tarp(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *inputs: Any,
    size: int | None = None,
    num_simulations: int = 1000,
    num_draws: int = 100,
    refit: Callable[..., Any] | None = None,
    num_jobs: int | None = None,
    batch_size: int = 4096,
    seed: int | None = None,
    progress: bool = True,
) -> Calibration:
    r"""Returns the ranks of distances from random points to what a model draws, among its guide's.

    Distances are those of all latents that the guide draws, each in units of its spread under the
    model. The points depend on the data, by a regression on as many other simulations.

    Arguments:
        model: A Pyro program, as for `sbc`, and so are the others.
        guide: Its guide; None where the model knows its posterior, or beside `refit`.
        inputs: What the model is given beside data, None for data that come before.
        size: The number of rows of a data set, where a simulation is one.
        num_simulations: How many latents and data are drawn, `S`.
        num_draws: How many draws of the posterior each has, `L`.
        refit: Called as `refit(model, *data)`: returns a guide or an ArviZ object.
        num_jobs: In how many processes `refit` runs.
        batch_size: How many draws are evaluated at once.
        seed: Seeds all of it; by default it comes from torch's generator.
        progress: Whether to show a progress bar (on a terminal), if it takes more than a second.

    Raises:
        ValueError: As `sbc` does.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> found = tarp(model, ExactPosterior(model), num_simulations=200, seed=0)
        >>> found.p_value > 0.01
        True
    """
    seed = seed_of(seed)
    wanted = Wanted(size, num_simulations, num_draws, refit, num_jobs, batch_size, seed, progress)
    with simulations(model, guide, inputs, wanted) as found:
        bank, data = found.others()
        scale = _spread(_vectors(bank))
        points = _points(_vectors(bank) / scale, data, found.data)  # (S, D)
        truth = _vectors(found.truth.latents) / scale
        counts = Counts({DISTANCE: (truth - points).norm(dim=1)})
        with progress_bar("tarp", int(found.number.sum()), progress) as advance:
            for some in found.draws():
                drawn = _vectors(some.latents) / scale
                counts.add(some.which, {DISTANCE: (drawn - points[some.which]).norm(dim=1)}, {})
                advance(len(some.which))
        return Calibration.of(counts.ranks(found.number, num_draws), num_draws)


def _vectors(latents: dict[str, Tensor]) -> Tensor:
    """All latents of each draw as one vector, `(B, D)`."""
    return torch.cat([x.double().reshape(len(x), -1) for x in latents.values()], 1)


def _spread(values: Tensor) -> Tensor:
    """The scale of each, of a normal distribution with its quartiles, `(D,)`.

    Heavy tails have no standard deviation, and numbers that seldom move have no other.
    """
    low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype), dim=0)
    found = (high - low) / 1.349
    found = torch.where(found > 0, found, values.std(0))
    return torch.where(found > 0, found, 1.0)


def _points(latents: Tensor, data: Tensor, new: Tensor) -> Tensor:
    """What a regression of latents on data says of new data, each with an error of its own."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    regression.fit(data.numpy(), latents.numpy())

    def predicted(x: Tensor) -> Tensor:
        return torch.from_numpy(regression.predict(x.numpy())).reshape(len(x), -1)

    errors = latents - predicted(data)
    return predicted(new) + errors[torch.randint(len(errors), (len(new),))]
