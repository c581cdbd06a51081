"""Networks: torch only, no Pyro."""

from ppl_models.nn.mlp import MLP

__all__ = ["MLP"]
