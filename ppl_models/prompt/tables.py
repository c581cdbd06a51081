"""Tables for notebooks: plain HTML without colours, which reads in the light and in the dark."""

import re
from collections.abc import Sequence
from html import escape

NUMBER = re.compile(r"[-+]?(\d|inf|nan)")


def table(
    head: Sequence[str], lines: Sequence[Sequence[object]], above: str = "", below: str = ""
) -> str:
    """Returns a table as HTML, with numbers to the right; texts are escaped.

    Arguments:
        head: What the columns are.
        lines: The cells of each line; floating-point numbers have four digits.
        above: What is said before it, in lines.
        below: What is said after it.

    Example:
        >>> table(["row", "k"], [[3, 0.71289]], above="a < b")
        '<p>a &lt; b</p><table><thead><tr><th>row</th><th>k</th></tr></thead><tbody><tr><td \
style="text-align: right">3</td><td style="text-align: right">0.7129</td></tr></tbody></table>'
    """
    first = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    whole = f"<table><thead><tr>{first}</tr></thead><tbody>{rows}</tbody></table>"
    return f"{_lines(above)}{whole}{_lines(below)}"


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else f"{value}"
    side = "right" if NUMBER.match(text) else "left"
    return f'<td style="text-align: {side}">{_broken(text)}</td>'


def _lines(text: str) -> str:
    return f"<p>{_broken(text)}</p>" if text else ""


def _broken(text: str) -> str:
    return escape(text).replace("\n", "<br/>")
