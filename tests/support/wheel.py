"""Whether what is packed is what users need: built, installed where nothing else is, and run.

    make wheel
    python -m tests.support.wheel --versions 3.12

Builds the sdist, and the wheel from it. For each Python it makes an environment with the wheel
alone, and there, outside of the repository, runs the first program of the README word for word;
the last environment is made once more, from the sdist. Pythons are those of pyenv, or on the PATH.
It takes minutes, and downloads what uv has not kept, torch above all: it is no part of the tests.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INSTALLED = Path(__file__).with_name("installed.py")
PACKAGES = {"ppl_models", "guides"}
# What the sdist holds beside them: what its tests and its site are made of.
FOLDERS = PACKAGES | {".ci", ".github", "benchmarks", "docs", "examples", "tests"}
PRINTED = r"log evidence -1\d\.\d+ ± 0\.\d+ nats per row, lower bound.*"
TYPED = "import guides, ppl_models\nreveal_type(ppl_models.log_evidence)\nreveal_type(guides)\n"


def run(*command: object, **options: Any) -> str:
    """Returns what a command prints; where it fails, this script ends with it."""
    # The environment of this Python is not that of the library which is tried.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env=kept, **options)
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{said[-5000:]}")
    return said


def uv(*command: object) -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise SystemExit("uv: expected beside this Python or on the PATH. Try pip install uv.")
    return run(found, *command)


def interpreter(version: str) -> Path:
    """The newest Python of a version, such as "3.12"."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    if found := list(pyenv.glob(f"versions/{version}.*/bin/python3")):
        return max(found, key=lambda path: int(re.findall(r"\d+", path.parts[-3])[-1]))
    if on_path := shutil.which(f"python{version}"):
        return Path(on_path)
    raise SystemExit(
        f"Python {version}: found neither in ~/.pyenv/versions nor as python{version} on the PATH. "
        f"Try pyenv install {version}, or --versions with those that there are."
    )


def build(folder: Path) -> tuple[Path, Path]:
    """Builds both, and returns the wheel and the sdist."""
    uv("build", "--quiet", "--out-dir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def check_wheel(wheel: Path) -> None:
    """Raises unless it holds the files of the two packages, all of them and no other."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    check_same(names, files(*PACKAGES), wheel.name)


def check_sdist(sdist: Path) -> None:
    """Raises unless it holds its folders, all of them, and no other."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    top = {name for name in files(".") if "/" not in name}
    check_same(names - {"PKG-INFO"} - top, files(*FOLDERS), sdist.name)
    if lacks := {"pyproject.toml", "LICENSE", "README.md", "CITATION.cff", "SECURITY.md"} - names:
        raise SystemExit(f"{sdist.name}: lacks {some(lacks)}.")


def files(*paths: str) -> set[str]:
    """The files of the project that lie there: those that git does not ignore."""
    said = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *paths, cwd=ROOT)
    return {name for name in said.splitlines() if (ROOT / name).is_file()}


def check_same(packed: set[str], expected: set[str], name: str) -> None:
    if packed != expected:
        raise SystemExit(
            f"{name}: lacks {some(expected - packed)}; has {some(packed - expected)} that is not "
            f"of the project."
        )


def some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:5]) or "nothing"


def environment(folder: Path, python: Path, archive: Path) -> Path:
    """Makes an environment with an archive alone, and returns its Python."""
    uv("venv", "--quiet", "--python", python, folder)
    own = folder / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", own, archive)
    uv("pip", "check", "--quiet", "--python", own)
    return own


def try_installed(python: Path, folder: Path) -> str:
    """Looks at what is installed, runs the program of the README, and says what was seen."""
    folder.mkdir()
    seen = run(python, "-P", INSTALLED, cwd=folder).strip().splitlines()[-1]
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[:1]
    (folder / "program.py").write_text(program)
    began = time.perf_counter()
    printed = run(python, "-P", "program.py", cwd=folder)
    if (line := re.search(PRINTED, printed)) is None:
        raise SystemExit(f"The program of the README: expected {PRINTED}, got\n{printed}")
    return f"{seen}\n  {line[0]}\n  in {time.perf_counter() - began:.0f} s"


def check_types(python: Path, folder: Path) -> None:
    """Raises unless a type checker sees the types of what is installed."""
    (folder / "typed.py").write_text(TYPED)
    # Torch and others are not followed: that takes minutes, and is not the question.
    config = "[mypy]\nfollow_imports = silent\nignore_missing_imports = False\n"
    (folder / "mypy.ini").write_text(config)
    options = ["--python-executable", python, "--config-file", "mypy.ini", "typed.py"]
    said = run(sys.executable, "-m", "mypy", *options, cwd=folder)
    if "num_samples: int" not in said or "py.typed" in said:
        raise SystemExit(f"A type checker does not see the types of the installed library:\n{said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=["3.11", "3.12", "3.13"])
    versions = parser.parse_args().versions
    pythons = [interpreter(version) for version in versions]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder / "dist")
        check_wheel(wheel)
        check_sdist(sdist)
        print(f"{wheel.name} {wheel.stat().st_size:,} bytes, {sdist.name} {sdist.stat().st_size:,}")
        archives = [*((python, wheel) for python in pythons), (pythons[-1], sdist)]
        for number, (python, archive) in enumerate(archives):
            own = environment(folder / f"env{number}", python, archive)
            print(f"{archive.name}: {try_installed(own, folder / f'run{number}')}", flush=True)
            check_types(own, folder / f"run{number}")
            shutil.rmtree(folder / f"env{number}")


if __name__ == "__main__":
    main()
