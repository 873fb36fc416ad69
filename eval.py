"""Test runs of train.py, classify images with one, export it, or tabulate many.

    python eval.py test RUN                   # its own test images again
    python eval.py test RUN --data OTHER      # other data, or --classes new
    python eval.py predict RUN a.jpg b.jpg    # or a folder, or - for paths
    python eval.py export RUN FILE.pt2        # a program for torch alone
    python eval.py table DIR                  # all runs in a folder
    python eval.py report DIR                 # report.html of a run or a sweep
    python eval.py published OUT --data DATA  # prompts of the published code
    torchrun --nproc_per_node=2 eval.py test RUN    # by 2 processes

Each has its options: python eval.py test --help
"""

import io
import os
import sys
from argparse import Namespace
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path

from minidpt.checkpoints.pretrained import NAMES, find_file
from minidpt.checkpoints.prompt_file import infer_config, read_published
from minidpt.config import PromptConfig
from minidpt.data.datasets import folders_of
from minidpt.data.samples import copies_note
from minidpt.exporting import check_target, export
from minidpt.images.decode import set_max_pixels
from minidpt.model import PromptedCLIP, build_model
from minidpt.runs import command_line, devices, evaluation, sources
from minidpt.runs.attention_pngs import attention_map_folder
from minidpt.runs.classify import classify, image_batches
from minidpt.runs.entrypoint import run_command
from minidpt.runs.folders import RunFolder, check_outside
from minidpt.runs.report import print_class_accuracy, write_report
from minidpt.runs.results import noted_tests, record_cross_dataset
from minidpt.runs.tables import write_tables
from minidpt.support.distributed import join_world, world_from_environment
from minidpt.support.progress import print_line, print_notes


def main() -> int:
    """Parse the command line and call the function of the subcommand."""
    args = command_line.parse_eval_command(__doc__)
    set_max_pixels(args.max_pixels)
    commands = {"test": evaluate_runs, "predict": predict, "table": table, "report": report,
                "export": export_run, "published": evaluate_published}  # fmt: skip
    devices.keep_freed_memory()
    if args.command != "test" and not world_from_environment().is_main:
        return 0  # several processes share tests alone
    return commands[args.command](args) or 0


def table(args: Namespace) -> None:
    """Print and write the table of all runs in a folder."""
    print_line(*write_tables(args.folder).splitlines())


def report(args: Namespace) -> None:
    """Write report.html of each folder, a run's or a sweep's."""
    for folder in args.folders:
        model = partial(report_model, RunFolder(folder), args)
        notes = write_report(folder, model, args.image_root)
        print_line(*(f"note: {folder}: {note}" for note in notes), f"{folder}: report.html")


def report_model(run: RunFolder, args: Namespace) -> PromptedCLIP:
    """Load the model of a run, if its CLIP is on this machine: none is downloaded for it."""
    config, _ = run.read_config()
    name = args.model or config.model
    if name in NAMES and not find_file(name):
        raise FileNotFoundError(f"CLIP {name} is not on this machine: pass its path as --model")
    return sources.load_runs([run], args)[0][0]


def export_run(args: Namespace) -> None:
    """Write a run's model as one program."""
    check_target(args.file, args.overwrite)
    run = RunFolder.open(args.run)
    check_outside(Path(args.file), sources.data_folders(run), "file", "FILE")
    (model,), precision = sources.load_runs([run], args)
    export(model, args.file, args.overwrite)
    size, count = model.clip.visual.resolution, len(model.classnames)
    print_line(
        f"{args.file}: images (B, 3, {size}, {size}) to probabilities of {count} classes, "
        f"{os.path.getsize(args.file) / 1e6:,.1f} MB "
        f"({model.clip.name} on {model.clip.device} in {precision})"
    )


def predict(args: Namespace) -> int:
    """Classify images; with `--json -` nothing but JSON goes to standard output."""
    stdout = sys.stdout
    if args.json == "-" and isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(encoding="utf-8")
    with redirect_stdout(sys.stderr if args.json == "-" else stdout):
        run = RunFolder.open(args.run)
        data = [*map(Path, args.images), *sources.data_folders(run)]
        check_new_files(args, data)
        (model,), _ = sources.load_runs([run], args)
        maps = nullcontext()
        if args.attention_maps is not None:
            maps = attention_map_folder(args.attention_maps, data, model, args.top)
        with maps as draw_maps:
            return classify(model, image_batches(args.images), args, stdout, draw_maps)


def evaluate_runs(args: Namespace) -> None:
    """Test runs, all with one CLIP, on their own test images or on other data."""
    # All files of the runs are read now: a damaged one is an error before anything is computed.
    runs = [RunFolder.open(folder) for folder in args.runs]
    configs = [run.read_config()[0] for run in runs]
    tests = sources.eval_datasets(args, runs, configs)
    check_new_files(args, [path for dataset, _ in tests for path in folders_of(dataset)])
    is_other = command_line.evaluates_other_data(args)
    moved = None if is_other else args.image_root
    learned_from = [sources.train_images(run, moved) for run in runs]
    if is_other:
        for run in runs:
            noted_tests(run)
    world = join_world(sources.device_of_runs(runs, args))
    models, precision = sources.load_runs(runs, args)
    clip = models[0].clip
    where = f"on {clip.device} in {precision}"
    for dataset, numbers in tests:
        eval_set = evaluation.EvalSet(dataset.test, clip, workers=args.workers, world=world)
        if is_other:
            print_line(dataset.source)
            print_notes(dataset.notes)
        for number in numbers:
            run, model, config = runs[number], models[number], configs[number]
            name = f"{run.folder}: " if len(runs) > 1 else ""
            paths = [sample.path for sample in eval_set.samples]
            notes = [copies_note(learned_from[number], paths)] if world.is_main else []
            notes += evaluation.read_images(model, [eval_set])
            is_same_data = not (args.data or args.dataset)
            if is_same_data and args.classes == "new" and config.classes != "base":
                notes.append("the run has learned from these classes, too: they are not new")
            print_notes(f"{name}{note}" for note in notes if note)
            if is_other:
                name = f"{run.folder} on {dataset.name}: "
                model = model.for_classes(
                    dataset.classnames, dataset.template, dataset.allow_duplicates
                )
            accuracies = evaluate_model(name, model, eval_set, where, args)
            if is_other and world.is_main:
                record_cross_dataset(run, dataset, precision, *accuracies)


def evaluate_published(args: Namespace) -> None:
    """Test prompts of the published code: their shapes tell all but `top_k` and the position."""
    tensors = read_published(args.folder)
    device = devices.choose_device(args.device)
    config = command_line.published_config(args)
    datasets = sources.other_datasets(args, config)
    check_new_files(args, [path for dataset in datasets for path in folders_of(dataset)])
    clip = devices.load_clip(config)
    precision, _ = devices.choose_precision(config.precision, device)
    clip = devices.move_clip(clip, device, precision)
    inferred, classes = infer_config(tensors, len(clip.visual.transformer.resblocks))
    top_k, position = config.prompts.top_k, config.prompts.class_token_position
    prompts = PromptConfig(**inferred, top_k=top_k, class_token_position=position)
    print_line(f"published {', '.join(f'{name} {value}' for name, value in inferred.items())}")
    for dataset in datasets:
        print_line(dataset.source)
        print_notes(dataset.notes)
        if classes not in (None, len(dataset.classnames)):
            got = f"{dataset.name} has {len(dataset.classnames)}: pass the data of their training"
            expected = f"its prompts belong to {classes} classes"
            raise ValueError(f"published {args.folder}: {expected}, {got}")
        model = build_model(
            clip, dataset.classnames, dataset.template, prompts,
            allow_duplicates=dataset.allow_duplicates,
        ).eval()  # fmt: skip
        model.load_published(tensors)
        eval_set = evaluation.EvalSet(dataset.test, clip, workers=args.workers)
        print_notes(evaluation.read_images(model, [eval_set]))
        evaluate_model(f"{dataset.name}: ", model, eval_set, f"on {device} in {precision}", args)


def check_new_files(args: Namespace, data: list[Path]) -> None:
    """Raise ValueError if a file is to be written into one of the data folders."""
    for option, path in command_line.new_files(args):
        check_outside(Path(path), data, "file", option)


def evaluate_model(
    begin: str, model: PromptedCLIP, eval_set: evaluation.EvalSet, where: str, args: Namespace
) -> tuple[float, float]:
    """Return zero-shot CLIP's accuracy and the model's, in percent; the first process prints."""
    metrics, learned, _ = evaluation.evaluate(model, eval_set)
    before, result = metrics["zero_shot_accuracy"], metrics["accuracy"]
    if eval_set.world.is_main:
        print_line(
            f"{begin}{model.config.method} accuracy {result:.2f} %, zero-shot {before:.2f} % "
            f"on {len(eval_set)} test images ({model.clip.name} {where})",
            f"{begin}{evaluation.describe_metrics(metrics)}",
        )
        if args.per_class:
            print_class_accuracy(model.classnames, eval_set.labels, learned.predicted, args.csv)
    return before, result


if __name__ == "__main__":
    run_command(main)
