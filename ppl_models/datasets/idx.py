"""Files in the IDX format of MNIST: found, read, and downloaded where they are missing.

A header of a magic number and the sizes, big-endian, then the bytes. Nothing is unpacked beside
the files, so that a folder that cannot be written serves as well.
"""

import gzip
import math
import os
import socket
import struct
import tempfile
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np

_TIMEOUT = 10.0  # seconds to wait for a mirror that does not answer


def _find(folder: Path, file: str) -> Path | None:
    """Returns the path of a packed file or, failing that, of the unpacked one."""
    # Packed first: it has a checksum, and unpacking all of MNIST takes a third of a second.
    paths = (folder / file, folder / file.removesuffix(".gz"))
    return next((path for path in paths if path.is_file()), None)


def read(path: Path) -> np.ndarray:
    """Reads the bytes of an IDX file, and their shape from its header."""
    ndim = 3 if "idx3" in path.name else 1
    start = 4 * (1 + ndim)  # of the data: after a magic number and the sizes
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read()
        if len(data) < start or data[:4] != bytes((0, 0, 8, ndim)):  # 8: unsigned bytes
            raise ValueError(f"its {len(data)} bytes start with {data[:4].hex() or 'nothing'}")
        shape = struct.unpack(f">{ndim}I", data[4:start])
        if len(data) - start != math.prod(shape) or 0 in shape:
            raise ValueError(f"{len(data) - start} bytes follow a header that announces {shape}")
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a whole IDX file of bytes in {ndim} dimensions, which starts with "
            f"0000080{ndim}, but {error}. Try deleting it and fetching it again."
        ) from error
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def require(name: str, folder: Path, files: list[str], download: bool) -> list[Path]:
    """Returns the paths of `files`, downloads those missing, or says where to put them."""
    failure: Exception | None = None
    missing = [file for file in files if _find(folder, file) is None]
    if missing and download:
        try:
            _download(name, folder, missing)
        except (ImportError, OSError, RuntimeError, HTTPException) as error:
            failure = error
        missing = [file for file in files if _find(folder, file) is None]
    if missing:
        why = f"the download failed ({failure})" if download else "download=False"
        raise FileNotFoundError(
            f"{name}: expected {', '.join(missing)} (or the same without .gz) in {folder}, found "
            f"none of them, and {why}. Try fetching them from one of "
            f"torchvision.datasets.{name}.mirrors, and putting them into that folder."
        ) from failure
    return [_find(folder, file) or folder / file for file in files]


def _download(name: str, folder: Path, files: list[str]) -> None:
    """Downloads `files`, each of them whole and checked, or not at all."""
    import torchvision  # here, because it is slow to import, and for downloads only

    source = getattr(torchvision.datasets, name)
    checksums = dict(source.resources)
    folder.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # torchvision sets none, and would wait for ever
    try:
        with tempfile.TemporaryDirectory(dir=folder) as part:
            for file in files:
                _download_one(source.mirrors, file, part, checksums[file])
                os.replace(Path(part, file), folder / file)
    finally:
        socket.setdefaulttimeout(timeout)


def _download_one(mirrors: list[str], file: str, folder: str, checksum: str) -> None:
    from torchvision.datasets.utils import download_url

    errors: list[Exception] = []
    for mirror in mirrors:
        try:
            return download_url(mirror + file, folder, file, checksum)
        except (OSError, RuntimeError, HTTPException) as error:
            errors.append(error)
    raise errors[0]
