"""Values that stay: by which runs of one version are told from others, and limits.

A limit that moves by accident refuses a user's data, or takes a hostile file.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import minidpt
from minidpt.data.samples import Sample, file_digest, make_dataset


def test_the_fingerprint_of_the_small_clip_is_pinned():
    pinned = "4daea00b3ad7a863e233b0d1251e95f4951be73392cba5289b8ded643b1b6dcc"
    assert minidpt.load("tiny")[0].fingerprint() == pinned


def test_the_fingerprint_of_a_data_set_is_pinned():
    lists = {
        "train": [Sample("/d/ox/1.png", 0, "ox"), Sample("/d/owl/2.png", 1, "owl")],
        "val": [Sample("/d/owl/3.png", 1, "owl")],
        "test": [Sample("/d/ox/4.png", 0, "ox")],
    }
    names = Path("/d"), ["ox", "owl"]
    dataset = make_dataset("birds", *names, lists, "written by hand", template="a {}.")
    pinned = "15a3c5600693c76e4da2f15dfc121db1128b444b630dba095f28ba191a1476fa"
    assert dataset.fingerprint() == pinned
    others = lists | {"val": [Sample("/d/owl/3.png", 0, "owl")]}
    dataset = make_dataset("birds", *names, others, "written by hand", template="a {}.")
    assert dataset.fingerprint() != pinned


def test_the_digest_of_a_training_image_is_its_size_and_sha256(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")  # the example of FIPS 180-2
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(str(tmp_path / "a.png")).hex() == f"{3:016x}{sha256}"


LIMITS = """
model: TEXT_MEMORY=3*2**30 GUIDANCE_WEIGHT=0.1
prompts: INIT_STD=0.02
training: WARMUP_LR=1e-5
inference: PREDICT_BATCH=100
exporting: MAX_ONNX=2**31-2**24
checkpoints.pretrained: TIMEOUT=30
checkpoints.reader: MAX_ENTRIES=10**5 MAX_NAME=256 MAX_PICKLE=2**21 MAX_DIRECTORY=2**21
checkpoints.reader: MAX_HEADER=2**21 MAX_GLOBAL=1000 MAX_WORK=3*10**5 MAX_DIMENSIONS=64
clip.network: HEAD_WIDTH=64 MAX_RESOLUTION=4096
clip.packing: MAX_BIN=64
clip.state_dict: VIT_L_WIDTH=1024 MAX_LAYERS=256 MAX_LENGTH=2**20
clip.tokenizer: CACHED_WORDS=2**15 CACHED_WORD_LENGTH=64
data.batches: IMAGE_MEMORY=2**31
data.labels_csv: MANY=1000
demo.demo: SEED=2208 TRAIN_IMAGES=32 TEST_IMAGES=80
images.decode: MAX_PIXELS=2*10**8 LARGE=2**24 BLOCK=2**20
images.threads: MOST=32
images.transforms: MAX_ASPECT=50
runs.attention_pngs: MOST_CLASSES=10 BRIGHTEST=4 COVER=0.68 WIDTH=752 ROW=38
runs.classify: MAX_LINE=2**16
runs.config: MAX_RUNS=10**4
support.files: MAX_TEXT=2**28 MAX_IMAGES=2*10**6 MAX_ENTRIES=10**6 MAX_CLASSES=25_000 MAX_NAME=500
support.files: MAX_TEMPLATE=1000 MAX_TEMPLATES=1000
support.progress: AFTER=2
"""


@pytest.mark.parametrize("line", LIMITS.strip().splitlines())
def test_limits_are_these(line):
    module, _, constants = line.partition(": ")
    for name, _, value in (constant.partition("=") for constant in constants.split()):
        assert getattr(importlib.import_module(f"minidpt.{module}"), name) == eval(value), name
