"""Save and load the state by which a run resumes after its last finished epoch, in one file.

Orders and crops of images are not in it: they follow from the seed and the epoch's number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.prompt_file import write_checkpoint
from ..checkpoints.reader import read_checkpoint
from ..clip.state_dict import check_tensors
from ..model import PromptedCLIP
from ..support.files import check_fields, read_text, short_repr
from .folders import METRICS, MODEL, START_OVER_HINT, STATE, RunFolder

FORMAT = "minidpt state 3"


@dataclass
class TrainingState:
    """State of a training that changes from epoch to epoch.

    settings: those that decide the result of the run, saved to be compared, as are
    images: the files of the training images and their digests, of 40 bytes; main process only.
    epoch: number of finished epochs; metrics: their lines of metrics.jsonl.
    """

    model: PromptedCLIP
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    settings: dict[str, Any]
    images: dict[str, bytes]
    epoch: int = 0
    metrics: str = ""

    def save(self, run: RunFolder) -> None:
        """Write metrics.jsonl, then state.pt, which says how many of its lines count, and model.pt.

        Only the main process writes; all have the same state.
        """
        if not self.model.world.is_main:
            return
        run.write_text(METRICS, self.metrics)
        learned, state = self.model.prompt_state_dict(), self.optimizer.state
        momentum = {name: state[value].get("momentum_buffer") for name, value in learned.items()}
        write_checkpoint(run.path(STATE), {
            "format": FORMAT,
            "settings": self.settings,
            "images": torch.frombuffer(bytearray().join(self.images.values()), dtype=torch.uint8),
            "epoch": self.epoch,
            "learned": on_cpu(learned),
            "momentum": on_cpu(momentum),
            "scaler": self.scaler.state_dict(),
            "generators": {name: kind.get_rng_state() for name, kind in self._generators().items()},
        })  # fmt: skip
        self.model.save(run.path(MODEL))

    def load(self, run: RunFolder) -> None:
        """Load what `save` has written. Raises ValueError if it is damaged or of another run."""
        path = run.path(STATE)
        try:
            content = read_checkpoint(path, verify=True)
        except ValueError as error:  # its advice is for a checkpoint, which can be had again
            expected = "expected a whole file, got a damaged one"
            raise ValueError(f"{path}: {expected}: {START_OVER_HINT}") from error
        lines = read_text(run.path(METRICS), METRICS).splitlines(keepends=True)
        try:
            self._take(check_fields(content, "content", format=str), lines)
        except (ValueError, RuntimeError, TypeError) as error:
            problem = f"not the state of this run, {error}"
            raise ValueError(f"{path}: {problem}: {START_OVER_HINT}") from error

    def _take(self, content: dict[str, Any], lines: list[str]) -> None:
        if content["format"] != FORMAT:
            raise ValueError(f"expected {FORMAT}, got {short_repr(content['format'])}")
        kinds = dict.fromkeys(("learned", "momentum", "scaler", "generators"), dict)
        check_fields(content, "content", epoch=int, settings=dict, images=Tensor, **kinds)
        for name, value in self.settings.items():
            if (there := content["settings"].get(name)) != value:
                got = f"one with {name} {short_repr(there)}"
                raise ValueError(f"expected {name} {short_repr(value)}, got {got}")
        digests = content["images"].numpy().tobytes()
        for number, (path, digest) in enumerate(self.images.items()):
            if digest != digests[40 * number : 40 * (number + 1)]:
                got = f"another {path} (put the old one back to resume)"
                raise ValueError(f"expected the run's training images, got {got}")
        epoch, epochs = content["epoch"], self.settings["epochs"]
        learned = self.model.prompt_state_dict()
        if not 0 <= epoch <= epochs:
            raise ValueError(f"expected an epoch from 0 to {epochs}, got {short_repr(epoch)}")
        if len(lines) < epoch:
            raise ValueError(f"expected {epoch} lines of {METRICS}, got {len(lines)}")
        momentum, generators = content["momentum"], self._generators()
        # fp16's scaler may have left out all steps so far.
        begun = epoch and (momentum or not self.scaler.is_enabled())
        check_tensors(content["learned"], learned, "learned prompts")
        check_tensors(momentum, learned if begun else {}, "momentum")
        of_scaler = {name: type(value) for name, value in self.scaler.state_dict().items()}
        check_fields(content["scaler"], "scaler", **of_scaler)
        kinds = dict.fromkeys(generators, Tensor | None)
        check_fields(content["generators"], "generators", **kinds)

        for name, generator in generators.items():
            if (drawn := content["generators"].get(name)) is not None:  # else on another device
                generator.set_rng_state(drawn.clone())
        self.scaler.load_state_dict(content["scaler"])
        self.model.load_prompt_state_dict(content["learned"])
        for name, value in momentum.items():
            parameter = learned[name]
            self.optimizer.state[parameter]["momentum_buffer"] = value.to(parameter, copy=True)
        self.epoch, self.metrics = epoch, "".join(lines[:epoch])

    def _generators(self) -> dict[str, Any]:
        """Return for each kind of device the torch module with its random generator."""
        device = self.model.clip.device.type
        return {"cpu": torch, device: torch if device == "cpu" else getattr(torch, device)}


def on_cpu(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Return detached copies on the CPU of the tensors that are not None."""
    return {name: value.detach().cpu() for name, value in tensors.items() if value is not None}
