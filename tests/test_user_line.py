"""Warnings name the line of the user, through decorators, generators and progress bars alike."""

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.preprocessing import FunctionTransformer
from torch import nn
from tqdm import tqdm

from ppl_models import FactorAnalysis, GaussianMixture, data_plate, descend, elbo, fit, fit_em
from ppl_models.user_line import warn
from tests.support.oracles import Pull

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(20, 2, generator=GENERATOR)
REPEATED = torch.randn(200, 2, generator=GENERATOR, dtype=torch.float64)[
    :, [0, 1, 1]
]  # the last has no noise


def half_trained():
    """An objective whose program runs a layer that it does not declare."""
    layer = nn.Linear(2, 1)

    def model(x=None, size=None):
        loc = pyro.param("loc", torch.zeros(2))
        with data_plate(x, size):
            layer(x)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return elbo(model)


class WithCaveat(Pull):
    def caveat(self, history):
        return "a caveat"


def with_caveat():
    return WithCaveat("pull", nn.Parameter(torch.zeros(())), lambda: torch.ones(()))


def at_its_floor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FactorAnalysis(3, 1).double().maximum_likelihood(REPEATED)


def through_fit():
    fit(half_trained(), X, steps=1, progress=False)


def through_descend():
    list(descend(half_trained(), [X]))


def through_a_progress_bar():
    for _ in tqdm(descend(half_trained(), [X]), disable=True):
        pass


def of_a_caveat():
    fit(with_caveat(), X, epochs=2, progress=False)


def of_a_caveat_between_epochs():
    fit(with_caveat(), X, steps=3, batch_size=15, progress=False)


def through_fit_em():
    fit_em(GaussianMixture(2, num_components=3), X, max_steps=2, tolerance=0.0, progress=False)


def of_a_model_that_em_fits():
    fit_em(at_its_floor(), REPEATED, initialise=False, max_steps=1, progress=False)


def through_a_decorated_method():
    FactorAnalysis(3, 1).double().maximum_likelihood(REPEATED)


def through_what_others_wrap_around_it():
    FunctionTransformer(pyro.poutine.block(torch.no_grad()(warn))).transform("from below")


CALLS = (
    *(through_fit, through_descend, through_a_progress_bar, of_a_caveat),
    *(of_a_caveat_between_epochs, through_fit_em, of_a_model_that_em_fits),
    *(through_a_decorated_method, through_what_others_wrap_around_it),
)


@pytest.mark.parametrize("call", CALLS)
def test_a_warning_names_the_line_of_the_call(call: Callable[[], None]):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    line = call.__code__.co_firstlineno + 1  # the first of the body
    assert {(w.filename, w.lineno) for w in caught} == {(__file__, line)}
