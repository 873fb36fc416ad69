"""The safetensors format: a header that says where each tensor lies, then their numbers.

    8 bytes   N, the length of the header, little-endian
    N bytes   JSON: {"NAME": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
    the rest  the numbers, little-endian; offsets count from here

Nothing in it can be executed. What a header says is checked: tensors lie in the file one behind
another, without overlap or hole, each as long as its shape says.
"""

from __future__ import annotations

import math
import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..files import entries, parse_json, shown

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
    """The tensors of a safetensors file by their names, on the CPU.

    Their memory is the file's, mapped: writing into them does not change it, but it must not be cut
    short meanwhile. Raises ValueError if the file is damaged.
    """
    if sys.byteorder != "little":
        raise ValueError("expected a little-endian machine for a safetensors file")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"expected a header of at most {MAX_HEADER:,} bytes, got {length:,}")
        if len(header := file.read(length)) < length:
            raise ValueError("a safetensors file that is cut short: copy or download it again")
        header = entries(parse_json(header.decode(), "safetensors header"), "safetensors header")
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    header.pop("__metadata__", None)
    start = 8 + length  # of the numbers
    placed = {name: _place(name, tensor) for name, tensor in header.items()}
    tensors, end = {}, 0
    for name, (dtype, shape, first, last) in sorted(placed.items(), key=lambda own: own[1][2:]):
        if first != end or start + last > len(memory):
            raise ValueError(
                f"tensor {shown(name)} lies at bytes {first:,} to {last:,}, expected it from "
                f"{end:,} on, up to {len(memory) - start:,}: copy or download the file again"
            )
        tensors[name], end = _numbers(memory, start + first, dtype, shape), last
    if start + end != len(memory):
        raise ValueError(f"expected {start + end:,} bytes, got {len(memory):,}: download it again")
    return {name: tensors[name] for name in header}


def _place(name: str, tensor: object) -> tuple[torch.dtype, list[int], int, int]:
    """Precision, shape, first byte and the one behind the last, as a header says, checked."""
    where = f"tensor {shown(name)}"
    fields = entries(tensor, where, dtype=str, shape=list, data_offsets=list)
    dtype, shape, offsets = DTYPES.get(fields["dtype"]), fields["shape"], fields["data_offsets"]
    if dtype is None:
        raise ValueError(f"{where}: expected {', '.join(DTYPES)}, got {shown(fields['dtype'])}")
    whole = [isinstance(n, int) and 0 <= n <= MAX_SIDE for n in (*shape, *offsets)]
    if not all(whole) or len(shape) > 64 or len(offsets) != 2:
        raise ValueError(f"{where}: a shape or offsets that cannot be: the file is damaged")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{where}: its shape and its bytes do not fit: the file is damaged")
    return dtype, shape, *offsets


def _numbers(memory: mmap.mmap, start: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """A tensor without a copy, unless its numbers are not aligned as memory must be."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if start % dtype.itemsize:
        copy = bytearray(memory[start : start + count * dtype.itemsize])
        return torch.frombuffer(copy, dtype=dtype).view(shape)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).view(shape)
