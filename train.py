"""Learn prompts for CLIP from a few images a class, and test them.

    python train.py                                  # the demo: nothing to download, a minute
    python train.py --data ./caltech101 --shots 16

Prints zero-shot CLIP's accuracy beside the learned one's and leaves a run folder
(`minidpt.runs.Run`) that eval.py reads.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path

import torch

from minidpt.data import ImageStore, few_shot, train_batches, write_split
from minidpt.datasets import open_dataset
from minidpt.demo import draw_demo
from minidpt.model import METHODS, PromptConfig, build_model
from minidpt.pretrained import NAMES, load
from minidpt.prompts import CLASS_TOKEN_POSITIONS
from minidpt.runs import (
    CONFIG,
    MODEL,
    PRECISIONS,
    SPLIT,
    SUMMARY,
    Parser,
    Progress,
    Run,
    choose_device,
    choose_precision,
    clock,
    place,
    run_command,
    versions,
)
from minidpt.training import (
    TestImages,
    accuracy,
    default_epochs,
    learning_rate,
    parameter_groups,
)
from minidpt.transforms import normalize


def parse_arguments():
    """The command line."""
    defaults = PromptConfig()
    parser = Parser(description="Few-shot prompt tuning of CLIP.")
    add = parser.add_argument
    # fmt: off
    add("--data", metavar="DIR", help="Caltech101, any folder of class folders, or train/ val/ "
        "test/ of class folders; without it the demo's own pictures")
    add("--shots", type=int, default=16, help="training images per class")
    add("--method", choices=METHODS, default=defaults.method, help="what is learned")
    add("--model", help=f"CLIP: {', '.join(NAMES)}, or the path of a checkpoint; "
        "without it ViT-B/32, and tiny for the demo")
    add("--seed", type=int, default=1, help="of the few-shot draw and the training")
    add("--epochs", type=int, help="without it the published number for method and shots")
    add("--batch-size", type=int, default=32, help="images per training step")
    add("--exact-gelu", action="store_true",
        help="the checkpoint needs the exact GELU; OpenAI's need the quick one")
    add("--template", help="zero-shot prompt, {} is the class; without it the data set's")
    add("--out", metavar="DIR", help="new run folder; without it one in runs/")
    add("--device", help="cpu, cuda or cuda:N; without it CUDA where there is one")
    add("--precision", choices=list(PRECISIONS), help="of the frozen CLIP; without it by device")
    add("--workers", type=int, default=2, help="threads that read images")
    add("--n-ctx", type=int, default=defaults.n_ctx, help="text context vectors")
    add("--ctx-init", metavar="PHRASE", help="start the context from a phrase")
    add("--csc", action="store_true", help="a context for each class")
    add("--class-token-position", choices=CLASS_TOKEN_POSITIONS, default="end",
        help="where the class name stands")
    add("--n-visual", type=int, default=defaults.n_visual, help="visual prompts per layer")
    add("--visual-layers", type=int, help="visual prompts in the first N layers only; 1 = shallow")
    add("--class-aware-from", type=int, metavar="LAYER",
        help="first layer, from 1, with class-aware prompts; without it the last")
    add("--top-k", type=int, default=defaults.top_k, help="classes that make class-aware prompts")
    add("--alpha", type=float, default=defaults.alpha, help="weight of the auxiliary loss")
    add("--guidance-epochs", type=int, default=30, help="length of the guidance stage (VLP, DPT)")
    add("--visual-lr", type=float, default=0.01, help="learning rate of the image side")
    add("--text-lr", type=float, default=0.002, help="learning rate of the text context")
    add("--warmup-epochs", type=int,
        help="of the image side, without it 10 (ImageNet: 1); the text side has 1")
    # fmt: on
    args = parser.parse_args()
    least = dict(shots=1, batch_size=1, epochs=0, workers=0, guidance_epochs=0, warmup_epochs=0,
                 visual_lr=0, text_lr=0)  # fmt: skip
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option}: expected at least {bound}, got {value}")
    if not 0 <= args.seed < 2**63:
        parser.error("--seed: expected 0 or a positive number below 2**63")
    if args.model and args.model not in NAMES:
        path = Path(args.model).expanduser()
        if path.exists():
            args.model = str(path.resolve())  # eval.py may be called from elsewhere
    return args


def main() -> int:
    """Train and test."""
    args = parse_arguments()
    started = time.monotonic()
    torch.manual_seed(args.seed)
    device = choose_device(args.device)
    precision, reason = choose_precision(args.precision, device)
    config = PromptConfig(
        method=args.method, n_ctx=args.n_ctx, ctx_init=args.ctx_init, csc=args.csc,
        class_token_position=args.class_token_position, n_visual=args.n_visual,
        visual_layers=args.visual_layers, class_aware_from=args.class_aware_from,
        top_k=args.top_k, alpha=args.alpha,
    )  # fmt: skip

    # Data: all test images, a few training images of each class.
    folder = args.data or draw_demo("runs")
    dataset = open_dataset(folder)
    print(dataset.source)
    dataset = few_shot(dataset, args.shots, args.seed)
    for note in dataset.notes:
        print(f"note: {note}")
    template = args.template or dataset.template
    if args.epochs is None:
        args.epochs = default_epochs(args.method, args.shots, dataset.name)
    if args.warmup_epochs is None:
        args.warmup_epochs = 1 if dataset.name == "ImageNet" else 10

    if args.out:
        run = Run.new(args.out, dataset.root)
    else:
        name = f"{dataset.name}-{args.method}-{args.shots}shots-seed{args.seed}"
        run = Run.new_numbered(Path("runs") / name, dataset.root)

    # The frozen CLIP, and the prompts to learn.
    model_name = args.model or ("ViT-B/32" if args.data else "tiny")
    clip, preprocess = load(model_name, quick_gelu=not args.exact_gelu)
    clip = place(clip, device, precision)
    model = build_model(clip, dataset.classnames, template, config)
    learned = sum(parameter.numel() for parameter in model.learned().values())
    print(f"CLIP {clip.name} on {device} in {precision} ({reason}); {learned:,} learned numbers")

    # All images are decoded before anything is written: a broken one is an error now, not later.
    store = ImageStore()
    store.fill([item.path for item in dataset.train], args.workers)
    test = TestImages(dataset.test, preprocess.resolution, workers=args.workers)
    zero_shot = accuracy(model.zero_shot_logits, test, device)
    print(f"zero-shot accuracy {zero_shot:.2f} % on {len(test)} test images")

    run.create()
    settings = {**vars(args), "model": model_name, "template": template, "device": str(device)}
    settings.update(precision=precision, prompts=asdict(config), versions=versions())
    run.write_json(CONFIG, settings)
    write_split(dataset, run.path(SPLIT))

    # Training: SGD on the prompts alone.
    groups = parameter_groups(model, args.visual_lr, args.text_lr)
    epochs = args.epochs if groups else 0
    warmup = {"visual": args.warmup_epochs, "text": 1}
    base_lr = {group["name"]: group["lr"] for group in groups}
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4) if groups else None
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    model.train()
    model.save(run.path(MODEL))
    with Progress(epochs) as progress:
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                name = group["name"]
                group["lr"] = learning_rate(epoch, base_lr[name], epochs, warmup[name])
            epoch_started, seen = time.monotonic(), 0
            total_loss = torch.zeros((), device=device)
            total_correct = torch.zeros((), device=device)
            for images, labels in train_batches(
                dataset.train, preprocess.resolution, args.batch_size, args.seed, epoch, store,
                args.workers, pin_memory=device.type == "cuda",
            ):  # fmt: skip
                images = normalize(images.to(device, non_blocking=True))
                labels = labels.to(device, non_blocking=True)
                output = model(images)
                loss = model.loss(output, labels, guidance=epoch < args.guidance_epochs)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                seen += len(labels)
                total_loss += loss.detach() * len(labels)
                total_correct += (output.logits.argmax(dim=-1) == labels).sum()
            record = {
                "epoch": epoch + 1,
                "loss": total_loss.item() / seen,
                "train_accuracy": 100 * total_correct.item() / seen,
                "lr": {group["name"]: group["lr"] for group in optimizer.param_groups},
                "images_per_second": seen / (time.monotonic() - epoch_started),
            }
            run.log(record)
            if not math.isfinite(record["loss"]):
                raise ValueError(
                    f"epoch {epoch + 1}: the loss is {record['loss']}; {run.path(MODEL)} is of the "
                    "epoch before: try --precision fp32 or lower learning rates"
                )
            model.save(run.path(MODEL))
            rates = "/".join(f"{rate:.1e}" for rate in record["lr"].values())
            progress.show(
                epoch + 1,
                f"epoch {epoch + 1}/{epochs} · loss {record['loss']:.3f} · "
                f"accuracy {record['train_accuracy']:.1f} % · lr {rates} · "
                f"{record['images_per_second']:.0f} images/s",
            )

    # The result.
    model.eval()
    result = accuracy(lambda images: model(images).logits, test, device)
    seconds = time.monotonic() - started
    run.write_json(SUMMARY, {
        "dataset": dataset.name, "method": args.method, "shots": args.shots, "seed": args.seed,
        "model": clip.name, "epochs": epochs, "classes": len(dataset.classnames),
        "train_images": len(dataset.train), "test_images": len(test),
        "zero_shot_accuracy": zero_shot, "accuracy": result,
        "seconds": round(seconds, 1), "versions": versions(),
    })  # fmt: skip
    print(f"{args.method} accuracy {result:.2f} %, zero-shot {zero_shot:.2f} % "
          f"({result - zero_shot:+.2f}), {clock(seconds)} min in all")  # fmt: skip
    print(f"{run.folder}: python eval.py --run {run.folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
