"""Learn prompts for CLIP from a few images per class, and test them.

    python train.py                        # the demo: no download, two minutes
    python train.py --data ./caltech101 --shots 16
    python train.py --data ./caltech101 --method coop dpt --shots 1 4 --seed 1 2
    python train.py --resume RUN           # an interrupted run
    torchrun --nproc_per_node=2 train.py --data ./caltech101    # by 2 processes

Prints zero-shot CLIP's accuracy beside the learned one's and leaves a run folder
(`minidpt.runs.folders.RunFolder`) that eval.py reads. Several methods, numbers of shots, seeds or
data sets are a sweep: a folder of runs and a table.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from minidpt.data.batches import Batch, train_batches
from minidpt.data.samples import Dataset, few_shot, file_digest, select_classes
from minidpt.data.splits import write_split
from minidpt.images.decode import set_max_pixels
from minidpt.model import PromptedCLIP, build_model
from minidpt.runs.command_line import parse_train_command
from minidpt.runs.config import RunConfig, training_notes, versions
from minidpt.runs.devices import keep_freed_memory
from minidpt.runs.entrypoint import format_command, run_command
from minidpt.runs.evaluation import (
    EvalSet,
    evaluate,
    print_results,
    read_images,
    top1_accuracy,
    zero_shot,
)
from minidpt.runs.folders import MODEL, REPORT, SPLIT, STATE, SUMMARY, TRANSFER, TrainingState
from minidpt.runs.report import SIDES, write_predictions, write_report, write_words
from minidpt.runs.results import tested_on
from minidpt.runs.sweep import PlannedRun, Shared, is_finished, make_runs, optional_output
from minidpt.support.progress import Progress, TimedIterator, print_line, print_notes
from minidpt.training import check_finite, learning_rate, parameter_groups


def main() -> int:
    """Parse the command line and make its runs: one, or those of a sweep."""
    command = parse_train_command(__doc__)
    if command.resume and is_finished(command.resume):
        again = format_command("eval", "test", Path(command.resume))
        print_line(f"run {command.resume} is finished; test it: {again}")
        return 0
    set_max_pixels(command.options.get("max_pixels", RunConfig.max_pixels))
    keep_freed_memory()
    return make_runs(command, run_once)


def run_once(planned: PlannedRun, shared: Shared) -> None:
    """Make one run: draw the shots, train the prompts, evaluate, and write the run's folder.

    A resumed run repeats all of this but the finished epochs.
    """
    started, config, run_folder = time.monotonic(), planned.config, planned.folder
    drawn = draw_train_set(planned)
    torch.manual_seed(config.seed)
    model = build_model(
        shared.clip, drawn.classnames, config.template, config.prompts, shared.world,
        drawn.allow_duplicates,
    )  # fmt: skip
    model.class_keys = drawn.class_keys
    if config.class_chunk is not None:
        model.class_chunk = config.class_chunk or None  # 0: all classes at once
    if learned := model.learned_parameters():
        method, count = config.prompts.method, sum(parameter.numel() for parameter in learned)
        print_line(f"{method} trains {count:,} parameters on {len(drawn.train)} images")
        drawn = drawn.with_notes(*training_notes(config, drawn.name, len(drawn.train)))
    print_notes(drawn.notes[len(planned.dataset.notes) :])  # those before were printed on opening

    # All images are decoded before anything is written: a broken one is an error now, not later.
    eval_sets = shared.eval_sets(planned)
    notes = read_images(model, eval_sets.values(), drawn.train, shared.images, config.workers)
    print_notes(notes)
    eval_set = next(iter(eval_sets.values()))
    accuracy = top1_accuracy(zero_shot(model, eval_set).predicted, eval_set.labels)
    print_line(f"zero-shot accuracy {accuracy:.2f} % on {len(eval_set)} test images")
    if shared.world.is_main:
        run_folder.create(config, replace(planned.record, white_level=dict(model.white_level)))
        write_split(drawn, run_folder.path(SPLIT))
    if learned:
        fit(model, drawn, planned, shared)
    results, predictions = evaluate_subsets(model.eval(), planned, eval_sets)
    if not shared.world.is_main:
        return
    model.save(run_folder.path(MODEL))
    with optional_output(run_folder.folder, "the list of predictions or of words"):
        write_predictions(run_folder, drawn, *predictions)  # of the subset that was trained on
        if config.prompts.learns_text:
            write_words(run_folder, model)
    seconds = time.monotonic() - started
    write_summary(planned, model, drawn.with_notes(*notes), results, seconds)
    print_results(config.prompts.method, results, seconds)
    if not (shared.is_sweep or config.no_report):
        with optional_output(run_folder.folder, "the report"):
            print_notes(write_report(run_folder.folder, lambda: model))
            print_line(run_folder.path(REPORT))
    print_line(f"test it again: {format_command('eval', 'test', run_folder.folder)}")


def draw_train_set(planned: PlannedRun) -> Dataset:
    """Draw a run's training images, of the classes of its first subset; keep all test images."""
    subset_name, subset = next(iter(planned.subsets.items()))
    if planned.config.prompts.method == "zeroshot":
        return replace(subset, train=[], val=[])
    drawn = few_shot(planned.dataset, planned.config.shots, planned.config.seed)
    return select_classes(drawn, subset_name)  # the published protocol draws before it selects


def fit(model: PromptedCLIP, train_set: Dataset, planned: PlannedRun, shared: Shared) -> None:
    """Train the prompts by SGD, from the state in the run's folder on; save after each epoch."""
    config, run_folder, device = planned.config, planned.folder, model.clip.device
    record = planned.record
    groups = parameter_groups(model, config.visual_lr, config.text_lr)
    base_lr = {group["name"]: group["lr"] for group in groups}
    warmup = {"visual": config.warmup_epochs, "text": config.text_warmup_epochs}
    is_fp16 = record.precision == "fp16"
    # If GradScaler skips the first step, fused SGD reads a momentum that was never written.
    fused = device.type != "cpu" and not is_fp16
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4, fused=fused)
    scaler = torch.amp.GradScaler(device.type, enabled=is_fp16)
    settings = config.result_settings() | record.result_settings()
    # A resumed run refuses training images that have changed.
    samples = train_set.train if model.world.is_main else []
    digests = {sample.path: file_digest(sample.path) for sample in samples}
    state = TrainingState(model.train(), optimizer, scaler, settings, digests)
    if run_folder.path(STATE).is_file():
        state.load(run_folder)
        print_line(f"resuming after epoch {state.epoch} of {config.epochs}")
    state.save(run_folder)  # so that a run stopped in its first epoch can be resumed
    # `train_batches` drops the last batch if it is partial, unless it is the only one.
    count, size = len(train_set.train), config.batch_size
    seen = count if count < size else count - count % size
    with Progress("epoch", config.epochs, after=0, done=state.epoch) as progress:
        for epoch in range(state.epoch, config.epochs):
            for group in optimizer.param_groups:
                name = group["name"]
                group["lr"] = learning_rate(epoch, base_lr[name], config.epochs, warmup[name])
            batches = TimedIterator(train_batches(
                train_set.train, model.clip.visual.resolution, config.batch_size, config.seed,
                epoch, shared.images.get, config.workers, world=model.world,
                pin_memory=device.type not in ("cpu", "mps"),
            ))  # fmt: skip
            started = time.monotonic()
            loss, correct = train_one_epoch(
                model, batches, optimizer, scaler, guidance=epoch < config.guidance_epochs
            )
            seconds = time.monotonic() - started
            state.epoch = epoch + 1
            check_finite(loss, model, state.epoch, str(run_folder.path(MODEL)), record.precision)
            metrics = {
                "epoch": state.epoch,
                "loss": loss,
                "train_accuracy": 100 * correct / seen,
                "lr": {group["name"]: group["lr"] for group in optimizer.param_groups},
                "images_per_second": seen / seconds,
                "waited_for_images": batches.waited / seconds,
            }
            state.metrics += json.dumps(metrics) + "\n"
            state.save(run_folder)
            progress(state.epoch, epoch_line(metrics))


def train_one_epoch(
    model: PromptedCLIP,
    loader: Iterable[Batch],
    optimizer: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    guidance: bool,
) -> tuple[float, float]:
    """Take one SGD step for each batch; return the mean loss and the number of right predictions.

    guidance: the first stage of training, whose loss needs the logits of both branches.
    """
    device, learned = model.clip.device, model.learned_parameters()
    totals, steps = torch.zeros(2, device=device), 0
    for images, labels in loader:
        images = model.clip.normalize(images.to(device, non_blocking=True))  # (B, 3, R, R)
        labels = labels.to(device, non_blocking=True)
        output = model(images, branches=guidance)
        loss = model.loss(output, labels, guidance)

        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        model.world.all_reduce_gradients(learned)
        scaler.step(optimizer)
        scaler.update()

        correct = (output.logits.argmax(dim=-1) == labels).sum()
        totals += torch.stack([loss.detach(), correct])  # stays on the device
        steps += 1
    loss_sum, correct_sum = model.world.all_reduce_sum(totals).tolist()
    return loss_sum / steps, correct_sum


def epoch_line(metrics: dict) -> str:
    """Format the metrics of an epoch for the progress line."""
    rates = ", ".join(f"{SIDES[name]} {rate:.1e}" for name, rate in metrics["lr"].items())
    return (
        f"loss {metrics['loss']:.3f} · training accuracy (random crops) "
        f"{metrics['train_accuracy']:.1f} % · lr {rates} · "
        f"{metrics['images_per_second']:.0f} images/s, "
        f"{100 * metrics['waited_for_images']:.0f} % of time waiting"
    )


def evaluate_subsets(
    model: PromptedCLIP, planned: PlannedRun, eval_sets: dict[str, EvalSet]
) -> tuple[dict, list]:
    """Evaluate on each subset of the classes.

    Returns results by name, and the predictions on the first subset, learned and zero-shot.
    """
    results, first = {}, None
    for subset, eval_set in eval_sets.items():
        classnames = planned.subsets[subset].classnames
        tested = model if classnames == model.classnames else model.for_classes(classnames)
        metrics, *predictions = evaluate(tested, eval_set)
        results[tested_on(planned.dataset.name, subset)] = metrics
        first = first or predictions
    return results, first


def write_summary(
    planned: PlannedRun, model: PromptedCLIP, drawn: Dataset, results: dict, seconds: float
) -> None:
    """Write summary.json, which makes the run a finished one."""
    config, run_folder, learns = planned.config, planned.folder, bool(model.learned_parameters())
    run_folder.write_json(SUMMARY, {
        "dataset": drawn.name, "classes": len(drawn.classnames), "method": config.prompts.method,
        "shots": config.shots if learns else 0, "seed": config.seed if learns else 0,
        "model": model.clip.name, "epochs": config.epochs if learns else 0,
        "train_images": len(drawn.train), **next(iter(results.values())), "tests": results,
        "notes": drawn.notes, "seconds": round(seconds, 1), "versions": versions(),
    })  # fmt: skip
    for name in (STATE, TRANSFER):  # TRANSFER has results of the half-trained prompts
        run_folder.path(name).unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(main)
