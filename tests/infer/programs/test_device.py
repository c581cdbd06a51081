"""Where to compute."""

import pytest
import torch

from ppl_models import elbo
from tests.support.refusals import vae
from tests.support.runs import quiet


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none():
    with pytest.raises(ValueError, match=r"device: got 'cuda', which is not available"):
        quiet(elbo(*vae()), torch.ones(9, 4), steps=1, device="cuda")
