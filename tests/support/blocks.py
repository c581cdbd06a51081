"""Runs by blocks of compiled steps, beside runs by programs alone."""

import numpy as np
import pyro
import torch
from torch import nn

from guides import AmortizedNormal
from ppl_models import VAE, fit
from ppl_models.infer.compiled.steps import loop
from ppl_models.likelihoods import Normal
from ppl_models.nn import MLP


def vae(dropout=0.0):
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Linear(4, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.Dropout(dropout),
        nn.Tanh(),
        nn.Linear(6, 4),
    )
    model = VAE(4, 2, Normal(), MLP(2, 4, (6,)))
    return model.double(), AmortizedNormal(4, 2, encoder).double()


def rows(count=20):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def both(make, data, **options):
    """The histories and the tensors of a run by blocks and of one by programs alone."""
    found = []
    for compiled in (True, False):
        pyro.clear_param_store()
        objectives = make()
        run = fit(objectives, data, seed=3, progress=False, compile=compiled, **options)
        many = objectives if isinstance(objectives, list) else [objectives]
        tensors = {}
        for n, objective in enumerate(many):
            tensors |= {f"{n}.{name}": p.detach() for name, p in objective.named_parameters()}
            for root, module in objective.modules().items():
                tensors |= {f"{n}.{root}.{name}": x for name, x in module.state_dict().items()}
        found.append((run.history, tensors, torch.get_rng_state()))
    return found


def assert_same(first, second, rtol=1e-9):
    history, tensors, rng = first
    other, others, other_rng = second
    assert history.keys() == other.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, other[name], rtol=rtol)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=rtol, atol=1e-9, msg=name)
    assert torch.equal(rng, other_rng)  # as many random numbers were drawn


def tamper(monkeypatch, right, length):
    """Has code move more than it should after some calls, which it lists: the first are `right`."""
    run, calls = loop.Loop.run, []

    def tampered(self, plan, *rest):
        losses = run(self, plan, *rest)
        calls.append(plan)
        for pack in plan[0][0].step.packs if len(calls) > right else ():
            for p in pack.parameters:
                p.data.add_(0.01)
        return losses

    monkeypatch.setattr(loop.Loop, "run", tampered)
    monkeypatch.setattr(loop, "LONGEST", length)
    return calls
