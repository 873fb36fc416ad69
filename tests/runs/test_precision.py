"""The precision that is taken on a processor and on a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.image_folders import draw_class_folders
from helpers.run_command import SHORT, run_command, save_clip
from helpers.short_runs import run_checked
from helpers.tiny_models import WIDE, clip_state

from minidpt import build_clip
from minidpt.runs import config, devices

CPU = torch.device("cpu")


@pytest.fixture
def cpu_info(tmp_path, monkeypatch) -> Path:
    """The file in which Linux describes the processor."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(devices, "CPU_INFO", file)
    return file


def test_freed_memory_is_kept_where_the_c_library_is_glibc(monkeypatch):
    calls, mallopt = [], lambda *arguments: calls.append(arguments)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    devices.keep_freed_memory()
    expected = [(-4, 0), (-1, -1)] if sys.platform == "linux" else []  # M_MMAP_MAX, M_TRIM_...
    assert calls == expected
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace())  # musl
    devices.keep_freed_memory()
    assert calls == expected


def test_the_precision_on_a_processor_is_fp32_unless_asked_for():
    assert devices.choose_precision(None, CPU)[0] == "fp32"
    assert devices.choose_precision("bf16", CPU) == ("bf16", "as set")


@pytest.mark.parametrize(("precision", "dtype"), config.PRECISIONS.items())
def test_a_moved_clip_is_in_its_precision_and_fp32_is_no_tf32(precision, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert devices.move_clip(build_clip(clip_state(WIDE)), CPU, precision).dtype == dtype
    assert torch.backends.cudnn.allow_tf32 == (precision != "fp32")


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_fp16", "bf16"),
        ("flags\t\t: fpu amx_tile amx_bf16", "bf16"),
        ("Features\t: fp asimd bf16 i8mm", "bf16"),
        ("flags\t\t: fpu avx2 avx512f", "fp32"),
        (None, "fp32"),
    ],
)
def test_auto_takes_bf16_where_the_processor_computes_in_it(cpu_info, flags, chosen):
    if flags:
        cpu_info.write_text(f"processor\t: 0\n{flags}\n")
    assert devices.choose_precision("auto", CPU)[0] == chosen
    assert devices.choose_precision(None, CPU)[0] == "fp32"


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_auto_is_the_usual_precision_on_a_gpu(monkeypatch, cpu_info, capability):
    cpu_info.write_text("flags: bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    assert devices.choose_precision("auto", gpu) == devices.choose_precision(None, gpu)
    assert devices.choose_precision(None, gpu)[0] == ("fp16" if capability < (8, 0) else "bf16")


def test_a_run_by_auto_is_tested_in_the_precision_that_it_took(cpu_info, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = draw_class_folders(tmp_path / "images", {"ox": 6, "gnu": 6, "owl": 6})
    clip = save_clip(tmp_path / "little.pt")
    cpu_info.write_text("flags: avx512_bf16")
    options = ("--shots", 1, "--method", "coop", "--epochs", 1, "--precision", "auto")
    command = ("--data", data, "--model", clip, *SHORT, *options, "--out", "run")
    begun = run_checked("train.py", *command)
    assert "in bf16 (this processor supports it)" in begun.out
    assert json.loads(Path("run/config.json").read_text())["record"]["precision"] == "bf16"
    cpu_info.unlink()
    assert "in bf16)" in run_command("eval.py", "test", "run").out
    assert "in fp32" in run_command("eval.py", "test", "run", "--precision", "auto").out
