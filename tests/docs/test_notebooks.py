"""The notebooks that the gallery hands out run."""

import os
from pathlib import Path

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


@pytest.mark.slow
def test_a_notebook_runs_and_shows_its_pictures(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: the extra docs")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: the extra docs")
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with nbclient")
    book = nbformat.read(notebook("own_model", tmp_path), as_version=4)
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": tmp_path}})
    client.execute(env=environment)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "exact value: -209." in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert "Usage" not in printed
