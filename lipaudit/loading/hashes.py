"""SHA-256 of files and of named tensors: which bytes exactly were audited."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch


def sha256_of_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in the order given.

    The bytes are the values in row-major order, so strides and device do not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        # A zero byte ends the header: no name, dtype or shape holds one, so two headers never run together.
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
