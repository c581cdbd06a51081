"""The house: each idea in its room, and imports one way. The tests read the files."""

import ast
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

import ppl_models

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "ppl_models"

# What all may import: files of their own, and folders.
GROUND = {
    *("plates", "checks", "linalg", "likelihoods", "missing", "priors", "criteria", "transformed"),
    *("levels", "row_weights", "scoped", "user_line", "nn", "pictures", "processes", "prompt"),
}
FAMILIES = {
    *("densities", "supervised", "mixtures", "factors", "autoregressive", "autoencoders"),
    *("diffusion", "gan", "embeddings", "graphs", "recommender", "adaptation"),
}
# The rooms of `infer`, from the bottom up: each sees those below it.
INFER = {
    **{"programs": 0, "reading": 1},
    **{"trials": 1, "compiled": 2, "evidence": 3, "objectives": 4, "drop_in": 5},
    **{"sampling": 4, "training": 6, "diagnostics": 7, "transfer": 7, "selection": 8},
}
# What a family descends, bounds, plays or does to its draws: these files alone see `infer`.
OWN_INFERENCE = {
    *("autoencoders/aggregate.py", "autoencoders/reconstruction.py", "gan/game.py"),
    *("adaptation/adversarial.py", "embeddings/procrustes.py", "mixtures/relabel.py"),
    *("diffusion/denoising.py", "diffusion/bound.py", "diffusion/flow.py"),
    *("diffusion/repeated.py", "autoregressive/repeated.py"),
}
BUILT_ON = {
    "diffusion/latent.py": {"autoencoders"},
    "adaptation/adversarial.py": {"supervised"},
}
# The public names, those of the guides, and the ways to where things were.
HALL = {"__init__", "guides", "_moved"}


def imports(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layers"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if _is_module(name) else node.module for name in names}
    return {name for name in found if name.split(".")[0] in ("ppl_models", "guides", "examples")}


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def rooms(path: Path) -> set[str]:
    """Where what a file imports is: `guides`, or the folder or file below `ppl_models`."""
    parts = [name.split(".") for name in imports(path)]
    return {p[1] if p[0] == "ppl_models" and len(p) > 1 else p[0] for p in parts}


def files(*patterns: str) -> list:
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sorted(paths)]


def functions(path: Path) -> dict[str, int]:
    """The functions of a file, and their lines without their docstrings."""
    lines = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            text = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            lines[f"{node.name}:{node.lineno}"] = node.end_lineno - node.lineno + 1 - text
    return lines


PRODUCT = files("ppl_models/**/*.py", "guides/**/*.py")


@pytest.mark.parametrize("path", files("ppl_models/infer/*/*.py"))
def test_infer_knows_no_family_guide_network_or_data_set(path):
    assert rooms(path) <= GROUND - {"nn"} | {"infer"}


@pytest.mark.parametrize("path", files("ppl_models/nn/*.py"))
def test_networks_are_torch_only(path):
    assert rooms(path) <= {"nn"}
    assert "pyro" not in path.read_text().lower().replace("no pyro", "")


@pytest.mark.parametrize("path", files(*(f"ppl_models/{name}/*.py" for name in sorted(FAMILIES))))
def test_families_know_neither_guides_nor_each_other(path):
    own = str(path.relative_to(HOUSE))
    known = GROUND | {path.parent.name} | BUILT_ON.get(own, set())
    assert rooms(path) <= known | ({"infer"} if own in OWN_INFERENCE else set())


@pytest.mark.parametrize("name", sorted(FAMILIES | {"sklearn"}))
def test_a_family_says_what_is_in_its_files(name):
    listed = re.findall(r"^    (\w+): ", (HOUSE / name / "__init__.py").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in (HOUSE / name).glob("[!_]*.py"))


@pytest.mark.parametrize("path", files("ppl_models/metrics/*.py"))
def test_metrics_know_rows_alone(path):
    assert rooms(path) <= {"metrics", "checks", "prompt"}


@pytest.mark.parametrize("path", files("ppl_models/datasets/*.py"))
def test_data_sets_know_only_how_data_are_held(path):
    assert rooms(path) <= {"datasets", "transformed", "checks", "prompt"}


@pytest.mark.parametrize("path", files("guides/**/*.py"))
def test_guides_see_the_ground_only(path):
    assert rooms(path) <= GROUND | {"guides"}


@pytest.mark.parametrize("path", files("ppl_models/**/*.py", "guides/**/*.py", "examples/*.py"))
def test_nothing_is_unpickled(path):
    called = {
        ast.unparse(n.func)
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call)
    }
    assert not called & {"torch.load", "pickle.load", "pickle.loads", "joblib.load"}
    assert "allow_pickle=True" not in path.read_text()


def test_half_of_all_functions_have_fewer_than_eight_lines():
    lengths = [n for path in PRODUCT for n in functions(path.values[0]).values()]
    assert statistics.median(lengths) < 8


@pytest.mark.parametrize("path", files("ppl_models/infer/*/*.py"))
def test_the_rooms_of_infer_see_those_below_them(path):
    own = path.parent.name
    others = {name.split(".")[2] for name in imports(path) if name.startswith("ppl_models.infer.")}
    assert all(INFER[other] < INFER[own] for other in others - {own})


@pytest.mark.parametrize("path", files(*(f"ppl_models/{name}.py" for name in sorted(GROUND))))
def test_the_ground_stands_on_the_ground(path):
    assert rooms(path) <= GROUND - {"nn"}


@pytest.mark.parametrize("path", PRODUCT)
def test_slow_imports_wait_until_they_are_needed(path):
    """ArviZ, torchvision and scikit-learn take seconds to import."""
    if path.parent.name == "sklearn" or path.match("pictures/shown.py"):
        return  # their names are classes of scikit-learn, or of matplotlib
    top = [
        n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom)}
    slow = {"arviz", "torchvision", "sklearn", "matplotlib", "pandas", "scipy", "xarray"}
    assert not slow & {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", PRODUCT)
def test_the_product_mocks_nothing(path):
    assert "unittest" not in path.read_text()


@pytest.mark.parametrize("path", PRODUCT)
def test_no_function_is_longer_than_sixty_lines(path):
    assert {name: n for name, n in functions(path).items() if n > 60} == {}


def test_no_room_is_overfull():
    folders = Counter(path.values[0].parent for path in PRODUCT if path.values[0].stem not in HALL)
    assert {str(folder): n for folder, n in folders.items() if n > 12} == {}


def test_each_file_is_in_a_room():
    """Outside of folders there is the ground alone."""
    assert {path.stem for path in HOUSE.glob("*.py")} <= GROUND | HALL
    assert {path.parent.name for path in HOUSE.glob("*/__init__.py")} <= (
        GROUND | FAMILIES | {"infer", "metrics", "datasets", "sklearn"}
    )
    assert {path.parent.name for path in HOUSE.glob("infer/*/__init__.py")} == set(INFER)


def test_tests_import_no_other_test():
    for path in ROOT.glob("tests/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            assert not module.rpartition(".")[2].startswith("test_"), path


def test_there_is_one_training_loop():
    """Only descent calls backward, and the loss of `SVI.step`, whose loop is its caller's."""
    loops = [path for path in ROOT.glob("ppl_models/**/*.py") if ".backward()" in path.read_text()]
    assert {path.name for path in loops} == {"descent.py", "loss.py"}


def test_the_second_run_of_continuous_integration_knows_what_is_of_arviz():
    """A public function that makes or takes its groups is named by the tests that are chosen."""
    (chosen,) = re.findall(r"differs='(.*)'", (ROOT / ".ci/run").read_text())
    groups = r"import (arviz|xarray)|infer\.evidence\.(arviz|groups) import"
    whole = {HOUSE / "infer" / "evidence", HOUSE / "infer" / "selection"}  # folders of tests
    whole |= {
        HOUSE / "infer" / "diagnostics" / "calibration"
    }  # of `sbc` and `tarp`, which are named
    for path in (p.values[0] for p in PRODUCT):
        if path.stem in HALL or not re.search(groups, path.read_text()):
            continue
        names = [name.split(":")[0] for name in functions(path)]
        public = {name for name in names if name in ppl_models.__all__}
        assert public or path.parent in whole, path
        assert all(re.search(chosen, f"{name}(") for name in public), (path, public)
