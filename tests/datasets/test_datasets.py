"""Real data: what is read is what the files hold, and a bad file is refused by its name."""

import gzip
import http.server
import os
import socket
import struct
import sys
import threading
import time
from hashlib import md5
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from ppl_models.datasets import binarize, binary_mnist, digits, fashion_mnist, mnist
from ppl_models.datasets import idx as idx_files
from ppl_models.infer.training.batches import source
from ppl_models.transformed import Transformed

ROOT = Path(os.environ.get("PPL_DATA_ROOT") or Path(__file__).parents[3] / "shared" / "data")


def real(folder):
    reason = f"no {folder} in {ROOT}: set PPL_DATA_ROOT"
    return pytest.mark.skipif(not (ROOT / folder).is_dir(), reason=reason)


def idx(array):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(file, content):
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


GREY = np.random.default_rng(0).integers(0, 256, (7, 28, 28))  # train, then test
DIGIT = np.arange(7)
TINY = {
    "train-images-idx3-ubyte": idx(GREY[:5]),
    "train-labels-idx1-ubyte": idx(DIGIT[:5]),
    "t10k-images-idx3-ubyte": idx(GREY[5:]),
    "t10k-labels-idx1-ubyte": idx(DIGIT[5:]),
}


@pytest.fixture(params=["packed", "unpacked"])
def root(request, tmp_path):
    """Returns a folder with a tiny MNIST and a tiny Fashion-MNIST."""
    for name in ("MNIST", "FashionMNIST"):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for file, content in TINY.items():
            write(raw / (f"{file}.gz" if request.param == "packed" else file), content)
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    """Lets every download fail as it does without a network, and returns the calls."""
    calls = []

    def download_url(*args, **kwargs):
        calls.append(args)
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    return calls


def rows(grey):
    return torch.tensor(grey).flatten(1).float() / 255


# Digits


def test_digits_are_the_sixteenths_of_scikit_learn():
    from sklearn.datasets import load_digits

    (x, y), (x_test, y_test) = digits(labels=True)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.shape == (1500, 64)
    assert x_test.shape == (297, 64)
    np.testing.assert_array_equal(torch.cat([x, x_test]).numpy() * 16, load_digits().data)
    np.testing.assert_array_equal(torch.cat([y, y_test]).numpy(), load_digits().target)
    for without, part in zip(digits(), (x, x_test), strict=True):
        assert torch.equal(without, part)


def test_binary_digits_are_one_from_half_grey_on():
    grey, binary = digits(), digits(binary=True)
    for g, b in zip(grey, binary, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(b, (g >= 0.5).float())
    assert (grey[0] == 0.5).any()  # so that the line above tells >= from >


# Draws


def test_binarize_keeps_certain_pixels_and_the_mean():
    x = torch.tensor([0.0, 1.0, 0.3]).repeat(20_000, 1)
    drawn = binarize(x, seed=0)
    assert drawn.dtype == x.dtype
    assert ((drawn == 0) | (drawn == 1)).all()
    assert torch.equal(drawn[:, :2], x[:, :2])
    assert abs(drawn[:, 2].mean() - 0.3) < 4 * (0.3 * 0.7 / 20_000) ** 0.5


def test_binarize_follows_its_seed_and_without_one_torch():
    x = torch.full((100,), 0.5)
    assert torch.equal(binarize(x, seed=1), binarize(x, seed=1))
    assert not torch.equal(binarize(x, seed=1), binarize(x, seed=2))
    torch.manual_seed(1)
    first, second = binarize(x), binarize(x)
    torch.manual_seed(1)
    binarize(x, seed=5)  # leaves the global generator alone
    assert torch.equal(binarize(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("bad", [-0.1, 1.1, 255.0, float("nan")])
def test_binarize_refuses_what_is_no_grey_level(bad):
    with pytest.raises(ValueError, match=f"got 1 of 3 values outside, such as {bad:g}"):
        binarize(torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize("bad", [torch.tensor([0, 255], dtype=torch.uint8), [0.0, 1.0]])
def test_binarize_refuses_what_are_no_floats(bad):
    with pytest.raises(TypeError, match=r"got (a tensor of torch.uint8|list)"):
        binarize(bad)


# MNIST: files written here


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
def test_the_rows_are_what_the_files_hold(load, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it would raise
    before = sorted(root.rglob("*"))
    train, test = load(root)
    assert torch.equal(train, rows(GREY[:5]))
    assert torch.equal(test, rows(GREY[5:]))
    (x, y), (x_test, y_test) = load(str(root), labels=True)
    assert torch.equal(x, train)
    assert torch.equal(x_test, test)
    assert y.tolist() == [0, 1, 2, 3, 4]
    assert y_test.tolist() == [5, 6]
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert sorted(root.rglob("*")) == before  # nothing is unpacked: root may be read-only


def test_each_data_set_has_its_own_folder(root):
    for file in (root / "FashionMNIST" / "raw").glob("*images*"):
        file.unlink()
    mnist(root, download=False)
    with pytest.raises(FileNotFoundError, match="FashionMNIST: expected train-images"):
        fashion_mnist(root, download=False)


def test_labels_are_needed_only_where_asked_for(root):
    for file in (root / "MNIST" / "raw").glob("*labels*"):
        file.unlink()
    mnist(root, download=False)
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte.gz, t10k-labels"):
        mnist(root, labels=True, download=False)


def test_the_packed_file_is_read_where_there_are_both(root):
    raw = root / "MNIST" / "raw"
    for file, content in TINY.items():
        write(raw / f"{file}.gz", content)
        write(raw / file, content[:-1])  # as a broken unpacking leaves it
    assert torch.equal(mnist(root)[0], rows(GREY[:5]))


def test_fixed_draws_follow_the_seed(root):
    train, test = mnist(root, binarize="fixed", seed=3)
    assert set(train.unique().tolist()) == set(test.unique().tolist()) == {0.0, 1.0}
    again = mnist(root, binarize="fixed", seed=3)
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])
    other = mnist(root, binarize="fixed", seed=4)
    assert not torch.equal(train, other[0])
    assert not torch.equal(test, other[1])
    assert torch.equal(test, binarize(rows(GREY[5:]), seed=3))


def test_fixed_draws_of_train_and_test_are_independent(root):
    """Train and test hold the same grey levels here, and must not hold the same draw of them."""
    for split in ("train", "t10k"):
        for file in (root / "MNIST" / "raw").glob(f"{split}-images*"):
            write(file, idx(np.full((50, 28, 28), 127)))
    train, test = mnist(root, binarize="fixed")
    agreement = (train == test).float().mean()
    assert abs(agreement - 0.5) < 4 * 0.5 / train.numel() ** 0.5


@pytest.mark.parametrize("labels", [False, True])
def test_fresh_draws_differ_between_passes_and_the_test_part_is_fixed(root, labels):
    train, test = mnist(root, binarize="fresh", seed=3, labels=labels)
    assert isinstance(train, Transformed)
    assert len(train) == 5
    batches = source(train, batch_size=5, device=None)  # what `fit` iterates over
    passes = [next(iter(batches.epoch(seed))).values for seed in (0, 1)]
    first, second = (values[0] for values in passes)
    for drawn in (first, second):
        assert drawn.shape == (5, 784)
        assert drawn.unique().tolist() == [0.0, 1.0]
        grey = rows(GREY[:5])
        assert (drawn[grey == 0] == 0).all()
        assert (drawn[grey == 1] == 1).all()
    assert not torch.equal(first, second)
    if labels:
        assert all(values[1].tolist() == [0, 1, 2, 3, 4] for values in passes)
    fixed = mnist(root, binarize="fixed", seed=3, labels=labels)[1]
    for one, other in zip(test, fixed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", ["Fresh", True, "static"])
def test_another_binarisation_is_refused_before_anything_is_read(bad, tmp_path):
    with pytest.raises(ValueError, match=f"'fresh' for a draw for each batch, got {bad!r}"):
        mnist(tmp_path, binarize=bad)


# MNIST: bad files


def damaged(content):
    header = content[:4]
    return {
        "cut": content[:-1],
        "cut in the header": content[:9],
        "too long": content + b"\0",
        "no bytes": b"",
        "labels for images": idx(DIGIT),
        "floats": bytes((0, 0, 13, 3)) + content[4:],
        "no rows": header + struct.pack(">3I", 0, 28, 28),
        "a web page": b"<!DOCTYPE html><title>403 Forbidden</title>",
    }


@pytest.mark.parametrize("damage", damaged(b""))
def test_a_bad_file_is_refused_by_its_name(damage, root):
    (file,) = (root / "MNIST" / "raw").glob("t10k-images*")
    write(file, damaged(TINY["t10k-images-idx3-ubyte"])[damage])
    with pytest.raises(ValueError, match=r"expected a whole IDX file.*Try deleting") as caught:
        mnist(root)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "no gzip", "garbled", "checksum", "empty"])
@pytest.mark.parametrize("root", ["packed"], indirect=True)
def test_a_bad_gzip_file_is_refused_by_its_name(damage, root):
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    garbled, checksum = bytearray(whole), bytearray(whole)
    garbled[10] = 0xFF  # after the header: no block of zlib starts so
    checksum[-8] ^= 1
    bad = {
        "cut": whole[:-100],
        "no gzip": b"Not found",
        "garbled": garbled,
        "checksum": checksum,
        "empty": b"",
    }
    file.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: expected a whole IDX file"):
        mnist(root)


def test_a_label_is_needed_for_each_image(root):
    (file,) = (root / "MNIST" / "raw").glob("train-labels*")
    write(file, idx(DIGIT))
    with pytest.raises(ValueError, match="got 7 for 5 and 2 for 2"):
        mnist(root, labels=True)


# MNIST: downloads


def test_a_missing_folder_without_network_says_what_to_put_where(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as caught:
        mnist(tmp_path / "none")
    message = str(caught.value)
    assert f"in {tmp_path / 'none' / 'MNIST' / 'raw'}, found none of them" in message
    assert "train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz" in message
    assert "no network" in message
    assert "torchvision.datasets.MNIST.mirrors" in message
    assert isinstance(caught.value.__cause__, URLError)
    assert {call[2] for call in offline} == {"train-images-idx3-ubyte.gz"}  # not four waits
    assert list((tmp_path / "none" / "MNIST" / "raw").iterdir()) == []


def test_without_download_nothing_is_tried(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FileNotFoundError, match=r"and download=False\. Try fetching"):
        fashion_mnist(tmp_path / "none", download=False)
    assert not (tmp_path / "none").exists()


def test_torchvision_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FileNotFoundError, match=r"the download failed.*torchvision") as caught:
        mnist(tmp_path)
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_folder_that_cannot_be_written_is_the_cause(tmp_path):
    (tmp_path / "MNIST").write_text("a file where a folder should be")
    with pytest.raises(FileNotFoundError, match="Try fetching") as caught:
        mnist(tmp_path)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.fixture
def mirror(tmp_path_factory, monkeypatch):
    """Serves the tiny files as the only mirror of torchvision's MNIST, and returns the requests."""
    from torchvision.datasets import MNIST

    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path.removeprefix("/"))
            content = gzip.compress(TINY[requests[-1].removesuffix(".gz")], mtime=0)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    sums = [(f"{k}.gz", md5(gzip.compress(v, mtime=0)).hexdigest()) for k, v in TINY.items()]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(MNIST, "resources", sums)
        yield requests
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("root", ["packed"], indirect=True)
def test_only_what_is_missing_is_downloaded(root, mirror):
    raw = root / "MNIST" / "raw"
    (raw / "t10k-images-idx3-ubyte.gz").unlink()
    assert torch.equal(mnist(root)[1], rows(GREY[5:]))
    assert set(mirror) == {"t10k-images-idx3-ubyte.gz"}
    assert sorted(file.name for file in raw.iterdir()) == sorted(f"{file}.gz" for file in TINY)


def test_a_download_with_another_checksum_is_not_kept(tmp_path, mirror, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", [(file, "0" * 32) for file, _ in MNIST.resources])
    with pytest.raises(FileNotFoundError, match="corrupted"):
        mnist(tmp_path)
    assert list((tmp_path / "MNIST" / "raw").iterdir()) == []


def test_the_wait_for_a_silent_mirror_is_bounded(tmp_path, mirror, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(idx_files, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, and says nothing
        port = silent.getsockname()[1]
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
        start = time.monotonic()
        with pytest.raises(FileNotFoundError, match="timed out"):
            mnist(tmp_path)
        assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


# Binary MNIST


def parts(**changed):
    ones = {key: np.ones((2, 784), np.uint8) for key in ("train", "valid", "test")}
    return ones | changed


def test_binary_mnist_takes_the_file_or_its_folder(tmp_path):
    file = tmp_path / "BinaryMNIST" / "binarized_mnist.npz"
    file.parent.mkdir()
    zeros = np.zeros((3, 784), np.uint8)
    np.savez_compressed(file, **parts(test=zeros))
    for path in (file, str(tmp_path)):
        train, valid, test = binary_mnist(path)
        assert train.dtype == valid.dtype == test.dtype == torch.float32
        assert torch.equal(train, torch.ones(2, 784))
        assert torch.equal(test, torch.zeros(3, 784))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": np.full((2, 784), 2)}, "'test' is something else, int64"),
        ({"valid": np.full((2, 784), 0.5)}, "'valid' is something else, float64"),
        ({"valid": np.full((2, 784), np.nan)}, "'valid' is something else, float64"),
        ({"train": np.ones((2, 28, 28))}, r"'train' is something else, float64 \(2, 28, 28\)"),
        ({"train": np.ones((2, 64))}, r"'train' is something else, float64 \(2, 64\)"),
        ({"train": np.full((2, 784), "a")}, "'train' is something else, <U1"),
        ({"test": np.full((2, 784), None)}, "Object arrays cannot be loaded"),
    ],
)
def test_binary_mnist_refuses_other_values(changed, message, tmp_path):
    np.savez_compressed(tmp_path / "other.npz", **parts(**changed))
    with pytest.raises(ValueError, match=rf"other\.npz: expected train.*{message}"):
        binary_mnist(tmp_path / "other.npz")


def test_binary_mnist_refuses_other_keys(tmp_path):
    np.savez_compressed(tmp_path / "other.npz", train=np.ones((2, 784)), x=np.ones(1))
    with pytest.raises(ValueError, match=r"no \['test', 'valid'\], only \['train', 'x'\]"):
        binary_mnist(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "flipped", "garbled", "a .npy file", "a pickle"]
)
def test_binary_mnist_refuses_a_bad_file(damage, tmp_path):
    file = tmp_path / "bad.npz"
    np.savez(file, **parts())
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[500] ^= 1  # among the values of train
    np.savez_compressed(file, **parts())
    garbled = bytearray(file.read_bytes())
    garbled[30 + sum(struct.unpack("<HH", garbled[26:30]))] = 0xFF  # no block of zlib starts so
    np.save(tmp_path / "array.npy", np.ones((2, 784)))
    bad = {
        "cut": whole[:-10],
        "empty": b"",
        "flipped": flipped,
        "garbled": garbled,
        "a .npy file": (tmp_path / "array.npy").read_bytes(),
        "a pickle": b"\x80\x04]\x94.",
    }
    file.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"bad\.npz: expected train.*Try fetching the file again"):
        binary_mnist(file)


@pytest.mark.parametrize("path", ["", "none.npz"])
def test_binary_mnist_says_what_to_put_where(path, tmp_path):
    expected = tmp_path / (path or "BinaryMNIST/binarized_mnist.npz")
    with pytest.raises(FileNotFoundError, match=r"binarized_mnist_train\.amat") as caught:
        binary_mnist(tmp_path / path)
    assert f"expected the file {expected}, found none" in str(caught.value)


# Real files


def mean(x):
    return x.mean(dtype=torch.float64).item()


@real("MNIST")
def test_mnist_is_the_known_data_set():
    (x, y), (x_test, y_test) = mnist(ROOT, download=False, labels=True)
    assert x.shape == (60_000, 784)
    assert x_test.shape == (10_000, 784)
    assert y[:5].tolist() == [5, 0, 4, 1, 9]
    assert y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mean(x) == pytest.approx(0.1307, abs=5e-5)
    assert torch.equal(x_test[:1000].unique(), torch.arange(256) / 255)


@real("MNIST")
def test_fresh_mnist_has_the_mean_of_its_grey_levels():
    train, test = mnist(ROOT, binarize="fresh", download=False)
    grey = train.tensors[0][:2000]
    drawn = train.transform(grey)
    error = (grey * (1 - grey)).sum().sqrt() / grey.numel()  # standard error of the mean
    assert mean(drawn) == pytest.approx(mean(grey), abs=4 * error.item())
    assert test.shape == (10_000, 784)
    assert torch.equal(test, test.bool().float())


@real("FashionMNIST")
def test_fashion_mnist_is_the_known_data_set():
    (x, y), (x_test, y_test) = fashion_mnist(ROOT, download=False, labels=True)
    assert x.shape == (60_000, 784)
    assert x_test.shape == (10_000, 784)
    assert y.bincount().tolist() == [6000] * 10
    assert y_test.bincount().tolist() == [1000] * 10
    assert mean(x) == pytest.approx(0.2860, abs=5e-5)


@real("BinaryMNIST")
def test_binary_mnist_is_the_known_data_set():
    parts = binary_mnist(ROOT)
    assert [part.shape for part in parts] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    assert all(torch.equal(part, part.bool().float()) for part in parts)
    train, valid, _ = map(mean, parts)
    assert (5 * train + valid) / 6 == pytest.approx(0.1307, abs=2e-4)  # that of the grey levels
