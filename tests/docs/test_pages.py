"""Who follows a page from top to bottom gets the numbers that it prints."""

from pathlib import Path

import pytest

from tests.support.pages import blocks, differs, run

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(p for folder in ("use", "families") for p in (DOCS / folder).glob("*.md"))


@pytest.mark.parametrize("path", [pytest.param(p, id=f"{p.parent.name}/{p.stem}") for p in PAGES])
def test_a_page_prints_what_it_says(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(path)


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("log evidence -3.412 nats", "log evidence -3.413 nats"),
        ("a   b\n", "a b"),
        ("fitted in ... s, 24 steps", "fitted in 1.3 s, 24 steps"),
        ("loss 1.52e-3", "loss 1.53e-3"),
        ("-0.00", "0.01"),
    ],
)
def test_what_is_near_is_the_same(said: str, printed: str) -> None:
    assert differs(said, printed) == ""


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("log evidence -3.412 nats", "log evidence -3.512 nats"),
        ("exact", "lower bound"),
        ("24 steps", "25 steps"),
        ("a 1.0", "a 1.0 2.0"),
        ("row 1.00", "row -1.00"),
        ("fitted in ... s, 24 steps", "fitted in 1.3 s, 26 steps"),
    ],
)
def test_what_is_not_near_is_told(said: str, printed: str) -> None:
    assert differs(said, printed)


def test_blocks_know_their_lines_and_what_follows() -> None:
    text = "# A\n\n```python\nx = 1\n```\n\n```python\nprint(x)\n```\n```text\n1\n```\n"
    assert list(blocks(text)) == [(4, "x = 1\n", None), (8, "print(x)\n", "1\n")]


def test_an_error_names_the_line_of_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\nprint(1.0)\n```\n\n```text\n2.0\n```\n")
    with pytest.raises(AssertionError, match=r"line 4: expected 2\.0, got 1\.0"):
        run(page)
