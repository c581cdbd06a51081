"""The notebooks that the gallery hands out run."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def notebook(name: str, folder: Path) -> Path:
    """The notebook of an example, as the gallery makes it."""
    blocks = pytest.importorskip("sphinx_gallery.py_source_parser", reason="the extra docs")
    from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF
    from sphinx_gallery.notebook import jupyter_notebook, save_notebook

    conf = DEFAULT_GALLERY_CONF | {"first_notebook_cell": first_cell(), "src_dir": str(folder)}
    _, parts = blocks.split_code_and_text_blocks(str(EXAMPLES / f"{name}.py"))
    path = folder / f"{name}.ipynb"
    save_notebook(jupyter_notebook(parts, conf, str(folder)), path)
    return path


def first_cell() -> str:
    """That of conf.py, which cannot be imported without building the site."""
    import ast

    tree = ast.parse((EXAMPLES.parent / "docs" / "conf.py").read_text())
    (conf,) = (
        n for n in tree.body if isinstance(n, ast.Assign) and "gallery" in ast.dump(n.targets[0])
    )
    by_name = {
        key.value: value for key, value in zip(conf.value.keys, conf.value.values, strict=True)
    }
    return by_name["first_notebook_cell"].value


def executed(book: Any, folder: Path) -> str:
    """Executes a notebook, as a browser would, and returns all that it printed."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: the extra docs")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: the extra docs")
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": folder}})
    client.execute(env=environment)
    return "".join(output.get("text", "") for output in outputs(book))


def outputs(book: Any) -> list[Any]:
    return [output for cell in book.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
def test_a_notebook_runs_and_shows_its_pictures(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with nbclient")
    book = nbformat.read(notebook("own_model", tmp_path), as_version=4)
    printed = executed(book, tmp_path)
    assert "exact value: -209." in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs(book)) == 3
    assert "Usage" not in printed


FIT = """
import torch
from ppl_models import MADE, elbo, fit
x = torch.rand(50, 4).round()
run = fit(elbo(MADE(4)), x, steps=30, seed=0{more})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("more", "shown"), [("", True), (", progress=False", False)])
def test_a_notebook_shows_a_bar_that_goes(more: str, shown: bool, tmp_path: Path) -> None:
    """A kernel's standard error is no terminal, and yet somebody looks at it."""
    v4 = pytest.importorskip("nbformat.v4", reason="nbformat comes with nbclient")
    book = v4.new_notebook(cells=[v4.new_code_cell(FIT.format(more=more))])
    printed = executed(book, tmp_path)
    assert ("/30 [" in printed) == shown
    assert not shown or re.search(r"\r +\r$", printed)
