"""What the benchmark of rows on disk says of memory, and the file that it makes."""

import numpy as np
import pytest

from benchmarks.scale import FEATURES, Memory, write_rows


def test_rows_come_from_the_seed(tmp_path):
    paths = [tmp_path / name for name in ("one.npy", "same.npy", "other.npy")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_rows(path, 0.005, seed)
    one, same, other = (np.load(path, mmap_mode="r") for path in paths)
    assert one.shape == (int(0.005e9 / 4 / FEATURES), FEATURES)
    assert one.dtype == np.float32
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert 3 < one.var() < 7  # of noise, and of centres


def test_pages_of_a_file_are_not_the_memory_of_the_process(tmp_path):
    write_rows(tmp_path / "rows.npy", 0.1, seed=0)
    rows, memory = np.load(tmp_path / "rows.npy", mmap_mode="r"), Memory()
    if "RssAnon" not in memory.now():
        pytest.skip("needs /proc")
    before = memory.now()
    with memory.watched():
        rows.sum(dtype="f4")
    assert memory.most["RssAnon"] - before["RssAnon"] < 30
    with memory.watched():
        copied = np.array(rows)
    assert memory.most["RssAnon"] - before["RssAnon"] > 90
    assert len(copied) == len(rows)
