"""How processes meet in a store that may hold what earlier ones have left.

`torchrun --max-restarts` starts processes again beside the same store. Where one of them read the
address of a process that was killed, it would wait for it in vain. So each comes with a new name;
the first one writes down who is there, again and again, until all have found themselves in it.
"""

import time
import uuid
from datetime import timedelta

from torch.distributed import Store

PAUSE = 0.02  # seconds from one look to the next


def meet(store: Store, rank: int, count: int, patience: timedelta) -> str:
    """Returns a name that the processes which are there now have in common, and no others.

    Arguments:
        store: Where they meet.
        rank: The number of this process.
        count: How many will come.
        patience: How long to wait for them.

    Raises:
        TimeoutError: If they do not come.
    """
    own, noted, found = uuid.uuid4().hex, "", ""
    store.set(f"ppl_models/name of {rank}", own)
    end = time.monotonic() + patience.total_seconds()
    while time.monotonic() < end:
        if rank == 0 and (names := _names(store, count)) != found:
            store.set("ppl_models/all", names)
        found = _read(store, "ppl_models/all")
        names_found = found.split()
        if len(names_found) == count and names_found[rank] == own:
            meeting = f"ppl_models/{uuid.uuid5(uuid.NAMESPACE_OID, found).hex}"
            came = store.add(f"{meeting}/came", 0 if noted == meeting else 1)
            noted = meeting
            if came == count:
                return meeting
        time.sleep(PAUSE)
    here = [r for r in range(count) if _read(store, f"ppl_models/name of {r}")]
    raise TimeoutError(
        f"process {rank} of {count} waited {patience} for the others; {len(here)} of them came. "
        f"Try the output of those that did not, and the same --nnodes on all machines."
    )


def _names(store: Store, count: int) -> str:
    """The names of all that have come so far."""
    return " ".join(_read(store, f"ppl_models/name of {rank}") or "-" for rank in range(count))


def _read(store: Store, key: str) -> str:
    """What a store has under a key; nothing where it has none."""
    return store.get(key).decode() if store.check([key]) else ""
