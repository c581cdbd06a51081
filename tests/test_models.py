"""What every model of the library does: a row in `support/every_objective.py` for each."""

from contextlib import nullcontext

import pyro
import pytest
import torch
from torch import nn

import guides
import ppl_models
from ppl_models import PCA, HistogramDensity, from_pyro_svi, load, log_evidence, save
from tests.support.every_objective import ALL, programs
from tests.support.oracles import same, state
from tests.support.runs import quiet

WITH_EVIDENCE = [name for name, row in ALL.items() if row.evidence]
WITHOUT = [name for name, row in ALL.items() if not row.evidence]


def made(name):
    """The objective of a row, with the same parameters at every call."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    make, data, _ = ALL[name]
    objective = make()
    objective.loss(*data)  # an autoguide makes its parameters
    return objective, data


def test_every_model_and_guide_of_the_library_is_there():
    found = {HistogramDensity, PCA}  # which are no objectives
    for name in ALL:
        objective, _ = made(name)
        roots = [*objective.modules().values(), *programs(objective)]
        found |= {type(m) for root in roots if isinstance(root, nn.Module) for m in root.modules()}
    public = [getattr(source, name) for source in (ppl_models, guides) for name in source.__all__]
    wanted = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    missing = {k.__name__ for k in wanted if not any(issubclass(f, k) for f in found)}
    assert not missing - {"MeanFieldMixture"}  # it has nothing to fit


@pytest.mark.parametrize("name", WITH_EVIDENCE)
def test_its_evidence_is_of_the_kind_that_is_stated(name):
    objective, data = made(name)
    evidence = log_evidence(*programs(objective), *data, num_samples=4)
    assert evidence.kind == ALL[name].evidence
    assert evidence.num_rows == len(data[0])
    assert evidence.value.isfinite().all()


@pytest.mark.parametrize("name", WITHOUT)
def test_it_has_no_evidence_and_says_why(name):
    objective, data = made(name)
    with pytest.raises(ValueError, match="and so no evidence: "):
        log_evidence(*programs(objective), *data)


@pytest.mark.parametrize("name", WITH_EVIDENCE)
def test_its_draws_reach_arviz(name):
    objective, data = made(name)
    pseudo = ALL[name].evidence == "pseudo-likelihood"
    expected = pytest.warns(UserWarning, match="pseudo-likelihoods") if pseudo else nullcontext()
    with expected:
        found = from_pyro_svi(*programs(objective), *data, num_samples=3)
    assert ("log_likelihood" in found) is not pseudo
    groups = ["posterior_predictive"] if pseudo else ["posterior_predictive", "log_likelihood"]
    for group in groups:
        assert all(dict(values.sizes)["draw"] == 3 for values in found[group].values())
        assert all(torch.tensor(values.values).isfinite().all() for values in found[group].values())


@pytest.mark.filterwarnings("ignore:discriminator. the program runs gan")  # alone, here
@pytest.mark.parametrize("name", ALL)
def test_a_run_of_it_goes_on_bit_for_bit(name, tmp_path):
    ends = []
    for parts in ((4,), (2, 4)):
        for steps in parts:
            objective, data = made(name)
            path = tmp_path / f"{len(parts)}"
            options = {"batch_size": len(data[0]) // 2, "checkpoint": path, "resume": True}
            run = quiet(objective, data, steps=steps, seed=0, **options)
        parameters = {key: p.detach().clone() for key, p in objective.named_parameters()}
        ends.append((run.history, parameters | state(*objective.modules().values())))
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])


@pytest.mark.parametrize("name", ALL)
def test_its_weights_are_saved_and_loaded(name, tmp_path):
    pair = zip(("model", "guide"), programs(made(name)[0]), strict=True)
    modules = {key: program for key, program in pair if isinstance(program, nn.Module)}
    before = state(*modules.values())
    save(tmp_path / "weights", **modules)
    with torch.no_grad():
        for parameter in (p for module in modules.values() for p in module.parameters()):
            parameter.add_(1.0)
    assert not same(state(*modules.values()), before)
    load(tmp_path / "weights", **modules)
    assert same(state(*modules.values()), before)
