"""Reading checkpoints without executing anything that is in them.

A `.pt` file is a zip archive: `NAME/data.pkl` is a pickle that says how the tensors are nested, and
`NAME/data/0`, `NAME/data/1`, … are the raw numbers. OpenAI's files are TorchScript archives: the
same, but the pickle fills objects of compiled classes instead of dicts. Numbers are not read but
mapped into memory. A safetensors file is

    8 bytes   N, the length of the header, little-endian
    N bytes   JSON: {"NAME": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
    the rest  the numbers, little-endian; offsets count from here

A pickle is a program that may call any function it can name. `Unpickler` can build nothing but
tensors and dicts: it knows the few instructions and names that checkpoints need and stops at any
other; functions are replaced by our own, classes by a plain dict. Nothing that is nested is hashed,
compared or printed, as it may be endless, and every loop over what a file says is bounded, by its
size or by the constants of this page.
"""

import io
import math
import mmap
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..support.files import check_fields, check_is_file, parse_json, short_repr, single_line_errors

MAX_ENTRIES = 100_000  # in a checkpoint, its nesting flattened; ViT-L/14 has 446 tensors
MAX_NAME = 256  # characters of a flattened name
MAX_PICKLE = 2**21  # bytes, and so instructions; ViT-L/14's has 0.1 M
MAX_DIRECTORY = 2**21  # bytes of a zip's list of members; ViT-L/14's has 0.1 M
MAX_HEADER = 2**21  # bytes of a safetensors file's header; bigG's has 0.2 M
MAX_GLOBAL = 1000  # characters of the name of a function or class in a pickle
MAX_WORK = 300_000  # calls in a pickle, their arguments, and attributes that it sets
MAX_DIMENSIONS = 64  # of a tensor, in torch as well


def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by their dotted names, in the file's order and precision.

    Reads as `read_checkpoint`, joining names of nested dicts and modules with dots. Raises alike,
    and ValueError if there is no tensor, or if there are so many over the same memory that a copy
    of each would be larger than the file.
    """
    tensors = {}
    for count, (name, value) in enumerate(_walk(read_checkpoint(path))):
        if count == MAX_ENTRIES or len(name) > MAX_NAME:
            raise ValueError(f"{path}: nested without end: expected the state dict of a model")
        if isinstance(value, Tensor):
            tensors[name] = value
    if not tensors:
        raise ValueError(f"{path}: expected a state dict, got no named tensor: save one in it")
    needed, size = sum(value.nbytes for value in tensors.values()), Path(path).stat().st_size
    if needed > size:
        got = f"{needed:,} bytes of tensors in {size:,} of the file"
        raise ValueError(f"{path}: expected tensors that share no memory, got {got}")
    return tensors


def _walk(bag: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every entry of a nested dict with its dotted name; no end if it contains itself."""
    if isinstance(bag, dict):
        for key, value in bag.items():
            yield prefix + key, value
            yield from _walk(value, f"{prefix}{key}.")


@single_line_errors
def read_checkpoint(path: str | PathLike, verify: bool = False) -> object:
    """Read what a checkpoint holds: dicts, lists, tuples, tensors, numbers and strings.

    Reads TorchScript archives, what `torch.save` has written since PyTorch 1.6, and safetensors.
    Objects become dicts of their attributes, those of no use here (arrays, paths, sets) empty ones.
    Entries are left out whose key is no text. Tensors are on the CPU, without gradient. Their
    memory is the file's, mapped: writing into them does not change it, but it must not be cut
    short meanwhile.

    verify: compare the CRC-32 of all that is read of an archive, which `torch.save` writes.
    Raises FileNotFoundError if there is no such file, ValueError if it is no checkpoint, is damaged
    or names a function or class that no checkpoint needs (nothing of it is executed).
    """
    path = Path(path)
    check_is_file(path, str(path))
    with open(path, "rb") as file:
        head = file.read(30)
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if head else b"")
    try:
        if head[8:9] == b"{":  # first, as the length of the header may look like a zip's "PK"
            return _read_safetensors(memory)
        if head.startswith(b"PK"):
            return _Archive(memory, verify).load()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle fails in any way
        reason = f"cut short, damaged, or no state dict ({type(error).__name__}: {error})"
        raise ValueError(f"{path}: {reason}: copy or download it again") from error
    expected = f"{path}: expected what torch.save writes since 1.6, or safetensors"
    fix = "download the file itself (git lfs pull), or save it with a newer torch"
    raise ValueError(f"{expected}, got a file that begins with {head!r}: {fix}")


class _Archive:
    """The members of an uncompressed zip file, mapped into memory (copy on write)."""

    def __init__(self, memory: memoryview, verify: bool):
        self.memory, self.before = memory, max(0, len(memory) - MAX_DIRECTORY)  # bytes
        # The list of members, at the end; `zipfile` would read one of any length.
        with zipfile.ZipFile(io.BytesIO(memory[self.before :])) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            expected = "an archive by torch.save or TorchScript, with one NAME/data.pkl"
            raise ValueError(f"expected {expected}, got {len(pickles)} of these")
        self.storages: dict[str, Tensor] = {}  # bytes
        self.verify, self.located = verify, 0  # bytes
        self.root = pickles[0].removesuffix("data.pkl")
        if self.root + "byteorder" in self.members:
            if (got := bytes(self.read("byteorder"))) != sys.byteorder.encode():
                raise ValueError(f"expected {sys.byteorder}-endian numbers, got {got[:9]!r}")

    def load(self) -> object:
        content = self.read("data.pkl")
        if len(content) > MAX_PICKLE:
            raise ValueError(f"its pickle has {len(content):,} bytes: expected a state dict's")
        return Unpickler(io.BytesIO(content), self.storage).load()

    def read(self, name: str) -> memoryview:
        """Return the bytes of the member `NAME/name`; fewer if it reaches behind the file's end."""
        info = self.members.get(self.root + name)
        if info is None:
            raise ValueError(f"member {name!r} is missing: copy or download it again")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"member {name!r} is compressed: expected it as torch.save wrote it")
        # 30 bytes, the last four: lengths of name and extra
        header = max(self.before + info.header_offset, 0)
        self.located += info.file_size
        # Together they are no larger than the file, unless they lie over one another.
        if self.memory[header : header + 4] != b"PK\x03\x04" or self.located > len(self.memory):
            raise ValueError(f"member {name!r} is not where the archive says: it is damaged")
        start = header + 30 + sum(struct.unpack_from("<HH", self.memory, header + 26))
        content = self.memory[start : start + info.file_size]
        # None is 0: torch.serialization.set_crc32_options(False)
        if self.verify and info.CRC and zlib.crc32(content) != info.CRC:
            raise ValueError(f"member {name!r} has another CRC-32: the file is damaged")
        return content

    def storage(self, key: str, dtype: torch.dtype, length: int) -> Tensor:
        """Map the member `NAME/data/key`: a tensor of `length` numbers, without a copy."""
        if key not in self.storages:
            self.storages[key] = _map_bytes(self.read(f"data/{key}"))
        size, needed = len(self.storages[key]), length * dtype.itemsize
        if not 0 <= needed <= size:
            raise ValueError(f"tensor data {key!r}: {length} × {dtype} do not fit in {size} bytes")
        return self.storages[key][:needed].view(dtype)


def _map_bytes(content: memoryview) -> Tensor:
    """Map bytes of a file to a tensor (size,), or copy them if not aligned for any dtype."""
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    numbers = torch.frombuffer(content, dtype=torch.uint8)
    return numbers.clone() if numbers.data_ptr() % 8 else numbers


def _read_safetensors(memory: memoryview) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by their names; every byte must be one tensor's."""
    length = int.from_bytes(memory[:8], "little")
    if length > MAX_HEADER:
        raise ValueError(f"expected a header of at most {MAX_HEADER:,} bytes, got {length:,}")
    header, memory = str(memory[8 : 8 + length], "utf-8"), memory[8 + length :]
    header = check_fields(parse_json(header, "safetensors header"), "safetensors header")
    header.pop("__metadata__", None)
    entries = {name: _check_entry(fields, short_repr(name)) for name, fields in header.items()}
    end, size = 0, len(memory)
    for first, last in [*sorted(offsets for *_, offsets in entries.values()), (size, size)]:
        if first != end:
            got = f"the next, or the end, at {first:,}: download it again"
            raise ValueError(f"expected {end:,} bytes of tensors, got {got}")
        end = last
    return {
        name: _map_bytes(memory[first:last]).view(dtype).view(shape)
        for name, (dtype, shape, (first, last)) in entries.items()
    }


def _check_entry(fields: object, name: str) -> tuple[torch.dtype, list[int], list[int]]:
    """Check what a header says of a tensor: precision, shape, and [first byte, one behind]."""
    where = f"tensor {name}"
    check_fields(fields, where, dtype=str, shape=list, data_offsets=list)
    dtype, shape, offsets = DTYPES[fields["dtype"]], fields["shape"], fields["data_offsets"]
    are_sizes = all(isinstance(n, int) and n >= 0 for n in (*shape, *offsets))
    are_sizes &= len(shape) <= MAX_DIMENSIONS and len(offsets) == 2
    if not are_sizes or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{where}: its shape and its bytes do not fit: the file is damaged")
    return dtype, shape, offsets


class AttributeBag(dict):
    """Stand for an object of a class that is not imported: a dict of its items and attributes."""

    def __init__(self, *args: object):
        """Drop the constructor's arguments."""
        super().__init__()


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    """Build a view of a storage, as torch's function of that name; ValueError if it leaves it."""
    numbers = (offset, *size, *stride) if len(size) == len(stride) <= MAX_DIMENSIONS else (None,)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a tensor whose size, stride or offset cannot be: the file is damaged")
    elements = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if elements and (last >= len(storage) or elements > len(storage)):
        raise ValueError(f"a tensor of size {size} leaves its storage of {len(storage)} numbers")
    return storage.as_strided(size, stride, offset) if elements else storage.new_empty(size)


def _first(value: object, *_: object) -> object:
    """Return the first argument: tags of types, and wrappers such as Parameter, are dropped."""
    return value


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool".split()  # as in DTYPES
ALLOWED_GLOBALS = {  # what a pickle may name, and what it gets
    **{f"torch.{kind}Storage": dtype for kind, dtype in zip(STORAGES, DTYPES.values())},
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _first,
    **{f"torch.jit._pickle.build_{kind}list": _first for kind in "int double bool tensor".split()},
    "torch.jit._pickle.restore_type_tag": _first,
}
# What trainers keep beside the weights, none of it of use here: settings, arrays, paths, times.
IGNORED = """builtins.dict builtins.set builtins.frozenset builtins.slice builtins.bytearray
    __builtin__.dict __builtin__.set __builtin__.frozenset __builtin__.slice __builtin__.bytearray
    argparse.Namespace types.SimpleNamespace _codecs.encode torch.device torch.strided
    torch.contiguous_format""".split()
ALLOWED_GLOBALS |= dict.fromkeys([*IGNORED, *map(str, DTYPES.values())], AttributeBag)
# Of these modules, and those inside them, any class: TorchScript's compiled ones are in __torch__.
INERT_MODULES = ("__torch__.", "torch.optim.", "collections.", "datetime.", "numpy.", "pathlib.")
INSTRUCTIONS = [
    getattr(pickle, name)[0]  # the byte
    for name in """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST APPEND APPENDS EMPTY_DICT BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL
    STACK_GLOBAL BINPERSID""".split()
]


class Unpickler(pickle._Unpickler):
    """Builds tensors and dicts from a checkpoint's pickle, and nothing else.

    The unpickler that is written in Python, whose table of instructions can be narrowed. What
    `find_class` returns is all that REDUCE and NEWOBJ can call, and BUILD, which could set
    attributes of anything, only fills an `AttributeBag`.
    """

    def __init__(self, stream: io.BytesIO, storage: Callable[[str, torch.dtype, int], Tensor]):
        """`storage`: key, precision and length of tensor data → these numbers, 1-D."""
        super().__init__(stream)
        self.storage, self.work = storage, 0

    def charge(self, work: int) -> None:
        """Raise ValueError if a pickle takes more work than the number of its bytes allows."""
        self.work += work
        if self.work > MAX_WORK:
            raise ValueError("a pickle of endless work: expected the state dict of a model")

    def find_class(self, module: str, name: str) -> object:
        """Return our stand-in for a function or class that the pickle names."""
        self.charge(1)
        module, name = module[:MAX_GLOBAL], name[:MAX_GLOBAL]
        if f"{module}.{name}" in ALLOWED_GLOBALS:
            return ALLOWED_GLOBALS[f"{module}.{name}"]
        if f"{module}.".startswith(INERT_MODULES):
            return AttributeBag
        got = f"a pickle that names {module}.{name}; nothing was executed"
        raise ValueError(f"expected a state dict, got {got}: torch.save a state_dict() alone")

    def persistent_load(self, pid: object) -> Tensor:
        """Return the numbers of ("storage", dtype, key, device, length), as a 1-D tensor."""
        self.charge(1)
        kind, dtype, key, _, length = pid
        if kind != "storage" or type(key) is not str:
            raise ValueError("expected a reference to tensor data, got another one")
        return self.storage(key, dtype, length)

    def load_call(self) -> None:
        """Run REDUCE or NEWOBJ: call what is below the arguments with them."""
        arguments = self.stack.pop()
        self.charge(1 + len(arguments))
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        """Run BUILD: put the state on top of the stack into the bag below it, if it is a dict."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], AttributeBag):
            raise ValueError(f"the pickle sets attributes of a {type(self.stack[-1]).__name__}")
        if isinstance(state, dict):
            self.charge(len(state))
            self.stack[-1].update(state)

    def fill(self, items: list) -> None:
        """Run SETITEM or SETITEMS: put keys and values, in turns, into the dict on the stack.

        Keys but text are dropped, as to hash them may take for ever.
        """
        if not isinstance(self.stack[-1], dict):  # such as a tensor, which would take ""
            kind = type(self.stack[-1]).__name__
            raise ValueError(f"expected a state dict, got a pickle that sets items of a {kind}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                self.stack[-1][key] = value

    # Any other instruction is a KeyError.
    dispatch = {code: pickle._Unpickler.dispatch[code] for code in INSTRUCTIONS}
    dispatch |= {
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_SET[0]: lambda self: self.append(AttributeBag()),
        pickle.FROZENSET[0]: lambda self: (self.pop_mark(), self.append(AttributeBag())),
        pickle.ADDITEMS[0]: lambda self: self.pop_mark(),
        pickle.SETITEM[0]: lambda self: self.fill([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.fill(self.pop_mark()),
    }
