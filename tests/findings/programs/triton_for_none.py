"""Triton is chosen for the CPU after a step without gradients

Met on a machine without a GPU but with Triton, where no parameter of a group has a gradient at its first step.

Whether to use Triton is found out from the parameters that have gradients at a group's first step, and kept. All of
none are on a GPU.
"""

import optimi
import torch

p = torch.nn.Parameter(torch.zeros(1))
opt = optimi.AdamW([p], lr=0.1)
opt.step()
p.grad = torch.ones(1)
try:
    opt.step()
except RuntimeError as error:
    print("RuntimeError:", error)
