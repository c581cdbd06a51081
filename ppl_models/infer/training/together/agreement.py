"""Whether the processes of a run have the same data, the same code and the same parameters.

Each of them runs the user's lines from the first one on. Where these do different things, such as
draw data from a generator that nobody seeded, a run would go on with wrong numbers; so what they
have is compared, by checksums, before the first step.
"""

import platform
import zlib
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ppl_models.infer.objectives.objective import Objective, modules_of
from ppl_models.infer.training.batches import Batch, InMemory, Source
from ppl_models.infer.training.together.as_one import is_as_one
from ppl_models.infer.training.together.trial import check_transform
from ppl_models.processes import Processes, fingerprint

OF_TORCH = ("torch.", "torchvision.", "pyro.")


class SitesSeen(Messenger):
    """Takes note of the sites that programs come to.

    Attributes:
        found: What each is, by its name: its distribution and its shape, or its value's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def _pyro_sample(self, message: dict) -> None:
        if not site_is_subsample(message):
            fn = message["fn"]
            shape = (*getattr(fn, "batch_shape", ()), *getattr(fn, "event_shape", ()))
            kind = "observed" if message["is_observed"] else "latent"
            self.found[message["name"]] = f"{kind} {type(fn).__name__} {tuple(shape)}"


def check_can_share(
    processes: Processes,
    objectives: list[Objective],
    sources: Sequence[Source],
    first: Batch,
) -> None:
    """Raises on all processes where they cannot share the batches of a run."""
    if processes.alone:
        return
    train = sources[0]
    rows = (
        train.tensors if type(train) is InMemory else first.values
    )  # of others it would take long
    sizes = [(s.size, s.batch_size, s.batches) for s in sources]
    _check_same_data(processes, objectives, rows, sizes=sizes, as_one=is_as_one())
    few, last = min(train.batch_size, len(first.values[0])), train.size % train.batch_size
    if few < processes.count:
        raise ValueError(
            f"batch_size: expected a row or more for each of {processes.count} processes, got "
            f"{few} of {train.size} rows. Try a larger batch_size, or fewer processes."
        )
    if isinstance(train, InMemory) and train.transform is not None:
        check_transform(train.transform, train.tensors, processes)
    if is_as_one() and 0 < last < processes.count:
        raise ValueError(
            f"as_one_process: expected a row of each batch on each of {processes.count} processes, "
            f"got a last batch of {last}. Try another batch_size."
        )


def _check_same_data(
    processes: Processes,
    objectives: Sequence[Objective],
    tensors: Sequence[Tensor],
    **settings: Any,
) -> None:
    """Raises on all processes where they do not have the same data, code or settings.

    Arguments:
        processes: The processes.
        objectives: What they are to descend.
        tensors: All rows, or the first ones.
        settings: What else they must have in common.
    """
    processes.check_agree(
        "fit",
        "Each process runs the same lines: try the same files, and torch.manual_seed(0) before "
        "anything is drawn, data and parameters included.",
        versions=[platform.python_version(), torch.__version__, pyro.__version__],
        objectives=[objective.name for objective in objectives],
        settings=settings,
        data=fingerprint(*tensors),
        code=code_of(objectives),
    )


def check_same_start(
    processes: Processes, objectives: Sequence[Objective], sites: dict[str, str]
) -> None:
    """Raises on all processes where their programs or parameters differ."""
    if processes.alone:
        return
    named = [pair for objective in objectives for pair in objective.named_parameters()]
    buffers = [x for module in modules_of(objectives) for x in module.buffers()]
    processes.check_agree(
        "fit",
        "Each process runs the same programs: try them without a look at the rank.",
        **{"sites of the programs": sites},
        names_of_parameters=[name for name, _ in named],
    )
    processes.check_agree(
        "fit",
        "Each process makes its own: try torch.manual_seed(0) before the modules are made.",
        parameters=fingerprint(*(x for _, x in named), *buffers),
    )


def code_of(objectives: Sequence[Objective]) -> str:
    """A checksum of what users have written of the programs."""
    check = 0
    for objective in objectives:
        programs = [getattr(objective, name, None) for name in ("model", "guide")]
        for program in (*programs, *modules_of([objective])):
            for code in _codes(program):
                constants = [x for x in code.co_consts if not isinstance(x, CodeType)]
                check = zlib.crc32(code.co_code + repr(constants).encode(), check)
    return f"{check:08x}"


def _codes(program: Any) -> Iterator[CodeType]:
    """The code of a function, or of the methods of modules that are not torch's or Pyro's."""
    if isinstance(program, (FunctionType, MethodType)):
        yield from _with_inner(program.__code__)
    elif isinstance(program, nn.Module):
        kinds = dict.fromkeys(kind for part in program.modules() for kind in type(part).__mro__)
        for kind in kinds:
            if not f"{kind.__module__}.".startswith((*OF_TORCH, "builtins")):
                for member in vars(kind).values():
                    if isinstance(member, FunctionType):
                        yield from _with_inner(member.__code__)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
