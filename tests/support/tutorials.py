"""Programs as Pyro's tutorials write them, and a run of each."""

from functools import partial

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from benchmarks.speed import tutorials
from ppl_models import SVI

PROGRAMS = {p.name: (p.make, p.depth, p.data) for p in tutorials.programs()}
CompiledSVI = partial(SVI, compile=True)
ERRORS, EFFECTS = PROGRAMS["eight schools"][2]


def run(kind, make, enumerated, data, optim=None, steps=12, loss=None):
    """The losses, the parameters and the optimiser's state after some steps."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide = make()
    loss = loss or (TraceEnum_ELBO(max_plate_nesting=enumerated) if enumerated else Trace_ELBO())
    svi = kind(model, guide, optim or pyro.optim.Adam({"lr": 0.01}), loss)
    losses = [svi.step(*data) for _ in range(steps)]
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return losses, values, svi, svi.optim.get_state()
