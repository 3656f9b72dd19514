"""Adafactor raises ZeroDivisionError for an empty parameter

Met from the first step of a model with a parameter without elements, which every other class passes over.

The root mean square of p is divided by its number of elements. L-BFGS raises only if all are empty.
"""

import torch

p = torch.nn.Parameter(torch.zeros(0))
p.grad = torch.zeros(0)
for opt in (torch.optim.AdamW, torch.optim.Adafactor):
    try:
        opt([p]).step()
        print(opt.__name__, "steps")
    except ZeroDivisionError as error:
        print(opt.__name__, "ZeroDivisionError:", error)
