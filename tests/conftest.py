"""One torch thread for all tests: tensors this small gain nothing from more."""

import torch

torch.set_num_threads(1)
