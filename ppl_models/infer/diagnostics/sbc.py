r"""Simulation-based calibration: whether posteriors are right on average over data of the model.

.. math::
    z^* \sim p(z), \quad x \sim p(x \mid z^*), \quad z_l \sim q(z \mid x)
    \quad\Rightarrow\quad \#\{l : f(z_l, x) < f(z^*, x)\} \sim \mathrm{Uniform}\{0, \dots, L\}

if q is the posterior, for each quantity f. Those of single latents are the same for a guide that
returns the prior, and for one that ignores how latents depend on each other; the joint density
:math:`f = \log p(x, z)` catches both.

What it catches: a guide that is too narrow, too wide, shifted, blind to correlations or to data,
on average over what the model draws. What it cannot: a guide that fails on rows unlike any that
the model draws (see `khat`, on your rows), faults of the model itself, and faults in opposite
directions that cancel in all quantities.

Shapes: `S` simulations, `L` draws for each.

References:
    | Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al.,
    | 2018)
    | https://arxiv.org/abs/1804.06788
    | Simulation-Based Calibration Checking for Bayesian Computation (Modrák et al., 2023)
    | https://doi.org/10.1214/23-BA1404
    | Graphical test for discrete uniformity (Säilynoja, Bürkner & Vehtari, 2022)
    | https://doi.org/10.1007/s11222-022-10090-6
"""

from collections.abc import Callable
from typing import Any

import torch

from ppl_models.infer.diagnostics.calibration.draws import Some
from ppl_models.infer.diagnostics.calibration.ranks import Counts
from ppl_models.infer.diagnostics.calibration.result import JOINT, Calibration
from ppl_models.infer.diagnostics.calibration.simulations import Wanted, simulations
from ppl_models.prompt.bars import progress_bar
from ppl_models.scoped import seed_of


def sbc(
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
    r"""Returns ranks of what a model draws among draws of its guide, and whether they are uniform.

    Ranked are the elements of each latent that the guide draws, and the joint log-density, over
    which enumerated latents are summed. Where latents belong to rows that are independent, each row
    is a simulation, and they are drawn all at once. Otherwise a simulation is a data set of `size`
    rows: the guide draws its latents if it takes any data set, or `refit` makes a posterior for it.

    Draws that `refit` returns as an ArviZ object are thinned, evenly over all chains, to their
    least effective size if that is less than `num_draws`: ranks among draws that depend on each
    other are not uniform. What they would be among `num_draws` is then drawn at random.

    Processes that compute together, as `torchrun` starts them, share the draws, as in
    `log_evidence`, and the data sets of `refit`, which each process fits by itself, in jobs of its
    own. The simulations are drawn by each.

    Arguments:
        model: A Pyro program that draws data where it is given none. Its parameters stay as they
            are.
        guide: Its guide; None where the model knows its posterior, or beside `refit`.
        inputs: What the model is given beside data, in the order of its arguments, None for data
            that come before. Where rows are simulations, they take these rows in turn.
        size: The number of rows of a data set; not needed where each row is a simulation, or
            inputs have as many.
        num_simulations: How many latents and data are drawn, `S`, 20 or more.
        num_draws: How many draws of the posterior each has, `L`, 10 or more.
        refit: Called as `refit(model, *data)`: returns a guide fitted to these data, or an ArviZ
            object such as that of `nuts`.
        num_jobs: In how many processes `refit` runs: one for each core by default, or as many as
            `joblib.parallel_config` says, 1 for this one. The ranks do not depend on it.
        batch_size: How many draws are evaluated at once, as in `log_evidence`.
        seed: Seeds all of it; by default it comes from torch's generator.
        progress: Whether to show a progress bar (on a terminal), if it takes more than a second.

    Raises:
        ValueError: If the model cannot draw data, or has no latents to rank, or the guide is of one
            data set and there is no `refit`.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> found = sbc(model, ExactPosterior(model), num_simulations=200, seed=0)
        >>> found.p_value > 0.01
        True
    """
    seed = seed_of(seed)
    wanted = Wanted(size, num_simulations, num_draws, refit, num_jobs, batch_size, seed, progress)
    with simulations(model, guide, inputs, wanted) as found:
        counts = Counts(_quantities(found.truth))
        with progress_bar("sbc", int(found.number.sum()), progress) as advance:
            for some in found.draws():
                rounding = some.rounding.maximum(found.truth.rounding[some.which])
                counts.add(some.which, _quantities(some), {JOINT: rounding})
                advance(len(some.which))
        return Calibration.of(counts.ranks(found.number, num_draws), num_draws)


def _quantities(some: Some) -> dict[str, torch.Tensor]:
    """What is ranked of some draws."""
    if JOINT in some.latents:
        raise ValueError(
            f"model: its site {JOINT!r} has the name of the joint log-density, which is ranked "
            f"beside its latents. Try another name."
        )
    return {**some.latents, JOINT: some.log_p}
