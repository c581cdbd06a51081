"""What is told of the package in several places is the same in all. `make wheel` tries it."""

import re
import tomllib
from pathlib import Path

import pytest

import ppl_models

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OF_USERS = ("flows", "graphs", "mcmc", "rows")
PYTHONS = [
    found[1] for line in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", line))
]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line)[0].lower() for line in requirements}


def workflow() -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def test_the_oldest_python_is_the_first() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_public_ci_tries_each_python() -> None:
    jobs = workflow()["jobs"]
    for name in ("tests", "wheel"):
        assert jobs[name]["strategy"]["matrix"]["python"] == PYTHONS
    oldest = {
        step["with"]["python-version"]
        for name in ("check", "docs")
        for step in jobs[name]["steps"]
        if "python-version" in step.get("with", {})
    }
    assert oldest == {PYTHONS[0]}


def test_public_ci_asks_for_what_make_has() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for job in workflow()["jobs"].values() for step in job["steps"]]
    asked = {step["run"].split()[1] for step in steps if step.get("run", "").startswith("make ")}
    assert asked == {"check", "test", "docs", "wheel"}
    assert asked <= targets
    assert all(
        re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step
    )


def test_actions_start_each_job_from_the_checkout() -> None:
    for name, job in workflow()["jobs"].items():
        uses = [step.get("uses", "").partition("@")[0] for step in job["steps"]]
        assert uses[:2] == ["actions/checkout", "actions/setup-python"], name
        assert job["timeout-minutes"] <= 120


def test_errors_name_extras_that_there_are() -> None:
    text = "".join(path.read_text() for path in ROOT.glob("ppl_models/**/*.py"))
    named = set(re.findall(r"ppl-models\[(\w+)\]", text))
    assert {"flows", "graphs", "mcmc"} <= named <= set(OF_USERS)


def test_who_works_on_this_has_what_users_may_add() -> None:
    for extra in OF_USERS:
        assert names(EXTRAS[extra]) <= names(EXTRAS["dev"]), extra
    heavy = names(EXTRAS["docs"]) - names(EXTRAS["dev"])
    assert {"sphinx", "playwright", "nbclient"} <= heavy


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    version = PROJECT.get("version") or ppl_models.__version__
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == version
    assert re.search(r"^license: (.*)$", citation, re.MULTILINE)[1] == PROJECT["license"]
