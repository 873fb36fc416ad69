"""The models of run folders, with the CLIP that they were trained on."""

from __future__ import annotations

import shlex
from argparse import Namespace

import torch

from ..model import PromptedCLIP, load_model
from ..ranks import started
from .config import RunConfig, RunRecord
from .devices import choose_device, load_clip, place
from .folders import MODEL, SUMMARY, RunFolder
from .precision import AUTO, choose_precision
from .processes import command_of
from .progress_line import say


def load_runs(runs: list[RunFolder], args: Namespace) -> tuple[list[PromptedCLIP], str]:
    """Return the models of runs, which must have one CLIP, and the precision they compute in."""
    settings = [run.read_config() for run in runs]
    config, record = settings[0]
    for other, other_record in settings[1:]:
        check_same_clip(args, (config, record), (other, other_record))
    device = device_of_runs(runs, args)
    precision, reason = choose_precision(args.precision or record.precision, device)
    clip = load_clip(config, args.model)
    if args.precision == AUTO:
        say(f"CLIP {clip.name} on {device} in {precision} ({reason})")
    clip = place(clip, device, precision)
    for run in runs:
        if not run.path(SUMMARY).is_file():
            again = shlex.join([*command_of("train"), "--resume", str(run.folder)])
            say(f"note: the training of {run.folder} was stopped before its end, or still runs; "
                f"to resume it: {again}")  # fmt: skip
    models = [load_model(run.path(MODEL), clip) for run in runs]
    return models, precision


def check_same_clip(
    args: Namespace, first: tuple[RunConfig, RunRecord], other: tuple[RunConfig, RunRecord]
) -> None:
    """Raise ValueError if two runs need different CLIPs, or compute otherwise."""
    for name in ("clip_fingerprint", "device", "precision"):
        values = [getattr(record, name) for _, record in (first, other)]
        if values[0] != values[1] and getattr(args, name, None) is None:
            fix = "" if name == "clip_fingerprint" else f", or pass --{name}"
            raise ValueError(
                f"expected runs with one CLIP, got {name} {values[0]} and {values[1]}: test them "
                f"one by one{fix}"
            )


def device_of_runs(runs: list[RunFolder], args: Namespace) -> torch.device:
    """Return the device that was asked for, or the runs' if it is on this machine."""
    if args.device is None:
        try:
            return choose_device(runs[0].read_config()[1].device, started())
        except ValueError:
            pass  # it is not here
    return choose_device(args.device, started())
