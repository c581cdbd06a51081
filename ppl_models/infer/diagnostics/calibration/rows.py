"""Rows as simulations: where each has latents of its own, all of them are one batch."""

from collections.abc import Iterator

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.infer.diagnostics.calibration.draws import (
    Simulations,
    Some,
    gathering,
    numbers,
    ranked,
    rows_first,
    some,
)
from ppl_models.infer.diagnostics.calibration.simulator import Simulator
from ppl_models.infer.evidence.joint import Joint
from ppl_models.infer.programs import sites


def of_rows(
    joint: Joint, simulator: Simulator, trace: poutine.Trace, num_draws: int, batch_size: int
) -> Simulations:
    """Simulations that are rows.

    Arguments:
        joint: The model and its guide on rows that the model drew.
        simulator: What drew them.
        trace: The run that did.
        num_draws: How many draws there are of each row.
        batch_size: How many are made at once.
    """
    names, count, drawn = ranked(joint), joint.num_rows, sites.latent_sites(trace)
    weighed = joint.weigh({name: drawn[name]["value"] for name in names})
    log_p, rounding = weighed.log_p[0].cpu(), weighed.rounding[0].cpu()
    values = {name: rows_first(drawn[name]) for name in names}
    every = torch.arange(count)

    def draws() -> Iterator[Some]:
        for rows, found in joint.evaluate(gathering(joint, names), num_draws, batch_size):
            yield some(every[rows], found)

    def others() -> tuple[dict[str, Tensor], Tensor]:
        data, trace = simulator.rows(count)
        fresh = sites.latent_sites(trace)
        return {name: rows_first(fresh[name]) for name in names}, numbers(data, count)

    return Simulations(
        truth=Some(every, values, log_p, rounding),
        draws=draws,
        number=torch.full((count,), num_draws),
        data=numbers(joint.data, count),
        others=others,
    )
