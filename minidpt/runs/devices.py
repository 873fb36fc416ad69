"""Where a command computes: the device, the precision on it, the memory of its tensors."""

import ctypes
import sys
from pathlib import Path

import torch

from ..checkpoints.pretrained import load
from ..clip.network import CLIP
from ..support.distributed import SINGLE, World
from .config import AUTO, PRECISIONS, RunConfig

CPU_INFO = Path("/proc/cpuinfo")
CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of processors that compute in it
ACCELERATORS = ("cuda", "xpu", "mps")  # of torch, the first of them that is there


def choose_device(name: str | None, world: World = SINGLE) -> torch.device:
    """Return the named device, or an accelerator if there is one; each rank has its own.

    Raises ValueError if it is not there.
    """
    if name is None:
        name = next((kind for kind in ACCELERATORS if is_there(torch.device(kind))), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if world.size > 1 and device.type != "cpu":
        if device.index is not None or device.type == "mps":
            expected = f"--device: expected one device per process ({world.size}), got {name}"
            raise ValueError(f"{expected}: pass --device cpu, or cuda without a number")
        device = torch.device(device.type, world.local_rank)
    if not is_there(device):
        raise ValueError(f"--device: expected one of this machine, got {name}: pass --device cpu")
    return device


def is_there(device: torch.device) -> bool:
    """Whether torch can have a tensor with values on the device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError):  # by kind of device
        return False
    return device.type != "meta"


def choose_precision(name: str | None, device: torch.device) -> tuple[str, str]:
    """Return the precision that the frozen CLIP is stored and computed in, and the reason for it.

    name: as set; None for the usual one; "auto" for bf16 on a CPU that computes in it, elsewhere
        the usual one.
    """
    if name not in (None, AUTO):
        return name, "as set"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return "bf16", "this GPU supports it, with fp32's range"
        return "fp16", "this GPU does not support bf16"
    if name == AUTO and device.type == "cpu" and CPU_INFO.is_file():
        if CPU_BF16.intersection(CPU_INFO.read_text().split()):  # without it bf16 is far slower
            return "bf16", "this processor supports it"
    return "fp32", "the default"


def move_clip(clip: CLIP, device: torch.device, precision: str) -> CLIP:
    """Move CLIP to the device, stored in the precision."""
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # the patch embedding's, 10 bits by default
    else:
        clip = clip.cast(PRECISIONS[precision])
    return clip.to(device)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones, where the C library is glibc.

    By default it returns each large block to the system, which has to clear its pages before the
    next tensor gets them: up to a fifth of a training step on a CPU. A step's peak is no higher.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def load_clip(config: RunConfig, model: str | None = None) -> CLIP:
    """Load the CLIP of a run, or the one at `model` as it does; raises as `load`."""
    options = dict(head_width=config.head_width, image_size=config.image_size)
    return load(model or config.model, quick_gelu=config.quick_gelu, **options)[0]
