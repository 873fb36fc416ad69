"""Nothing in a checkpoint is executed, no tensor leaves its storage, and every read ends."""

from __future__ import annotations

import pickle
import random
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.pickled_archives import (
    NUMBERS,
    Rebuilt,
    Stored,
    pickle_doubled,
    pickle_tensors,
    pickle_text,
    write_archive,
)

import minidpt
from minidpt.checkpoints import reader as checkpoint
from minidpt.checkpoints.reader import (
    AttributeBag,
    _rebuild_tensor,
    read_checkpoint,
    read_state_dict,
)


def read(folder: Path, program: bytes, **members: bytes) -> object:
    """Read an archive of tensor data whose pickle is this program."""
    return read_checkpoint(write_archive(folder / "a.pt", program, **members))


# ---- nothing is executed


def attacks(sentinel: Path) -> dict[str, bytes]:
    """Pickles that create the file in the standard unpickler."""
    touch = pickle_text(f"touch '{sentinel}'") + b"\x85R"
    argument = pickle_text(f"open({str(sentinel)!r}, 'w').close()")
    make = b"cbuiltins\neval\n" + argument + b"\x85R"
    by_strings = pickle_text("builtins") + pickle_text("eval") + b"\x93"
    programs = {
        "os": b"cos\nsystem\n" + touch,
        "posix": b"cposix\nsystem\n" + touch,
        "eval": make,
        "eval under its name in Python 2": b"c__builtin__\neval\n" + argument + b"\x85R",
        "eval by strings": by_strings + argument + b"\x85R",
        "exec deep inside": b"}" + pickle_text("a") + b"]cbuiltins\nexec\n" + argument + b"\x85Ras",
        "instruction INST": b"(" + argument + b"ibuiltins\neval\n",
        "eval by OBJ": b"(cbuiltins\neval\n" + argument + b"o",
        "state of a dict": b"ccollections\nOrderedDict\n)R}" + pickle_text("x") + make + b"sb",
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
    refusal = "no state dict .KeyError" if "instruction" in attack else "nothing was executed"
    with pytest.raises(ValueError, match=refusal):
        read(tmp_path, program)
    assert not sentinel.exists()


def test_a_file_from_before_pytorch_1_6_is_refused_with_the_fix(tmp_path):
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
        read(tmp_path, program)


def test_a_refused_name_cannot_draw_on_the_terminal(tmp_path):
    names = pickle_text("a\nb\x1b[2J") + pickle_text("c" * 10_000)
    program = b"\x80\x02" + names + pickle.STACK_GLOBAL + b"."
    with pytest.raises(ValueError, match=r"names a b\\x1b\[2J\.c+ … c+; nothing was") as error:
        read(tmp_path, program)
    assert len(str(error.value)) < 1000


def test_classes_of_known_modules_are_not_imported_but_become_dicts(tmp_path):
    """Whatever the name: `__torch__.os.system` and `torch.optim.os.system` are inert as well."""
    state = b"}" + pickle_text("__class__") + pickle_text("x") + b"sb"
    for name in (b"__torch__.os\nsystem\n", b"torch.optim.os\nsystem\n"):
        text = pickle_text("touch x")
        for make in (text + b"\x85R", b")\x81", text + b"\x85\x81"):
            got = read(tmp_path, b"\x80\x02c" + name + make + state + b".")
            assert type(got) is AttributeBag and got == {"__class__": "x"}


@pytest.mark.parametrize(
    "target, kind",
    [
        (pickle_tensors(Rebuilt())[2:-1], "Tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", "function"),
        (b"ccollections\nOrderedDict\n", "type"),
        (b"ctorch\nFloatStorage\n", "dtype"),
    ],
)
def test_attributes_are_set_of_nothing_but_dicts(tmp_path, target, kind):
    state = b"N}" + pickle_text("__defaults__") + b"Ns\x86b."  # (None, {"__defaults__": None})
    program = b"\x80\x02" + target + state
    with pytest.raises(ValueError, match=f"sets attributes of a {kind}"):
        read(tmp_path, program)


@pytest.mark.parametrize("target", [b"]", pickle_tensors(Rebuilt())[2:-1]], ids=["list", "tensor"])
def test_items_are_set_of_nothing_but_dicts(tmp_path, target):
    program = b"\x80\x02" + target + pickle_text("") + b"K\x01s."
    with pytest.raises(ValueError, match="sets items of a (list|Tensor)"):
        read(tmp_path, program)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}q\x00" + pickle_text("a") + b"h\x00s.",  # a dict that contains itself
        b"\x80\x02}q\x00" + pickle_text("") + b"h\x00s.",
        b"\x80\x02}" + b"".join(  # 2**40 names, in 40 dicts that contain the one before twice
            b"q" + bytes([i]) + b"}(" + pickle_text("a") + b"h" + bytes([i])
            + pickle_text("b") + b"h" + bytes([i]) + b"u" for i in range(40)
        ) + b".",
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
        ("cannot be", dict(size=(1,) * 65, stride=(2**62,) * 65)),
        ("cannot be", dict(size=(1,) * 50_000, stride=(2**62,) * 50_000)),
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
        read(tmp_path, pickle_tensors([Rebuilt(**arguments)]))


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


# ---- endless files: each took minutes, gigabytes or the process before it was bounded


@pytest.mark.parametrize(
    "key",
    [b"K\x05", b")" + b"\x85" * 200_000, pickle_doubled(40), b"]", b"}",
     b"\x8a\x08" + bytes(7) + b"\x70"],
)  # fmt: skip
def test_keys_but_texts_are_left_out_as_hashing_may_be_endless(tmp_path, key):
    program = b"\x80\x02}(" + pickle_text("a") + b"K\x01" + key + b"K\x02u" + key + b"K\x04s."
    assert read(tmp_path, program) == {"a": 1}


@pytest.mark.parametrize(
    "message, program",
    [
        ("endless work", b"}(" + b"".join(pickle_text(str(i)) + b"N" for i in range(1000))
         + b"uq\x00(ctorch.optim\nX\nq\x01" + b"h\x01)\x81h\x00b" * 400 + b"t."),
        ("endless work", b"(ctorch.optim\nX\nq\x01" + b"h\x01)R" * 400_000 + b"t."),
        ("endless work", b"((" + b"N" * 1000 + b"tq\x00ctorch\nSize\nq\x01" + b"h\x01h\x00R" * 400
         + b"t."),
        ("too many values", b"(" + b"N" * 100 + b"tQ."),
        ("names a{100,}", pickle_text("a" * 10**6) + b"q\x00h\x00\x93."),
        ("sets items of a list", b"]" + pickle_text("a") + b"Ns."),
        ("has 3,000,006 bytes", pickle_text("a" * (3 * 10**6 - 2)) + b"."),
    ],
)  # fmt: skip
def test_a_pickle_that_asks_for_endless_work_is_refused(tmp_path, message, program):
    with pytest.raises(ValueError, match=f"a.pt: .*{message}") as error:
        read(tmp_path, b"\x80\x02" + program)
    assert len(str(error.value)) <= 500


def test_endless_nesting_is_neither_printed_nor_walked(tmp_path):
    for program in (b")" + b"\x85" * 200_000, b"(" + b"}" * 200_000 + b"t", pickle_doubled(40)):
        program = b"\x80\x02}" + pickle_text("format") + program + b"s."
        path = write_archive(tmp_path / "a.pt", program)
        assert list(read_checkpoint(path)) == ["format"]
        with pytest.raises(ValueError, match="no named tensor"):
            read_state_dict(path)
        with pytest.raises(ValueError, match="'format' .*got a tuple"):
            minidpt.load_model(path)


def test_an_unaligned_member_is_copied_once_for_all_its_tensors(tmp_path):
    program = pickle_tensors([Rebuilt(), Rebuilt(offset=3, size=(3,), stride=(1,))])
    for pad in range(8):
        first, end = read(tmp_path, program + b" " * pad)
        assert end.data_ptr() == first.data_ptr() + 3 * 4 and end.tolist() == [3, 4, 5]


def test_members_that_lie_over_one_another_are_not_copied_again_and_again(tmp_path):
    names = [f"data/{i}" for i in range(9)]
    content = pickle_tensors([Rebuilt(Stored(name[5:])) for name in names])
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
    with pytest.raises(ValueError, match="not where the archive says"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_list_of_members_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_DIRECTORY", 500)
    program = pickle_tensors({"a": Rebuilt()})
    with pytest.raises(ValueError, match="a.pt: cut short"):
        read(tmp_path, program, **{f"x{i}": b"" for i in range(9)})
    assert read(tmp_path, program, large=bytes(1000))["a"].shape == (2, 3)  # not in the list


def test_a_tensor_may_have_64_dimensions(tmp_path):
    tensor = Rebuilt(size=(1,) * 64, stride=(2**62,) * 64)
    assert read(tmp_path, pickle_tensors([tensor]))[0].shape == (1,) * 64
