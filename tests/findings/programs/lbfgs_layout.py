"""L-BFGS refuses gradients that are not contiguous

Met from the first step of a model with a transposed or a channels_last parameter.

It flattens each gradient with `view(-1)`, and `backward()` gives a gradient its parameter's order in memory.
"""

import torch

model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
opt = torch.optim.LBFGS(model.parameters())


def closure():
    opt.zero_grad()
    loss = model(torch.ones(1, 3, 5, 5)).square().sum()
    loss.backward()
    return loss


try:
    opt.step(closure)
except RuntimeError as error:
    print("RuntimeError:", str(error)[:75])
