"""Learn prompts for CLIP from a few images a class, and test them.

    python train.py                                  # the demo: nothing to download, a minute
    python train.py --data ./caltech101 --shots 16
    python train.py --data ./caltech101 --method coop dpt --shots 1 2 4 8 16 --seed 1 2 3

Prints zero-shot CLIP's accuracy beside the learned one's and leaves a run folder
(`minidpt.runs.Run`) that eval.py reads. With several methods, numbers of shots, seeds or data sets
it is a sweep: a folder of runs and a table, which the same command goes on with after a stop.
"""

from __future__ import annotations

import math
import time
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch

from minidpt import transforms
from minidpt.clip import CLIP
from minidpt.data import (
    Dataset,
    ImageStore,
    deep_pictures,
    few_shot,
    select_classes,
    train_batches,
    white_of,
    write_split,
)
from minidpt.datasets import open_dataset
from minidpt.demo import draw_demo
from minidpt.evaluation import (
    FeatureCache,
    TestSet,
    accuracy,
    copies_note,
    zero_shot_accuracy,
)
from minidpt.layouts import LAYOUTS, layout_of
from minidpt.model import METHODS, PromptConfig, build_model
from minidpt.pretrained import NAMES, load
from minidpt.prompts import CLASS_TOKEN_POSITIONS
from minidpt.results import (
    harmonic_mean,
    markdown,
    read_results,
    summarise,
    tested_on,
    write_tables,
)
from minidpt.runs import (
    CONFIG,
    MODEL,
    PRECISIONS,
    SPLIT,
    SUMMARY,
    Parser,
    Progress,
    Run,
    Sweep,
    Timed,
    choose_device,
    choose_precision,
    clock,
    finite,
    folders_of,
    held_in,
    is_expected,
    keep_freed_memory,
    need_compiler,
    path_option,
    place,
    report,
    run_command,
    say,
    versions,
)
from minidpt.training import all_finite, default_epochs, learning_rate, parameter_groups
from minidpt.transforms import MAX_PIXELS, normalize, white_notes

FEW_STEPS = 10  # the least that the published settings make is 49, of CoOp with 1 shot
LEARNING = {  # options that zero-shot CLIP has no use for
    "epochs", "batch_size", "n_ctx", "ctx_init", "csc", "class_token_position", "n_visual",
    "visual_layers", "class_aware_from", "top_k", "alpha", "guidance_epochs", "visual_lr",
    "text_lr", "warmup_epochs", "prompts",
}  # fmt: skip


def parse_arguments():
    """The command line."""
    defaults = PromptConfig()
    parser = Parser(description="Few-shot prompt tuning of CLIP.")
    add = parser.add_argument
    # fmt: off
    add("--data", type=path_option, metavar="DIR", help="Caltech101, any folder of class folders, "
        "train/ val/ test/ of them, a CSV of path,label[,split], a run's split.json, or a folder "
        "of known data sets; without it the demo's own pictures")
    add("--dataset", nargs="+", metavar="NAME", help="which of the known data sets lies there: "
        + ", ".join(layout.name for layout in LAYOUTS))
    add("--classnames", type=path_option, metavar="FILE",
        help="renames classes: a line 'folder name' for each")
    add("--classes", choices=("all", "base", "new"), default="all",
        help="base: train on the first half of the classes, test on both halves")
    add("--method", nargs="+", choices=METHODS, default=[defaults.method], help="what is learned")
    add("--shots", nargs="+", type=int, default=[16], help="training images per class")
    add("--seed", nargs="+", type=int, default=[1], help="of the few-shot draw and the training")
    add("--model", type=path_option, help=f"CLIP: {', '.join(NAMES)}, or the path of a checkpoint; "
        "without it ViT-B/32, and tiny for the demo")
    add("--epochs", type=int, help="without it the published number: CoOp 50 (1 shot), 100 (2-4) "
        "or 200, others 60 (1 shot) or 100; with few, lower --warmup-epochs and --guidance-epochs")
    add("--batch-size", type=int, default=32, help="images per training step")
    add("--exact-gelu", action="store_true",
        help="the checkpoint needs the exact GELU; OpenAI's need the quick one")
    add("--template", help="zero-shot prompt, {} is the class; without it the data set's")
    add("--out", type=path_option, metavar="DIR",
        help="new run folder, or folder of a sweep; without it in runs/")
    add("--device", help="cpu, cuda or cuda:N; without it CUDA where there is one")
    add("--precision", choices=list(PRECISIONS), help="of the frozen CLIP; without it by device")
    add("--class-chunk", type=int, metavar="N", help="encode N classes at a time, and again in the "
        "backward pass; without it only where all would take more than 3 GB; 0: all at once")
    add("--compile", action="store_true",
        help="torch.compile: a slow start, then faster steps; for long runs; "
        "on a CPU it needs a C++ compiler")
    add("--workers", type=int, default=2, help="threads that read images")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="of an image that is read")
    add("--n-ctx", type=int, default=defaults.n_ctx, help="text context vectors")
    add("--ctx-init", metavar="PHRASE", help="start the context from a phrase; the number of its "
        "words replaces --n-ctx")
    add("--csc", action="store_true", help="a context for each class")
    add("--class-token-position", choices=CLASS_TOKEN_POSITIONS, default="end",
        help="where the class name stands")
    add("--n-visual", type=int, default=defaults.n_visual, help="visual prompts per layer")
    add("--visual-layers", type=int, help="visual prompts in the first N layers only; 1 = shallow")
    add("--class-aware-from", type=int, metavar="LAYER",
        help="first layer, from 1, with class-aware prompts; without it the last")
    add("--top-k", type=int, default=defaults.top_k, help="classes that make class-aware prompts")
    add("--alpha", type=finite, default=defaults.alpha, help="weight of the auxiliary loss")
    add("--guidance-epochs", type=int, default=30, help="length of the guidance stage (VLP, DPT)")
    add("--visual-lr", type=finite, default=0.01, help="learning rate of the image side")
    add("--text-lr", type=finite, default=0.002, help="learning rate of the text context")
    add("--warmup-epochs", type=int,
        help="of the image side, without it 10 (ImageNet: 1); the text side has 1")
    # fmt: on
    args = parser.parse_args()
    if args.dataset and args.data is None:
        parser.error("--dataset: expected --data, the folder it lies in")
    if args.csc and args.classes == "base":
        parser.error("--csc: expected contexts that new classes can share, got one for each class")
    if args.model and args.model not in NAMES:
        path = Path(args.model).expanduser()
        if path.exists():
            args.model = str(path.resolve())  # eval.py may be called from elsewhere
    if args.classnames:
        args.classnames = str(Path(args.classnames).expanduser().resolve())
    return args


@dataclass
class Job:
    """A run to be made: on which data, tested on which parts of the classes, and where it goes."""

    dataset: Dataset
    tested: dict[str, Dataset]
    settings: Namespace
    run: Run | None = None


def main() -> int:
    """Data, CLIP, and a run or a sweep of runs."""
    args = parse_arguments()
    transforms.MAX_PIXELS = args.max_pixels
    keep_freed_memory()
    device = choose_device(args.device)
    precision, reason = choose_precision(args.precision, device)
    if args.compile:
        need_compiler(device)
    folder = draw_demo("runs") if args.data is None else Path(args.data).expanduser()
    args.model = args.model or ("tiny" if args.data is None else "ViT-B/32")

    # Every data set, and the runs on it. What can't be drawn from it is an error now.
    jobs: list[Job] = []
    roots = [folder]
    parts = ("base", "new") if args.classes == "base" else (args.classes,)
    for name in dict.fromkeys(layout_of(name).name for name in args.dataset or []) or [None]:
        dataset = open_dataset(folder, name, classnames=args.classnames, template=args.template)
        say(dataset.source)
        for note in dataset.notes:
            say(f"note: {note}")
        tested = {part: select_classes(dataset, part) for part in parts}
        if set(args.method) != {"zeroshot"}:
            few_shot(dataset, args.shots[0], args.seed[0])
        settings = Namespace(**vars(args))
        settings.data, settings.dataset = str(folder.resolve()), name
        settings.device, settings.precision = str(device), precision
        settings.data_fingerprint = dataset.fingerprint()
        jobs += [Job(dataset, tested, own) for own in runs_on(dataset, settings)]
        roots += folders_of(dataset)

    # Where the results go: a folder for the one run, or a folder with a folder for each.
    if len(jobs) == 1 and not (args.out and Sweep.is_in(args.out)):
        name = Path("runs") / jobs[0].settings.name
        with Run.new(args.out, roots) if args.out else Run.new_numbered(name, roots) as run:
            jobs[0].run = run
            return make(args, jobs, None, device, reason)
    else:
        names = [job.settings.name for job in jobs]
        folder = args.out or Path("runs") / f"{folder.resolve().name}-sweep"
        with Sweep.new(folder, roots, names) as sweep:
            for job in jobs:
                job.run = sweep.run(job.settings.name)
            return make(args, jobs, sweep, device, reason)


def make(
    args: Namespace, jobs: list[Job], sweep: Sweep | None, device: torch.device, reason: str
) -> int:
    """CLIP, and every run that has no result yet; then the table of a sweep.

    Returns 2 if runs of the sweep have failed, or its table could not be written.
    """
    # The frozen CLIP is loaded once. Runs of other weights, or of other data, are not gone on with.
    clip, _ = load(args.model, quick_gelu=not args.exact_gelu)
    for job in jobs:
        job.settings.clip_fingerprint = clip.fingerprint()
    todo = [job for job in jobs if not job.run.finished(config_of(job.settings))]
    count = f"{len(jobs)} run{'s' * (len(jobs) > 1)}"
    begun = ", which begins anew" if held_in(jobs[0].run.folder) else ""
    say(f"{count} in {sweep.folder}, {len(jobs) - len(todo)} of them finished"
        if sweep else f"run folder {jobs[0].run.folder}{begun}")  # fmt: skip
    for note in (sweep or jobs[0].run).notes:
        say(f"note: {note}")
    kinds = {str((job.settings.prompts, job.settings.template)): job for job in todo}
    for job in kinds.values():  # prompts that this CLIP cannot take are an error now
        prompts = PromptConfig(**job.settings.prompts)
        build_model(clip, job.dataset.classnames[:2], job.settings.template, prompts)
    if todo:
        precision = jobs[0].settings.precision
        clip = place(clip, device, precision)
        say(f"CLIP {clip.name} on {device} in {precision} ({reason})")
        for note in clip.notes:
            say(f"note: {note}")
        if sweep:
            sweep.create(vars(args))

    # Each data set's test images are decoded once. In a sweep, a run that fails stops no other.
    store, tests, tests_of, failed, status = ImageStore(), {}, None, [], 0
    cache = FeatureCache(sweep.folder / "features") if sweep else None
    for number, job in enumerate(todo, start=1):
        if sweep:
            say(f"[{number}/{len(todo)}] {job.settings.name}")
        try:
            if job.dataset is not tests_of:
                tests = {
                    part: (own, TestSet(own.test, clip, workers=args.workers, cache=cache))
                    for part, own in job.tested.items()
                }
                tests_of = job.dataset
            train(job.settings, job.dataset, tests, clip, job.run, store)
        except Exception as error:
            if not sweep or isinstance(error, BrokenPipeError) or not is_expected(error):
                raise
            report(error, f"{job.settings.name}: ")
            failed.append(job.settings.name)
    if sweep and len(failed) < len(jobs):
        try:
            text = f"{write_tables(sweep.folder)}\n{sweep.folder}: table.md, table.csv"
        except OSError as error:
            report(error)
            status, text = 2, markdown(summarise(read_results(sweep.folder)))
        say("", *text.splitlines())
    if failed:
        report(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")
    return 2 if failed else status


def runs_on(dataset: Dataset, args: Namespace) -> list[Namespace]:
    """The settings of every run on a data set. Zero-shot CLIP has no shots, no seed: it is one."""
    runs = {}
    for method, shots, seed in product(args.method, args.shots, args.seed):
        name = f"{dataset.name}-{method}-{shots}shots-seed{seed}"
        if method == "zeroshot":
            name, shots, seed = f"{dataset.name}-{method}", 0, 0
        own = Namespace(**vars(args))
        own.name = name if args.classes == "all" else f"{name}-{args.classes}"
        own.method, own.shots, own.seed = method, shots, seed
        if args.epochs is None or method == "zeroshot":
            own.epochs = default_epochs(method, shots, dataset.name)
        if args.warmup_epochs is None:
            own.warmup_epochs = 1 if dataset.name == "ImageNet" else 10
        own.template = dataset.template
        own.prompts = asdict(PromptConfig(
            method=method, n_ctx=args.n_ctx, ctx_init=args.ctx_init, csc=args.csc,
            class_token_position=args.class_token_position, n_visual=args.n_visual,
            visual_layers=args.visual_layers, class_aware_from=args.class_aware_from,
            top_k=args.top_k, alpha=args.alpha,
        ))  # fmt: skip
        runs[own.name] = own
    return list(runs.values())


def config_of(settings: Namespace) -> dict:
    """What config.json says: all settings that the result depends on, and versions."""
    config = {**vars(settings), "versions": versions()}
    if settings.method == "zeroshot":
        config = {name: value for name, value in config.items() if name not in LEARNING}
    return config


def train(
    args: Namespace,
    dataset: Dataset,
    tests: dict[str, tuple[Dataset, TestSet]],
    clip: CLIP,
    run: Run,
    store: ImageStore,
) -> None:
    """One run: draw the shots, learn prompts, test, write all of it into the run's folder.

    tests: by part of the classes ("all", "base", "new"); the first is the one that is trained on.
    """
    started = time.monotonic()
    device = torch.device(args.device)
    part, (own, test) = next(iter(tests.items()))

    # Data: all test images, a few training images of each class.
    if args.method == "zeroshot":
        drawn = replace(own, train=[], val=[])
    else:
        drawn = few_shot(dataset, args.shots, args.seed)
        for note in drawn.notes[len(dataset.notes) :]:
            say(f"note: {note}")
        drawn = select_classes(drawn, part)  # the published protocol draws before it selects

    # The prompts to learn.
    torch.manual_seed(args.seed)
    model = build_model(clip, drawn.classnames, args.template, PromptConfig(**args.prompts))
    if args.class_chunk is not None:
        model.class_chunk = args.class_chunk or None
    forward = model
    if args.compile:
        torch.compiler.reset()  # runs of a sweep would add up to torch's limit of recompilations
        forward = torch.compile(model)
    groups = parameter_groups(model, args.visual_lr, args.text_lr)
    learned = sum(parameter.numel() for parameter in model.learned().values())
    say(f"{args.method} learns {learned:,} numbers from {len(drawn.train)} images")
    warmup = {"visual": args.warmup_epochs, "text": 1}
    longest = max((warmup[group["name"]] for group in groups), default=0)
    steps = max(args.epochs - longest, 0) * max(len(drawn.train) // args.batch_size, 1)
    if groups and args.epochs and steps < FEW_STEPS:
        say(f"note: {steps} training steps after {min(longest, args.epochs)} epochs of warm-up "
            f"({FEW_STEPS} is few): the accuracy tells little about the method or the number of "
            "shots: pass more --epochs or fewer --warmup-epochs")  # fmt: skip
    if model.config.guided and 0 < args.epochs <= args.guidance_epochs:
        say(f"note: all {args.epochs} epochs are guidance, which is published as 30 of 100: pass "
              f"--guidance-epochs {args.epochs * 3 // 10}")  # fmt: skip

    # All images are decoded before anything is written: a broken one is an error now, not later.
    paths = [item.path for item in drawn.train]
    tested = [item.path for _, other in tests.values() for item in other.items]
    if note := copies_note(paths, tested):
        say(f"note: {note}")
    deep = deep_pictures(paths, args.workers)
    deep_tests = {path: kind for _, other in tests.values() for path, kind in other.deep.items()}
    white = white_of(deep_tests, white_of(deep, workers=args.workers), args.workers)
    model.white = white
    for note in white_notes(white, (deep | deep_tests).values()):
        say(f"note: {note}")
    store.fill(paths, args.workers, white, others=tested)
    for _, other in tests.values():
        other.show_by(white)
        other.features()
    zero_shot = zero_shot_accuracy(model, test)
    say(f"zero-shot accuracy {zero_shot:.2f} % on {len(test)} test images")

    run.create()
    run.write_json(CONFIG, {**config_of(args), "white": white})
    write_split(drawn, run.path(SPLIT))

    # Training: SGD on the prompts alone.
    epochs = args.epochs if groups else 0
    base_lr = {group["name"]: group["lr"] for group in groups}
    # With fp16's scaler, torch's fused SGD may begin from a momentum that was never written.
    fused = device.type == "cuda" and args.precision != "fp16"
    optimizer = (
        torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4, fused=fused) if groups else None
    )
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    model.train()
    model.save(run.path(MODEL))
    with Progress(epochs) as progress:
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                name = group["name"]
                group["lr"] = learning_rate(epoch, base_lr[name], epochs, warmup[name])
            guidance = epoch < args.guidance_epochs
            epoch_started, seen = time.monotonic(), 0
            total_loss = torch.zeros((), device=device)
            total_correct = torch.zeros((), device=device)
            batches = Timed(train_batches(
                drawn.train, clip.visual.resolution, args.batch_size, args.seed, epoch, store,
                args.workers, pin_memory=device.type == "cuda",
            ))  # fmt: skip
            for images, labels in batches:
                images = normalize(images.to(device, non_blocking=True))
                labels = labels.to(device, non_blocking=True)
                output = forward(images, branches=guidance)
                loss = model.loss(output, labels, guidance)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                seen += len(labels)
                total_loss += loss.detach() * len(labels)
                total_correct += (output.logits.argmax(dim=-1) == labels).sum()
            loss = total_loss.item() / seen  # waits for the device
            seconds = time.monotonic() - epoch_started
            record = {
                "epoch": epoch + 1,
                "loss": loss,
                "train_accuracy": 100 * total_correct.item() / seen,
                "lr": {group["name"]: group["lr"] for group in optimizer.param_groups},
                "images_per_second": seen / seconds,
                "waited_for_images": batches.waited / seconds,
            }
            run.log(record)
            if not (math.isfinite(loss) and all_finite(model.learned().values())):
                then = ", the prompts after it are not finite" if math.isfinite(loss) else ""
                lower = "" if args.precision == "fp32" else "--precision fp32 or "
                raise ValueError(
                    f"epoch {epoch + 1}: the loss is {loss}{then}; {run.path(MODEL)} is of the "
                    f"epoch before: try {lower}lower learning rates"
                )
            model.save(run.path(MODEL))
            rates = "/".join(f"{rate:.1e}" for rate in record["lr"].values())
            progress.show(
                epoch + 1,
                f"epoch {epoch + 1}/{epochs} · loss {loss:.3f} · "
                f"accuracy {record['train_accuracy']:.1f} % · lr {rates} · "
                f"{record['images_per_second']:.0f} images/s, waiting for them "
                f"{100 * record['waited_for_images']:.0f} %",
            )

    # The result, and with base classes also what the prompts do for the new ones.
    model.eval()
    results = {}
    for part, (own, test) in tests.items():
        tested = model if own.classnames == model.classnames else model.for_classes(own.classnames)
        results[tested_on(dataset.name, part)] = {
            "zero_shot_accuracy": zero_shot_accuracy(tested, test),
            "accuracy": accuracy(tested, test),
            "test_images": len(test),
        }
    result, *others = results.values()
    seconds = time.monotonic() - started
    run.write_json(SUMMARY, {
        "dataset": dataset.name, "classes": len(drawn.classnames), "method": args.method,
        "shots": args.shots, "seed": args.seed, "model": clip.name, "epochs": epochs,
        "train_images": len(drawn.train), **result, "tests": results,
        "seconds": round(seconds, 1), "versions": versions(),
    })  # fmt: skip
    gain = result["accuracy"] - zero_shot
    say(f"{args.method} accuracy {result['accuracy']:.2f} %, zero-shot {zero_shot:.2f} % "
          f"({gain:+.2f}), {clock(seconds)} min")  # fmt: skip
    for name, other in zip(list(results)[1:], others, strict=True):
        mean = harmonic_mean(result["accuracy"], other["accuracy"])
        say(f"{name}: accuracy {other['accuracy']:.2f} %, zero-shot "
              f"{other['zero_shot_accuracy']:.2f} %; harmonic mean {mean:.2f} %")  # fmt: skip
    say(f"{run.folder}: python eval.py --run {run.folder}")


if __name__ == "__main__":
    run_command(main)
