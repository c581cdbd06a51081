"""Several processes for a test, with a group of their own: forks of one that has imported all."""

import multiprocessing
import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PRELOADED = ["torch", "torch.distributed", "pyro", "pyro.infer.autoguide", "ppl_models", "guides"]
PRELOADED += ["arviz", "torch._dynamo"]  # which are imported late


def run_together(
    function: Callable[..., Any], count: int, *args: Any, patience: float = 60.0
) -> list[Any]:
    """What a function of a module, called alike on each of so many processes, returns or raises.

    Arguments:
        function: The function. An error that it raises is in the place of what it returns.
        count: The number of processes.
        args: Its arguments.
        patience: The seconds after which a process that does not answer is given up by the others.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        workers = [
            context.Process(
                target=_work,
                args=(send, folder, rank, count, patience, function, args),
                daemon=True,
            )
            for rank, (_, send) in enumerate(pipes)
        ]
        for worker in workers:
            worker.start()
        for _, send in pipes:
            send.close()
        found = [_received(receive) for receive, _ in pipes]
        for worker in workers:
            worker.join(10)
            worker.kill()
    return found


def all_returned(found: list[Any]) -> list[Any]:
    """The same, after checking that no process raised."""
    for rank, result in enumerate(found):
        if isinstance(result, BaseException):
            raise AssertionError(f"process {rank} raised {result!r}") from result
    return found


def _received(receive: Any) -> Any:
    try:
        return pickle.loads(receive.recv_bytes())
    except EOFError:
        return RuntimeError("the process ended without an answer")


def _work(
    send: Any,
    folder: str,
    rank: int,
    count: int,
    patience: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = Path(folder, "store").as_uri()
    wait = timedelta(seconds=patience)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=wait)
    try:
        result = function(*args)
    except Exception as error:
        error.add_note(traceback.format_exc())
        result = error
    # By pickle's own way: torch's would share memory with a process that has ended by then.
    try:
        content = pickle.dumps(result)
    except Exception as error:
        content = pickle.dumps(RuntimeError(f"{error}: {result!r}"))
    send.send_bytes(content)
