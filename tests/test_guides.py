"""`ppl_models.guides` has the names of `guides`, and says where another package has its place."""

import multiprocessing
from pathlib import Path

import pytest

import guides
import ppl_models
import ppl_models.guides

ROOT = Path(ppl_models.__file__).parents[1]
FRESH = multiprocessing.get_context("spawn")  # without what this process has imported


def test_names_are_those_of_guides():
    assert ppl_models.guides.__all__ == dir(ppl_models.guides) == guides.__all__
    for name in guides.__all__:
        assert getattr(ppl_models.guides, name) is getattr(guides, name)


def test_other_names_are_errors_as_ever():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ppl_models.guides.nothing  # noqa: B018
    assert not hasattr(ppl_models.guides, "__wrapped__")


def test_guides_are_loaded_at_first_use():
    _run(
        "import sys, ppl_models",
        "assert 'guides' not in sys.modules",
        "ppl_models.guides.AmortizedNormal",
        "assert 'guides' in sys.modules",
        path=[ROOT],
    )


@pytest.mark.parametrize(
    ("file", "got"),
    [
        ("guides.py", "another one of that name, {}/guides.py"),
        ("guides/__init__.py", "another one of that name, {}/guides/__init__.py"),
        ("guides/notes.txt", "another one of that name, ['{}/guides']"),  # Python takes a folder
        ("other.py", "none"),
    ],
)
def test_what_is_found_in_the_place_of_guides_is_said(tmp_path, file, got):
    _write(tmp_path / "foreign" / file)
    (tmp_path / "ppl_models").symlink_to(ROOT / "ppl_models")
    said = _error([tmp_path / "foreign", tmp_path])
    assert f"comes with ppl_models, in {tmp_path / 'guides'}, " in said
    assert f"got {got.format(tmp_path / 'foreign')}. Try renaming the other one" in said
    assert "pip uninstall guides" in said


def test_another_package_that_was_written_over_guides_is_known(tmp_path):
    _write(tmp_path / "guides" / "__init__.py")
    (tmp_path / "ppl_models").symlink_to(ROOT / "ppl_models")
    assert f"got another one of that name, {tmp_path}/guides/__init__.py. " in _error([tmp_path])


def _write(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("def guide(): ...")


def _error(path: list[Path]) -> str:
    """What an import says that finds modules there; that of `ppl_models` needs no guides."""
    return _run(
        "import ppl_models",
        "try:",
        "    from ppl_models.guides import AmortizedNormal",
        "except ImportError as error:",
        "    say(str(error))",
        path=path,
    )


def _run(*lines: str, path: list[Path]) -> str:
    """What these lines say in a process of its own, where other `guides` are out of sight."""
    start = [
        "import os, sys, pathlib",
        f"os.chdir({str(path[-1])!r})",
        "sys.path = [p for p in sys.path if not pathlib.Path(p, 'guides').exists()]",
        f"sys.path[:0] = {[str(p) for p in path]}",
    ]
    here, there = FRESH.Pipe(duplex=False)
    code = "\n".join([*start, *lines, "say('')"])
    process = FRESH.Process(target=exec, args=(code, {"say": there.send}))
    process.start()
    there.close()
    process.join()
    assert process.exitcode == 0
    return here.recv()
