"""The pickle of a checkpoint, run by an unpickler that can build nothing but tensors and dicts.

A pickle is a program that may call any function it can name. This unpickler knows the few
instructions and names that checkpoints need and stops at any other; functions are replaced by our
own, classes by a plain dict. Nothing that is nested is hashed, compared or printed, as it may be
endless, and every loop over what a pickle says is bounded.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable

import torch
from torch import Tensor

MAX_NAME = 1000  # characters of a module's or class's name
MAX_WORK = 300_000  # calls in a pickle, their arguments, and attributes that it sets
MAX_DIMENSIONS = 64  # of a tensor, in torch as well


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
        module, name = module[:MAX_NAME], name[:MAX_NAME]
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

        Keys but text are dropped, as to hash them may take for ever; only dicts take text.
        """
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
