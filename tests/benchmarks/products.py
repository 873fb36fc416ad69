"""Which matrix products a piece of code asks for, and how many operations they are."""

from __future__ import annotations

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
