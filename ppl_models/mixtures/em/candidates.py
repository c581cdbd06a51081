"""The best of some candidates after a few steps, which those that fall behind do not take."""

from collections.abc import Callable

from torch import Tensor

SHORT = 10  # steps after which the best goes on,
REST = 1e-4  # or earlier, where it gains no more, in nats per row, and is ahead


def settled(step: Callable[[], Tensor | None], keep: Callable[[list[int]], None]) -> int | None:
    """Which candidate is best after some steps; None where there is no such step.

    Arguments:
        step: Takes a step of all candidates; returns how good they were before it.
        keep: Goes on with some of the candidates only.
    """
    now: list[float] = []
    best = 0
    for left in reversed(range(SHORT + 1)):
        values = step()
        if values is None:
            return None
        before, now = now, values.tolist()
        best = max(range(len(now)), key=now.__getitem__)
        if not before:
            continue
        ahead = in_the_race(now, before, left)
        if ahead == [best] and now[best] - before[best] <= REST:
            break
        if left and 2 * len(ahead) <= len(now):
            keep(ahead)
            now = [now[which] for which in ahead]
    return best


def in_the_race(now: list[float], before: list[float], left: int) -> list[int]:
    """The best candidate, and those that will get above it in the steps left, if any.

    Example:
        >>> in_the_race([1.0, 0.9, 0.5], [0.9, 0.8, 0.49], left=3)
        [0, 1]
    """
    best = max(range(len(now)), key=now.__getitem__)
    ends = [new + left * (new - old) for new, old in zip(now, before, strict=True)]
    above = now[best] + REST
    return [
        which
        for which, end in enumerate(ends)
        if which == best or (now[which] < now[best] and end > above)
    ]
