"""Bayesian mixtures of two features, and rows of three clusters."""

import pytest
import torch

from ppl_models.mixtures.bayesian import BayesianGaussianMixture

COVARIANCES = ["full", "diag", "spherical"]
WEIGHTS = ["dirichlet", "stick-breaking"]
every_kind = pytest.mark.parametrize("covariance", COVARIANCES)
both_priors = pytest.mark.parametrize("weights", WEIGHTS)


def build(components: int = 3, covariance: str = "full", weights: str = "dirichlet", **prior):
    prior = {"prior_loc": torch.tensor([0.25, -0.5]), "prior_scale": 0.75} | prior
    return BayesianGaussianMixture(2, components, covariance, weights, **prior).double()


def clusters(apart: float = 1.0, rows: int = 90) -> torch.Tensor:
    centers = apart * torch.tensor([[-1.2, 0.0], [1.0, 1.0], [1.0, -1.0]]).double()
    return centers[torch.arange(rows) % 3] + 0.3 * torch.randn(rows, 2).double()


def one_hot(z, components: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(z), components).double()
