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


@pytest.mark.parametrize("path", [README, DESIGN], ids=lambda path: path.stem)
def test_code_runs(path, capsys):
    code = blocks(path)
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
    assert re.search(r"log evidence -1\d\.\d+ ± 0\.\d+ nats per row, lower bound", printed)
    assert namespace["run"].steps == 2400


def test_the_readme_is_that_of_the_design():
    """The user-facing lines, word for word."""
    readme = "\n".join(blocks(README))
    for block in blocks(DESIGN):
        for line in block.splitlines():
            assert line in readme
