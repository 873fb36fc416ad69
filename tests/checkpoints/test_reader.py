"""Checkpoints of every kind are read exactly, and nothing in them is ever executed."""

from __future__ import annotations

import io
import pickle
import random
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import torchscript
from helpers.tiny_models import WIDE, clip_state
from torch import Tensor, nn

import minidpt
from minidpt.checkpoints import reader as checkpoint
from minidpt.checkpoints.reader import read_checkpoint, read_state_dict
from minidpt.checkpoints.unpickler import AttributeBag, _rebuild_tensor
from minidpt.support.files import single_line_errors

# ---- files to read


class Node(nn.Module):
    """Modules nested as dotted names are, with a tensor at each end, and a forward to be traced."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        for name, value in tensors.items():
            *path, last = name.split(".")
            node = self
            for part in path:
                if not hasattr(node, part):
                    node.add_module(part, Node({}))
                node = getattr(node, part)
            node.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def save_traced(tensors: dict[str, Tensor], path: Path) -> Path:
    """A TorchScript archive as OpenAI's are: compiled modules, and numbers beside the weights."""
    model = Node(tensors).eval()
    model.register_buffer("input_resolution", torch.tensor(21))
    with torchscript.ignore_deprecation():
        torch.jit.trace(model, torch.zeros(1)).save(str(path))
    return path


def half_clip() -> dict[str, Tensor]:
    return {name: value.half() for name, value in clip_state(WIDE).items()}


def small_state() -> dict[str, Tensor]:
    """Tensors whose memory is unusual: transposed, part of another one, a number, nothing."""
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
    """Same names, precision, shapes and bits."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


NUMBERS = np.arange(6, dtype=np.float32).tobytes()


def write_archive(
    path: Path, program: bytes, method: int = zipfile.ZIP_STORED, **members: bytes
) -> Path:
    """A zip archive as torch.save's, of a given pickle and of members such as byteorder=b'big'.

    Its tensor data are "0", the six float32 0..5.
    """
    members = {"data/0": NUMBERS, **members}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), program)
        for name, value in members.items():
            archive.writestr(f"a/{name}", value)
    return path


class Stored:
    """Pickles as a reference to tensor data, as it stands in an archive's pickle."""

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
    """Pickles as a tensor of any size, stride and offset, sensible or not."""

    def __init__(self, stored=Stored(), offset: object = 0, size=(2, 3), stride=(3, 1)):  # noqa: B008
        self.arguments = (stored, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def dumps(value: object) -> bytes:
    """The pickle of a value that may contain `Stored` and `Rebuilt`."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> object:
            return item.reference if isinstance(item, Stored) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


# ---- what is read


def test_a_torchscript_archive_gives_every_tensor_of_clip_to_the_bit(tmp_path):
    got = read_state_dict(save_traced(half_clip(), tmp_path / "clip.pt"))
    assert got.pop("input_resolution") == 21
    assert_same(got, half_clip())


def test_a_scripted_module_with_lists_and_numbers_gives_its_tensors(tmp_path):
    class Scripted(Node):
        def __init__(self):
            super().__init__({"deep.er.weight": torch.arange(5.0)})
            self.numbers, self.flags, self.name, self.nothing = [1, 2], [True], "x", None
            self.table, self.tensors = {"key": torch.ones(3)}, [torch.ones(2)]

    with torchscript.ignore_deprecation():
        torch.jit.script(Scripted()).save(str(tmp_path / "a.pt"))
    expected = {"deep.er.weight": torch.arange(5.0), "table.key": torch.ones(3)}
    assert_same(read_state_dict(tmp_path / "a.pt"), expected)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_saved_state_dict_gives_its_tensors_to_the_bit(tmp_path, protocol):
    torch.save(small_state(), tmp_path / "a.pt", pickle_protocol=protocol)
    assert_same(read_state_dict(tmp_path / "a.pt"), small_state())


def test_a_modules_state_dict_with_parameters_and_metadata_gives_only_tensors(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.save(model.state_dict(keep_vars=True), tmp_path / "a.pt")  # Parameters, `_metadata`
    got = read_state_dict(tmp_path / "a.pt")
    assert_same(got, model.state_dict())
    assert list(read_checkpoint(tmp_path / "a.pt")) == list(got)
    assert not any(value.requires_grad for value in got.values())


def test_names_are_joined_with_dots_and_what_is_no_tensor_is_left_out(tmp_path):
    content = {"epoch": 3, "net": {"module.a": torch.ones(1), "names": ["b"], 7: torch.ones(1)}}
    torch.save(content | {"b": torch.ones(2), "args": {"lr": 0.1}}, tmp_path / "a.pt")
    assert_same(
        read_state_dict(tmp_path / "a.pt"), {"net.module.a": torch.ones(1), "b": torch.ones(2)}
    )


def test_a_published_prompt_checkpoint_with_optimiser_and_scheduler_is_read(tmp_path):
    ctx = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.SGD([ctx], lr=0.25, momentum=0.5)
    ctx.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    content = {  # Dassl's save_checkpoint; its warm-up scheduler holds another one, an object
        "state_dict": {"ctx": ctx},
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": scheduler, "last_epoch": 2},
        "val_result": np.float64(81.5),
    }
    path = tmp_path / "model.pth.tar-3"
    torch.save(content, path)
    got = read_checkpoint(path)
    assert got["epoch"] == 3 and got["optimizer"]["param_groups"][0]["momentum"] == 0.5
    assert got["optimizer"]["state"][0]["momentum_buffer"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert type(got["scheduler"]["successor"]) is type(got["val_result"]) is AttributeBag
    assert got["scheduler"]["successor"]["T_max"] == 5
    assert_same(read_state_dict(path), {"state_dict.ctx": ctx.detach()})


def test_what_a_prompt_file_holds_comes_back_as_it_was(tmp_path):
    content = {
        "classnames": ["grey owl", "ünïcode 😀"],
        "nested": {"numbers": [1, -2, 300, 70_000, 2**40, 0.1], "shape": torch.Size([2, 3])},
        "switches": (True, False, None),
        "bytes": "",
    }
    torch.save(content, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt") == content


def test_tensors_are_the_mapped_file_and_writing_into_them_leaves_it_alone(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.full((1000,), 2.0)}, path)
    before = path.read_bytes()
    written, mapped = read_state_dict(path)["weight"], read_state_dict(path)["weight"]
    written.fill_(5)
    assert path.read_bytes() == before and mapped.eq(2).all()
    start = before.index(torch.full((1000,), 2.0).numpy().tobytes())
    with open(path, "r+b") as file:  # a copy would not see this
        file.seek(start)
        file.write(torch.full((1000,), 3.0).numpy().tobytes())
    assert mapped.eq(3).all() and written.eq(5).all()


def test_an_archive_that_another_tool_packed_unaligned_is_read(tmp_path):
    torch.save(small_state(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr("x" + name, old.read(name))
    assert_same(read_state_dict(tmp_path / "b.pt"), small_state())


def test_the_handmade_archive_of_the_attacks_below_is_read_when_it_is_sound(tmp_path):
    path = write_archive(tmp_path / "a.pt", dumps({"a": Rebuilt()}), byteorder=b"little")
    assert read_state_dict(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


# ---- nothing is executed


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def attacks(sentinel: Path) -> dict[str, bytes]:
    """Pickles that create the file in the standard unpickler."""
    touch = text(f"touch '{sentinel}'") + b"\x85R"
    argument = text(f"open({str(sentinel)!r}, 'w').close()")
    make = b"cbuiltins\neval\n" + argument + b"\x85R"
    programs = {
        "os": b"cos\nsystem\n" + touch,
        "posix": b"cposix\nsystem\n" + touch,
        "eval": make,
        "eval under its name in Python 2": b"c__builtin__\neval\n" + argument + b"\x85R",
        "eval by strings": text("builtins") + text("eval") + b"\x93" + argument + b"\x85R",
        "exec deep inside": b"}" + text("a") + b"]cbuiltins\nexec\n" + argument + b"\x85Ras",
        "instruction INST": b"(" + argument + b"ibuiltins\neval\n",
        "eval by OBJ": b"(cbuiltins\neval\n" + argument + b"o",
        "state of a dict": b"ccollections\nOrderedDict\n)R}" + text("x") + make + b"sb",
        "after a tensor's function": b"ctorch._utils\n_rebuild_tensor_v2\n" + make,
        "torch.load inside": b"ctorch.storage\n_load_from_bytes\n" + make,
    }
    return {name: b"\x80\x02" + program + b"." for name, program in programs.items()}


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, attack):
    sentinel = tmp_path / "sentinel"
    program = attacks(sentinel)[attack]
    pickle.loads(program)
    assert sentinel.exists(), "the attack must work, or this test proves nothing"
    sentinel.unlink()
    refusal = "instruction .*not executed" if "instruction" in attack else "nothing was executed"
    with pytest.raises(ValueError, match=refusal):
        read_checkpoint(write_archive(tmp_path / "a.pt", program))
    assert not sentinel.exists()


def test_a_file_from_before_pytorch_1_6_is_refused_and_what_to_do_is_said(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="since 1.6, .* save it with a newer torch"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch.optimizers", "Evil"),
        ("torch", "load"),
        ("torch", "hub"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.jit._pickle", "restore_type_tag.__call__"),
        ("__torch__evil", "x"),
        ("clip.model", "CLIP"),
    ],
)
def test_a_refused_name_is_said(tmp_path, module, name):
    program = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."
    message = f"a.pt: expected a state dict, got a pickle that names {module}.{name}; nothing was"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_checkpoint(write_archive(tmp_path / "a.pt", program))


def test_a_refused_name_cannot_draw_on_the_terminal(tmp_path):
    program = b"\x80\x02" + text("a\nb\x1b[2J") + text("c" * 10_000) + pickle.STACK_GLOBAL + b"."
    with pytest.raises(ValueError, match=r"names a b\\x1b\[2J\.c+ … c+; nothing was") as error:
        read_checkpoint(write_archive(tmp_path / "a.pt", program))
    assert len(str(error.value)) < 1000


def test_classes_of_known_modules_are_not_imported_but_become_dicts(tmp_path):
    """Whatever the name: `__torch__.os.system` and `torch.optim.os.system` are inert as well."""
    state = b"}" + text("__class__") + text("x") + b"sb"
    for name in (b"__torch__.os\nsystem\n", b"torch.optim.os\nsystem\n"):
        for make in (text("touch x") + b"\x85R", b")\x81", text("touch x") + b"\x85\x81"):
            program = b"\x80\x02c" + name + make + state + b"."
            got = read_checkpoint(write_archive(tmp_path / "a.pt", program))
            assert type(got) is AttributeBag and got == {"__class__": "x"}


@pytest.mark.parametrize(
    "target, kind",
    [
        (dumps(Rebuilt())[2:-1], "Tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", "function"),
        (b"ccollections\nOrderedDict\n", "type"),
        (b"ctorch\nFloatStorage\n", "dtype"),
    ],
)
def test_attributes_are_set_of_nothing_but_dicts(tmp_path, target, kind):
    state = b"N}" + text("__defaults__") + b"Ns\x86b."  # (None, {"__defaults__": None})
    program = b"\x80\x02" + target + state
    with pytest.raises(ValueError, match=f"sets attributes of a {kind}"):
        read_checkpoint(write_archive(tmp_path / "a.pt", program))


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}q\x00" + text("a") + b"h\x00s.",  # a dict that contains itself
        b"\x80\x02}q\x00" + text("") + b"h\x00s.",
        b"\x80\x02}" + b"".join(  # 2**40 names, in 40 dicts that contain the one before twice
            b"q" + bytes([i]) + b"}(" + text("a") + b"h" + bytes([i]) + text("b") + b"h"
            + bytes([i]) + b"u" for i in range(40)
        ) + b".",
        b"\x80\x02}q\x00(" + b"".join(  # numbers for names, 1000 of them under 1000 names
            b"K" + bytes([i]) + b"N" for i in range(100)
        ) + b"u}(" + b"".join(text(str(i)) + b"h\x00" for i in range(1001)) + b"u.",
    ],
)  # fmt: skip
def test_endless_nesting_is_refused(tmp_path, program):
    with pytest.raises(ValueError, match="a.pt: nested without end"):
        read_state_dict(write_archive(tmp_path / "a.pt", program))


# ---- tensors stay inside their storage


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("leaves its storage of 6", dict(offset=1)),
        ("leaves its storage of 6", dict(offset=2**70)),
        ("leaves its storage of 6", dict(size=(2, 4))),
        ("leaves its storage of 6", dict(size=(7,), stride=(1,))),
        ("leaves its storage of 6", dict(size=(2**40,), stride=(0,))),  # a bomb of one number
        ("leaves its storage of 6", dict(size=(3, 3), stride=(0, 1))),
        ("leaves its storage of 6", dict(size=(2,), stride=(6,))),
        ("leaves its storage of 6", dict(size=(2,), stride=(2**63,))),
        ("leaves its storage of 6", dict(size=(), stride=(), offset=6)),
        ("cannot be", dict(offset=-1)),
        ("cannot be", dict(offset=0.0)),
        ("cannot be", dict(offset=None)),
        ("cannot be", dict(size=(-2, 3))),
        ("cannot be", dict(size=(-2, -3))),
        ("cannot be", dict(size=(2, 3), stride=(-3, 1), offset=3)),
        ("cannot be", dict(size=(2, 3), stride=(3,))),
        ("cannot be", dict(size="23", stride="31")),
        ("damaged, or no state dict", dict(stored="000000")),
        ("do not fit in 24 bytes", dict(stored=Stored(length=-6))),
        ("do not fit in 24 bytes", dict(stored=Stored(length=7))),
        ("do not fit in 24 bytes", dict(stored=Stored(length=2**62))),
        ("member 'data/1' is missing", dict(stored=Stored("1"))),
        ("member 'data/../data.pkl' is missing", dict(stored=Stored("../data.pkl"))),
        ("expected a reference to tensor data", dict(stored=Stored(0))),
        ("damaged, or no state dict", dict(stored=Stored(length=6.0))),
        ("expected a reference to tensor data", dict(stored=Stored(kind="module"))),
        ("damaged, or no state dict", dict(stored=Stored(dtype="float32"))),
    ],
    ids=str,
)
def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path, message, arguments):
    with pytest.raises(ValueError, match=f"a.pt: .*{message}"):
        read_checkpoint(write_archive(tmp_path / "a.pt", dumps([Rebuilt(**arguments)])))


def test_exactly_the_tensors_inside_their_storage_are_allowed():
    """Against all numbers that a view would read, listed one by one."""
    generator, storage = random.Random(0), torch.arange(6.0)
    allowed = 0
    for _ in range(2000):
        size = [generator.randint(0, 3) for _ in range(generator.randint(0, 3))]
        stride, offset = [generator.randint(0, 3) for _ in size], generator.randint(0, 6)
        reads = [offset]
        for length, step in zip(size, stride, strict=True):
            reads = [first + i * step for first in reads for i in range(length)]
        if len(reads) <= 6 and all(number < 6 for number in reads):
            got = _rebuild_tensor(storage, offset, tuple(size), tuple(stride))
            assert list(got.shape) == size and got.flatten().tolist() == reads
            allowed += 1
        else:
            with pytest.raises(ValueError, match="leaves its storage of 6"):
                _rebuild_tensor(storage, offset, tuple(size), tuple(stride))
    assert 200 < allowed < 1800


# ---- damaged files, and files that are something else


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(small_state(), path)
    whole = path.read_bytes()
    for length in [*range(len(whole) // 100, len(whole), len(whole) // 29), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="a.pt: cut short.*copy or download it again"):
            read_state_dict(path)


def test_any_damage_is_read_or_refused_and_nothing_else_happens(tmp_path):
    path = tmp_path / "a.pt"
    content = {"state_dict": small_state(), "other": [1, "x"]}
    torch.save(content, path)
    sound, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(sound))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            for value in read_state_dict(path).values():
                value.float().sum()  # touches its memory
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert 50 < refused < 400


@pytest.mark.parametrize(
    "field, value, message",
    [
        (10, 8, "compressed"),  # offsets within a member's entry in the zip's directory
        (8, 1, "compressed"),
        (42, 2**31, "not where the archive says"),
        (42, 2**32 - 3, "not where the archive says"),
        (42, 7, "not where the archive says"),
        (24, 2**31, "not where the archive says"),
    ],
)
def test_a_member_that_is_compressed_or_elsewhere_is_refused(tmp_path, field, value, message):
    path = write_archive(tmp_path / "a.pt", dumps({"a": Rebuilt()}))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"a/data/0") - 46
    struct.pack_into("<I" if field > 20 else "<H", content, entry + field, value)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pt: member 'data/0' .*{message}"):
        read_checkpoint(path)


def test_numbers_of_another_byte_order_are_refused(tmp_path):
    path = write_archive(tmp_path / "a.pt", dumps({"a": Rebuilt()}), byteorder=b"big")
    with pytest.raises(ValueError, match="a.pt: expected little-endian numbers, got b'big'"):
        read_checkpoint(path)


def test_a_bomb_is_not_unpacked(tmp_path):
    path, bomb = tmp_path / "a.pt", {"data/0": bytes(10**7)}
    write_archive(path, dumps({"a": Rebuilt()}), zipfile.ZIP_DEFLATED, **bomb)
    assert path.stat().st_size < 10**5
    with pytest.raises(ValueError, match="member 'data/0' is compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "begins with b''"),
        (b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html><html>': download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "b'version .*git lfs pull"),
        (b'\x40\0\0\0\0\0\0\0{"__metadata__":', "safetensors header"),
        (b"GIF89a", "begins with b'GIF89a'"),
        (b"PK", "cut short"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, message):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pt: .*{message}"):
        read_checkpoint(tmp_path / "a.pt")


# ---- endless files: each took minutes, gigabytes or the process before it was bounded


def doubled(times: int) -> bytes:
    """A tuple that holds the one before it twice, so many times over, and all of them."""
    return b"()q\x00" + b"h\x00h\x00\x86q\x00" * times + b"t"


@pytest.mark.parametrize(
    "key", [b")" + b"\x85" * 200_000, doubled(40), b"]", b"}", b"\x8a\x08" + bytes(7) + b"\x70"]
)
def test_keys_that_may_take_for_ever_to_hash_are_left_out(tmp_path, key):
    program = b"\x80\x02}(" + text("a") + b"K\x01" + key + b"K\x02K\x05K\x03u" + key + b"K\x04s."
    assert read_checkpoint(write_archive(tmp_path / "a.pt", program)) == {"a": 1, 5: 3}


@pytest.mark.parametrize(
    "message, program",
    [
        ("endless work", b"}(" + b"".join(text(str(i)) + b"N" for i in range(1000)) + b"uq\x00("
         b"ctorch.optim\nX\nq\x01" + b"h\x01)\x81h\x00b" * 400 + b"t."),
        ("endless work", b"(ctorch.optim\nX\nq\x01" + b"h\x01)R" * 400_000 + b"t."),
        ("endless work", b"((" + b"N" * 1000 + b"tq\x00ctorch\nSize\nq\x01" + b"h\x01h\x00R" * 400
         + b"t."),
        ("another one", b"(" + b"N" * 100 + b"tQ."),
        ("names a{100,}", text("a" * 10**6) + b"q\x00h\x00\x93."),
        ("sets items of a list", b"]NNs."),
        ("has 3,000,006 bytes", text("a" * (3 * 10**6 - 2)) + b"."),
    ],
)  # fmt: skip
def test_a_pickle_that_asks_for_endless_work_is_refused(tmp_path, message, program):
    with pytest.raises(ValueError, match=f"a.pt: .*{message}") as error:
        read_checkpoint(write_archive(tmp_path / "a.pt", b"\x80\x02" + program))
    assert len(str(error.value)) <= 500


def test_what_is_nested_200_000_deep_or_doubled_is_neither_printed_nor_walked(tmp_path):
    for program in (b")" + b"\x85" * 200_000, b"(" + b"}" * 200_000 + b"t", doubled(40)):
        path = write_archive(tmp_path / "a.pt", b"\x80\x02}" + text("format") + program + b"s.")
        assert list(read_checkpoint(path)) == ["format"]
        with pytest.raises(ValueError, match="no named tensor"):
            read_state_dict(path)
        with pytest.raises(ValueError, match="'format' .*got a tuple"):
            minidpt.load_model(path)


def test_an_unaligned_member_is_copied_once_for_all_its_tensors(tmp_path):
    for pad in range(8):
        path = tmp_path / f"{pad}.pt"
        write_archive(
            path, dumps([Rebuilt(), Rebuilt(offset=3, size=(3,), stride=(1,))]) + b" " * pad
        )
        whole, end = read_checkpoint(path)
        assert end.data_ptr() == whole.data_ptr() + 3 * 4 and end.tolist() == [3, 4, 5]


def test_members_that_lie_over_one_another_are_not_copied_again_and_again(tmp_path):
    names = [f"data/{i}" for i in range(9)]
    content = dumps([Rebuilt(Stored(name[5:])) for name in names])
    write_archive(tmp_path / "a.pt", content, **dict.fromkeys(names, NUMBERS))
    file, last = bytearray((tmp_path / "a.pt").read_bytes()), 0
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        infos = {info.filename: info for info in archive.infolist()}
    first = next(i for i in infos.values() if (i.header_offset + 30 + len(i.filename)) % 8
                 and i.filename.startswith("a/data/"))  # fmt: skip
    size = len(file) - first.header_offset - 30 - len(first.filename)
    for name in names:  # all are that one, and reach to the end of the file
        last = file.rindex(f"a/{name}".encode()) - 46
        struct.pack_into("<II", file, last + 20, size, size)
        struct.pack_into("<I", file, last + 42, first.header_offset)
    (tmp_path / "a.pt").write_bytes(file)
    with pytest.raises(ValueError, match="members lie over one another"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_list_of_members_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_DIRECTORY", 500)
    write_archive(tmp_path / "a.pt", dumps({"a": Rebuilt()}), **{f"x{i}": b"" for i in range(9)})
    with pytest.raises(ValueError, match="a.pt: cut short"):
        read_checkpoint(tmp_path / "a.pt")
    write_archive(tmp_path / "a.pt", dumps({"a": Rebuilt()}), large=bytes(1000))  # not in the list
    assert read_state_dict(tmp_path / "a.pt")["a"].shape == (2, 3)


@pytest.mark.parametrize("count, allowed", [(64, True), (65, False), (50_000, False)])
def test_a_tensor_has_at_most_64_dimensions(tmp_path, count, allowed):
    path = write_archive(
        tmp_path / "a.pt", dumps([Rebuilt(size=(1,) * count, stride=(2**62,) * count)])
    )
    if allowed:
        assert read_checkpoint(path)[0].shape == (1,) * 64
    else:
        with pytest.raises(ValueError, match="cannot be"):
            read_checkpoint(path)


def test_tensors_over_the_same_memory_whose_copies_were_larger_than_the_file_are_refused(tmp_path):
    base = torch.zeros(10_000)
    torch.save({"a": base, "b": base[:10]}, tmp_path / "a.pt")
    assert len(read_state_dict(tmp_path / "a.pt")) == 2
    torch.save({f"{i}": base[i:] for i in range(9)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="share no memory, got 359,856 bytes"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "error, expected",
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "x: out of memory"),
        (MemoryError(), "x: out of memory"),
        (RecursionError("maximum"), "x: nested too deeply"),
        (FileNotFoundError("a\n" + "b" * 10**6), r"a b+ … b{166}$"),
    ],
)
def test_what_stops_a_reader_is_one_line(error, expected):
    @single_line_errors
    def read(path):
        raise error

    with pytest.raises((ValueError, OSError), match=expected) as caught:
        read("x")
    assert len(str(caught.value)) <= 500


def test_an_error_of_another_kind_is_left_as_it_is():
    @single_line_errors
    def read(path):
        raise NotImplementedError("not yet")

    with pytest.raises(NotImplementedError):
        read("x")


def test_another_zip_file_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="a.npz: expected an archive by torch.save or TorchScript"):
        read_checkpoint(tmp_path / "a.npz")


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pt is no file: expected a checkpoint"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="is no file: expected a checkpoint"):
        read_state_dict(str(tmp_path))


@pytest.mark.parametrize("content", [torch.ones(2), {"a": 1}, [torch.ones(2)], {}])
def test_a_checkpoint_without_named_tensors_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt: expected a state dict, got no named tensor"):
        read_state_dict(tmp_path / "a.pt")
