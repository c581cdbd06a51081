r"""Semeion's handwritten digits, and digits of other data sets brought to their size.

The digits of Semeion fill their box of 16 x 16 pixels and are binary. How those of another data
set are cropped decides how far the two are apart: boxed tightly and stretched as these are, or
taken from the middle of their image, as they are.

Shapes: `N` rows, `D` pixels of a square image, line by line.

References:
    | Semeion Handwritten Digit (Buscema, 1998), https://doi.org/10.24432/C5SC8V
"""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ppl_models.checks import check_count, check_finite
from ppl_models.datasets.images import Folder, Labelled

INK = 0.5  # the grey level from which a pixel is drawn


def semeion(root: Folder) -> Labelled:
    """Returns `(x, y)`: 1593 handwritten digits of 16 x 16 binary pixels, and which they are.

    They are sorted by digit, in the order of their file.

    Arguments:
        root: A folder with `Semeion/semeion.npz`, or that file: `images`, `(N, 16, 16)` bytes of
            0 and 1, and `labels`, `(N,)`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, or holds anything else.

    Example:
        >>> x, y = semeion("data")  # doctest: +SKIP
    """
    file = Path(root).expanduser()
    if file.suffix != ".npz":
        file = file / "Semeion" / "semeion.npz"
    if not file.is_file():
        raise FileNotFoundError(
            f"semeion: expected the file {file}, found none. Try fetching semeion.data from "
            f"https://doi.org/10.24432/C5SC8V, whose lines are 256 pixels and then ten zeros and "
            f"a one, and writing it with numpy.savez_compressed(file, images=..., labels=...)."
        )
    try:
        images, labels = _read(file)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file}: expected images of 16 x 16 zeros and ones and their labels, but {error}. "
            f"Try fetching the file again."
        ) from error
    x = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))  # (N, 256)
    return x, torch.from_numpy(labels.astype(np.int64))


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    if not zipfile.is_zipfile(file):  # numpy would take it for a pickle
        raise ValueError("it is truncated, or no .npz file")
    with np.load(file, allow_pickle=False) as archive:
        if missing := {"images", "labels"} - set(archive.files):
            raise ValueError(f"it has no {sorted(missing)}, only {sorted(archive.files)}")
        images, labels = archive["images"], archive["labels"]
    if images.shape[1:] != (16, 16) or not np.all((images == 0) | (images == 1)):
        raise ValueError(f"'images' is something else, {images.dtype} {images.shape}")
    if labels.shape != images.shape[:1] or not np.isin(labels, range(10)).all():
        raise ValueError(f"'labels' is something else, {labels.dtype} {labels.shape}")
    return images, labels


def boxed(x: Tensor, side: int = 16) -> Tensor:
    """Returns binary images of digits cut out tightly, and stretched to `side` x `side` pixels.

    Arguments:
        x: Grey levels in [0, 1] of square images, `(N, D)`.
        side: The pixels of a side of the new images.

    Raises:
        ValueError: If the rows are no square images, or one has no pixel from grey 1/2 on.

    Example:
        >>> x = torch.zeros(1, 25)
        >>> x[0, [7, 12]] = 1.0  # a stroke of two pixels
        >>> boxed(x, side=2)
        tensor([[1., 1., 1., 1.]])
    """
    images = _square(x, side, "boxed")
    ink = images >= INK
    empty = (~ink.flatten(1).any(1)).nonzero().flatten()
    if len(empty):
        raise ValueError(
            f"boxed: expected a digit in each image, got {len(empty)} without a pixel of grey 1/2 "
            f"or more, such as row {int(empty[0])}. Try leaving them out, or x / x.max()."
        )
    return torch.stack([_stretched(*pair, side) for pair in zip(images, ink, strict=True)])


def _stretched(image: Tensor, ink: Tensor, side: int) -> Tensor:
    lines, columns = (ink.any(d).nonzero().flatten() for d in (1, 0))
    box = image[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1]
    return _resized(box[None], side)[0]


def cropped(x: Tensor, middle: int = 20, side: int = 16) -> Tensor:
    """Returns binary images of the middle of others, shrunk or stretched to `side` x `side` pixels.

    Arguments:
        x: Grey levels in [0, 1] of square images, `(N, D)`.
        middle: The pixels of a side of what is kept.
        side: The pixels of a side of the new images.

    Raises:
        ValueError: If the rows are no square images of `middle` pixels a side or more.

    Example:
        >>> cropped(torch.ones(3, 784)).shape
        torch.Size([3, 256])
    """
    images = _square(x, side, "cropped")
    check_count(middle=middle)
    if middle > images.shape[1]:
        raise ValueError(
            f"middle: expected {images.shape[1]} pixels at most, as the images have, got {middle}."
        )
    start = (images.shape[1] - middle) // 2
    return _resized(images[:, start : start + middle, start : start + middle], side)


def _square(x: Tensor, side: int, where: str) -> Tensor:
    """Rows as images, `(N, S, S)`."""
    check_count(side=side)
    size = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    if not x.is_floating_point() or not size or size * size != x.shape[1]:
        raise ValueError(
            f"{where}: expected rows of square images, (N, D) floating-point numbers with a whole "
            f"root of D, got {x.dtype} {tuple(x.shape)}. Try x.flatten(1).float() / 255."
        )
    check_finite(x, where)
    return x.view(len(x), size, size)


def _resized(images: Tensor, side: int) -> Tensor:
    """Binary rows, `(N, side * side)`."""
    grey = interpolate(images[:, None], (side, side), mode="bilinear", antialias=True)
    return (grey >= INK).to(images.dtype).flatten(1)
