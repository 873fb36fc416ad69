"""Folders of runs and of sweeps: their files, locks against other writers, the state to resume."""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.prompt_file import write_checkpoint
from ..checkpoints.reader import read_checkpoint
from ..clip.state_dict import check_tensors
from ..data.labels_csv import describe_missing, missing_files
from ..data.samples import SPLITS
from ..data.splits import split_content
from ..model import PromptedCLIP
from ..support.files import (
    atomic_write,
    check_fields,
    file_lock,
    read_json,
    read_text,
    short_repr,
    to_single_line,
)
from .config import FIELDS, RunConfig, RunRecord, flag

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
SPLIT, MODEL, STATE, TRANSFER = "split.json", "model.pt", "state.pt", "transfer.json"
SWEEP, LOCK, TRANSFER_LOCK = "sweep.json", ".minidpt.lock", f"{TRANSFER}.lock"
PREDICTIONS, WORDS, REPORT = "predictions.csv", "words.json", "report.html"
RUN_FILES = (SUMMARY, METRICS, MODEL, STATE, SPLIT, PREDICTIONS, WORDS, REPORT, TRANSFER,
             TRANSFER_LOCK, CONFIG)  # fmt: skip
SWEEP_FILES = (SWEEP, "table.md", "table.csv", REPORT)
UNFINISHED = tuple(f"{name}.part" for name in RUN_FILES + SWEEP_FILES)  # of killed processes
STATE_FORMAT = "minidpt state 3"
RECORD = "record"  # beside the options in config.json
FINGERPRINTS = {"clip_fingerprint": "CLIP", "data_fingerprint": "data"}
BUSY = "output folder {}: another process writes to it: wait for its end"
START_OVER_HINT = "start anew with --config and --out"  # instead of --resume


class RunFolder:
    """A run's folder.

    config.json: all options, and what the run found out (`RunRecord`); split.json: the images used;
    state.pt: what resuming needs (`TrainingState`), after each epoch, and from it model.pt:
    the learned prompts, metrics.jsonl: a line for each epoch; predictions.csv: the classes
    predicted for each test image; words.json: the nearest words of the learned context;
    summary.json: the result, written last, when state.pt goes; report.html: all of it to look at;
    transfer.json: results of eval.py on other data.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "RunFolder":
        """Return a finished or interrupted run. Raises FileNotFoundError if there is none."""
        run = cls(folder)
        for name in (CONFIG, SPLIT, MODEL):
            if not os.path.lexists(run.path(name)):
                within = next(run.folder.glob(f"*/{SPLIT}"), None)
                fix = f"a run in it, such as {within.parent}" if within else "a folder of train.py"
                got = f"got none: pass {fix}"
                raise FileNotFoundError(f"run folder {folder}: expected {name} in it, {got}")
        model = run.path(MODEL)
        if not (model.is_file() and zipfile.is_zipfile(model)):
            fix = "copy the run again, resume it (train.py --resume), or make it again"
            raise ValueError(f"{model}: expected a whole file, got a damaged one: {fix}")
        return run

    def create(self, config: RunConfig, record: RunRecord) -> None:
        """Create the folder; files of an interrupted run go, unless it can be resumed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.path(STATE).is_file():
            for name in RUN_FILES:  # it is a run to the last
                self.path(name).unlink(missing_ok=True)
        remove_unfinished(self.folder)
        self.write_json(CONFIG, {**config.to_dict(), RECORD: asdict(record)})

    def read_config(self) -> tuple[RunConfig, RunRecord]:
        """Return the run's settings. Raises ValueError if config.json is damaged."""
        options, where = self.read_json(CONFIG), str(self.path(CONFIG))
        if (record := options.pop(RECORD, None)) is None:
            got = "those of an earlier version, or of another program: make the run again"
            raise ValueError(f"{where}: expected the settings of a run of minidpt 1.0, got {got}")
        check_fields(options, where, data=str, model=str)
        return RunConfig.from_dict(options, where), RunRecord.from_dict(record, where)

    def is_finished(self, config: RunConfig, record: RunRecord, fix: str) -> bool:
        """Whether the folder holds a run of these settings that has its result.

        Raises ValueError, which `fix` ends, if it holds another run, a damaged one, or none.
        """
        if not list_contents(self.folder):
            return False
        if not self.path(CONFIG).is_file():
            raise ValueError(f"run folder {self.folder}: expected a run in it, got other files")
        there = [each.result_settings() for each in self.read_config()]
        self._compare(config.result_settings() | record.result_settings(), there[0] | there[1], fix)
        return self.has_result()

    def has_result(self) -> bool:
        """Whether summary.json is there; if so, remove the state that a kill just then has left.

        Raises ValueError if it is damaged.
        """
        if not os.path.lexists(self.path(SUMMARY)):
            return False
        self.read_summary(tests=dict)  # a damaged one must not cost the state
        self.path(STATE).unlink(missing_ok=True)
        return True

    def read_summary(self, **needed: Any) -> dict[str, Any]:
        """Read summary.json; raises as `read_json`, with the fix."""
        try:
            return self.read_json(SUMMARY, **needed)
        except (OSError, ValueError) as error:
            can_resume = self.path(STATE).is_file()
            fix = "remove it, and resume the run" if can_resume else "make the run again"
            raise ValueError(f"{error}: {fix}") from error

    def _compare(self, wanted: dict[str, Any], got: dict[str, Any], fix: str) -> None:
        """Raise ValueError at the first setting that differs."""
        for name, value in wanted.items():
            if got.get(name) == value:
                continue
            expected, there = f"a run with {name} {value}", f"one with {name} {got.get(name)}"
            if name in FINGERPRINTS:
                expected = f"the run's {FINGERPRINTS[name]} (fingerprint {got[name][:8]})"
                there = f"other {FINGERPRINTS[name]} ({value[:8]})"
                if name == "data_fingerprint" and (gone := self._missing_images()):
                    there, fix = f"{there}, {describe_missing(gone)}", f"put them back, or {fix}"
            elif name in FIELDS and type(got.get(name)) in (str, int, float):  # no bool
                fix = f"pass {flag(name)} {got[name]}, or {fix}"
            text = f"run folder {self.folder}: expected {expected}, got {there}: {fix}"
            raise ValueError(to_single_line(text))

    def _missing_images(self) -> list[str]:
        """List the images of split.json that are missing in its folder, if that is still there."""
        with suppress(ValueError, OSError):
            split = split_content(self.path(SPLIT))
            if os.path.isdir(root := split.get("root") or ""):
                rows = chain.from_iterable(split[name] for name in SPLITS)
                return missing_files(os.path.join(root, path) for path, *_ in rows)
        return []

    def path(self, name: str) -> Path:
        return self.folder / name

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file atomically."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Write a text file atomically."""
        with atomic_write(self.path(name)) as unfinished:
            unfinished.write_text(content, encoding="utf-8")

    def read_json(self, name: str, **needed: Any) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises ValueError if it is damaged, or lacks a `needed` entry of that type.
        """
        where = str(self.path(name))
        return check_fields(read_json(where, where), where, **needed)


def list_contents(folder: Path) -> set[str]:
    """List the contents of a folder, if there is one, without what killed processes have left."""
    if folder.is_dir():
        return set(os.listdir(folder)) - {LOCK, TRANSFER_LOCK, *UNFINISHED}
    return {folder.name} if os.path.lexists(folder) else set()


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left in a locked folder while they wrote its files."""
    for name in UNFINISHED:
        (folder / name).unlink(missing_ok=True)


class OutputFolderExists(FileExistsError):
    """An output folder has contents that this run cannot resume: another name will do."""


@contextmanager
def lock_output_folder(
    folder: Path, data: Iterable[Path], resumable: str | None = None, option: str = "--out"
) -> Iterator[Path]:
    """Create a folder and lock it for the block by a file in it, where the file system has locks.

    A new or empty folder is accepted, and one without a result that has the file `resumable`.
    Folders that the block leaves empty are removed. Raises ValueError if the folder lies within one
    of the data folders, or another process writes to the folder around it or to one in it;
    OutputFolderExists if it has contents that are not accepted, BlockingIOError if it is locked.
    """

    def check() -> None:
        contents = list_contents(folder)
        if contents and (resumable not in contents or SUMMARY in contents):
            kinds = {SWEEP: "a sweep", SUMMARY: "a finished run", CONFIG: "another run"}
            got = next((kind for name, kind in kinds.items() if name in contents), "other files")
            resumed = ", or one that this command resumes" if option == "--out" else ""
            expected = f"expected a new or empty one{resumed}, got one with {got}"
            fix = f"pass another {option} or remove it"
            raise OutputFolderExists(f"output folder {folder}: {expected}: {fix}")

    check_outside(folder, data, option=option)
    check()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with file_lock(folder / LOCK, BUSY.format(folder)):
            check()  # nobody else writes to it now
            for lock in (folder.parent / LOCK, *folder.glob(f"*/{LOCK}")):  # of sweep or runs
                check_unlocked(lock.parent)
            remove_unfinished(folder)
            yield folder
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


@contextmanager
def lock_numbered_folder(folder: Path, data: list[Path]) -> Iterator[Path]:
    """Lock a new folder: this one, or if it is taken this name with -2, -3, … appended."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    with ExitStack() as lock:
        for path in chain([folder], numbered):
            with suppress(OutputFolderExists, BlockingIOError):
                lock.enter_context(lock_output_folder(path, data))
                break
        yield path


def is_sweep(folder: str | os.PathLike) -> bool:
    """Whether the folder holds a sweep: sweep.json, runs, table.md, table.csv, report.html."""
    return (Path(folder) / SWEEP).is_file()


def check_unlocked(folder: Path) -> None:
    """Raise ValueError if another process writes to the folder."""
    try:
        if (folder / LOCK).exists():
            with file_lock(folder / LOCK, BUSY.format(folder)):
                pass
    except BlockingIOError as error:
        raise ValueError(error) from None


def check_outside(
    path: Path, data: Iterable[Path], output: str = "output folder", option: str = "--out"
) -> None:
    """Raise ValueError if a path to write to lies within one of the data folders."""
    resolved = Path(os.path.realpath(path))  # `resolve` raises for a link that leads to itself
    for root in data:
        if root.is_dir() and resolved.is_relative_to(os.path.realpath(root)):
            expected = f"expected one outside the data folder {root}"
            raise ValueError(f"{output} {path}: {expected}: pass another {option}")


@dataclass
class TrainingState:
    """State of a training that changes from epoch to epoch, saved in one file to resume it.

    Orders and crops of images are not in it: they follow from the seed and the epoch's number.
    """

    model: PromptedCLIP
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    settings: dict[str, Any]  # that decide the run's result, saved to be compared, as are
    images: dict[str, bytes]  # digests of the training images by file; main process only
    epoch: int = 0  # number of finished epochs
    metrics: str = ""  # their lines of metrics.jsonl

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
            "format": STATE_FORMAT,
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
        if content["format"] != STATE_FORMAT:
            raise ValueError(f"expected {STATE_FORMAT}, got {short_repr(content['format'])}")
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
