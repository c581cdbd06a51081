"""Plates over the rows of a minibatch."""

import pytest

from ppl_models import VAE
from ppl_models.autoregressive.made import MADE
from ppl_models.gan.model import GAN


@pytest.mark.parametrize("size", [0, -1])
def test_no_rows_to_sample(size):
    for model in (VAE(4, 2), MADE(4), GAN(4, 2)):
        with pytest.raises(ValueError, match="data_plate: expected size=1 row or more"):
            model(size=size)
