"""What an objective must have, and what it is given where it says nothing of it."""

import dataclasses
import inspect

import pytest
import torch
from torch import nn

from ppl_models import (
    GAN,
    AutoEncoder,
    Diffusion,
    Objective,
    adversarial,
    denoising,
    elbo,
    reconstruction,
    weighted,
)
from ppl_models.infer.objectives.objective import DEFAULTS, as_objectives
from tests.support.oracles import Pull
from tests.support.runs import quiet

ONE = torch.ones(4)


def pull() -> Pull:
    return Pull("pull", nn.Parameter(torch.zeros(())), lambda: torch.ones(()))


class Told(Pull):
    """An objective of no base class that says all it may."""

    turns = 2
    eager_because = "it says so"

    @property
    def reports(self):
        return {"own": self.own.detach().clone()}

    def caveat(self, history):
        return f"after {len(history['own'])} epochs"


@dataclasses.dataclass(frozen=True)
class Frozen:
    own: nn.Parameter
    name: str = "frozen"
    prepare, named_parameters, modules, blame = (
        *(Pull.prepare, Pull.named_parameters),
        *(Pull.modules, Pull.blame),
    )

    def loss(self, *batch, size=None):
        return (self.own - 1).square() / 2


def test_what_it_leaves_out_has_defaults():
    (objective,) = as_objectives(given := pull())
    assert objective is given
    assert (objective.turns, objective.reports, objective.eager_because) == (1, {}, None)
    assert objective.caveat({"loss": [1.0]}) is None


def test_and_where_it_is_frozen():
    objective = Frozen(nn.Parameter(torch.zeros(())))
    run = quiet(objective, ONE, steps=2, lr=0.1, optimizer=torch.optim.SGD)
    assert run.history["loss"] == pytest.approx([0.5, 0.405])


def test_what_it_says_is_kept(graphs_as_traced):
    told = Told("told", nn.Parameter(torch.zeros(())), lambda: torch.ones(()))
    with pytest.warns(UserWarning, match=r"^after 1 epochs$"):
        run = quiet([told, pull()], ONE, epochs=1, lr=0.5, optimizer=torch.optim.SGD, compile=True)
    assert run.history["told"] == pytest.approx([(0.5 + 0.125) / 2])  # two steps on a batch
    assert run.history["pull"] == pytest.approx([0.5])


@pytest.mark.parametrize(
    "objective",
    [
        elbo(lambda x: None),
        weighted({elbo(lambda x: None): 1.0}),
        reconstruction(AutoEncoder(2, 1)),
        denoising(Diffusion(2)),
        *adversarial(GAN(2, 2)),
    ],
)
def test_those_of_the_library_inherit_it(objective):
    assert Objective in type(objective).__mro__
    before = set(vars(objective))
    as_objectives(objective)
    assert set(vars(objective)) == before


def test_every_default_is_declared():
    required = {"name", "loss", "prepare", "named_parameters", "modules", "blame"}
    members = inspect.get_annotations(Objective).keys() | {
        name for name in vars(Objective) if not name.startswith("_")
    }
    assert members == required | DEFAULTS.keys()


def test_what_is_no_objective_is_refused():
    with pytest.raises(TypeError, match=r"expected an objective, got int. Try elbo"):
        as_objectives(3)
    with pytest.raises(ValueError, match="expected one or more"):
        as_objectives([])
    with pytest.raises(ValueError, match="names that differ"):
        as_objectives([pull(), pull()])
