"""Warnings and errors that name the line of the user, whichever way led from there to them."""

import functools
import inspect
import os
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from torch import Tensor

from ppl_models.processes import is_other

# What may lie between a user's line and ours, besides ours.
BETWEEN = ("torch", "pyro", "sklearn", "tqdm", "contextlib", "functools")

# Through them an operation of torch fails that is another's.
HANDLERS = ("__torch_function__", "__torch_dispatch__")

FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the innermost line outside of this library and of those that it is called through.

    Of several processes that compute together, which all find the same, only the first one does.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("the noise is at its floor")
        >>> print(caught[0].message)
        the noise is at its floor
    """
    if is_other():
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_passed_over()):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def statement_below(end: CodeType) -> str | None:
    """The innermost line of a program that runs below a call, as `file:line`.

    Also of a program of this library; None where it is one of Pyro's, such as an autoguide.

    Arguments:
        end: The code of the call, which the program is inside of.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not end:
        if not frame.f_code.co_filename.startswith(_of_others()):
            return _line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def statement_of(traceback: TracebackType | None) -> str | None:
    """The innermost line of a program at which an error came up, as `file:line`."""
    found = None
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(_of_others()):
            found = _line(file, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def call_of(traceback: TracebackType | None) -> str | None:
    """Where in the user's program an error came up, and what that was called with.

    None where no line of the user's led there, and where the error is one of this library, which
    says by itself what is wrong.

    Example:
        >>> def program(x, y=None):
        ...     return x[y]
        >>> try:
        ...     program([1, 2], 5)
        ... except IndexError as error:
        ...     print(call_of(error.__traceback__.tb_next).partition(", in ")[2])
        program(x: list, y: 5)
    """
    line, first, file = None, None, ""
    while traceback is not None:
        frame, code = traceback.tb_frame, traceback.tb_frame.f_code
        if code.co_name not in HANDLERS:
            file = code.co_filename
            if not file.startswith(_passed_over()):
                line, first = _line(file, traceback.tb_lineno), first or frame
        traceback = traceback.tb_next
    if first is None or file.startswith(_ours()):
        return None
    return f"{line}, in {_called(first)}"


def _called(frame: FrameType) -> str:
    """A function that runs, with its arguments as they are now."""
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    given = [f"{n}: {_described(values[n])}" for n in names if n in values and n != "self"]
    return f"{code.co_name}({', '.join(given)})"


def _described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"{tuple(x.shape)} {x.dtype}"
    return repr(x) if x is None or isinstance(x, (bool, int, float)) else type(x).__name__


def statement_in(text: str) -> str | None:
    """The innermost line of a program in a traceback as it is printed, as `file:line`."""
    found = None
    for file, number in FRAME.findall(text):
        if not file.startswith(_of_others()):
            found = _line(file, int(number))
    return found


def _line(file: str, number: int) -> str:
    path, here = Path(file), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{number}"


@functools.cache
def _passed_over() -> tuple[str, ...]:
    """How the names of files begin that are not the user's."""
    return (*_ours(), *_origins())


@functools.cache
def _ours() -> tuple[str, ...]:
    """How the names of files begin that are this library's."""
    here = Path(__file__).parent
    return tuple(f"{folder}{os.sep}" for folder in (here, here.with_name("guides")))


@functools.cache
def _of_others() -> tuple[str, ...]:
    """How the names of files begin that have no statements of programs."""
    here = Path(__file__).parent
    ours = (f"{here / 'infer'}{os.sep}", *(str(here / f"{n}.py") for n in ("plates", "checks")))
    return (*ours, __file__, *_origins())


@functools.cache
def _origins() -> tuple[str, ...]:
    origins = [spec.origin for spec in map(find_spec, BETWEEN) if spec and spec.origin]
    return tuple(origin.removesuffix("__init__.py") for origin in origins)
