"""What a run needs to go on with after its last finished epoch: one file that is written whole.

Orders and crops of pictures are not in it: they follow from the seed and the epoch's number.
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
from ..support.files import check_fields, parse_json, short_repr
from .folders import METRICS, MODEL, START_OVER_HINT, STATE, RunFolder

FORMAT = "minidpt state 2"


@dataclass
class TrainingState:
    """All that changes from epoch to epoch.

    settings: those that decide the result of the run, which are written beside it.
    epoch: the number of those that are finished; metrics: their lines of metrics.jsonl.
    """

    model: PromptedCLIP
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    settings: dict[str, Any]
    epoch: int = 0
    metrics: str = ""

    def save(self, run: RunFolder) -> None:
        """Write state.pt, which counts, and then what it makes anew: model.pt, metrics.jsonl.

        Of several ranks, which have the same state, the first does.
        """
        if not self.model.world.is_main:
            return
        learned, state = self.model.prompt_state_dict(), self.optimizer.state
        momentum = {name: state[value].get("momentum_buffer") for name, value in learned.items()}
        write_checkpoint(run.path(STATE), {
            "format": FORMAT,
            "settings": self.settings,
            "epoch": self.epoch,
            "learned": on_cpu(learned),
            "momentum": on_cpu(momentum),
            "scaler": self.scaler.state_dict(),
            "generators": {name: one.get_rng_state() for name, one in self._generators().items()},
            # as numbers, which a checkpoint may have more of than of text
            "metrics": torch.tensor(list(self.metrics.encode()), dtype=torch.uint8),
        })  # fmt: skip
        self.model.save(run.path(MODEL))
        run.write_text(METRICS, self.metrics)

    def load(self, run: RunFolder) -> None:
        """Take over what `save` has written; ValueError if it is damaged or of another run."""
        path = run.path(STATE)
        try:
            content = read_checkpoint(path)
        except ValueError as error:  # its advice is for a checkpoint, which can be had again
            raise ValueError(f"{path}: expected a whole file, got a damaged one: {START_OVER_HINT}") from error
        try:
            self._take(check_fields(content, "content", format=str))
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path}: not the state of this run, {error}: {START_OVER_HINT}") from error

    def _take(self, content: dict[str, Any]) -> None:
        if content["format"] != FORMAT:
            raise ValueError(f"expected {FORMAT}, got {short_repr(content['format'])}")
        kinds = dict.fromkeys(("learned", "momentum", "scaler", "generators"), dict)
        check_fields(content, "content", epoch=int, metrics=Tensor, settings=dict, **kinds)
        for name, value in self.settings.items():
            if (there := content["settings"].get(name)) != value:
                raise ValueError(f"expected {name} {short_repr(value)}, got one with {name} {short_repr(there)}")
        epoch, epochs, learned = content["epoch"], self.settings["epochs"], self.model.prompt_state_dict()
        if not 0 <= epoch <= epochs:
            raise ValueError(f"expected an epoch from 0 to {epochs}, got {short_repr(epoch)}")
        metrics = lines_of(content["metrics"], epoch)

        momentum, generators = content["momentum"], self._generators()
        # fp16's scaler may have left out all steps so far.
        begun = epoch and (momentum or not self.scaler.is_enabled())
        check_tensors(content["learned"], learned, "learned prompts")
        check_tensors(momentum, learned if begun else {}, "momentum")
        of_scaler = {name: type(value) for name, value in self.scaler.state_dict().items()}
        check_fields(content["scaler"], "scaler", **of_scaler)
        check_fields(content["generators"], "generators", **dict.fromkeys(generators, Tensor | None))

        for name, generator in generators.items():
            if (drawn := content["generators"].get(name)) is not None:  # else on another device
                generator.set_rng_state(drawn.clone())
        self.scaler.load_state_dict(content["scaler"])
        self.model.load_prompt_state_dict(content["learned"])
        for name, value in momentum.items():
            parameter = learned[name]
            self.optimizer.state[parameter]["momentum_buffer"] = value.to(parameter, copy=True)
        self.epoch, self.metrics = epoch, metrics

    def _generators(self) -> dict[str, Any]:
        """By kind of device, the module of torch that has its random numbers."""
        device = self.model.clip.device.type
        return {"cpu": torch, device: torch if device == "cpu" else getattr(torch, device)}


def on_cpu(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Those that are there, without gradient."""
    return {name: value.detach().cpu() for name, value in tensors.items() if value is not None}


def lines_of(metrics: Tensor, epochs: int) -> str:
    """The text of metrics.jsonl from its bytes; ValueError unless it has a line for each epoch."""
    if metrics.dtype != torch.uint8 or metrics.ndim != 1:
        raise ValueError(f"metrics: expected bytes, got {metrics.dtype}, {tuple(metrics.shape)}")
    text = bytes(metrics.tolist()).decode()
    *lines, rest = text.split("\n")
    told = [check_fields(parse_json(line, "metrics"), "metrics", epoch=int)["epoch"] for line in lines]
    if rest or told != list(range(1, epochs + 1)):
        raise ValueError(f"metrics: expected a line for each of {epochs} epochs, got {len(lines)}")
    return text
