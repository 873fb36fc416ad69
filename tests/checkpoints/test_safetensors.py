"""Safetensors files are read to the bit, without a copy, and damaged ones are refused."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.foreign_checkpoints import safetensors_bytes, write_safetensors

from minidpt.checkpoints.reader import MAX_HEADER, read_state_dict

TENSORS = {
    "half": torch.arange(7).half() / 3,
    "matrix": torch.arange(6.0).view(2, 3),  # behind 14 bytes: not aligned
    "brain": torch.arange(5).bfloat16() / 3,
    "number": torch.tensor(7),
    "nothing": torch.empty(0, 3),
    "flags": torch.tensor([True, False]),
    "double": torch.tensor([0.1], dtype=torch.float64),
}


def test_every_precision_and_shape_is_read_to_the_bit(tmp_path):
    got = read_state_dict(write_safetensors(tmp_path / "a.safetensors", TENSORS))
    assert list(got) == list(TENSORS)
    for name, value in TENSORS.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("length", [0x4B50, 0x4B50 + 2**16, 0x4B50 + 31 * 2**16])
def test_a_header_as_long_as_a_zips_first_bytes_is_read(length, tmp_path):
    content = safetensors_bytes({"a": torch.arange(3.0)}, {"__metadata__": {"pad": ""}})
    end = 8 + int.from_bytes(content[:8], "little")
    content = length.to_bytes(8, "little") + content[8:end].ljust(length) + content[end:]
    (tmp_path / "a").write_bytes(content)
    assert content.startswith(b"PK")
    assert read_state_dict(tmp_path / "a")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "write", [write_safetensors, lambda path, tensors: torch.save(tensors, path)]
)
def test_numbers_are_mapped_and_writing_into_them_leaves_the_file_alone(write, tmp_path):
    path = tmp_path / "pytorch_model.bin"  # the content tells, not the name
    write(path, {"weight": torch.full((1000,), 2.0)})
    before = path.read_bytes()
    written, mapped = read_state_dict(path)["weight"], read_state_dict(path)["weight"]
    written.fill_(5)
    assert path.read_bytes() == before and mapped.eq(2).all()
    with open(path, "r+b") as file:  # a copy would not see this
        file.seek(before.index(torch.full((1000,), 2.0).numpy().tobytes()))
        file.write(torch.full((1000,), 3.0).numpy().tobytes())
    assert mapped.eq(3).all()


def entry(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def halves(first: int, second: int) -> dict[str, dict]:
    """The header of two tensors of 8 bytes that begin there, of which the file has 24."""
    starts = {"a": second, "b": first}  # in the header not as in the file
    return {name: entry(shape=(2,), offsets=(n, n + 8)) for name, n in starts.items()}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(offsets=(0, 28))}, "shape and its bytes do not fit"),
        ({"a": entry(offsets=(24, 0))}, "shape and its bytes do not fit"),
        ({"a": entry(offsets=(8, 32))}, "expected 0 bytes .* at 8"),
        ({"a": entry(shape=(2**20, 3), offsets=(0, 12 * 2**20))}, "expected 12,582,912 bytes of"),
        ({"b": entry()}, "expected 24 bytes .* at 0"),
        ({"b": entry(shape=(0, 3), offsets=(30, 30))}, "expected 24 bytes .* at 30"),
        (halves(0, 16), "expected 8 bytes of tensors, got the next, or the end, at 16"),  # a hole
        (halves(0, 4), "expected 8 bytes of tensors, got the next, or the end, at 4"),
        (halves(4, 16), "expected 0 bytes of tensors, got the next, or the end, at 4"),
        ({"a": entry(shape=(-2, -3))}, "its bytes do not fit"),
        ({"a": entry(shape=(2.0, 3))}, "its bytes do not fit"),
        ({"a": entry(shape=(2**62, 2**62))}, "its bytes do not fit"),
        ({"a": entry(shape=(1,) * 65)}, "its bytes do not fit"),
        ({"a": entry(offsets=(0, 24, 24))}, "its bytes do not fit"),
        ({"a": entry(shape="x")}, r"expected an entry 'shape' \(list\), got 'x'"),
        ({"a": entry(dtype="F8_E4M3")}, "no state dict .KeyError: 'F8_E4M3'"),
        ({"a": entry(dtype=["F32"])}, "expected an entry 'dtype'"),
        ({"a": 5}, "expected named entries, got 5"),
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(header, message, tmp_path):
    content = safetensors_bytes({"a": torch.ones(2, 3)}, header)
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.safetensors: .*{message}"):
        read_state_dict(tmp_path / "a.safetensors")


def with_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_header(b'{"a": {}, "a": {}}'), "two entries 'a'"),
        (with_header(b"{" + b'"a":{' * 100_000), "nested too deeply|expected JSON"),
        (with_header(b'{"a": NaN}'), "no finite number"),
        (with_header(b'{"\xff": {}}'), "utf-8.*codec can't decode"),
        (with_header(b'{"a": {}}')[:-3], "expected JSON"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b"{}", "header of at most 2,097,152 bytes"),
        (b"PK\3\4" + bytes(4) + b"{}".ljust(99), "header of at most 2,097,152 bytes, got"),
        (safetensors_bytes({"a": torch.ones(9)}) + b"\0", "expected 36 bytes .* at 37"),
        (safetensors_bytes({"a": torch.ones(9)})[:-1], "expected 36 bytes .* at 35"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_state_dict(tmp_path / "a")
    assert "\n" not in str(error.value) and len(str(error.value)) <= 500


def test_the_handmade_file_is_the_librarys(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    library.save_file(TENSORS, tmp_path / "theirs")
    for name, value in read_state_dict(tmp_path / "theirs").items():
        assert torch.equal(value, TENSORS[name]), name
    write_safetensors(tmp_path / "ours", TENSORS)
    assert json.dumps(sorted(library.load_file(tmp_path / "ours"))) == json.dumps(sorted(TENSORS))
