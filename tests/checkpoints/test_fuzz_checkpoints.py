"""Readers of checkpoints end in a value or in one line, whatever bytes are in a file.

Sound files of each kind are damaged at random: bytes, ends, instructions of the pickle, numbers in
the zip's directory, headers of safetensors, configurations in folders of open_clip and Hugging
Face, and what the entries of a model file are. `benchmarks/fuzz.py` does it as often as is asked
for.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from helpers.foreign_checkpoints import hugging_face_state, safetensors_bytes
from helpers.pickled_archives import pickle_text as text
from helpers.tiny_models import Sizes, clip_state

import minidpt
from minidpt.checkpoints.reader import read_checkpoint, read_state_dict

SIZES = Sizes(embedding=7, vision_width=64, vision_layers=1, text_width=64, text_layers=1)
NUMBERS = (0, 1, 2, 7, 255, 256, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
GLOBALS = (b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.optim\nX\n",
           b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"c__torch__.os\nsystem\n",
           b"cbuiltins\neval\n", b"cnumpy\ndtype\n")  # fmt: skip
SECONDS, MESSAGE = 5, 500  # that reading a file may take, and characters of errors
MEMORY = 3 * 1024**3  # bytes of addresses that a long run may take beyond its own


def sound_files(folder: Path, clip: minidpt.CLIP) -> dict[str, bytes]:
    """A small file of each kind that is read."""
    # Tied to one row: a file of 10 KB instead of 12 MB, with nothing but the vocabulary's size off.
    state = clip_state(SIZES) | {"token_embedding.weight": torch.ones(3, 64)}
    nested = {
        "state_dict": OrderedDict(ctx=torch.ones(2, 3), half=torch.ones(3).half()),
        "epoch": 3,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "groups": [{"lr": 0.1}]},
        "names": ["a", ("b", None, True, 2**40)],
    }
    for name, content, options in (
        ("clip", {key: value.half() for key, value in state.items()}, {}),
        ("nested", nested, {}),
        ("protocol4", nested, {"pickle_protocol": 4}),
    ):
        torch.save(content, folder / name, **options)
    for method in ("coop", "dpt"):
        config = minidpt.PromptConfig(method=method, n_ctx=2, n_visual=1)
        minidpt.build_model(clip, ["cat", "dog"], "a {}.", config).save(folder / method)
    # As a TorchScript archive: objects whose attributes are set, a list under a tag.
    module = b"c__torch__\nM\n)\x81}(" + text("training") + b"\x89" + text("w") + tensor() + b"ub"
    program = b"\x80\x02c__torch__\nN\n)\x81}(" + text("m") + module + text("sizes")
    program += b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85Rub."
    archive = {"a/data.pkl": program, "a/data/0": bytes(24), "a/byteorder": b"little"}
    (folder / "torchscript").write_bytes(zipped(archive))
    (folder / "safetensors").write_bytes(safetensors_bytes(hugging_face_state(state)))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- pieces of a pickle


def integer(value: int) -> bytes:
    return pickle.LONG1 + b"\x09" + value.to_bytes(9, "little", signed=True)


def tensor(key: str = "0", length: int = 6, size=(2, 3), stride=(3, 1), offset: int = 0) -> bytes:
    names = text("storage") + GLOBALS[0] + text(key) + text("cpu")
    storage = b"(" + names + integer(length) + b"tQ"
    shape = b"".join(b"(" + b"".join(map(integer, lengths)) + b"t" for lengths in (size, stride))
    return GLOBALS[1] + b"(" + storage + integer(offset) + shape + b"\x89NtR"


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return stream.getvalue()


def fragment(draw: random.Random) -> bytes:
    """Some instructions that build something odd, often nested or doubled."""
    number, count = draw.choice(NUMBERS), draw.choice((0, 1, 2, 40, 300))
    small = draw.randrange(256)
    return draw.choice([
        lambda: bytes([small]),
        lambda: pickle.BINGET + bytes([small % 40]) + draw.choice((b"", b"R", b"b", b"s", b"\x81")),
        lambda: draw.choice((b"X", b"T", b"B", b"r", b"j", b"\x8d", b"\x95", b"J"))
        + struct.pack("<Q", number)[: draw.choice((4, 8))],
        lambda: integer(number),
        lambda: tensor(str(small % 3), number, *[(number,) * draw.choice((1, 2, 65))] * 2),
        lambda: draw.choice(GLOBALS) + draw.choice((b"", b")R", b")\x81", b"\x85R", b"](h\x00etR")),
        lambda: draw.choice((b"]", b"}", b")", b"N", b"\x88", b"G" + bytes(8))) + b"\x85" * count,
        lambda: b"]q\x00" + b"](h\x00h\x00eq\x00" * count,
        lambda: b")q\x00" + b"h\x00h\x00\x86q\x00" * count,
        lambda: b"}" + b"".join(text(f"{i}") + b"N" + b"s" for i in range(count)),
        lambda: b"}" + draw.choice((b")", b"]", b"}", b"N", integer(number), b"G" + bytes(8)))
        + b"\x85" * draw.choice((0, 1, 300)) + b"Ns",
        lambda: b"(" * count + draw.choice((b"t", b"e", b"u", b"1", b"l")),
        lambda: text("a" * draw.choice((0, 3, 2000))),
    ])()  # fmt: skip


# ---- damage


def flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged)


def with_a_number(content: bytes, draw: random.Random) -> bytes:
    """A number over some bytes, most often near the end, where a zip has its directory."""
    damaged, size = bytearray(content), draw.choice((2, 4, 8))
    first = draw.choice((0, max(0, len(damaged) - 400)))
    at = draw.randrange(first, max(first + 1, len(damaged) - size))
    damaged[at : at + size] = struct.pack("<Q", draw.choice(NUMBERS))[:size]
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    first, second = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return draw.choice((content[:first], content[first:], content[:first] + content[second:]))


def rewritten(program: bytes, draw: random.Random) -> bytes:
    """A pickle with instructions put in, doubled or left out."""
    for _ in range(draw.randint(1, 3)):
        first = draw.randrange(2, len(program) + 1)
        second = min(len(program), first + draw.choice((0, 0, 1, 9, 60)))
        put = draw.choice((fragment(draw), program[first:second] * 2, b"", fragment(draw) + b"."))
        program = program[:first] + put + program[second:]
    return program


def with_another_pickle(content: bytes, draw: random.Random) -> bytes:
    """The same file, its pickle rewritten; a member may be left out, too, or come twice."""
    if content[8:9] == b"{":
        return with_another_header(content, draw)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for name in list(members):
        if name.endswith("/data.pkl"):
            members[name] = rewritten(members[name], draw)
        elif draw.random() < 0.05:
            members[draw.choice((name + "x", "x" + name))] = members.pop(name)
    return zipped(members)


def odd_value(draw: random.Random) -> object:
    return draw.choice([
        lambda: draw.choice(NUMBERS), lambda: -1, lambda: 0.5, lambda: float("nan"),
        lambda: float("inf"), lambda: True, lambda: None, lambda: "", lambda: "x" * 3000,
        lambda: "a\n\x1b[2J{}", lambda: [], lambda: {}, lambda: (), lambda: ["cat", 5],
        lambda: {5: None, "x": []}, lambda: torch.ones(2, 64), lambda: torch.tensor(float("nan")),
        lambda: torch.ones(2, 64, dtype=torch.int64), lambda: torch.empty(0), lambda: b"cat",
        lambda: ["cat"] * draw.choice((1, 30_000)), lambda: "dpt", lambda: 10**30,
    ])()  # fmt: skip


def with_another_entry(content: bytes, draw: random.Random) -> bytes:
    """The same dict with entries replaced, left out or added, at any depth."""
    root = changed(torch.load(io.BytesIO(content), weights_only=False), draw)
    stream = io.BytesIO()
    torch.save(root, stream)
    return stream.getvalue()


def with_another_header(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with such a header, or a JSON file so changed."""
    length = 0 if content.startswith(b"{") else 8 + int.from_bytes(content[:8], "little")
    text = content[8:length] if length else content
    root = changed(json.loads(text), draw)
    text = json.dumps(root, default=repr, skipkeys=True).encode()
    return len(text).to_bytes(8, "little") + text + content[length:] if length else text


def changed(root: dict, draw: random.Random) -> dict:
    for _ in range(draw.randint(1, 2)):
        bag = root
        while (
            inner := [v for v in bag.values() if isinstance(v, dict) and v]
        ) and draw.random() < 0.7:
            bag = draw.choice(inner)
        name = draw.choice([*bag, "x", 5])
        if draw.random() < 0.2:
            bag.pop(name, None)
        else:
            bag[name] = odd_value(draw)
        if not bag:
            break
    return root


# ---- reading


def problem_with(call: Callable[[], object]) -> str | None:
    """What is wrong with how a call ends; None if it returns or raises one line."""
    started = time.process_time()
    try:
        call()
    except (ValueError, OSError) as error:
        message = str(error)
        if len(message) > MESSAGE or not message.isprintable():
            return f"a message of {len(message)} characters: {message[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - started
    return f"took {seconds:.1f} s" if seconds > SECONDS else None


def draws(count: int, seed: int, stop_at: float) -> Iterator[tuple[int, random.Random]]:
    """Yield `count` numbers and what the input of each is drawn by, for at most so many seconds."""
    started = time.monotonic()
    for number in range(count):
        if time.monotonic() - started > stop_at:
            break
        yield number, random.Random(f"{seed} {number}")


def run(count: int, seed: int = 0, stop_at: float = float("inf")) -> list[str]:
    """What is wrong with reading `count` damaged files: the number, the file and how."""
    clip, failures = minidpt.build_clip(clip_state(SIZES)), []
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as used:
        sound = sound_files(Path(made), clip)
        models = {name: sound[name] for name in ("coop", "dpt")}
        published = Path(used) / "prompt_learner" / "model.pth.tar-1"
        published.parent.mkdir()
        for number, draw in draws(count, seed, stop_at):
            damage = draw.choice((flipped, with_a_number, cut, with_another_pickle,
                                  with_another_pickle, with_another_entry))  # fmt: skip
            of_entries = damage is with_another_entry
            kind = draw.choice([*models, "clip", "nested"] if of_entries else [*sound])
            published.write_bytes(damage(sound[kind], draw))
            readers = {
                "read_checkpoint": lambda: read_checkpoint(published),
                "load": lambda: minidpt.load(published),
                "read_state_dict": lambda: [v.sum() for v in read_state_dict(published).values()],
                "load_model": lambda: minidpt.load_model(published, clip),
                "read_published": lambda: minidpt.read_published(Path(used)),
            }  # fmt: skip
            reader = "load_model" if kind in models else draw.choice([*readers])
            for name in ("read_checkpoint", reader):
                if problem := problem_with(readers[name]):
                    failures.append(f"input {number}, {damage.__name__} {kind}, {name}: {problem}")
    return failures


VISION = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "patch_size": 7,
          "image_size": 21, "hidden_act": "gelu", "layer_norm_eps": 1e-5}  # fmt: skip
SIDE = {"width": 64, "layers": 1, "heads": 1, "pool_type": "argmax", "ls_init_value": None}
CONFIGS = {  # of the folders that are damaged, beside the weights that each goes with
    "config.json": {"model_type": "clip", "vision_config": VISION,
                    "text_config": {**VISION, "eos_token_id": 2}},
    "preprocessor_config.json": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
                                 "resample": 3},
    "open_clip_config.json": {
        "model_cfg": {"embed_dim": 7, "quick_gelu": True, "text_cfg": SIDE,
                      "vision_cfg": {**SIDE, "head_width": 64, "pool_type": "tok"}},
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}},
}  # fmt: skip


def run_folders(count: int, seed: int = 0, stop_at: float = float("inf")) -> list[str]:
    """The same of folders, whose configuration or index is damaged."""
    failures, state = [], {name: value.half() for name, value in clip_state(SIZES).items()}
    state["token_embedding.weight"] = torch.ones(3, 64).half()
    theirs = hugging_face_state(state)
    index = {"weight_map": dict.fromkeys(theirs, "a.safetensors")}
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made) / name for name in ("open_clip", "hugging_face", "shards")]
        files = (("open_clip_model.safetensors", state), ("model.safetensors", theirs),
                 ("a.safetensors", theirs))  # fmt: skip
        for folder, (name, tensors) in zip(folders, files, strict=True):
            folder.mkdir()
            (folder / name).write_bytes(safetensors_bytes(tensors))
            for name, config in CONFIGS.items():
                (folder / name).write_text(json.dumps(config))
        (folders[2] / "model.safetensors.index.json").write_text(json.dumps(index))
        for folder in folders:
            minidpt.load(folder)  # sound
        for number, draw in draws(count, seed, stop_at):
            file = draw.choice([path for folder in folders for path in folder.glob("*.json")])
            sound = file.read_bytes()
            damage = draw.choice((flipped, cut, with_another_header, with_another_header))
            file.write_bytes(damage(sound, draw))
            if problem := problem_with(lambda: minidpt.load(file.parent)):  # noqa: B023
                failures.append(f"{file.parent.name} {number}, {file.name}: {problem}")
            file.write_bytes(sound)
    return failures


def test_damaged_configurations_end_in_a_value_or_in_one_line():
    assert run_folders(100, stop_at=5) == []


def test_damaged_files_end_in_a_value_or_in_one_line():
    assert run(300, stop_at=20) == []
