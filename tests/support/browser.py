"""A browser without a window that opens pages of the site, and what is wrong with them there."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

# What sticks out of the page on the right, but for what scrolls by itself or is not shown.
STICKS_OUT = """() => {
    const width = document.documentElement.clientWidth;
    const found = [];
    for (const element of document.querySelectorAll('.bd-article *, .bd-header *, footer *')) {
        const box = element.getBoundingClientRect();
        if (box.width === 0 || box.right <= width + 1) continue;
        let scrolls = false;
        for (let up = element; up; up = up.parentElement) {
            const style = getComputedStyle(up);
            if (style.overflowX !== 'visible' || style.position === 'fixed'
                || style.visibility === 'hidden') scrolls = true;
        }
        if (!scrolls) found.push(element.tagName + '.' + element.className + ': '
            + element.textContent.trim().slice(0, 60));
    }
    if (document.documentElement.scrollWidth > width + 1 && !found.length)
        found.push('the page is ' + document.documentElement.scrollWidth + ' pixels wide');
    return found.slice(0, 3);
}"""
MISSING = (
    """() => [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"""
)
UNREAD = """() => [...document.querySelectorAll('mjx-merror')].map(e => e.textContent)"""


def executable() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The host of a server of these files, on this machine alone."""
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


class Reader:
    """Opens pages one after the other, and says what is wrong with each."""

    def __init__(self, chromium: Any, host: str) -> None:
        self.page, self.host = chromium.new_page(), host
        self.found: list[str] = []
        self.page.on("console", lambda m: self._told(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self._told(str(error)))
        self.page.on("requestfailed", self._not_loaded)
        self.page.on(
            "request", lambda r: None if self._own(r.url) else self._told(f"other host: {r.url}")
        )

    def faults(self, name: str, widths: tuple[int, ...]) -> list[str]:
        """What is wrong with a page: in its console, its images, its equations, its width."""
        self.found = []
        for width in widths:
            self.page.set_viewport_size({"width": width, "height": 900})
            if width == widths[0]:
                self.page.goto(f"http://{self.host}/{name}", wait_until="load")
                self.page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
            wide = self.page.evaluate(STICKS_OUT)
            self.found += [f"sticks out at {width}: {what}" for what in wide]
        self.found += [f"no image: {source}" for source in self.page.evaluate(MISSING)]
        self.found += [f"no equation: {text}" for text in self.page.evaluate(UNREAD)]
        return self.found

    def _not_loaded(self, request: Any) -> None:
        if "ERR_ABORTED" not in request.failure:  # by the way to the next page
            self._told(f"not loaded: {request.url}")

    def _told(self, what: str) -> None:
        self.found.append(what)

    def _own(self, url: str) -> bool:
        return url.startswith(("data:", "blob:")) or url.split("/")[2] == self.host
