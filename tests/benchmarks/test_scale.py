"""What the benchmark of rows on disk says of memory, and the file that it makes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale import FEATURES, write_rows

ROOT = Path(__file__).parents[2]


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


SCRIPT = """
import json, sys
import numpy as np
from benchmarks.scale import Memory

rows, memory = np.load(sys.argv[1], mmap_mode="r"), Memory()
found = [memory.now()]
with memory.watched():
    rows.sum(dtype="f4")
found.append(memory.most)
with memory.watched():
    copied = np.array(rows)
print(json.dumps([*found, memory.most]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_pages_of_a_file_are_not_the_memory_of_the_process(tmp_path):
    write_rows(tmp_path / "rows.npy", 0.1, seed=0)
    # By itself: a process that did other things may have room for the copy.
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    before, read, copied = json.loads(done.stdout)
    assert read["RssFile"] - before["RssFile"] > 90
    assert read["RssAnon"] - before["RssAnon"] < 30
    assert copied["RssAnon"] - before["RssAnon"] > 90
