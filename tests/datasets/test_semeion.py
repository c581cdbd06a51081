"""Semeion's digits as their file holds them, and other digits brought to their size."""

import numpy as np
import pytest
import torch

from ppl_models.datasets import boxed, cropped, mnist, semeion
from tests.support.oracles import need_data

IMAGES = (np.random.default_rng(0).random((7, 16, 16)) > 0.5).astype(np.uint8)
LABELS = np.arange(7, dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "Semeion").mkdir()
    np.savez_compressed(tmp_path / "Semeion" / "semeion.npz", images=IMAGES, labels=LABELS)
    return tmp_path


def test_rows_and_labels_are_those_of_the_file(root):
    for path in (root, root / "Semeion" / "semeion.npz"):
        x, y = semeion(path)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(x, torch.tensor(IMAGES).flatten(1).float())
        assert torch.equal(y, torch.arange(7))


def test_the_real_file_fills_its_boxes():
    x, y = semeion(need_data("Semeion"))
    assert x.shape == (1593, 256)
    assert y.bincount().tolist() == [161, 162, 159, 159, 161, 159, 161, 158, 155, 158]
    images = x.view(-1, 16, 16)
    touched = images.any(1)[:, [0, -1]].float().mean(), images.any(2)[:, [0, -1]].float().mean()
    assert min(touched) > 0.9
    assert (boxed(x) != x).float().mean() < 0.05  # they are boxed already, nearly all


def test_digits_of_mnist_come_near_to_them():
    """Boxed as they are the nearest neighbour of a digit has its label, from the middle not."""
    root = need_data("MNIST")
    x, y = semeion(need_data("Semeion"))
    (train, labels), _ = mnist(root, labels=True, download=False)
    found = {}
    for how in (boxed, cropped):
        rows = how(train[:3000])
        assert ((rows == 0) | (rows == 1)).all()
        nearest = labels[:3000][torch.cdist(x[::4], rows).argmin(1)]
        found[how] = (nearest == y[::4]).double().mean().item()
    assert 0.7 < found[boxed] < 0.85
    assert 0.3 < found[cropped] < 0.5


def test_a_box_is_tight_and_stretched():
    image = torch.zeros(2, 6, 6)
    image[0, 1:3, 2] = 1.0  # a stroke of two pixels
    image[1, 1, 1] = image[1, 4, 4] = 0.5  # the corners of a box
    rows = boxed(image.flatten(1), side=4).view(2, 4, 4)
    assert (rows[0] == 1).all()
    assert rows[1].nonzero().tolist() == [[0, 0], [3, 3]]


def test_a_crop_is_the_middle():
    image = torch.zeros(1, 8, 8)
    image[0, 2:6, 2:4] = 1.0
    image[0, 0] = 1.0  # outside
    rows = cropped(image.flatten(1), middle=4, side=4).view(4, 4)
    assert torch.equal(rows, image[0, 2:6, 2:6])
    assert cropped(image.flatten(1), middle=4, side=2).tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_refusals(root, tmp_path):
    file = root / "Semeion" / "semeion.npz"
    with pytest.raises(FileNotFoundError, match=r"semeion: expected the file .* found none"):
        semeion(tmp_path / "nowhere")
    wrong = {
        "it has no .'labels'.": {"images": IMAGES},
        "'images' is something else, uint8": {"images": IMAGES[:, :8], "labels": LABELS},
        "'labels' is something else, uint8": {"images": IMAGES, "labels": LABELS + 9},
        "'labels' is something else": {"images": IMAGES, "labels": LABELS[:5]},
    }
    for message, arrays in wrong.items():
        np.savez_compressed(file, **arrays)
        with pytest.raises(ValueError, match=message):
            semeion(root)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"it is truncated, or no \.npz file"):
        semeion(root)
    with pytest.raises(ValueError, match="1 without a pixel of grey 1/2 or more, such as row 0"):
        boxed(torch.zeros(1, 25))
    with pytest.raises(ValueError, match="boxed: expected rows of square images"):
        boxed(torch.ones(2, 24))
    with pytest.raises(ValueError, match=r"cropped: expected rows of square images.*torch.uint8"):
        cropped(torch.ones(2, 25, dtype=torch.uint8))
    with pytest.raises(ValueError, match="middle: expected 5 pixels at most"):
        cropped(torch.ones(2, 25), middle=6)
    with pytest.raises(ValueError, match="boxed: 1 of 2 rows hold NaN"):
        boxed(torch.tensor([[1.0, 1, 1, 1], [torch.nan, 1, 1, 1]]))
