"""Whether processes that compute together have the same: data, parameters, code, sites, numbers.

What they share they must see alike: a checksum of all that a call is given is compared before it
begins, and then the sites that a first run has shown.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.tables import as_rows
from ppl_models.processes import fingerprint, together

ADVICE = (
    "Try the same lines on all processes, with the same files, random numbers and parameters, as "
    "`fit` leaves them, or torch.manual_seed(0) before they are made."
)


def check_same(
    where: str, programs: Iterable[Any], data: Iterable[Any], **numbers: int | float | str | None
) -> None:
    """Raises on all processes where they are given different things.

    Arguments:
        where: The function that is called.
        programs: What it is to run, or an ArviZ object of draws, or None.
        data: Its rows.
        numbers: Its other arguments, by name.

    Raises:
        ValueError: If something differs.
        ProcessError: If what another process is given are no rows.
    """
    here = together()
    if here.alone:
        return
    programs = [*programs]
    with here.all_or_none(where):
        modules = modules_of_programs(*programs)
        rows = [x for x in as_rows(tuple(data), modules) if isinstance(x, Tensor)]
        found = {
            "data": f"{[tuple(x.shape) for x in rows]} {fingerprint(*rows)}",
            "parameters": _parameters(modules),
            "programs": [_name(x) for x in programs],
            "code": _code(programs),
            "given_draws": fingerprint(*(x for program in programs for x in _draws(program))),
        }
    here.check_agree(where, ADVICE, **found, **numbers)


def sites_of(model: poutine.Trace, guide: poutine.Trace) -> Mapping[str, Any]:
    """What runs of programs have shown, for `check_agree`."""
    traces = {"model": model, "guide": guide}
    drawn = {name: sites.random_sites(trace) for name, trace in traces.items()}
    shown = [[[name, *map(_site, found)] for name, found in drawn.items()]]
    used = [
        site["value"]
        for trace in traces.values()
        for site in trace.nodes.values()
        if site["type"] == "param" and isinstance(site["value"], Tensor)
    ]
    return {"sites": shown, "values_of_pyro.param": fingerprint(*used)}


def _site(site: dict) -> str:
    return f"{site['name']} {sites.kind(site['fn'])} {tuple(site['value'].shape)}"


def _parameters(modules: Iterable[nn.Module]) -> str:
    """A checksum of all parameters and buffers, with their names."""
    check, tensors = 0, []
    for module in modules:
        for name, x in (*module.named_parameters(), *module.named_buffers()):
            check = zlib.crc32(name.encode(), check)
            tensors.append(x)
    return f"{check:08x} {fingerprint(*tensors)}"


def _name(program: Any) -> str:
    inner = Program(program, "program").inner if callable(program) else program
    kind = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(programs: Iterable[Any]) -> str:
    """A checksum of what functions and modules do, as far as it is Python of their own."""
    check = 0
    for program in programs:
        code = getattr(_function(program), "__code__", None)
        for part in () if code is None else _parts(code):
            check = zlib.crc32(part, check)
    return f"{check:08x}"


def _function(program: Any) -> Callable[..., Any] | None:
    if not callable(program):
        return None
    inner = Program(program, "program").inner
    return type(inner).forward if isinstance(inner, nn.Module) else inner


def _parts(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield " ".join(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
        elif not isinstance(constant, frozenset):  # whose order is another in each process
            yield repr(constant).encode()


def _draws(program: Any) -> Iterator[Tensor]:
    """The draws that an ArviZ object holds."""
    if program is None or callable(program):
        return
    try:
        found = program["posterior"].data_vars
    except (TypeError, KeyError, AttributeError):  # whoever uses it says so
        return
    for values in found.values():
        if np.issubdtype(values.dtype, np.number) or values.dtype == bool:
            yield torch.from_numpy(np.ascontiguousarray(values.values))
