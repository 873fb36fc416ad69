"""How much of a training step is matrix products: the step against its products alone.

    python tests/benchmarks/floor.py --classes 10 100 397

Every matrix product that a step of minidpt's DPT (ViT-B/32, random weights) asks for, forward and
backward, is noted with its sizes; then the same products are computed on random matrices, with
nothing between them. Step and products take turns in one process; medians are printed. The share is
the time of the products by that of the step, so 100 % would be a step that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from products import Products
from steps import PARTS, Ours

from minidpt.runs.config import PRECISIONS


def replay(noted, operands) -> None:
    """The products alone."""
    for sizes in noted:
        torch.matmul(*operands[sizes])


def make_operands(noted):
    operands = {}
    for batch, n, k, m, dtype in set(noted):
        a, b = torch.randn(batch, n, k, dtype=dtype), torch.randn(batch, k, m, dtype=dtype)
        operands[batch, n, k, m, dtype] = (a, b) if batch > 1 else (a[0], b[0])
    return operands


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description="A step against its matrix products alone.")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 397])
    parser.add_argument("--part", choices=PARTS, default="train")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    print(f"{args.part}, {args.precision}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads\n")  # fmt: skip
    print("| classes | step | its products alone | share | GFLOP |")
    print("|---|---|---|---|---|")
    for count in args.classes:
        torch.manual_seed(0)
        model = Ours(count, args.precision)
        batch = 50 if args.part == "test" else 32
        images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, count, (batch,))

        def step(model=model, images=images, labels=labels):
            getattr(model, args.part)(images, labels)

        step()
        with Products() as products:
            step()
        operands = make_operands(products.noted)
        replay(products.noted, operands)
        pairs = [
            (timed(step), timed(lambda: replay(products.noted, operands)))  # noqa: B023
            for _ in range(args.runs)
        ]
        whole, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"| {count} | {whole:.2f} s | {alone:.2f} s | {100 * alone / whole:.0f} % "
            f"| {products.operations() / 1e9:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
