"""Targets of the network: those of the papers, and each gives back the row."""

import pytest
import torch

from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.preconditioning import TARGETS, precondition
from ppl_models.diffusion.schedules import alpha_sigma
from tests.support.diffusion import F64, SHORT, small


def test_edm_is_the_preconditioning_of_karras():
    """c_skip, c_out and c_in of table 1 there, in the coordinates z / alpha."""
    model = small(target="edm", data_scale=0.7)
    z, log_snr = torch.randn(6, 2, dtype=F64), torch.linspace(-3, 3, 6, dtype=F64)
    sigma, data = (-log_snr[:, None] / 2).exp(), 0.7  # of Karras et al.
    total = (sigma**2 + data**2).sqrt()
    skip, out, into = data**2 / total**2, sigma * data / total, 1 / total
    y = z / alpha_sigma(log_snr[:, None])[0]
    expected = skip * y + out * model.network(into * y, log_snr)
    torch.testing.assert_close(model.denoise(z, log_snr), expected)


def test_edm_of_unit_variance_is_v():
    log_snr = torch.linspace(-3, 3, 6, dtype=F64)
    edm, v = precondition("edm", log_snr, 1.0), precondition("v", log_snr)
    torch.testing.assert_close(edm.c_in, v.c_in)
    torch.testing.assert_close(edm.c_skip, v.c_skip)
    torch.testing.assert_close(edm.c_out, -v.c_out)


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_that_knows_its_target_gives_the_row(target):
    """x0, the noise, v = alpha e - sigma x; and under edm what is left of x, in its units."""
    x, noise = torch.randn(2, 6, 3, dtype=F64)
    log_snr = torch.linspace(-3, 3, 6, dtype=F64)
    alpha, sigma = alpha_sigma(log_snr[:, None])
    z = alpha * x + sigma * noise
    left = (x - alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * z) / (sigma * 0.5)
    knows = {
        "x0": x,
        "eps": noise,
        "v": alpha * noise - sigma * x,
        "edm": left * (alpha**2 * 0.25 + sigma**2).sqrt(),
    }
    model = Diffusion(3, lambda z, log_snr: knows[target], SHORT, target).double()
    torch.testing.assert_close(model.denoise(z, log_snr), x)
