"""What an installed library must be. `tests.support.wheel` runs it where the library is installed.

All modules can be imported without the packages of the extras, which are not there, but for some
that others need; types and styles lie beside the code; no other folder came along.
"""

import importlib
import pkgutil
import re
import sys
from importlib import metadata
from pathlib import Path

import matplotlib.pyplot as plt

PACKAGES = ("ppl_models", "guides")


def missing() -> list[str]:
    """The packages that extras ask for, and that are not here."""
    asked = [line for line in metadata.requires("ppl-models") or [] if "extra ==" in line]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in asked}
    here = {distribution.name.lower() for distribution in metadata.distributions()}
    return sorted(names - here)


def check_files() -> None:
    files = metadata.files("ppl-models") or []
    tops = {file.parts[0] for file in files if ".dist-info" not in file.parts[0]}
    assert tops == set(PACKAGES), tops
    present = {str(file) for file in files if file.locate().exists()}
    assert {"ppl_models/py.typed", "guides/py.typed", "ppl_models/look.mplstyle"} <= present
    for name in PACKAGES:
        home = Path(str(importlib.import_module(name).__file__))
        assert home.is_relative_to(sys.prefix), home
        assert "site-packages" in home.parts, home


def check_modules() -> int:
    count = 0
    for name in PACKAGES:
        home = importlib.import_module(name)
        for module in pkgutil.walk_packages(home.__path__, f"{name}."):
            importlib.import_module(module.name)
            count += 1
    return count


def main() -> None:
    absent = missing()
    assert {"zuko", "nutpie", "torch-geometric", "datasets"} <= set(absent), absent
    check_files()
    modules = check_modules()
    with plt.style.context("ppl_models.look"):
        pass
    versions = [f"{p} {metadata.version(p)}" for p in ("arviz", "torch", "pyro-ppl", "numpy")]
    python = sys.version.split()[0]
    print(f"Python {python}, {', '.join(versions)}; {modules} modules without {len(absent)} extras")


if __name__ == "__main__":
    main()
