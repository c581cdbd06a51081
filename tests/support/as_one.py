"""Runs that several processes make as one would, and what they leave behind."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_models import as_one_process, fit


def rows(n: int, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def trained(made: Callable[[], tuple[Any, Any, dict]], **options: Any) -> dict[str, Any]:
    """The losses of each epoch, and the parameters, of a run by all processes there are."""
    torch.manual_seed(3)
    pyro.clear_param_store()
    objective, data, own = made()
    with as_one_process():
        run = fit(
            objective,
            data,
            epochs=4,
            lr=1e-2,
            seed=1,
            compile=False,
            progress=False,
            **own,
            **options,
        )
    objectives = objective if isinstance(objective, list) else [objective]
    named = [pair for one in objectives for pair in one.named_parameters()]
    parameters = {name: x.detach().numpy().copy() for name, x in named}
    after = torch.rand(3).tolist()  # what is drawn next
    return {"history": run.history, "steps": run.steps, "parameters": parameters, "next": after}
