"""The random numbers of the processes of a run: each has its own, and a checkpoint has them all."""

from typing import Any

import torch

from ppl_models.infer.training.together.as_one import is_as_one
from ppl_models.processes import Processes
from ppl_models.scoped import get_rng_state, mix, set_rng_state


def take_own(processes: Processes, seed: int, device: torch.device) -> None:
    """Lets each process but the first draw other numbers from now on.

    Arguments:
        processes: The processes, whose generators are alike.
        seed: A seed that all have in common.
        device: Where they draw.
    """
    if processes.rank and not is_as_one():
        torch.manual_seed(mix(mix(seed, -2), processes.rank))


def take_first(processes: Processes, device: torch.device) -> None:
    """Lets all processes draw what the first one would from now on."""
    if not processes.alone:
        state = get_rng_state(device)
        for kind, content in state.items():
            known = processes.from_first(content.numpy().tobytes() if processes.is_first else None)
            state[kind] = torch.frombuffer(bytearray(known), dtype=torch.uint8)
        set_rng_state(state, device)


def states_of_all(processes: Processes, device: torch.device) -> dict[str, Any]:
    """Where the generators are, as a checkpoint holds them: of the others beside the first."""
    state = get_rng_state(device)
    if processes.alone:
        return {"rng": state}
    found = {kind: processes.gather(content) for kind, content in state.items()}
    each = [{kind: found[kind][n].cpu() for kind in found} for n in range(processes.count)]
    return {"rng": each[0], "rng_of_others": each[1:]}


def go_on_from(checkpoint: dict[str, Any], processes: Processes, device: torch.device) -> None:
    """Sets the generator of each process where it was; of one that was not there, to its own."""
    states = [checkpoint["rng"], *checkpoint.get("rng_of_others", [])]
    if processes.rank < len(states):
        set_rng_state(states[processes.rank], device)
    else:
        set_rng_state(states[0], device)
        take_own(processes, mix(checkpoint["progress"]["order_seed"], checkpoint["step"]), device)
