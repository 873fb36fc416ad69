"""What a run needs to go on with after its last finished epoch: one file that is written whole.

Orders and crops of pictures are not in it: they follow from the seed and the epoch's number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.reader import read_checkpoint
from ..checkpoints.saved import write_checkpoint
from ..clip.state_dict import check_tensors
from ..files import entries, one_line_errors, shown
from ..trained import PromptedCLIP
from .folders import METRICS, MODEL, STATE, Run

FORMAT = "minidpt state 1"


@dataclass
class TrainingState:
    """All that changes from epoch to epoch.

    epoch: the number of those that are finished; metrics: their lines of metrics.jsonl.
    """

    model: PromptedCLIP
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    epoch: int = 0
    metrics: str = ""

    def save(self, run: Run) -> None:
        """Write state.pt, which counts, and then what it makes anew: model.pt, metrics.jsonl.

        Of several ranks, which have the same state, the first does.
        """
        if not self.model.ranks.first:
            return
        learned, state = self.model.learned(), self.optimizer.state
        momentum = {name: state[value].get("momentum_buffer") for name, value in learned.items()}
        write_checkpoint(run.path(STATE), {
            "format": FORMAT,
            "epoch": self.epoch,
            "learned": on_cpu(learned),
            "momentum": on_cpu(momentum),
            "scaler": self.scaler.state_dict(),
            "generators": {name: one.get_rng_state() for name, one in self._generators().items()},
            # as numbers, which a checkpoint may have more of than of text
            "metrics": torch.tensor(list(self.metrics.encode()), dtype=torch.uint8),
        })  # fmt: skip
        self.model.save(run.path(MODEL), text_features=False)
        run.write_text(METRICS, self.metrics)

    @one_line_errors
    def load(self, run: Run) -> None:
        """Take over what `save` has written; ValueError if it is damaged or of another model."""
        path = run.path(STATE)
        try:
            content = entries(read_checkpoint(path), "content", format=str)
            if content["format"] != FORMAT:
                raise ValueError(f"expected {FORMAT}, got {shown(content['format'])}")
            kinds = dict.fromkeys(("learned", "momentum", "scaler", "generators"), dict)
            entries(content, "content", epoch=int, metrics=Tensor, **kinds)
            learned, momentum = self.model.learned(), content["momentum"]
            check_tensors(content["learned"], learned, "learned prompts")
            moving = {name: learned[name] for name in momentum if name in learned}
            check_tensors(momentum, moving, "momentum")
            self.scaler.load_state_dict(content["scaler"])
            for name, generator in self._generators().items():
                if name in content["generators"]:  # else it is gone on with on another device
                    generator.set_rng_state(content["generators"][name].clone())
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            fix = "begin the run anew in another --out"
            raise ValueError(f"{path}: not the state of this run, {error}: {fix}") from error
        self.model.set_learned(content["learned"])
        for name, value in momentum.items():
            parameter = learned[name]
            self.optimizer.state[parameter]["momentum_buffer"] = value.to(parameter, copy=True)
        self.epoch = content["epoch"]
        self.metrics = bytes(content["metrics"].tolist()).decode()

    def _generators(self) -> dict[str, Any]:
        """By kind of device, the module of torch that has its random numbers."""
        device = self.model.clip.device.type
        return {"cpu": torch, device: torch if device == "cpu" else getattr(torch, device)}


def on_cpu(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Those that are there, without gradient."""
    return {name: value.detach().cpu() for name, value in tensors.items() if value is not None}
