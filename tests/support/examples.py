"""Examples as modules, and what they print and write."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
from matplotlib.image import imread

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(pattern: str, text: str) -> list[float]:
    """The groups of the one match of `pattern`."""
    (match,) = re.finditer(pattern, text)
    return [float(group) for group in match.groups()]


def check_pictures(printed: str, folder: Path, count: int) -> None:
    written = [Path(line.strip()) for line in printed.partition("written:\n")[2].splitlines()]
    pictures = sorted(folder.glob("*.png"))
    assert pictures == sorted(path for path in written if path.suffix == ".png")
    assert len(pictures) == count
    for file in pictures:
        assert imread(file)[..., :3].std() > 0.05  # not blank
    assert not plt.get_fignums()
