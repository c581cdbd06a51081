r"""Real data as tensors in memory: images are rows of grey levels in [0, 1].

Binary images are draws :math:`x_{nd} \sim \mathrm{Bernoulli}(g_{nd})` from the grey levels `g`.
State which draws with every number: training images drawn anew for each batch act as more data,
and a model scores up to about 2 nats better with them than with images drawn once.

Shapes: `N` rows, `D` features (pixels, line by line).

References:
    | On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008)
    | https://doi.org/10.1145/1390156.1390266
    | Importance Weighted Autoencoders (Burda et al., 2016), for both kinds of draws
    | https://arxiv.org/abs/1509.00519
"""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from ppl_models.datasets import idx
from ppl_models.transformed import Transformed

Folder: TypeAlias = str | os.PathLike[str]
Binarize: TypeAlias = Literal["fixed", "fresh"] | None
Labelled: TypeAlias = tuple[Tensor, Tensor]
Part: TypeAlias = Any  # Tensor, or Labelled, or Transformed where it is drawn anew


def binarize(x: Tensor, seed: int | None = None) -> Tensor:
    """Returns one Bernoulli draw, of zeros and ones, whose means are the grey levels `x`.

    Arguments:
        x: Grey levels in [0, 1], of any shape and floating dtype.
        seed: The seed of the draw. Default: from torch's global generator, anew each time.

    Raises:
        TypeError: If `x` is not a tensor of floats.
        ValueError: If a value of `x` lies outside [0, 1], or is NaN.

    Example:
        >>> binarize(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"binarize: expected a tensor of floats in [0, 1], got {got}. "
            f"Try binarize(x / 255) for a tensor of bytes."
        )
    if not (inside := (x >= 0) & (x <= 1)).all():
        outside = x[~inside]
        raise ValueError(
            f"binarize: expected grey levels in [0, 1], got {outside.numel()} of {x.numel()} "
            f"values outside, such as {outside[0].item():g}. Try x / 255 for grey levels in bytes."
        )
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return torch.bernoulli(x, generator=generator)


@overload
def digits(*, binary: bool = ..., labels: Literal[False] = ...) -> tuple[Tensor, Tensor]: ...
@overload
def digits(*, binary: bool = ..., labels: Literal[True]) -> tuple[Labelled, Labelled]: ...
def digits(*, binary: bool = False, labels: bool = False) -> tuple[Part, Part]:
    """Returns `(train, test)`: 1500 and 297 handwritten digits of 8 x 8 pixels.

    They ship with scikit-learn; nothing is downloaded and nothing drawn.

    Arguments:
        binary: Whether grey levels from 1/2 on become 1 and the others 0. Default: the 17 grey
            levels `k / 16`.
        labels: Whether each part is a tuple `(x, y)`, where `y` are the digits, as integers.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
        | https://doi.org/10.24432/C50P49

    Example:
        >>> train, test = digits(binary=True)
        >>> train.shape, test.shape
        (torch.Size([1500, 64]), torch.Size([297, 64]))
        >>> train.unique()
        tensor([0., 1.])
    """
    from sklearn.datasets import load_digits  # here, because it is slow to import

    data = load_digits()
    raw = torch.tensor(data.data, dtype=torch.float32)  # (N, D)
    x = (raw >= 8).float() if binary else raw / 16
    y = torch.tensor(data.target, dtype=torch.int64)  # (N,)
    if labels:
        return (x[:1500], y[:1500]), (x[1500:], y[1500:])
    return x[:1500], x[1500:]


def mnist(
    root: Folder,
    *,
    binarize: Binarize = None,
    seed: int = 0,
    download: bool = True,
    labels: bool = False,
) -> tuple[Part, Part]:
    """Returns `(train, test)`: 60000 and 10000 handwritten digits of 28 x 28 pixels.

    State the binarisation with every number: it moves the negative log-likelihood by about 2 nats.

    Arguments:
        root: A folder in torchvision's layout, with `MNIST/raw/train-images-idx3-ubyte.gz` and
            so on, packed or unpacked. It is written to only where files are missing.
        binarize: `None` for the 256 grey levels `k / 255`, `"fixed"` for one draw, or `"fresh"`
            for a train part that `fit` draws anew for each batch (a `Transformed`). The test
            part, `binarize(test, seed)`, is the same in both: an evaluation needs one draw.
        seed: The seed of the fixed draws. Fresh ones come from torch's global generator.
        download: Whether to download the files that are missing, through torchvision.
        labels: Whether each part is a tuple `(x, y)`, where `y` are the digits, as integers. A
            fresh train part is then one `Transformed`, whose batches are such tuples.

    Raises:
        ValueError: If `binarize` is none of these, or a file is truncated or a foreign one.
        FileNotFoundError: If files are missing and could not be downloaded.

    References:
        | Gradient-based Learning Applied to Document Recognition (LeCun et al., 1998)
        | https://doi.org/10.1109/5.726791

    Example:
        >>> train, test = mnist("data", binarize="fixed", seed=0)  # doctest: +SKIP
        >>> train.shape, test.shape  # doctest: +SKIP
        (torch.Size([60000, 784]), torch.Size([10000, 784]))
    """
    return _images("MNIST", root, binarize, seed, download, labels)


def fashion_mnist(
    root: Folder,
    *,
    binarize: Binarize = None,
    seed: int = 0,
    download: bool = True,
    labels: bool = False,
) -> tuple[Part, Part]:
    """Returns `(train, test)`: 60000 and 10000 pieces of clothing of 28 x 28 pixels.

    Arguments and errors are those of `mnist`; the files lie in `root/FashionMNIST/raw`.

    References:
        | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms
        | (Xiao et al., 2017), https://arxiv.org/abs/1708.07747

    Example:
        >>> (x, y), test = fashion_mnist("data", labels=True)  # doctest: +SKIP
    """
    return _images("FashionMNIST", root, binarize, seed, download, labels)


def binary_mnist(path: Folder) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `(train, valid, test)`: 50000, 10000 and 10000 digits that were drawn once for all.

    The literature calls this MNIST "statically binarised". Test rows may lie in the order of their
    digits: a part of them should be spread over all, as `test[::10]`.

    Arguments:
        path: The file `binarized_mnist.npz`, or a folder with `BinaryMNIST/binarized_mnist.npz`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, or holds anything else.

    References:
        | The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        | https://proceedings.mlr.press/v15/larochelle11a.html

    Example:
        >>> train, valid, test = binary_mnist("data")  # doctest: +SKIP
    """
    file, keys = Path(path).expanduser(), ("train", "valid", "test")
    if file.suffix != ".npz":
        file = file / "BinaryMNIST" / "binarized_mnist.npz"
    if not file.is_file():
        raise FileNotFoundError(
            f"binary_mnist: expected the file {file}, found none. Try fetching Larochelle's "
            f"binarized_mnist_train.amat, _valid.amat and _test.amat, and writing it with "
            f"numpy.savez_compressed(file, train=..., valid=..., test=...), as rows of 784 bytes."
        )
    try:
        if not zipfile.is_zipfile(file):  # numpy would take it for a pickle
            raise ValueError("it is truncated, or no .npz file")
        with np.load(file, allow_pickle=False) as archive:
            if missing := set(keys) - set(archive.files):
                raise ValueError(f"it has no {sorted(missing)}, only {sorted(archive.files)}")
            parts = [archive[key] for key in keys]
        for key, part in zip(keys, parts, strict=True):
            if part.ndim != 2 or part.shape[1] != 784 or not np.all((part == 0) | (part == 1)):
                raise ValueError(f"{key!r} is something else, {part.dtype} {part.shape}")
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file}: expected train, valid and test, rows of 784 zeros and ones, but {error}. "
            f"Try fetching the file again."
        ) from error
    train, valid, test = (torch.from_numpy(part.astype(np.float32)) for part in parts)
    return train, valid, test


def _images(
    name: str, root: Folder, how: Binarize, seed: int, download: bool, labels: bool
) -> tuple[Part, Part]:
    """Reads the data set that torchvision calls `name`."""
    if how not in (None, "fixed", "fresh"):
        raise ValueError(
            f"binarize: expected None for grey levels, 'fixed' for one draw or 'fresh' for a draw "
            f"for each batch, got {how!r}."
        )
    folder = Path(root).expanduser() / name / "raw"
    kinds = ("images-idx3", "labels-idx1") if labels else ("images-idx3",)
    files = [f"{split}-{kind}-ubyte.gz" for kind in kinds for split in ("train", "t10k")]
    arrays = [idx.read(path) for path in idx.require(name, folder, files, download)]

    train, test = (
        torch.from_numpy(array.reshape(len(array), -1).astype(np.float32)).div_(255)  # (N, D)
        for array in arrays[:2]
    )
    if how is not None:
        # Test first: it is then one draw for a seed, whatever becomes of train.
        generator = torch.Generator().manual_seed(seed)
        test = torch.bernoulli(test, generator=generator)
        if how == "fixed":
            train = torch.bernoulli(train, generator=generator)
    if not labels:
        return Transformed(train, transform=torch.bernoulli) if how == "fresh" else train, test

    y_train, y_test = (torch.from_numpy(array.astype(np.int64)) for array in arrays[2:])
    if (len(train), len(test)) != (len(y_train), len(y_test)):
        raise ValueError(
            f"{folder}: expected one label for each image, got {len(y_train)} for {len(train)} "
            f"and {len(y_test)} for {len(test)}. Try fetching the files again."
        )
    if how == "fresh":
        return Transformed(train, y_train, transform=_draw_images), (test, y_test)
    return (train, y_train), (test, y_test)


def _draw_images(x: Tensor, y: Tensor) -> Labelled:
    return torch.bernoulli(x), y
