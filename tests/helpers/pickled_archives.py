"""Write checkpoints by hand: pickles that torch.save would not write, in archives as its are."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def small_state() -> dict[str, Tensor]:
    """Make tensors of unusual memory: transposed, a slice, a number, empty."""
    base = torch.arange(35.0).reshape(5, 7)
    return {
        "plain": base,
        "transposed": base.t(),
        "part.of": base[1:4, 2:5],
        "part.number": torch.tensor(3),
        "part.nothing": torch.empty(0, 3),
        "brain": base.bfloat16() / 3,
        "flags": base > 11,
    }


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert the same names, dtypes, shapes and bits."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


NUMBERS = np.arange(6, dtype=np.float32).tobytes()


def write_archive(
    path: Path, program: bytes, method: int = zipfile.ZIP_STORED, **members: bytes
) -> Path:
    """Write an archive as torch.save's, with a pickle and members such as byteorder=b'big'.

    Its tensor data are "0", the six float32 0..5.
    """
    members = {"data/0": NUMBERS, **members}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), program)
        for name, value in members.items():
            archive.writestr(f"a/{name}", value)
    return path


class Stored:
    """What pickles as a reference to tensor data in an archive."""

    def __init__(
        self,
        key: object = "0",
        length: object = 6,
        kind: str = "storage",
        dtype: object = torch.FloatStorage,
    ):
        self.reference = (kind, dtype, key, "cpu", length)

    def __repr__(self) -> str:  # the same in each process that collects the tests
        return str(self.reference)


class Rebuilt:
    """What pickles as a tensor of any size, stride and offset, sensible or not."""

    def __init__(self, stored=Stored(), offset: object = 0, size=(2, 3), stride=(3, 1)):  # noqa: B008
        self.arguments = (stored, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def pickle_tensors(value: object) -> bytes:
    """Pickle a value that may contain `Stored` and `Rebuilt`."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> object:
            return item.reference if isinstance(item, Stored) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def pickle_text(value: str) -> bytes:
    """Return the opcodes that push a text."""
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def pickle_doubled(times: int) -> bytes:
    """Return the opcodes of nested tuples, each of which holds the one before it twice."""
    return b"()q\x00" + b"h\x00h\x00\x86q\x00" * times + b"t"
