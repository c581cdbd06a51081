"""A whole run, as `benchmarks.speed.peers.total` starts it."""

import json
import sys
import time

import numpy as np

from benchmarks.speed.peers import ways


def main() -> None:
    way, name, steps, path = sys.argv[1:]
    began = time.perf_counter()
    make = ways.maker(way)
    imports = time.perf_counter() - began
    with np.load(path) as held:
        data = tuple(held.values())
    loss = make(name, data)(int(steps))
    print(json.dumps({"imports": imports, "loss": loss}))


if __name__ == "__main__":
    main()
