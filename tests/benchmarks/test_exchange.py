"""The model of an exchange is the one that it says it is."""

import pytest

from benchmarks.speed.exchange import fitted, modelled


def test_a_line_is_found_again() -> None:
    sizes = [10**4, 10**6, 10**8]
    times = [modelled(n, 4, 2e-5, 3e9) for n in sizes]
    assert fitted(sizes, times, 4) == pytest.approx((2e-5, 3e9))


def test_many_processes_exchange_at_most_twice_the_bytes() -> None:
    assert modelled(8e9, 512, 0.0, 1e9) == pytest.approx(16 * 511 / 512)
