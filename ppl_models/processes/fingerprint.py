"""Checksums, by which processes find out whether they have the same data and parameters."""

import zlib

import torch
from torch import Tensor

PIECE = 2**24  # bytes that are looked at at once


def fingerprint(*tensors: Tensor) -> str:
    """A checksum of tensors: their shapes, their types, and each bit of them.

    Example:
        >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(2))
        True
        >>> fingerprint(torch.arange(4)) == fingerprint(torch.arange(4).flip(0))
        False
    """
    check = 0
    for x in tensors:
        check = zlib.crc32(f"{tuple(x.shape)} {x.dtype}".encode(), check)
        content = x.detach().contiguous().reshape(-1).view(torch.uint8)
        for piece in content.split(PIECE):
            check = zlib.crc32(piece.cpu().numpy(), check)
    return f"{check:08x}"
