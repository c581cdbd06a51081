"""The program of the README runs word for word, and prints what it says; so does the design's."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DESIGN = ROOT.parent / "shared" / "DESIGN.md"
PRINTED = (
    r"log evidence (\S+) ± (\S+) nats per row, lower bound .*"
    r" Monte Carlo error (\S+); .* (\S+) bits/dim"
)


def blocks(path: Path, language: str = "python") -> list[str]:
    if not path.exists():
        pytest.skip(f"there is no {path.name} beside the project")
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def numbers(printed: str) -> list[float]:
    return [float(n) for n in re.search(PRINTED, printed).groups()]


def test_the_program_prints_what_the_readme_says(capsys):
    (code,), (said,) = blocks(README), blocks(README, "text")
    namespace: dict = {}
    exec(compile(code, str(README), "exec"), namespace)
    value, error, chance, bits = numbers(said)
    found = numbers(capsys.readouterr().out)
    # On another processor a run of 2400 steps goes another way.
    assert found[0] == pytest.approx(value, abs=error)
    assert found[1] == pytest.approx(error, rel=0.1)
    assert found[2] == pytest.approx(chance, rel=0.5)
    assert found[3] == pytest.approx(bits, rel=0.02)
    assert bits == pytest.approx(-value / (64 * 0.69315), abs=1e-4)
    summary = namespace["az"].summary(namespace["posterior"])
    assert len(summary) == 297 * 8


@pytest.mark.slow
def test_the_programs_of_the_design_run(capsys):
    # The design leaves out imports and data of the second.
    import pyro
    import pyro.distributions as dist

    from ppl_models import data_plate

    counts = torch.poisson(torch.full((200,), 3.0))
    namespace = {"pyro": pyro, "dist": dist, "data_plate": data_plate, "counts": counts}
    code = [block.replace("epochs=100,", "epochs=10,") for block in blocks(DESIGN)]
    assert len(code) == 2
    for block in code:
        exec(compile(block, str(DESIGN), "exec"), namespace)
    assert 20 < -numbers(capsys.readouterr().out)[0] < 30
    assert namespace["run"].steps == 24 * 10


def test_the_lines_of_the_design_are_those_of_the_readme():
    """The user-facing lines, word for word."""
    first, _ = blocks(DESIGN)
    (readme,) = blocks(README)
    assert all(line in readme for line in first.splitlines())


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    here = [link for link in links if "://" not in link]
    assert len(here) > 20
    assert [link for link in here if not (ROOT / link).exists()] == []
