"""The precision of the frozen CLIP: as set, what is usual on the device, or what computes faster."""

from __future__ import annotations

from pathlib import Path

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"
CPU_INFO = Path("/proc/cpuinfo")
CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of processors that compute in it, x86 and Arm


def choose_precision(name: str | None, device: torch.device) -> tuple[str, str]:
    """Return the precision that the frozen CLIP is stored and computed in, and the reason for it.

    name: as set; None for the usual one; "auto" for bf16 on a CPU that computes in it, elsewhere
        the usual one.
    """
    if name not in (None, AUTO):
        return name, "as set"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return "bf16", "this GPU computes in it, and its range is fp32's"
        return "fp16", "this GPU does not compute in bf16"
    if name == AUTO and device.type == "cpu" and has_cpu_bf16():
        return "bf16", "this processor computes in it"
    return "fp32", "the processor's plain precision"


def has_cpu_bf16() -> bool:
    """Return whether the processor says that it computes in bf16; without it bf16 is far slower."""
    try:
        return not CPU_BF16.isdisjoint(CPU_INFO.read_text().split())
    except OSError:  # no Linux
        return False
