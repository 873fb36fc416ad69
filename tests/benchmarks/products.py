"""Which matrix products a piece of code asks for, and how many operations they are.

    python tests/benchmarks/products.py --classes 10 100

prints how many times as fast as in fp32 a training step is in bf16 (DPT, ViT-B/32, random weights),
steps in turns, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 5,
}  # matrix products in each: q·kᵀ and weights·v; these again and their gradients


class Products(TorchDispatchMode):
    """Notes the sizes of all matrix products: (batch, rows, inner, columns, dtype)."""

    def __init__(self):
        super().__init__()
        self.noted: list[tuple[int, int, int, int, torch.dtype]] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function in (aten.mm.default, aten.bmm.default):
            self.note(*arguments[:2])
        elif function in (aten.addmm.default, aten.baddbmm.default):
            self.note(*arguments[1:3])
        elif function in ATTENTION:
            first = 0 if ATTENTION[function] == 2 else 1  # the backward's begins with a gradient
            q, k = arguments[first : first + 2]
            for _ in range(ATTENTION[function]):
                self.note(q.flatten(0, -3), k.flatten(0, -3).transpose(1, 2))
        return function(*arguments, **(keywords or {}))

    def note(self, a: torch.Tensor, b: torch.Tensor) -> None:
        batch = a.shape[0] if a.ndim == 3 else 1
        self.noted.append((batch, a.shape[-2], a.shape[-1], b.shape[-1], a.dtype))

    def operations(self) -> int:
        """Multiplications and additions of all of them."""
        return sum(2 * batch * n * k * m for batch, n, k, m, _ in self.noted)


def main() -> None:
    """Measure and print a Markdown table."""
    from steps import Ours  # which imports this file

    parser = argparse.ArgumentParser(description="A step in bf16 and fp32.")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    print(f"batch {args.batch}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| classes | step fp32 | bf16 | times as fast |\n|---|---|---|---|")
    for count in args.classes:
        torch.manual_seed(0)
        sides = [Ours(count, precision) for precision in ("fp32", "bf16")]
        batch = torch.randn(args.batch, 3, 224, 224), torch.randint(0, count, (args.batch,))
        turns = [[timed(side.train, *batch) for side in sides] for _ in range(args.runs + 1)]
        fp32, bf16 = map(statistics.median, zip(*turns[1:], strict=True))
        print(f"| {count} | {fp32:.2f} s | {bf16:.2f} s | {fp32 / bf16:.2f} |", flush=True)


def timed(step, *arguments) -> float:
    """Its seconds."""
    started = time.perf_counter()
    step(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
