"""Reading checkpoints without executing anything that is in them.

A `.pt` file is a zip archive: `NAME/data.pkl` is a pickle that says how the tensors are nested, and
`NAME/data/0`, `NAME/data/1`, … are the raw numbers. OpenAI's files are TorchScript archives: the
same, but the pickle fills objects of compiled classes instead of dicts. A pickle is a program that
may call any function it can name; ours is run by an unpickler that knows the few instructions and
names that checkpoints need and stops at any other. Functions are replaced by our own, classes by a
plain dict. Numbers are not read but mapped into memory.

Nothing that is nested is hashed, compared or printed, as it may be endless, and every loop over
what a file says is bounded by the file's size or by the constants below.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..files import one_line_errors, shown
from .safetensors import read_safetensors

MAX_ENTRIES = 100_000  # in a checkpoint, its nesting flattened; ViT-L/14 has 446 tensors
MAX_NAME = 256  # characters of a flattened name
MAX_KEY = 1000  # characters of any name in a pickle
MAX_PICKLE = 2**21  # bytes, and so instructions; ViT-L/14's has 0.1 M
MAX_WORK = 300_000  # calls in a pickle, and attributes that it sets
MAX_DIRECTORY = 2**21  # bytes of a zip's list of members; ViT-L/14's has 0.1 M
MAX_ARGUMENTS = 20  # of a function or class that a pickle names
MAX_DIMENSIONS = 64  # of a tensor, in torch as well
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's first pickle, before 1.6


@one_line_errors
def read_state_dict(path: str | PathLike) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by their dotted names, in the file's order and precision.

    Reads what `read_checkpoint` reads. Names of nested dicts and modules are joined with dots, what
    is no tensor is left out. Memory is as in `read_checkpoint`.

    Raises what `read_checkpoint` raises, and ValueError if there is no tensor, or if there are so
    many over the same memory that a copy of each would be larger than the file.
    """
    tensors = {}
    for count, (name, value) in enumerate(_walk(read_checkpoint(path))):
        if count == MAX_ENTRIES or len(name) > MAX_NAME:
            raise ValueError(f"{path}: nested without end, expected the state dict of a model")
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
    """Every entry of a nested dict with its dotted name, depth first.

    A dict may contain itself: the caller stops at a count, and at a length of the names.
    """
    if isinstance(bag, dict):
        for key, value in bag.items():
            if isinstance(key, str):
                yield prefix + key, value
                yield from _walk(value, f"{prefix}{key}.")
            else:
                yield prefix, None  # of no use, but it counts


@one_line_errors
def read_checkpoint(path: str | PathLike) -> object:
    """All that a checkpoint file holds: dicts, lists, tuples, tensors, numbers and strings.

    Reads TorchScript archives, what `torch.save` wrote, also before PyTorch 1.6 (then copied), and
    safetensors. Objects become dicts of their attributes: TorchScript modules, those of
    `torch.optim`, a Namespace; what else a trainer keeps (numpy arrays, paths, sets, times) becomes
    an empty dict. Entries are left out whose key is neither a text nor a small whole
    number. Tensors are on the CPU, without gradient. Their memory is the file's, mapped: writing
    into them does not change it, but it must not be cut short meanwhile.

    Raises FileNotFoundError if there is no such file, ValueError if it is no checkpoint, is damaged
    or names a function or class that no checkpoint needs (nothing of it is executed).
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is no regular file"
        problem = problem if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {problem}: expected a checkpoint file")
    with open(path, "rb") as file:
        head = file.read(100)
    try:
        if head.startswith(b"PK"):
            return _Archive(path).load()
        if head.startswith(LEGACY_MAGIC):
            return _LegacyFile(path).load()
        if head[8:9] == b"{":
            return read_safetensors(path)
    except ValueError as error:
        fix = ": copy or download it again" if isinstance(error, UnicodeError) else ""
        raise ValueError(f"{path}: {error}{fix}") from error
    except MemoryError:
        raise
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: cut short ({error}): copy or download it again") from error
    except Exception as error:  # a damaged pickle fails in any way
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path}: damaged, or not a state dict ({reason}): copy or download it again"
        ) from error
    raise ValueError(f"{path}: expected a checkpoint, got {_describe(head)}")


def _describe(head: bytes) -> str:
    """What a file that is no checkpoint is, from its first bytes, and what to do about it."""
    if not head:
        return "an empty file: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer instead of the file: run `git lfs pull`"
    if head.lstrip(b"\xef\xbb\xbf\r\n\t ").startswith(b"<"):
        return "a web page: download the file itself, not the page about it"
    return f"a file that begins with {head[:8]!r}: save a state dict with torch.save"


class _Archive:
    """The members of an uncompressed zip file, mapped into memory (copy on write)."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            # The list of members, at the end; `zipfile` would read one of any length.
            self.before = file.seek(max(0, len(self.memory) - MAX_DIRECTORY))  # bytes
            with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
                self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(
                "expected an archive by torch.save or TorchScript, with one NAME/data.pkl in it, "
                f"got one with {len(pickles)}"
            )
        self.storages: dict[str, tuple[mmap.mmap | bytearray, int, int]] = {}
        self.copied = 0  # bytes
        self.root = pickles[0].removesuffix("data.pkl")
        if self.root + "byteorder" in self.members:
            byteorder = self.read("byteorder").decode("ascii", "replace")
            if byteorder != sys.byteorder:
                raise ValueError(
                    f"expected {sys.byteorder}-endian numbers, got {byteorder[:9]!r}: "
                    "save it again on a machine like this one"
                )

    def load(self) -> object:
        """What the archive's pickle builds."""
        return _Unpickler(io.BytesIO(self.read("data.pkl")), self.storage).load()

    def read(self, name: str) -> bytes:
        """The contents of the member `NAME/name`."""
        start, size = self.locate(name)
        if size > MAX_PICKLE:
            raise ValueError(f"member {name!r} has {size:,} bytes: expected a model's state dict")
        return self.memory[start : start + size]

    def locate(self, name: str) -> tuple[int, int]:
        """First byte and size in bytes of the member `NAME/name`; it lies within the file."""
        info = self.members.get(self.root + name)
        if info is None:
            raise ValueError(f"member {name!r} is missing: copy or download it again")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"member {name!r} is compressed: expected it as torch.save wrote it")
        header = max(
            self.before + info.header_offset, 0
        )  # 30 bytes; the last four: lengths of name and extra
        if not self.memory[header : header + 30].startswith(b"PK\x03\x04"):
            raise ValueError(f"member {name!r} is not where the archive says: it is damaged")
        start = header + 30 + sum(struct.unpack_from("<HH", self.memory, header + 26))
        if start + info.file_size > len(self.memory):
            raise ValueError(f"member {name!r} reaches beyond the end of the file: it is damaged")
        return start, info.file_size

    def storage(self, key: str, dtype: torch.dtype, length: int) -> Tensor:
        """`length` numbers of the member `NAME/data/key`, as a tensor (length,) without a copy."""
        if key not in self.storages:
            start, size = self.locate(f"data/{key}")
            self.storages[key] = self.memory, start, size
            if start % 8:  # repacked by another tool: a tensor's memory must be aligned
                self.copied += size
                if self.copied > len(self.memory):
                    raise ValueError("members lie over one another: the file is damaged")
                self.storages[key] = bytearray(self.memory[start : start + size]), 0, size
        memory, start, size = self.storages[key]
        if not 0 <= length * dtype.itemsize <= size:
            raise ValueError(f"tensor data {key!r}: {length} × {dtype} do not fit in {size} bytes")
        if length == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(memory, dtype=dtype, count=length, offset=start)


class _LegacyFile:
    """What torch.save wrote before PyTorch 1.6: pickles one after another, then all numbers."""

    def __init__(self, path: Path):
        self.path, self.room = path, path.stat().st_size  # bytes that its tensors can have
        self.storages: dict[str, Tensor] = {}

    def load(self) -> object:
        """What the pickle builds, copied into memory."""
        with open(self.path, "rb") as file:
            pickles = io.BytesIO(file.read(MAX_PICKLE))
            _magic, _version, system, content, keys = (
                _Unpickler(pickles, self.storage).load() for _ in range(5)
            )
            file.seek(pickles.tell())
            if system["little_endian"] != (sys.byteorder == "little"):
                raise ValueError("numbers in the other byte order: save it on one like this")
            for key in keys:
                if not isinstance(key, str) or key not in self.storages:
                    raise ValueError(f"tensor data {shown(key)} belong to nothing: it is damaged")
                storage = self.storages.pop(key)
                (length,) = struct.unpack("<q", file.read(8))
                got = file.readinto(storage.view(torch.uint8).numpy())
                if (length, got) != (len(storage), storage.nbytes):
                    raise ValueError(f"tensor data {key!r} are cut short: download it again")
        if self.storages:
            raise ValueError(f"tensor data {list(self.storages)[:3]} are missing: it is damaged")
        return content

    def storage(self, key: str, dtype: torch.dtype, length: int) -> Tensor:
        """Memory (length,) for the data `key`, which come later."""
        if key not in self.storages:
            size = length * dtype.itemsize
            if not 0 <= size <= self.room:
                raise ValueError(f"data {key!r}: {length} × {dtype} are more than the file has")
            self.room -= size
            self.storages[key] = torch.empty(length, dtype=dtype)
        storage = self.storages[key]
        if (storage.dtype, len(storage)) != (dtype, length):
            raise ValueError(f"tensor data {key!r} are named with different types")
        return storage


class Bag(dict):
    """Stands for an object of a class that is not imported: a dict of its attributes."""

    def __init__(self, *args: object):
        """The constructor's arguments are dropped."""
        super().__init__()

    def set_state(self, state: object) -> None:
        """Takes the attributes in; a state which is no dict is dropped."""
        if isinstance(state, dict):
            self.update(state)


class Items(Bag):
    """Stands for an OrderedDict or defaultdict: the pickle fills in the items, one by one."""

    def __init__(self, *args: object):
        """A factory of default values may be given, but no items."""
        super().__init__()
        if args and not isinstance(args[0], type):
            raise ValueError("a dict is made from a list of pairs, which torch.save never writes")

    def set_state(self, state: object) -> None:
        """Drops attributes: `_metadata` (versions of modules), which state dicts carry."""


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    """A view of the shape `size` into a storage; ValueError if it would leave the storage.

    Takes the place of `torch._utils._rebuild_tensor_v2`; what follows `stride` is about gradients.
    """
    valid = isinstance(storage, Tensor) and len(size) == len(stride) <= MAX_DIMENSIONS
    numbers = (offset, *size, *stride) if valid else ()
    if not valid or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a tensor whose size, stride or offset cannot be: the file is damaged")
    elements, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        elements *= length
        last += (length - 1) * step
    if elements and (last >= len(storage) or elements > len(storage)):
        raise ValueError(
            f"a tensor of size {size}, stride {stride}, offset {offset} "
            f"leaves its storage of {len(storage)} numbers"
        )
    return storage.as_strided(size, stride, offset) if elements else storage.new_empty(size)


def _first(value: object, *_: object) -> object:
    """The first argument: tags of types, and wrappers such as Parameter, are dropped."""
    return value


STAND_INS = {  # what a pickle may name, and what it gets
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _first,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "collections.OrderedDict": Items,
    "collections.defaultdict": Items,
}
# What trainers keep beside the weights, none of it of use here: settings, arrays, paths, times.
STAND_INS |= dict.fromkeys(
    """builtins.dict builtins.set builtins.frozenset builtins.slice builtins.bytearray
    __builtin__.dict __builtin__.set __builtin__.frozenset __builtin__.slice __builtin__.bytearray
    argparse.Namespace types.SimpleNamespace collections.Counter collections.deque _codecs.encode
    datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone
    pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath
    pathlib._local.PosixPath pathlib._local.WindowsPath pathlib._local.PurePosixPath
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
    torch.device torch.float64 torch.float32 torch.float16 torch.bfloat16 torch.int64 torch.int32
    torch.int16 torch.int8 torch.uint8 torch.bool torch.strided torch.contiguous_format""".split(),
    Bag,
)
INERT_MODULES = ("__torch__", "torch.optim")  # TorchScript's compiled classes; optimisers' state
INSTRUCTIONS = [
    getattr(pickle, name)[0]  # the byte
    for name in """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST APPEND APPENDS EMPTY_DICT BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL
    STACK_GLOBAL BINPERSID""".split()
]


class _Unpickler(pickle._Unpickler):
    """Builds tensors and dicts from a checkpoint's pickle, and nothing else.

    The unpickler that is written in Python, because its table of instructions can be narrowed. What
    `find_class` returns is all that REDUCE and NEWOBJ can call, and BUILD, which could set
    attributes of anything, only fills a `Bag`.
    """

    def __init__(self, stream: io.BytesIO, storage: Callable[[str, torch.dtype, int], Tensor]):
        """`storage`: key, precision and length of tensor data → these numbers, 1-D."""
        super().__init__(stream)
        self.storage, self.work = storage, 0

    def spend(self, work: int) -> None:
        """ValueError if the pickle takes more work than the bytes of its instructions tell of."""
        self.work += work
        if self.work > MAX_WORK:
            raise ValueError("a pickle of endless work: expected the state dict of a model")

    def find_class(self, module: str, name: str) -> object:
        """Our stand-in for a function or class that the pickle names."""
        self.spend(1)
        module, name = module[:MAX_KEY], name[:MAX_KEY]
        if f"{module}.{name}" in STAND_INS:
            return STAND_INS[f"{module}.{name}"]
        if any(f"{module}.".startswith(f"{inert}.") for inert in INERT_MODULES):
            return Bag
        raise ValueError(
            f"expected a state dict, got a pickle that names {module}.{name}; nothing was "
            "executed. If you trust the file, torch.save its state_dict() where it was made"
        )

    def persistent_load(self, pid: object) -> Tensor:
        """The numbers that ("storage", dtype, key, device, length) stands for, as a 1-D tensor."""
        self.spend(1)
        parts = pid if type(pid) is tuple and 5 <= len(pid) <= 6 else (None,) * 5
        kind, dtype, key, _, length, *view = parts  # a view: before PyTorch 0.4, None since then
        kinds = ((kind, str), (dtype, torch.dtype), (key, str), (length, int))
        fits = all(isinstance(part, wanted) for part, wanted in kinds) and len(key) <= MAX_KEY
        if not fits or kind != "storage" or any(part is not None for part in view):
            raise ValueError("expected a reference to tensor data, got another one")
        return self.storage(key, dtype, length)

    def load_call(self) -> None:
        """REDUCE and NEWOBJ: what is below the arguments is called with them."""
        self.spend(1)
        arguments = self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
            raise ValueError("the pickle calls a function with arguments that none has")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        """BUILD: the state on top of the stack goes into the bag below it."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Bag):
            raise ValueError(f"the pickle sets attributes of a {type(self.stack[-1]).__name__}")
        self.spend(len(state) if isinstance(state, dict) else 1)
        self.stack[-1].set_state(state)

    def fill(self, items: list) -> None:
        """SETITEM and SETITEMS: keys and values, in turns, go into the dict on top of the stack.

        Other keys than text and small numbers are dropped: to hash them may take for ever.
        """
        bag = self.stack[-1]
        if not isinstance(bag, dict):
            raise ValueError(f"the pickle sets items of a {type(bag).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str) and len(key) > MAX_KEY:
                raise ValueError(f"a name of {len(key):,} characters: the file is damaged")
            if isinstance(key, str) or (isinstance(key, int) and abs(key) < MAX_ENTRIES):
                bag[key] = value

    def load_set(self) -> None:
        """EMPTY_SET, and FROZENSET of what is on top: a bag."""
        self.append(Bag())

    def load_refused(self) -> None:
        """Any instruction that checkpoints do not need."""
        raise ValueError("the pickle has an instruction that no checkpoint needs: not executed")

    dispatch = dict.fromkeys(pickle._Unpickler.dispatch, load_refused)
    dispatch |= {code: pickle._Unpickler.dispatch[code] for code in INSTRUCTIONS}
    dispatch |= {
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_SET[0]: load_set,
        pickle.FROZENSET[0]: lambda self: (self.pop_mark(), self.load_set()),
        pickle.ADDITEMS[0]: lambda self: self.pop_mark(),
        pickle.SETITEM[0]: lambda self: self.fill([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.fill(self.pop_mark()),
    }
