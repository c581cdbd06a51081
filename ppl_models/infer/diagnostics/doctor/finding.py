"""One thing that is wrong with a program: what, where, and what to do about it."""

import re
import textwrap
from dataclasses import dataclass

SITE = re.compile(r"\bsites?(?:\(s\))? '([^']+)'")
PROGRAM = re.compile(r"^(model|guide):|of the (model|guide)\b")
REMEDY = re.compile(r" Try |: try ")
WIDTH = 88


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a program.

    Attributes:
        what: What is wrong.
        site: The site it is about; None where it is about no single one.
        line: Where its statement is, as `file:line`; None where that is in Pyro itself, as in an
            autoguide, or it is about the data.
        expected: What was expected there.
        got: What came.
        remedy: What to try.
    """

    what: str
    site: str | None = None
    line: str | None = None
    expected: str = ""
    got: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        parts = [self.what]
        for name, text in (("expected", self.expected), ("got", self.got), ("try", self.remedy)):
            parts += [f"  {name}: {text}"] if text else []
        lines = [
            textwrap.fill(part, WIDTH, subsequent_indent="    " if part[0] == " " else "")
            for part in parts
        ]
        return "\n".join([f"{self.line}:", *lines] if self.line else lines)


def from_text(text: str, line: str | None = None) -> Finding:
    """A finding from an error of this library, which says where, expected, got and try.

    Example:
        >>> found = from_text("site 'x': odd. Expected 1 or more, got 0. Try x + 1.")
        >>> found.site, found.expected, found.got, found.remedy
        ('x', '1 or more', '0', 'x + 1')
    """
    site = SITE.search(text)
    head, remedy = [*REMEDY.split(text, maxsplit=1), ""][:2]
    what, _, rest = re.sub(r": expected ", ": . Expected ", head, count=1).partition(" Expected ")
    expected, _, got = rest.partition(", got ")
    what = what.removesuffix(": .").strip()
    return Finding(what, site and site[1], line, *map(_phrase, (expected, got, remedy)))


def program_of(text: str) -> str | None:
    """Which of both programs an error is about, where it says so."""
    found = PROGRAM.search(text)
    return found and (found[1] or found[2])


def _phrase(text: str) -> str:
    return text.strip().removesuffix(".")
