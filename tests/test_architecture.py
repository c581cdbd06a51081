"""Imports point one way: the tests read them, so that the layers stay layers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOW = {"ppl_models.nn", "ppl_models.plates", "ppl_models.likelihoods"}


def imports(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layers"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("ppl_models", "guides", "examples")}


def layer(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "ppl_models" else parts[0]


def layers(path: Path) -> set[str]:
    return {layer(name) for name in imports(path)} - {"ppl_models"}


def files(*patterns: str) -> list:
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sorted(paths)]


@pytest.mark.parametrize("path", files("ppl_models/engine/**/*.py"))
def test_the_engine_knows_no_model_guide_network_or_data_set(path):
    assert layers(path) <= {"ppl_models.engine"}


@pytest.mark.parametrize("path", files("ppl_models/nn/*.py"))
def test_networks_are_torch_only(path):
    assert layers(path) <= {"ppl_models.nn"}
    assert "pyro" not in path.read_text().lower().replace("no pyro", "")


@pytest.mark.parametrize("path", files("ppl_models/plates.py", "ppl_models/likelihoods.py"))
def test_what_models_and_guides_share_imports_nothing(path):
    assert layers(path) == set()


ADAPTERS = ROOT / "ppl_models/sklearn.py"  # needs scikit-learn, which `ppl_models` does not import
MODELS = [
    path
    for path in files("ppl_models/*.py")
    if path.values[0].stem
    not in ("__init__", "plates", "likelihoods", "datasets", "idx", "sklearn")
]


@pytest.mark.parametrize("path", MODELS)
def test_models_import_neither_guides_nor_the_engine(path):
    assert not {"guides", "ppl_models.engine", "ppl_models.sklearn"} & layers(path)


@pytest.mark.parametrize("path", files("ppl_models/metrics/*.py"))
def test_metrics_know_rows_alone(path):
    assert layers(path) <= {"ppl_models.metrics"}


@pytest.mark.parametrize("path", files("guides/*.py"))
def test_guides_import_no_model(path):
    assert layers(path) <= LOW | {"guides"}
    assert "ppl_models" not in {name for name in imports(path) if name.count(".") == 0}


def test_data_sets_know_only_how_data_are_held():
    known = {"ppl_models", "ppl_models.idx", "ppl_models.engine.data"}
    found = imports(ROOT / "ppl_models/datasets.py")
    assert found <= known | {"ppl_models.engine.data.Transformed"}
    assert imports(ROOT / "ppl_models/idx.py") == set()


@pytest.mark.parametrize("path", files("ppl_models/**/*.py", "guides/*.py"))
def test_slow_imports_wait_until_they_are_needed(path):
    """ArviZ, torchvision and scikit-learn take seconds to import."""
    if path == ADAPTERS:
        return
    top = [
        n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom)}
    slow = {"arviz", "torchvision", "sklearn", "matplotlib", "pandas", "scipy"}
    assert not slow & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", files("ppl_models/**/*.py", "guides/*.py", "examples/*.py"))
def test_nothing_is_unpickled(path):
    called = {
        ast.unparse(n.func)
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call)
    }
    assert not called & {"torch.load", "pickle.load", "pickle.loads", "joblib.load"}
    assert "allow_pickle=True" not in path.read_text()


def test_there_is_one_training_loop():
    """Only `descend` calls backward, and `SVI.step`, whose loop is its caller's, as in Pyro."""
    loops = [p for p in ROOT.glob("ppl_models/**/*.py") if ".backward()" in p.read_text()]
    assert {path.name for path in loops} == {"descend.py", "svi.py"}
