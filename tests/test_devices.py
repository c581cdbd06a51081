"""The modules that programs run are on the device of the data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_models import elbo
from tests.support.refusals import vae
from tests.support.runs import quiet


@pytest.mark.parametrize("which", [0, 1])
def test_a_program_on_another_device(which):
    pair = vae()
    pair[which].to("meta")
    program = ("model", "guide")[which]
    with pytest.raises(
        ValueError,
        match=rf"device: the data are on cpu, but {program}\.\S+ is on meta. Try .*device='auto'",
    ):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2)


def test_a_module_of_a_function_on_another_device():
    net = nn.Linear(4, 4).to("meta")

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"data are on cpu, but model.net.weight is on meta"):
        quiet(elbo(model), torch.ones(9, 4), steps=1)
