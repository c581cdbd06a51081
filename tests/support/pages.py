"""Pages of the documentation as programs: their blocks, and what these print."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def blocks(text: str) -> Iterator[tuple[int, str, str | None]]:
    """The line of each block of Python, its code, and what it is said to print, if it is said."""
    found = list(BLOCK.finditer(text))
    for block, after in zip(found, [*found[1:], None], strict=False):
        if block[1] != "python":
            continue
        line = text.count("\n", 0, block.start(2)) + 1
        follows = after is not None and not text[block.end() : after.start()].strip()
        yield line, block[2], after[2] if follows and after[1] == "text" else None


def run(path: Path) -> None:
    """Runs all blocks from top to bottom, and compares what each prints.

    Raises:
        AssertionError: If a block prints something else, naming its line.
    """
    namespace: dict[str, object] = {"__name__": path.stem}
    for line, code, said in blocks(path.read_text()):
        printed = io.StringIO()
        # Lines of the page, where an error is.
        compiled = compile("\n" * (line - 1) + code, str(path), "exec")
        with contextlib.redirect_stdout(printed):
            exec(compiled, namespace)
        if said is not None:
            difference = differs(said, printed.getvalue())
            assert not difference, f"{path}, line {line}: {difference}"


def differs(said: str, printed: str) -> str:
    """Where a text that is printed is not the one that is said, or nothing.

    Words are the same, but for space between them; `...` stands for anything. Numbers may differ by
    2 %, or by two units of their last digit: other processors round otherwise.
    """
    wanted, got = NUMBER.findall(said), NUMBER.findall(printed)
    if "..." not in said and len(wanted) != len(got):
        return f"expected\n{said}\ngot\n{printed}"
    pattern = "".join(_pattern(part) for part in re.split(r"(\.\.\.)", said.strip()))
    match = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    if match is None:
        return f"expected\n{said}\ngot\n{printed}"
    numbers = [n for part in said.split("...") for n in NUMBER.findall(part)]
    for expected, found in zip(numbers, match.groups(), strict=True):
        if not _near(expected, found):
            return f"expected {expected}, got {found}, in\n{printed}"
    return ""


def _pattern(part: str) -> str:
    """Of a part of a text: each number a group, each space any space, the rest as it is."""
    if part == "...":
        return ".*?"
    pieces, end = [], 0
    for number in NUMBER.finditer(part):
        pieces += [_words(part[end : number.start()]), rf"({NUMBER.pattern})"]
        end = number.end()
    return "".join([*pieces, _words(part[end:])])


def _words(text: str) -> str:
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", text))


def _near(expected: str, found: str) -> bool:
    a, b = (float(n.replace(",", "")) for n in (expected, found))
    mantissa, _, exponent = expected.partition("e")
    decimals = len(mantissa.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - decimals)
    if "." not in expected and "e" not in expected:
        unit = 0  # a count
    return abs(a - b) <= max(0.02 * abs(a) * (unit > 0), 2 * unit * 1.001)
