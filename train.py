"""Learn prompts for CLIP from a few images a class, and test them.

    python train.py                        # the demo: no download, two minutes
    python train.py --data ./caltech101 --shots 16
    python train.py --data ./caltech101 --method coop dpt --shots 1 4 --seed 1 2
    torchrun --nproc_per_node=2 train.py --data ./caltech101    # by 2 processes

Prints zero-shot CLIP's accuracy beside the learned one's and leaves a run folder
(`minidpt.runs.folders.Run`) that eval.py reads. With several methods, numbers of shots, seeds or
data sets it is a sweep: a folder of runs and a table. What was stopped is gone on with:

    python train.py --resume RUN
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from minidpt.checkpoints.pretrained import load
from minidpt.clip import pictures
from minidpt.clip.network import CLIP
from minidpt.clip.white import white_notes
from minidpt.config import METHODS
from minidpt.data.batches import (
    IMAGE_MEMORY,
    ImageStore,
    deep_pictures,
    train_batches,
    white_of,
)
from minidpt.data.copies import copies_note
from minidpt.data.datasets import open_dataset
from minidpt.data.demo import draw_demo
from minidpt.data.items import Dataset
from minidpt.data.layouts import layout_of
from minidpt.data.shots import few_shot, select_classes
from minidpt.data.splits import write_split
from minidpt.model import ModelOutput, PromptedCLIP, build_model
from minidpt.ranks import LostRank, Ranks, join, started
from minidpt.runs.command_line import AfterTheStep, Interrupted, is_expected, report, run_command
from minidpt.runs.devices import choose_device, keep_freed_memory, need_compiler, place
from minidpt.runs.evaluation import FeatureCache, TestSet, percent_correct, predicted, zero_shot
from minidpt.runs.folders import (
    ANEW,
    CONFIG,
    METRICS,
    MODEL,
    REPORT,
    SPLIT,
    STATE,
    SUMMARY,
    Run,
    Sweep,
    folders_of,
    held_in,
    versions,
)
from minidpt.runs.precision import (
    AUTO,
    choose_precision,
    noted_precision,
    slow_note,
)
from minidpt.runs.predictions import write_predictions
from minidpt.runs.processes import command_of, of_the_first, telling
from minidpt.runs.progress_line import Progress, Timed, clock, say, say_notes
from minidpt.runs.report import write_report, write_words
from minidpt.runs.results import read_results, summarise, tested_on
from minidpt.runs.state import TrainingState
from minidpt.runs.tables import harmonic_mean, markdown, write_tables
from minidpt.runs.train_options import config_of, parse_arguments, prompts_of, runs_on
from minidpt.training import all_finite, learning_rate, parameter_groups

TEXT_WARMUP = 1  # epochs
FEW_STEPS = 10  # the least that the published settings make is 49, of CoOp with 1 shot


@dataclass
class Job:
    """A run to be made: on which data, on which subsets of its classes, and where it goes."""

    dataset: Dataset
    subsets: dict[str, Dataset]
    settings: Namespace
    run: Run | None = None


def main() -> int:
    """The data sets, the runs on them and the folder they go to; `make_runs` does the rest."""
    args = parse_arguments(__doc__)
    if args.resume and is_finished(args.resume):
        return 0
    pictures.MAX_PIXELS = args.max_pixels
    keep_freed_memory()
    device = choose_device(args.device, started())
    ranks = join(device)
    if args.compile:
        need_compiler(device)
    folder = draw_demo("runs") if args.data is None else Path(args.data).expanduser()
    args.model = args.model or ("tiny" if args.data is None else "ViT-B/32")
    jobs = jobs_on(folder, args, str(device) if ranks.size == 1 else device.type)
    datasets = {id(job.dataset): job.dataset for job in jobs}.values()
    data = [folder, *chain.from_iterable(map(folders_of, datasets))]

    # Where the results go: a folder for the one run, or a folder with a folder for each.
    if len(jobs) == 1 and not (args.out and Sweep.is_in(args.out)):
        out = Path("runs") / jobs[0].settings.name
        claim = Run.new(args.out, data) if args.out else Run.new_numbered(out, data)
        with of_the_first(ranks, claim, Run) as jobs[0].run:
            return make_runs(args, jobs, None, device, ranks)
    else:
        names = [job.settings.name for job in jobs]
        out = args.out or Path("runs") / f"{folder.resolve().name}-sweep"
        with of_the_first(ranks, Sweep.new(out, data, names), Sweep) as sweep:
            for job in jobs:
                job.run = sweep.run(job.settings.name)
            return make_runs(args, jobs, sweep, device, ranks)


def is_finished(folder: str) -> bool:
    """Whether the run that --resume names has its result, which is said, or runs are to be made.

    Raises ValueError if there is nothing to go on with, such as in one of an earlier version.
    """
    run = Run(folder)
    if Sweep.is_in(folder):
        return False
    if run.path(SUMMARY).is_file():
        command = shlex.join([*command_of("eval"), "--run", folder])
        say(f"run {folder} is finished: {command}")
        return True
    if run.path(METRICS).is_file() and not run.path(STATE).is_file():
        raise ValueError(f"--resume {folder}: expected {STATE} in it, got a run without: {ANEW}")
    return False


def jobs_on(folder: Path, args: Namespace, device: str) -> list[Job]:
    """The runs on every data set in the folder. What can't be drawn from it is an error now.

    device: of these runs; with several ranks its kind, as each has its own.
    """
    jobs = []
    subsets = ("base", "new") if args.classes == "base" else (args.classes,)
    for name in dict.fromkeys(layout_of(name).name for name in args.dataset or []) or [None]:
        dataset = open_dataset(folder, name, classnames=args.classnames, template=args.template)
        say(dataset.source)
        say_notes(dataset.notes)
        subsets_of = {subset: select_classes(dataset, subset) for subset in subsets}
        if set(args.method) != {"zeroshot"}:
            few_shot(dataset, args.shots[0], args.seed[0])
        settings = Namespace(**vars(args))
        settings.data, settings.dataset, settings.device = str(folder.resolve()), name, device
        settings.data_fingerprint = dataset.fingerprint()
        jobs += [Job(dataset, subsets_of, one) for one in runs_on(dataset, settings)]
    return jobs


def make_runs(
    args: Namespace, jobs: list[Job], sweep: Sweep | None, device: torch.device, ranks: Ranks
) -> int:
    """Every run that has no result yet, with one frozen CLIP; then the table of a sweep.

    Several ranks share one run; of a sweep each makes whole runs, dealt out as they become free.
    Returns 2 if runs of the sweep have failed, or its table could not be written.
    """
    clip, todo = prepare(args, jobs, sweep, device, ranks)
    ranks.tell()  # all have seen what is there, before any of them writes

    # Each data set's test images are decoded once. In a sweep, a run that fails stops no other.
    sharing = ranks.alone() if sweep else ranks
    store, failed = ImageStore(IMAGE_MEMORY // ranks.local_size), []
    tests, opened = {}, None  # of the data set that was tested last
    cache = FeatureCache(sweep.folder / "features") if sweep else None
    for number in ranks.dealt(len(todo)) if sweep else range(len(todo)):
        job = todo[number]
        try:
            if job.dataset is not opened:
                options = dict(workers=args.workers, cache=cache, ranks=sharing)
                tests = {
                    subset: (tested, TestSet(tested.test, clip, **options))
                    for subset, tested in job.subsets.items()
                }
                opened = job.dataset
            with telling(job.settings.name, ranks) if sweep else nullcontext():
                if sweep:
                    say(f"[{number + 1}/{len(todo)}] {job.settings.name}")
                train(job.settings, job.dataset, tests, clip, job.run, store, sharing, bool(sweep))
        except (Interrupted, LostRank) as stop:
            again = command_of("train", ranks)
            if sweep or not job.run.path(CONFIG).is_file():
                stop.go_on = shlex.join([*again, *sys.argv[1:]])
            elif not job.run.path(SUMMARY).is_file():
                stop.go_on = shlex.join([*again, "--resume", str(job.run.folder)])
            raise
        except Exception as error:
            if not sweep or isinstance(error, BrokenPipeError) or not is_expected(error):
                raise
            with telling(job.settings.name, ranks):
                report(error, f"{job.settings.name}: " if ranks.size == 1 else "")
            failed.append(job.settings.name)
    failed = list(chain.from_iterable(ranks.tell(failed)))
    if not ranks.first:
        return 0
    tabulated = not sweep or len(failed) == len(jobs) or tabulate(sweep, not args.no_report)
    if failed:
        report(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")
    return 0 if tabulated and not failed else 2


def prepare(
    args: Namespace, jobs: list[Job], sweep: Sweep | None, device: torch.device, ranks: Ranks
) -> tuple[CLIP, list[Job]]:
    """CLIP on its device, and the runs that have no result yet, in the order to make them.

    Runs of other weights, or of other data, are not gone on with: that is a ValueError, as is what
    this CLIP cannot take.
    """
    options = dict(head_width=args.head_width, image_size=args.image_size)
    clip, _ = load(args.model, exact_gelu=args.exact_gelu, **options)
    noted = noted_precision(job.run for job in jobs) if args.precision == AUTO else None
    # What is measured is measured by the first rank, and holds for all.
    precision, reason = ranks.tell(
        choose_precision(args.precision, device, clip, noted) if ranks.first else None
    )[0]
    for job in jobs:
        job.settings.clip_fingerprint, job.settings.precision = clip.fingerprint(), precision
    fix = [ANEW] * bool(args.resume)
    todo = [job for job in jobs if not job.run.finished(config_of(job.settings), *fix)]
    if ranks.size > 1:
        todo.sort(key=longest_first)
    run = jobs[0].run
    if sweep:
        count, finished = len(jobs), len(jobs) - len(todo)
        say(f"{count} run{'s' * (count > 1)} in {sweep.folder}, {finished} of them finished")
    else:
        goes_on = "goes on" if run.path(STATE).is_file() else "begins anew"
        say(f"run folder {run.folder}" + f", which {goes_on}" * bool(held_in(run.folder)))
    say_notes((sweep or run).notes)
    kinds = {(prompts_of(job.settings), job.settings.template): job for job in todo}
    for (config, template), job in kinds.items():
        build_model(clip, job.dataset.classnames[:2], template, config)
    if todo:
        clip = place(clip, device, precision)
        say(f"CLIP {clip.name} on {device} in {precision} ({reason})")
        say_notes(clip.notes)
        if sweep and ranks.first:
            sweep.create({**vars(args), "data": todo[0].settings.data})
    return clip, todo


def tabulate(sweep: Sweep, with_report: bool) -> bool:
    """Print the table of a sweep and write it, and its report; False if it can't be written."""
    try:
        text, written = f"{write_tables(sweep.folder)}\n{sweep.folder}: table.md, table.csv", True
    except OSError as error:
        report(error)
        text, written = markdown(summarise(read_results(sweep.folder))), False
    say("", *text.splitlines())
    if with_report:
        with reporting(sweep.folder):
            write_report(sweep.folder)
            say(sweep.folder / REPORT)
    return written


def longest_first(job: Job) -> tuple[int, str, int]:
    """Order in which runs are dealt out, so that the last of them end together, about.

    Those on one data set stay together, as its pictures are read once. A step of a method takes
    longer than one of those before it in `METHODS`.
    """
    settings = job.settings
    training = settings.epochs * settings.shots * METHODS.index(settings.method)
    return -len(job.dataset.classnames), job.dataset.name, -training


def train(
    settings: Namespace,
    dataset: Dataset,
    tests: dict[str, tuple[Dataset, TestSet]],
    clip: CLIP,
    run: Run,
    store: ImageStore,
    ranks: Ranks,
    in_sweep: bool,
) -> None:
    """One run: draw the shots, learn prompts, test, write all of it into the run's folder.

    tests: by subset of the classes ("all", "base", "new"); the first is the one that is trained on.
    """
    started = time.monotonic()
    subset, (_, test) = next(iter(tests.items()))
    drawn = draw(settings, dataset, tests[subset][0], subset)
    torch.manual_seed(settings.seed)
    tested = sum(len(test) for _, test in tests.values())
    model = build(settings, drawn, clip, tested, ranks)

    # All images are decoded before anything is written: a broken one is an error now, not later.
    read_images(settings, drawn, tests, model, store)
    untrained = zero_shot(model, test)
    plain = percent_correct(untrained.labels, test.labels)
    say(f"zero-shot accuracy {plain:.2f} % on {len(test)} test images")

    if ranks.first:
        if not run.path(STATE).is_file():  # else it is gone on with
            run.create()
        run.write_json(CONFIG, {**config_of(settings), "white": model.white})
        write_split(drawn, run.path(SPLIT))
    if model.prompt_state_dict():
        learn(settings, model, drawn, store, run)
    elif ranks.first:
        model.save(run.path(MODEL))

    # The result, and with base classes also what the prompts do for the new ones.
    model.eval()
    results, predictions = {}, []
    for subset, (tested, test) in tests.items():
        same = tested.classnames == model.classnames
        tested_model = model if same else model.for_classes(tested.classnames)
        frozen = untrained if same else zero_shot(tested_model, test)
        predictions.append((predicted(tested_model, test), frozen))
        learned, before = (percent_correct(own.labels, test.labels) for own in predictions[-1])
        results[tested_on(dataset.name, subset)] = {
            "zero_shot_accuracy": before, "accuracy": learned, "test_images": len(test),
        }  # fmt: skip
    if not ranks.first:
        return
    with reporting(run.folder):
        write_predictions(run, drawn, *predictions[0])  # of the subset that was trained on
        if model.config.learns_text:
            write_words(run, model)
    result, *others = results.values()
    seconds = time.monotonic() - started
    run.write_json(SUMMARY, {
        "dataset": dataset.name, "classes": len(drawn.classnames), "method": settings.method,
        "shots": settings.shots, "seed": settings.seed, "model": clip.name,
        "epochs": settings.epochs if model.prompt_state_dict() else 0,
        "train_images": len(drawn.train), **result, "tests": results,
        "seconds": round(seconds, 1), "versions": versions(),
    })  # fmt: skip
    run.path(STATE).unlink(missing_ok=True)
    gain = result["accuracy"] - plain
    say(f"{settings.method} accuracy {result['accuracy']:.2f} %, zero-shot {plain:.2f} % "
        f"({gain:+.2f}), {clock(seconds)} min")  # fmt: skip
    for name, other in zip(list(results)[1:], others, strict=True):
        mean = harmonic_mean(result["accuracy"], other["accuracy"])
        say(f"{name}: accuracy {other['accuracy']:.2f} %, zero-shot "
            f"{other['zero_shot_accuracy']:.2f} %; harmonic mean {mean:.2f} %")  # fmt: skip
    if not (in_sweep or settings.no_report):
        with reporting(run.folder):
            say_notes(write_report(run.folder, lambda: model))
            say(run.path(REPORT))
    say(f"test it again: {shlex.join([*command_of('eval'), '--run', str(run.folder)])}")


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """What is written to be looked at: if it fails, that is one line and fails no run."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            raise
        report(f"{folder}: the report is left out: {error or type(error).__name__}")


def draw(settings: Namespace, dataset: Dataset, whole: Dataset, subset: str) -> Dataset:
    """The run's few training images and all test images, of the classes of the subset."""
    if settings.method == "zeroshot":
        return replace(whole, train=[], val=[])
    drawn = few_shot(dataset, settings.shots, settings.seed)
    say_notes(drawn.notes[len(dataset.notes) :])
    return select_classes(drawn, subset)  # the published protocol draws before it selects


def build(
    settings: Namespace, drawn: Dataset, clip: CLIP, tested: int, ranks: Ranks
) -> PromptedCLIP:
    """The model to train; prints notes where its settings leave too little training, or take long.

    tested: the number of test images.
    """
    model = build_model(clip, drawn.classnames, settings.template, prompts_of(settings), ranks)
    if settings.class_chunk is not None:
        model.class_chunk = settings.class_chunk or None
    count = sum(parameter.numel() for parameter in model.prompt_state_dict().values())
    if count:
        say(f"{settings.method} learns {count:,} numbers from {len(drawn.train)} images")

    epochs = settings.epochs if count else 0
    longest = settings.warmup_epochs if model.config.learns_image else TEXT_WARMUP
    each = max(len(drawn.train) // settings.batch_size, 1)
    steps = max(epochs - longest, 0) * each
    if epochs and steps < FEW_STEPS:
        fewer = " or fewer --warmup-epochs" if model.config.learns_image else ""
        say(f"note: training steps after warm-up: {steps}; with less than {FEW_STEPS} the "
            "accuracy tells little about the method or the number of shots: pass more --epochs"
            + fewer)  # fmt: skip
    if model.config.guided and 0 < epochs <= settings.guidance_epochs:
        say(f"note: all {epochs} epochs are guidance, which is published as 30 of 100: pass "
            f"--guidance-epochs {epochs * 3 // 10}")  # fmt: skip
    seen = epochs * min(each * settings.batch_size, len(drawn.train))
    if note := slow_note(model, epochs * each, seen // ranks.size, tested // ranks.size):
        say(f"note: {note}")
    return model


def read_images(
    settings: Namespace,
    drawn: Dataset,
    tests: dict[str, tuple[Dataset, TestSet]],
    model: PromptedCLIP,
    store: ImageStore,
) -> None:
    """Read all images, by one white level, which the model keeps; frozen features of the tests."""
    ranks, workers = model.ranks, settings.workers
    paths = [item.path for item in drawn.train]
    test_paths = [item.path for _, test in tests.values() for item in test.items]
    if ranks.first and (note := copies_note(paths, test_paths)):
        say(f"note: {note}")
    paths, test_paths = ranks.share(paths), ranks.share(test_paths)
    deep = deep_pictures(paths, workers)
    deep_tests = {path: kind for _, test in tests.values() for path, kind in test.deep.items()}
    white = white_of(deep, workers=workers, ranks=ranks)
    model.white = white = white_of(deep_tests, white, workers, ranks)
    kinds = chain.from_iterable(ranks.tell(list((deep | deep_tests).values())))
    say_notes(white_notes(white, kinds))
    store.fill(paths, workers, white, others=test_paths)
    for _, test in tests.values():
        test.show_by(white)
        test.features()
    ranks.tell()  # also the slowest has read its images


def learn(
    settings: Namespace, model: PromptedCLIP, drawn: Dataset, store: ImageStore, run: Run
) -> None:
    """SGD on the prompts alone; all that going on needs is written after each epoch."""
    device, epochs = model.clip.device, settings.epochs
    groups = parameter_groups(model, settings.visual_lr, settings.text_lr)
    base_lr = {group["name"]: group["lr"] for group in groups}
    warmup = {"visual": settings.warmup_epochs, "text": TEXT_WARMUP}
    # With fp16's scaler, torch's fused SGD may begin from a momentum that was never written.
    fused = device.type != "cpu" and settings.precision != "fp16"
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4, fused=fused)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    state = TrainingState(model.train(), optimizer, scaler, config_of(settings))
    if run.path(STATE).is_file():
        state.load(run)
        say(f"going on after epoch {state.epoch} of {epochs}")
    state.save(run)
    forward = model
    if settings.compile:
        torch.compiler.reset()  # runs of a sweep would add up to torch's limit of recompilations
        forward = torch.compile(model)
    progress = Progress("epoch", epochs, after=0, done=state.epoch)
    with progress, AfterTheStep() as stop:
        while state.epoch < epochs:
            for group in optimizer.param_groups:
                name = group["name"]
                group["lr"] = learning_rate(state.epoch, base_lr[name], epochs, warmup[name])
            batches = Timed(train_batches(
                drawn.train, model.clip.visual.resolution, settings.batch_size, settings.seed,
                state.epoch, store, settings.workers, ranks=model.ranks,
                pin_memory=device.type not in ("cpu", "mps"),
            ))  # fmt: skip
            guidance = state.epoch < settings.guidance_epochs
            batch_size = min(settings.batch_size, len(drawn.train))
            record = train_epoch(state, forward, batches, batch_size, guidance, stop)
            check_finite(settings, state, record["loss"], run)
            state.metrics += json.dumps(record) + "\n"
            state.save(run)
            rates = "/".join(f"{rate:.1e}" for rate in record["lr"].values())
            progress(
                state.epoch,
                f"loss {record['loss']:.3f} · "
                f"accuracy {record['train_accuracy']:.1f} % · lr {rates} · "
                f"{record['images_per_second']:.0f} images/s, waiting for them "
                f"{100 * record['waited_for_images']:.0f} %",
            )
    if model.ranks.first:
        model.save(run.path(MODEL))


def train_epoch(
    state: TrainingState,
    forward: Callable[..., ModelOutput],
    batches: Timed,
    batch_size: int,
    guidance: bool,
    stop: AfterTheStep,
) -> dict[str, Any]:
    """One epoch; returns its line of metrics.jsonl.

    forward: the model or a faster form of it.
    batches: this rank's share of them.
    batch_size: images of a batch on all ranks, whose parts of the loss and of the gradients add up.
    """
    started, seen, device = time.monotonic(), 0, state.model.clip.device
    ranks, learned = state.model.ranks, list(state.model.prompt_state_dict().values())
    totals = torch.zeros(2, device=device)
    total_loss, total_correct = totals  # views
    for images, labels in batches:
        stop.check()
        images = state.model.clip.normalize(images.to(device, non_blocking=True))
        labels = labels.to(device, non_blocking=True)
        output = forward(images, branches=guidance)
        loss = state.model.loss(output, labels, guidance)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        ranks.add_gradients(learned)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        seen += batch_size
        total_loss += loss.detach() * batch_size
        total_correct += (output.logits.argmax(dim=-1) == labels).sum()
    loss_sum, correct = ranks.add(totals).tolist()  # waits for the device
    seconds = time.monotonic() - started
    state.epoch += 1
    return {
        "epoch": state.epoch,
        "loss": loss_sum / seen,
        "train_accuracy": 100 * correct / seen,
        "lr": {group["name"]: group["lr"] for group in state.optimizer.param_groups},
        "images_per_second": seen / seconds,
        "waited_for_images": batches.waited / seconds,
    }


def check_finite(settings: Namespace, state: TrainingState, loss: float, run: Run) -> None:
    """ValueError if the loss or a learned number is infinite or NaN."""
    if not (math.isfinite(loss) and all_finite(state.model.prompt_state_dict().values())):
        then = ", the prompts after it are not finite" if math.isfinite(loss) else ""
        lower = "" if settings.precision == "fp32" else "--precision fp32 or "
        raise ValueError(
            f"epoch {state.epoch}: the loss is {loss}{then}; {run.path(MODEL)} is of the epoch "
            f"before: try {lower}lower learning rates"
        )


if __name__ == "__main__":
    run_command(main)
