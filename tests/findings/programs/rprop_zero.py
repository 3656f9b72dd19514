"""Rprop moves at lr = 0

Met with lr below 1e-6 or above 50, the default `step_sizes`.

The first step size is lr, but clamped to `step_sizes` before it is used: a group cannot be frozen by lr = 0. Later
ones do not look at lr at all, so a scheduler does nothing to Rprop.
"""

import torch

p = torch.nn.Parameter(torch.zeros(1))
opt = torch.optim.Rprop([p], lr=0.0)
for _ in range(3):
    p.grad = torch.ones(1)
    opt.step()
    print(p.item())
