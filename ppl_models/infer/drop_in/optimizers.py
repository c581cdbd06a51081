"""Optimisers of Pyro that move all parameters at once, and those of torch in their place."""

from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppl_models.infer.compiled.steps.updates import is_as_its_class

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # of these there is a fused step


class TorchOptimizer(PyroOptim):
    """An optimiser of torch that was made with its parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.optimizer.step()


class FusedOptimizer:
    """One optimiser for all parameters, where Pyro has an equal one for each; else Pyro's own.

    It shares their state, which Pyro can still read and save.
    """

    def __init__(self, optim: PyroOptim, parameters: list[Tensor]) -> None:
        self.optim, self.parameters = optim, parameters
        self.each = [optim.optim_objs.get(p) for p in parameters]
        plain = type(optim) is PyroOptim and not optim.pt_clip_args
        known = plain and all(type(o) in FUSED and is_as_its_class(o) for o in self.each)
        # With all settings and states, so that one changed by hand is seen.
        self.groups = [dict(o.param_groups[0]) for o in self.each] if known else []
        self.settings = [{k: v for k, v in g.items() if k != "params"} for g in self.groups]
        self.optimizer = self._fuse() if known and self._are_equal() else None

    def _are_equal(self) -> bool:
        """Whether Pyro's are of one kind with equal settings, on a device that has a fused step."""
        kind, first = type(self.each[0]), self.settings[0]
        return (
            not any(isinstance(v, Tensor) for g in self.settings for v in g.values())
            and all(type(o) is kind for o in self.each)
            and all(g == first for g in self.settings)
            and all(p.device.type in ("cpu", "cuda") for p in self.parameters)
        )

    def _fuse(self) -> torch.optim.Optimizer:
        first = self.settings[0]
        optimizer: torch.optim.Optimizer
        optimizer = type(self.each[0])(self.parameters, lr=first["lr"], fused=True)
        chosen = {k: v for k, v in first.items() if k not in ("foreach", "fused")}
        optimizer.param_groups[0].update(chosen)
        for p, own in zip(self.parameters, self.each, strict=True):
            if "step" in own.state[p]:  # which a fused step counts on the device
                own.state[p]["step"] = own.state[p]["step"].to(p.device)
            optimizer.state[p] = own.state[p]
        return optimizer

    def holds(self, optim: PyroOptim, parameters: list[Tensor]) -> bool:
        """Whether Pyro's optimisers have the settings and states that they had."""
        if optim is not self.optim or list(map(id, parameters)) != list(map(id, self.parameters)):
            return False
        if self.optimizer is None:
            return True
        state = self.optimizer.state
        return all(
            self.optim.optim_objs.get(p) is own
            and own.param_groups[0] == group
            and is_as_its_class(own)
            and own.state.get(p) is state[p]
            for p, own, group in zip(self.parameters, self.each, self.groups, strict=True)
        )

    def step(self) -> None:
        if self.optimizer is None:
            self.optim(set(self.parameters))
        else:
            self.optimizer.step()
