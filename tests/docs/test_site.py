"""The site as a browser shows it, where it was built (`make docs`) and a browser is there."""

import os
from pathlib import Path

import pytest

from tests.support.browser import Reader, browser, executable, served

SITE = Path(os.environ.get("PPL_SITE", Path(__file__).parents[2] / "docs" / "_build" / "html"))
SIZES = (375, 1280)


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright", reason="playwright is not installed: try the extra docs")
    if executable() is None:
        pytest.skip("there is no chromium on the PATH: try apt-get install chromium")
    with browser() as opened:
        yield opened


def opened(chromium, folder: Path, name: str) -> list[str]:
    with served(folder) as host:
        return Reader(chromium, host).faults(name, SIZES)


def test_each_page_is_whole(chromium) -> None:
    if not (SITE / "index.html").exists():
        pytest.skip(f"there is no site in {SITE}: try make docs")
    pages = [p for p in sorted(SITE.rglob("*.html")) if not {"_modules", "_static"} & set(p.parts)]
    with served(SITE) as host:
        reader = Reader(chromium, host)
        names = [str(path.relative_to(SITE)) for path in pages]
        found = {name: wrong for name in names if (wrong := reader.faults(name, SIZES))}
    assert len(pages) > 200
    assert found == {}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<script>undefined_name()</script>", "undefined_name is not defined"),
        ("<img src='not-there.png'>", "no image"),
        ("<img src='http://example.invalid/x.png'>", "other host"),
        ("<article class='bd-article'><div style='width: 500px'>wide</div></article>", "at 375"),
        ("<article class='bd-article'><mjx-merror>\\oops</mjx-merror></article>", "no equation"),
    ],
)
def test_a_fault_is_found(chromium, tmp_path: Path, body: str, fault: str) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><html><body>{body}</body></html>")
    assert any(fault in wrong for wrong in opened(chromium, tmp_path, "page.html"))


def test_a_whole_page_has_no_fault(chromium, tmp_path: Path) -> None:
    scrolls = "<div style='overflow-x: auto'><div style='width: 900px'>wide</div></div>"
    body = f"<article class='bd-article'>{scrolls}</article>"
    icon = "<link rel='icon' href='data:,'>"
    (tmp_path / "page.html").write_text(f"<!doctype html><html><head>{icon}</head>{body}</html>")
    assert opened(chromium, tmp_path, "page.html") == []
