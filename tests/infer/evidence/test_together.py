"""Evidence and draws on several processes: the numbers are those of one, bit for bit."""

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal

from guides import AmortizedNormal, ExactPosterior, MeanFieldMixture
from ppl_models import (
    VAE,
    BayesianGaussianMixture,
    FactorAnalysis,
    aggregate,
    data_plate,
    from_pyro_mcmc,
    from_pyro_svi,
    impute,
    inference_gap,
    khat,
    log_evidence,
    loo,
    nuts,
    predict,
    predictive_pvalues,
    sandwich,
    sbc,
)
from ppl_models.infer.evidence.groups import groups_of
from ppl_models.infer.evidence.joint import Joint
from ppl_models.infer.evidence.predictive import log_predictive
from ppl_models.nn import MLP, MissingInput
from ppl_models.processes import ProcessError, together
from tests.support.together import all_returned, run_together

ROOT = Path(__file__).parents[3]
REAL = torch.float64
IMPUTE: Any = sys.modules["ppl_models.infer.evidence.impute"]


def _arrays(data):
    """All variables of what ArviZ reads."""
    return {
        f"{group} {name}": np.array(values.values)
        for group, found in groups_of(data).items()
        for name, values in found.data_vars.items()
    }


# Programs


def _vae(missing=None):
    torch.manual_seed(0)
    if missing is None:
        return VAE(5, 2).double(), AmortizedNormal(5, 2).double()
    encoder = MissingInput(MLP(10, 4))
    guide = AmortizedNormal(5, 2, encoder=encoder).double()
    return VAE(5, 2, missing=missing).double(), guide


def _rows(number=30):
    return torch.rand(number, 5, generator=torch.Generator().manual_seed(1)).round().to(REAL)


def regression(x, y=None, size=None):
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)


def by_item(x, y=None, size=None):
    """What no draws side by side can do."""
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with data_plate(x, size):
        mean = x[:, 0] * float(weights[0]) + x[:, 1] * float(weights[1])
        return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def on_a_value(x, y=None, size=None):
    """What no code can stand for."""
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    scale = 1.0 if weights[0] > 0.5 else 1.1
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def by_host(x, y=None, size=None):
    """Random numbers of Python and NumPy."""
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    shift = 0.1 * random.gauss(0, 1) + 0.1 * np.random.normal()
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights + shift, 1.0), obs=y)


def seldom(x, y=None, size=None):
    """Some draws at once can be made side by side, others not."""
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    try:
        torch.linalg.cholesky((1.3 + weights).clamp(max=1.0).diag_embed())
        shift = 0.0
    except RuntimeError:
        shift = 1.0
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(x @ weights + shift, 1.0), obs=y)


def weights_guide(x, y=None, size=None):
    pyro.sample("weights", dist.Normal(x.new_tensor([0.5, -0.5]), 0.3).to_event(1))


def of_rows(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=REAL), 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _supervised():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, 2, generator=generator, dtype=REAL)
    return x, x[:, 0] - x[:, 1] + torch.randn(20, generator=generator, dtype=REAL)


# One process and several


def _of_rows_with_latents():
    (vae, guide), x = _vae(), _rows()
    torch.manual_seed(5 if together().is_first else 6)  # without a seed that of process 0 counts
    options = {"num_samples": 40, "batch_size": 64}
    found = {"unseeded": log_evidence(vae, guide, x, **options).value}
    found["next"] = torch.rand(()) if together().is_first else None
    options["seed"] = 0
    evidence = log_evidence(vae, guide, x, **options)
    found |= {"evidence": evidence.value, "variance": evidence.row_variance}
    found["k"] = evidence.pareto_k
    tails = khat(vae, guide, x, **options)
    found |= {"khat": tails.value, "mean": tails.mean["z"], "std": tails.std["z"]}
    gap = inference_gap(vae, guide, x, steps=2, **options)
    found |= {"gap": gap.total, "approximation": gap.approximation}
    values = predictive_pvalues(vae, guide, x, num_simulations=40, **options)
    found |= {"p-values": values.value, "simulated": values.simulated}
    bounds = sandwich(
        vae, guide, x, simulate=True, num_steps=2, num_chains=4, batch_size=64, seed=1
    )
    found |= {"below": bounds.lower.value, "above": bounds.upper.value}
    found["accepted"] = bounds.accepted
    found["aggregate"] = str(aggregate(vae, guide, x, num_samples=5, batch_size=16, seed=0))
    found |= _arrays(from_pyro_svi(vae, guide, x, num_samples=7, batch_size=16, seed=0))
    predicted = predict(vae, guide, x, num_samples=6, batch_size=32, seed=0)
    return found | {f"predicted {key}": value for key, value in _arrays(predicted).items()}


def _of_missing_rows():
    (vae, guide), x = _vae("marginalise"), _rows()
    x[::2, 1] = torch.nan
    IMPUTE.AT_ONCE = 200
    drawn = impute(vae, guide, x, 3, num_particles=50, seed=0)
    return {
        "imputed": drawn,
        "evidence": log_evidence(vae, guide, x, num_samples=30, batch_size=50, seed=0).value,
    }


def _of_shared_latents():
    x, y = _supervised()
    torch.manual_seed(0)
    guide = AutoNormal(regression)
    guide(x, y)
    options = {"num_samples": 90, "seed": 0, "batch_size": 1}  # of some twenty draws at once
    found = {}
    for model in (regression, by_item, by_host, seldom):
        found[model.__name__] = log_evidence(model, weights_guide, x, y, **options).value
    few = {"num_samples": 5, "seed": 0}
    found["few"] = log_evidence(regression, weights_guide, x, y, **few).value
    found["guide"] = log_evidence(regression, guide, x, y, **options).value
    found["khat"] = khat(regression, guide, x, y, **options).value
    found["loo"] = loo(regression, guide, x, y, **options).value
    found["predictive"] = log_predictive(regression, guide, x, y, **options).value
    posterior = from_pyro_svi(regression, guide, x, y, **options)
    found |= _arrays(posterior)
    predicted = predict(regression, guide, x[:3], **options)
    found |= {f"predicted {key}": value for key, value in _arrays(predicted).items()}
    again = predict(regression, posterior, x[:3], seed=0, batch_size=1)
    found |= {f"again {key}": value for key, value in _arrays(again).items()}
    rows = AutoNormal(of_rows)  # with parameters for each row
    rows(y)
    found["rows"] = log_evidence(of_rows, rows, y, **options).value
    return found


def _of_enumerated_latents():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 2, generator=generator, dtype=REAL)
    torch.manual_seed(0)
    model = BayesianGaussianMixture(2, 2).double()
    guide = MeanFieldMixture(model, x)
    options = {"num_samples": 60, "seed": 0, "batch_size": 2}
    found = {"evidence": log_evidence(model, guide, x, **options).value}
    return found | _arrays(from_pyro_svi(model, guide, x, **options))


def _refit(model, x, y):
    assert together().alone  # whatever it does, it does by itself
    guide = AutoNormal(model)
    guide(x, y)
    return guide


def _amortised(x, y=None, size=None):
    pyro.sample("weights", dist.Normal((x * y[:, None]).mean(0), 0.5).to_event(1))


def _calibrated():
    torch.manual_seed(0)
    factors = FactorAnalysis(4, 2).double()
    options = {"num_simulations": 20, "num_draws": 10, "seed": 0, "batch_size": 50}
    x, _ = _supervised()
    rows = sbc(factors, ExactPosterior(factors), **options)
    sets = sbc(regression, _amortised, x, **options)
    refitted = sbc(regression, None, x, refit=_refit, num_jobs=1, **options)
    return {
        f"{kind} {name}": ranks
        for kind, found in (("rows", rows), ("sets", sets), ("refitted", refitted))
        for name, ranks in found.ranks.items()
    }


def _chains(model):
    x, y = _supervised()
    found = nuts(model, x, y, draws=5, tune=10, chains=3, seed=0, progress=False)
    weights = found["posterior"]["weights"].values
    assert len(np.unique(weights[:, -1], axis=0)) == 3  # chains of their own
    return _arrays(found)


def _by_program():
    return _chains(on_a_value)


def _by_code():
    return _chains(regression)


def _quietly(function):
    """What a function returns, and whether threads or random numbers are left as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


def _is_same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b


@pytest.mark.parametrize(
    "function",
    [
        _of_rows_with_latents,
        _of_missing_rows,
        _of_shared_latents,
        _of_enumerated_latents,
        _calibrated,
        _by_program,
        pytest.param(_by_code, marks=pytest.mark.slow),
    ],
)
def test_one_process_and_several_have_the_same_numbers(function):
    (expected,) = all_returned(run_together(_quietly, 1, function))
    assert expected
    for count in (2, 3):
        for rank, found in enumerate(all_returned(run_together(_quietly, count, function))):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                if rank == 0 or name != "next":
                    assert _is_same(value, found[name]), (name, count, rank)


# Work is shared


class Remembering(torch.nn.Module):
    """A program that keeps something from one draw to the next, or not."""

    def __init__(self, way):
        super().__init__()
        self.way, self.count = way, 0
        self.register_buffer("total", torch.zeros((), dtype=REAL))

    def forward(self, x, y=None, size=None):
        if self.way == "a count":
            self.count += 1
        elif self.way == "a buffer":
            self.total += 1
        return by_item(x, y, size)


class RememberingRows(Remembering):
    def forward(self, x=None, size=None):
        if self.way == "a count":
            self.count += 1
        elif self.way == "a buffer":
            self.total += 1
        return of_rows(x, size)


def rows_guide(x=None, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def _draws_made(kind, way):
    """How many draws a process made itself, all of them, and whether it said that it made all."""
    made, draw = [], Joint.draw

    def counted(joint, rows, count, data=None):
        made.append(count * (rows.stop - rows.start if joint.tiled else 1))
        return draw(joint, rows, count, data)

    Joint.draw = counted
    x, y = _supervised()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind == "rows":
            found = log_evidence(
                RememberingRows(way), rows_guide, y, num_samples=2000, batch_size=400, seed=0
            )
        else:
            found = log_evidence(Remembering(way), weights_guide, x, y, num_samples=400, seed=0)
    texts = [str(warning.message) for warning in caught]
    return sum(made), found.value, any("each process makes all of them" in text for text in texts)


@pytest.mark.parametrize("kind", ["rows", "whole"])
def test_draws_are_shared_where_none_depends_on_another(kind):
    total = 2000 * 20 if kind == "rows" else 400
    ((alone, expected, _),) = all_returned(run_together(_draws_made, 1, kind, "nothing"))
    assert alone >= total
    for made, value, said in all_returned(run_together(_draws_made, 2, kind, "nothing")):
        assert total / 2 <= made < 0.7 * total
        assert torch.equal(value, expected)
        assert not said
    for way in ("a count", "a buffer"):
        found = all_returned(run_together(_draws_made, 2, kind, way))
        assert [said for *_, said in found] == [True, False]  # the first says it for all
        for made, value, _ in found:
            assert made >= total
            assert torch.equal(value, expected)


# Errors


def _fails(where):
    """An error on one process: in a first run, in one of the draws, in what is made of them."""
    here, runs = together(), []

    class Model(torch.nn.Module):
        def forward(self, x, y=None, size=None):
            if where == "first" and here.rank == 1:
                raise RuntimeError("no memory")
            return by_item(x, y, size)

    draw = Joint.draw

    def failing(joint, rows, count, data=None):
        runs.append(count)
        if where == "draws" and here.rank == 1 and len(runs) == 20:
            raise RuntimeError("no memory")
        return draw(joint, rows, count, data)

    Joint.draw = failing
    x, y = _supervised()
    return _quietly(lambda: log_evidence(Model(), weights_guide, x, y, num_samples=100, seed=0))


@pytest.mark.parametrize("where", ["first", "draws"])
def test_an_error_on_one_process_is_one_on_all(where):
    first, second, third = run_together(_fails, 3, where)
    assert "no memory" in str(second)
    assert not isinstance(second, ProcessError)
    for error in (first, third):
        assert isinstance(error, ProcessError)
        assert "failed on process 1: " in str(error)
        assert "no memory" in str(error)


def _differs(what):
    """A call in which something is another on process 1."""
    other = together().rank == 1
    x, y = _supervised()
    options = {"num_samples": 30, "seed": 0}
    model = regression
    if what == "data":
        x[3, 1] += 1e-9 * other
    elif what == "rows":
        x, y = (x[:-1], y[:-1]) if other else (x, y)
    elif what == "seed":
        options["seed"] = int(other)
    elif what == "num samples":
        options["num_samples"] += other
    elif what == "programs":
        model = by_item if other else model
    elif what == "code":
        model = _model_of(2.0 if other else 1.0)
    if what == "parameters":
        torch.manual_seed(int(other))
        vae, guide = VAE(2, 2).double(), AmortizedNormal(2, 2).double()
        return log_evidence(vae, guide, x, **options)
    if what == "draws of MCMC":
        torch.manual_seed(int(other))
        sampler = MCMC(NUTS(model), num_samples=4, warmup_steps=4, disable_progbar=True)
        sampler.run(x, y)
        return from_pyro_mcmc(sampler)
    if what == "values of pyro.param":
        pyro.param("shift", torch.tensor(1.0 if other else 0.0, dtype=REAL))
        model = shifted
    return log_evidence(model, weights_guide, x, y, **options)


def _model_of(scale):
    if scale == 1.0:

        def model(x, y=None, size=None):
            return regression(x, y, size)
    else:

        def model(x, y=None, size=None):
            return by_item(x, y, size)

    return model


def shifted(x, y=None, size=None):
    shift = pyro.param("shift", torch.zeros((), dtype=REAL))
    return regression(x + shift, y, size)


@pytest.mark.parametrize(
    "what",
    [
        *("data", "rows", "seed", "num samples", "programs", "code", "parameters"),
        *("values of pyro.param", "draws of MCMC"),
    ],
)
def test_processes_that_are_given_different_things(what):
    named = {"rows": "data", "draws of MCMC": "data"}.get(what, what)
    for error in run_together(_differs, 2, what):
        assert isinstance(error, ValueError), error
        assert f"expected the same {named} on all 2 processes" in str(error)


# As it is started


SCRIPT = """
import os, sys, torch, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from guides import AmortizedNormal
from ppl_models import VAE, from_pyro_svi, log_evidence
torch.manual_seed(0)
vae, guide = VAE(5, 2).double(), AmortizedNormal(5, 2).double()
x = torch.rand(30, 5).round().double()
evidence = log_evidence(vae, guide, x, num_samples=40, batch_size=64)
posterior = from_pyro_svi(vae, guide, x, num_samples=9, batch_size=64)
z = torch.tensor(posterior["posterior"]["z"].values)
text = f"{evidence.value.sum().item().hex()} {z.sum().item().hex()} {evidence}"
Path(sys.argv[1], os.environ.get("RANK", "alone")).write_text(text)
"""


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    path = tmp_path / "evidence.py"
    path.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    others = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for command in ([], launcher):
        command = [sys.executable, *command, str(path), str(tmp_path)]
        done = subprocess.run(
            command, env=os.environ | others, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    expected, *found = [(tmp_path / name).read_text() for name in ("alone", "0", "1")]
    assert found == [expected, expected]
