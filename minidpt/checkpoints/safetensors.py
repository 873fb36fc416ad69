"""The safetensors format: a header that says where each tensor lies, then their numbers.

    8 bytes   N, the length of the header, little-endian
    N bytes   JSON: {"NAME": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
    the rest  the numbers, little-endian; offsets count from here

Nothing in it can be executed. A tensor lies within the file, as long as its shape says.
"""

from __future__ import annotations

import math
import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..support.files import check_fields, parse_json, short_repr

MAX_HEADER = 2**21  # bytes; bigG's has 0.2 M
MAX_SIDE = 2**40  # of a tensor
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by their names, on the CPU.

    Their memory is the file's, mapped: writing into them does not change it, but it must not be cut
    short meanwhile. Raises ValueError if the file is damaged.
    """
    if sys.byteorder != "little":
        raise ValueError("expected a little-endian machine for a safetensors file")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"expected a header of at most {MAX_HEADER:,} bytes, got {length:,}")
        header = file.read(length)
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if len(header) < length:
        raise ValueError("a safetensors file that is cut short: copy or download it again")
    header = check_fields(parse_json(header.decode(), "safetensors header"), "safetensors header")
    header.pop("__metadata__", None)
    tensors, start, used = {}, 8 + length, 0
    for name, fields in header.items():
        where = f"tensor {short_repr(name)}"
        dtype, shape, first, last = _check_entry(fields, where)
        used += last - first
        if start + max(last, used) > len(memory):
            got = f"bytes {first:,} to {last:,} of {len(memory) - start:,}"
            raise ValueError(f"{where}: {got}, or over others: copy or download it again")
        data, offset = memory, start + first
        if offset % dtype.itemsize:  # a tensor's memory must be aligned
            data, offset = bytearray(memory[offset : start + last]), 0
        numbers = torch.empty(0, dtype=dtype)
        if count := math.prod(shape):
            numbers = torch.frombuffer(data, dtype=dtype, count=count, offset=offset)
        tensors[name] = numbers.view(shape)
    return tensors


def _check_entry(fields: object, where: str) -> tuple[torch.dtype, list[int], int, int]:
    """Check what a header says of a tensor: precision, shape, first byte, one behind the last."""
    check_fields(fields, where, dtype=str, shape=list, data_offsets=list)
    dtype, shape, offsets = DTYPES.get(fields["dtype"]), fields["shape"], fields["data_offsets"]
    if dtype is None:
        got = short_repr(fields["dtype"])
        raise ValueError(f"{where}: expected {', '.join(DTYPES)}, got {got}")
    are_sizes = all(isinstance(n, int) and 0 <= n <= MAX_SIDE for n in (*shape, *offsets))
    if not are_sizes or len(shape) > 64 or len(offsets) != 2:
        raise ValueError(f"{where}: a shape or offsets that cannot be: the file is damaged")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{where}: its shape and its bytes do not fit: the file is damaged")
    return dtype, shape, *offsets
