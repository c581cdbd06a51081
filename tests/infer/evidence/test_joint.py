"""A model and a guide on data: every row is checked, whatever asks for draws."""

import pytest
import torch

from guides import AmortizedNormal
from ppl_models import VAE, from_pyro_svi, log_evidence


def test_every_row_is_checked_against_the_support():
    vae, guide, x = VAE(6, 2), AmortizedNormal(6, 2), torch.ones(20, 6)
    x[15], x[16] = 0.5, -3.0
    for evaluate in (log_evidence, from_pyro_svi):
        with pytest.raises(ValueError, match=r"2 of 20 rows lie outside.*such as 0\.5"):
            evaluate(vae, guide, x)
