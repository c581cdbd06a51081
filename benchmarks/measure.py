"""What all timings share: the name of the machine, its clock, and its memory."""

import itertools
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def machine(device: str | torch.device) -> str:
    """The name of the GPU or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if (known := Path("/proc/cpuinfo")).exists():
        for line in known.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def about(device: str | torch.device) -> dict[str, Any]:
    """What belongs to every number."""
    found = {
        "device": str(device),
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if torch.device(device).type == "cuda":
        found["cuda"] = torch.version.cuda
    return found


def heading(device: str | torch.device) -> str:
    found = about(device)
    return f"{device} ({found['machine']}), {found['threads']} thread(s), torch {found['torch']}"


def write(path: Path | None, device: str, **found: Any) -> None:
    """Writes numbers as JSON, with what belongs to them, if there is a file for them."""
    if path is not None:
        path.write_text(json.dumps({**about(device), **found}, indent=1))


def wait(device: str | torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: str | torch.device, times: int = 1) -> float:
    """The mean time of a call, until the device has done it."""
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    wait(device)
    return (time.perf_counter() - began) / times


def peak(device: str | torch.device) -> float:
    """The most memory so far, in MiB: of tensors on a GPU, else of the process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A step by hand as one launch of a CUDA graph, as PyTorch's manual has it.

    The step reads tensors that stay where they are, and reads nothing of the device. It is taken
    three times before it is recorded.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class Stopwatch:
    """A schedule for `fit` that changes no rate, and notes the time after some of the steps.

    So a whole `fit` is measured, without its start.
    """

    def __init__(self, device: str | torch.device, every: int) -> None:
        self.device, self.every = device, every
        self.times: list[float] = []

    def __call__(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, self._note)

    def _note(self, step: int) -> float:
        if step % self.every == 0:
            wait(self.device)
            self.times.append(time.perf_counter())
        return 1.0

    def seconds(self) -> list[float]:
        """Those of each `every` steps but the first, in which all is compiled."""
        return [b - a for a, b in itertools.pairwise(self.times)][1:]
