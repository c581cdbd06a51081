"""A program's loss as a flat graph of tensor operations, the same for other draws."""

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_models.infer.compiled.replaced import replaced
from ppl_models.infer.compiled.traced.constants import Anatomy
from ppl_models.infer.compiled.traced.evaluations import HALVES, Evaluations
from ppl_models.infer.compiled.traced.traced import Again, standing_in
from ppl_models.infer.compiled.waits import tidy, without_waits
from ppl_models.infer.compiled.watch import Spot, Watch, of_library

OUTSIDE = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}
APPLY = Function.__dict__["apply"]  # unbound: torch's own, to be called for any function
HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}
# Folders whose lines are not the user's.
OWN = (
    *(str(Path(str(library.__file__)).parent) for library in (torch, pyro)),
    str(Path(__file__).parents[2]),  # all of `infer`
)


def trace(
    evaluations: Evaluations, evaluate: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> tuple[GraphModule, list[Tensor]]:
    """Returns the graph of a loss, the same for other draws, and the tensors it has read."""
    reads = Reads()
    first, second = (drawn(seed, evaluations, evaluate, inputs, reads) for seed in range(2))
    if first.code != second.code:
        raise ValueError(
            "the graph is another with other draws: control flow, the number or the shapes of "
            "sites, depend on values" + _where_they_part(first, second)
        )
    own = {p.untyped_storage().data_ptr() for p in evaluations.parameters()}
    unseen = [x for x in read_by(first) if x.grad_fn is not None]
    if any(x.untyped_storage().data_ptr() not in own for x in unseen):  # nor is it a view of one
        raise ValueError("a part of it was computed where a trace does not see it")
    if sized := next((n for n in first.graph.nodes if _is_sized_by_values(n)), None):
        raise ValueError(f"the shape of {sized.name!r} depends on values")
    evaluations.halved = any(_dtype(node) in HALVES for node in first.graph.nodes)
    tidy(first, evaluations.device(), evaluations.found().tensors)
    return first, reads.tensors


def trace_again(
    spots: Sequence[Spot],
    evaluations: Evaluations,
    evaluate: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
) -> Again:
    """Returns the graph of a loss as it is now, with numbers followed, if that can be."""
    watch, reads = evaluations.found().watch, Reads()
    try:
        with standing_in(spots) as record:
            graph = drawn(0, evaluations, evaluate, inputs, reads)
    except Exception:  # a number is asked for what it cannot tell
        if not spots:
            raise
        return trace_again((), evaluations, evaluate, inputs)
    tidy(graph, evaluations.device(), evaluations.found().tensors)
    watch += [entry for x in reads.tensors for entry in value_watch(x)]
    followed = record if spots and not reads.tensors else None  # numbers that come by tensors
    return Again(graph, watch, Anatomy(graph, held(evaluations)), list(spots), followed)


def held(evaluations: Evaluations) -> list[Tensor]:
    """All tensors that programs hold: no constants of a graph."""
    parameters = [p for _, p in evaluations.objective.named_parameters()]
    return [*parameters, *evaluations.buffers(), *evaluations.found().tensors]


def drawn(
    seed: int,
    evaluations: Evaluations,
    evaluate: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    reads: "Reads",
) -> GraphModule:
    """The graph of a loss with the draws of a seed."""
    with (
        pyro.validation_enabled(False),
        without_waits(evaluations.device()),
        evaluations.untouched(inputs),
    ):
        torch.manual_seed(seed)
        tracer = make_fx(evaluate, pre_dispatch=True, _allow_non_fake_inputs=True)
        # Tensors of their own: one that comes twice, or that the program also knows by another
        # way, would be taken for the same in the calls to come. One mode for the shapes of all
        # operations: one for each, with the lines of Python that led there, would take half of
        # the time.
        own = replaced(Function, "apply", classmethod(_apply))
        with reads, Outside(), own, tracing(TracingContext(FakeTensorMode())):
            return tracer(*(x.detach() for x in inputs))


class Reads(TorchDispatchMode):
    """Notes the tensors whose values a program reads as numbers, which a trace then holds fast."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.data_dependent_output in func.tags:  # such as `item`, or `torch.equal`
            self.tensors += [x for x in args if isinstance(x, Tensor)]
        return func(*args, **(kwargs or {}))


class Outside(TorchFunctionMode):
    """Raises where a program does what a trace knows nothing of.

    That is to take numbers out of torch, or to say itself what a gradient is.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in OUTSIDE:
            raise ValueError(f"Tensor.{func.__name__} reads the values of a tensor outside torch")
        if func in HOOKS:
            raise ValueError(
                f"Tensor.{func.__name__} changes a gradient, of which a graph knows none"
            )
        return func(*args, **(kwargs or {}))


def _apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """`Function.apply` while a program is traced, which keeps the values of a function alone."""
    if not of_library(kind):
        raise ValueError(f"{kind.__name__} has a gradient of its own, of which a graph knows none")
    return APPLY.__get__(None, kind)(*args, **kwargs)


def value_watch(tensor: Tensor) -> Watch:
    """What must stay as it is of a tensor that was read as a number."""
    watch: Watch = [(partial(getattr, tensor, "_version"), tensor._version)]
    if tensor.is_cpu:  # which `tensor.data.fill_` changes unseen
        watch.append((partial(torch.equal, tensor, tensor.detach().clone()), True))
    return watch


def read_by(graph: GraphModule) -> list[Tensor]:
    """The tensors that a graph reads besides its inputs."""
    nodes = graph.graph.find_nodes(op="get_attr")
    return [x for n in nodes if isinstance(x := getattr(graph, str(n.target)), Tensor)]


def _is_sized_by_values(node: Node) -> bool:
    """Whether an operation gives as many numbers as values say, such as `x[mask]`."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    indices: Any = node.args[1]
    return any(_dtype(n) in (torch.bool, torch.uint8) for n in indices if isinstance(n, Node))


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _where_they_part(first: GraphModule, second: GraphModule) -> str:
    for a, b in zip(first.code.splitlines(), second.code.splitlines(), strict=False):
        if a != b:
            return f" (first in {a.split(';')[0].strip()!r})"
    return ""


def line_of(error: BaseException) -> str:
    """The line of the user's that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*OWN, "<"))]
    if not own:
        return ""
    return f" at {own[-1].filename}:{own[-1].lineno}, {own[-1].line!r}"


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
