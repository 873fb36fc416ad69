"""Values by which runs of one version are told from others: each is a format, and stays."""

from __future__ import annotations

from pathlib import Path

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
