"""Examples run with arguments of a test, and what they print and write."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
from matplotlib.image import imread

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *argv: object) -> ModuleType:
    """Runs an example as a script with these arguments, and returns all that it has named."""
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch, plt.rc_context():
        patch.setattr("sys.argv", [str(path), *map(str, argv)])
        try:
            spec.loader.exec_module(module)
        finally:
            plt.close("all")
    return module


def numbers(pattern: str, text: str) -> list[float]:
    """The groups of the one match of `pattern`."""
    (match,) = re.finditer(pattern, text)
    return [float(group) for group in match.groups()]


def check_pictures(folder: Path, count: int) -> None:
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == count
    for file in pictures:
        assert imread(file)[..., :3].std() > 0.05  # not blank
    assert not plt.get_fignums()
