"""The table of samplers."""

import argparse
import warnings

import arviz as az
import numpy as np

from benchmarks.speed.samplers.problems import Draws, problems
from benchmarks.speed.samplers.ways import of_numpyro, of_pyro, ours

WAYS = {"ours": ours, "NumPyro": of_numpyro, "Pyro": of_pyro}
HEAD = f"{'problem':22} {'way':8} {'draws':>6} {'ESS':>6} {'start s':>8} {'draw s':>8}"


def main(args: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    print(f"{HEAD} {'ESS/s':>8} {'in all':>8} {'ratio':>7} {'in all':>7} {'apart':>6}")
    for name, problem in problems().items():
        if not name.startswith(tuple(args.only)):
            continue
        first: tuple[float, float, Draws] | None = None
        for way in args.ways:
            number, chains = args.draws, args.chains
            if way == "Pyro":
                number, chains = min(number, problem.fewer), 1
            found = WAYS[way](problem, number, chains)
            quantities = problem.quantities(found.draws)
            size = least(quantities)
            rates = size / (found.whole - found.start), size / found.whole
            first = first or (*rates, quantities)
            line = f"{name:22} {way:8} {number * chains:6} {size:6.0f} {found.start:8.2f}"
            line += f" {found.whole - found.start:8.2f} {rates[0]:8.1f} {rates[1]:8.1f}"
            ratios = first[0] / rates[0], first[1] / rates[1]
            line += f" {ratios[0]:7.2f} {ratios[1]:7.2f} {apart(first[2], quantities):6.1f}"
            print(line, flush=True)


def least(quantities: Draws) -> float:
    """The least effective number of draws."""
    return min(float(az.ess(values)) for values in quantities.values())


def apart(one: Draws, other: Draws) -> float:
    """The largest difference of two means, in standard errors."""

    def of(name: str) -> float:
        errors = [float(az.mcse(values[name])) for values in (one, other)]
        difference = float(one[name].mean() - other[name].mean())
        return abs(difference) / max(float(np.hypot(*errors)), 1e-12)

    return max(of(name) for name in one) if one is not other else 0.0
