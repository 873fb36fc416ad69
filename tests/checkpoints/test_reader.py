"""Checkpoints of every kind are read exactly; what is damaged or something else is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import torchscript
from helpers.pickled_archives import (
    NUMBERS,
    Rebuilt,
    assert_same,
    pickle_tensors,
    small_state,
    write_archive,
)
from helpers.tiny_models import WIDE, clip_state
from torch import Tensor, nn

from minidpt.checkpoints.reader import read_checkpoint, read_state_dict
from minidpt.support.files import single_line_errors

# ---- files to read


class Node(nn.Module):
    """Modules nested as dotted names are, with a tensor at each end, and a forward to be traced."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        for name, value in tensors.items():
            *path, last = name.split(".")
            node = self
            for child in path:
                if not hasattr(node, child):
                    node.add_module(child, Node({}))
                node = getattr(node, child)
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
    assert not any(value.requires_grad for value in got.values())


def test_names_are_joined_with_dots_and_only_tensors_are_read(tmp_path):
    content = {"epoch": 3, "net": {"module.a": torch.ones(1), "names": ["b"], 7: torch.ones(1)}}
    torch.save(content | {"b": torch.ones(2), "args": {"lr": 0.1}}, tmp_path / "a.pt")
    expected = {"net.module.a": torch.ones(1), "b": torch.ones(2)}
    assert_same(read_state_dict(tmp_path / "a.pt"), expected)


def test_what_a_prompt_file_holds_comes_back_as_it_was(tmp_path):
    content = {
        "classnames": ["grey owl", "ünïcode 😀"],
        "nested": {"numbers": [1, -2, 300, 70_000, 2**40, 0.1], "shape": torch.Size([2, 3])},
        "switches": (True, False, None),
        "bytes": "",
    }
    torch.save(content, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt") == content


def test_an_archive_that_another_tool_packed_unaligned_is_read(tmp_path):
    torch.save(small_state(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr("x" + name, old.read(name))
    assert_same(read_state_dict(tmp_path / "b.pt"), small_state())


# ---- damaged files, and files that are something else


def zip_of_arrays() -> bytes:
    np.savez(stream := io.BytesIO(), a=np.ones(3))
    return stream.getvalue()


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(small_state(), path)
    content = path.read_bytes()
    for length in [*range(len(content) // 100, len(content), len(content) // 29), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="a.pt: cut short.*copy or download it again"):
            read_state_dict(path)


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
    path = write_archive(tmp_path / "a.pt", pickle_tensors({"a": Rebuilt()}))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"a/data/0") - 46
    struct.pack_into("<I" if field > 20 else "<H", content, entry + field, value)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pt: member 'data/0' .*{message}"):
        read_checkpoint(path)


def test_numbers_of_another_byte_order_are_refused(tmp_path):
    path = write_archive(tmp_path / "a.pt", pickle_tensors({"a": Rebuilt()}), byteorder=b"big")
    with pytest.raises(ValueError, match="a.pt: expected little-endian numbers, got b'big'"):
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
        (zip_of_arrays(), "expected an archive by torch.save or TorchScript"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, message):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pt: .*{message}"):
        read_checkpoint(tmp_path / "a.pt")


def test_our_own_files_are_refused_with_a_flipped_bit(tmp_path):
    path = write_archive(tmp_path / "a.pt", pickle_tensors({"a": Rebuilt()}), byteorder=b"little")
    content = path.read_bytes()
    assert read_checkpoint(path, verify=True)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for byte in NUMBERS, pickle_tensors({"a": Rebuilt()}), b"little":
        damaged = bytearray(content)
        damaged[content.index(byte) + len(byte) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="a.pt: member '.*' has another CRC-32"):
            read_checkpoint(path, verify=True)


def test_tensors_whose_copies_were_larger_than_the_file_are_refused(tmp_path):
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
        (NotImplementedError("not yet"), "^not yet$"),  # of another kind: as it is
    ],
)
def test_what_stops_a_reader_is_one_line(error, expected):
    @single_line_errors
    def read(path):
        raise error

    with pytest.raises((ValueError, OSError, NotImplementedError), match=expected) as caught:
        read("x")
    assert len(str(caught.value)) <= 500


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pt: expected a file, got none"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="expected a file, got a folder"):
        read_state_dict(str(tmp_path))


@pytest.mark.parametrize("content", [torch.ones(2), {"a": 1}, [torch.ones(2)], {}])
def test_a_checkpoint_without_named_tensors_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt: expected a state dict, got no named tensor"):
        read_state_dict(tmp_path / "a.pt")
