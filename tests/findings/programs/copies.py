"""A copy of the optimizer cannot step

Met at the first step after `copy.deepcopy`, or after unpickling the optimizer itself.

The class keeps `maximize` as an attribute of its own, which torch's `Optimizer.__getstate__` leaves out.
"""

import copy

import pytorch_optimizer
import torch

p = torch.nn.Parameter(torch.zeros(1))
opt = copy.deepcopy(pytorch_optimizer.Lion([p]))
opt.param_groups[0]["params"][0].grad = torch.ones(1)
try:
    opt.step()
except AttributeError as error:
    print("AttributeError:", error)
