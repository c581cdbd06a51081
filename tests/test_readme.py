"""The code of the README and of the design runs as it stands, one block after the other."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
DESIGN = Path(__file__).parents[2] / "shared" / "DESIGN.md"


def blocks(path: Path) -> list[str]:
    if not path.exists():
        pytest.skip(f"there is no {path.name} beside the project")
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("path", "epochs"),
    [(README, 50), pytest.param(DESIGN, 10, marks=pytest.mark.slow)],
    ids=["README", "DESIGN"],
)
def test_code_runs(path, epochs, capsys):
    """The design's lines, which are the README's, for fewer epochs."""
    code = [block.replace("epochs=100,", f"epochs={epochs},") for block in blocks(path)]
    assert len(code) == 2
    # The design leaves out what the README's second block says: imports, and data.
    import pyro
    import pyro.distributions as dist

    from ppl_models import data_plate

    counts = torch.poisson(torch.full((200,), 3.0))
    namespace = {"pyro": pyro, "dist": dist, "data_plate": data_plate, "counts": counts}
    for block in code:
        exec(compile(block, str(path), "exec"), namespace)
    printed = capsys.readouterr().out
    digit = 1 if path is README else 2
    found = rf"log evidence -{digit}\d\.\d+ ± 0\.\d+ nats per row, lower bound"
    assert re.search(found, printed)
    assert namespace["run"].steps == 24 * epochs


def test_the_readme_is_that_of_the_design():
    """The user-facing lines, word for word."""
    readme = "\n".join(blocks(README))
    for block in blocks(DESIGN):
        for line in block.splitlines():
            assert line in readme
