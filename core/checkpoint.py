"""A checkpoint's safetensors files, tensor by tensor: plain reads of what is asked for, every byte counted.

No memory map: some limits count one as the process's own data, and the pages of a file larger than the memory drive out
everything else. Knows tensors by the names that they have in the files; nothing of models.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from .catalog import read_header, weight_files
from .errors import ModelError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `begin` and `nbytes` say where its data are."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class Checkpoint:
    """The tensors of a folder's checkpoint. May be read from several threads.

    `tensors`: {name: where it is}; `bytes_read`: {name: bytes read of it so far}. Raises `ModelError` where a file is
    damaged or holds numbers of a kind that cannot be read this way.
    """

    def __init__(self, folder: Path) -> None:
        single = folder / "model.safetensors"
        self.tensors: dict[str, Stored] = {}
        self.bytes_read: Counter[str] = Counter()
        self._handles: dict[Path, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._handles)
        for file in [single] if single.is_file() else weight_files(folder)[0]:
            try:
                header, start = read_header(file)
                size = file.stat().st_size
                for name, entry in header.items():
                    begin, end = entry["data_offsets"]
                    dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
                    if dtype is None:
                        raise ModelError(
                            f"The weight {name} is stored as {entry['dtype']}, which cannot be read layer by layer.",
                            "Use a machine with more memory, or a checkpoint in bfloat16.",
                        )
                    fits = 0 <= begin <= end <= size - start and all(isinstance(n, int) and n >= 0 for n in shape)
                    if not fits or math.prod(shape) * dtype.itemsize != end - begin:
                        raise ValueError("the tensor's place and shape do not fit")
                    self.tensors[name] = Stored(file, dtype, shape, start + begin, end - begin)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
                raise ModelError(f"The weights in {file.name} cannot be read.", "Copy or download it again.") from None

    @property
    def total_read(self) -> int:
        """Bytes read so far."""
        with self._lock:
            return self.bytes_read.total()

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor in the number format of the file."""
        stored = self.tensors[name]
        out = torch.empty(stored.shape, dtype=stored.dtype)
        self._fill(name, out, 0)
        return out

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop−1 of a tensor's first dimension."""
        stored = self.tensors[name]
        out = torch.empty((stop - start, *stored.shape[1:]), dtype=stored.dtype)
        self._fill(name, out, start * (stored.nbytes // stored.shape[0]))
        return out

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Read the whole tensor to `out`: contiguous, of the same size, in any number format."""
        stored = self.tensors[name]
        assert out.numel() * stored.dtype.itemsize == stored.nbytes
        if out.dtype == stored.dtype:
            self._fill(name, out, 0)
        else:
            out.copy_(self.read(name).view(out.shape))

    def place_of(self, name: str) -> tuple[str, int]:
        """Where a tensor lies: by this order a disk reads without going back and forth."""
        return str(self.tensors[name].file), self.tensors[name].begin

    def _fill(self, name: str, out: torch.Tensor, offset: int) -> None:
        assert out.is_contiguous() and out.dtype == self.tensors[name].dtype
        stored, size = self.tensors[name], out.numel() * out.element_size()
        if not size:
            return
        view = memoryview(out.reshape(-1).view(torch.uint8).numpy())
        handle, done = self._handle(stored.file), 0
        while done < size:
            got = os.preadv(handle, [view[done:]], stored.begin + offset + done)
            if got == 0:
                raise ModelError(f"The weight file {stored.file.name} is cut short.", "Copy or download it again.")
            done += got
        with self._lock:
            self.bytes_read[name] += size

    def _handle(self, file: Path) -> int:
        with self._lock:
            if file not in self._handles:
                try:
                    self._handles[file] = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                except OSError as error:
                    raise ModelError(
                        f"The weight file {file.name} cannot be opened ({error.strerror}).", "Copy it again."
                    ) from None
            return self._handles[file]


def _close(handles: dict[Path, int]) -> None:
    for handle in handles.values():
        os.close(handle)
    handles.clear()
