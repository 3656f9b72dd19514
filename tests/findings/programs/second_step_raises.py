"""`differentiable=True` cannot be differentiated beyond one step

Met at `backward()` through two steps or more.

The step overwrites a tensor of its state that autograd has kept for the derivative of the step before, and autograd
says so.
"""

import torch

for opt in (torch.optim.Adamax, torch.optim.Rprop):
    start = torch.ones((), requires_grad=True)
    p, opt_of_p = start.clone(), None
    opt_of_p = opt([p], differentiable=True)
    for _ in range(2):
        p.grad = start * 2
        opt_of_p.step()
    try:
        torch.autograd.grad(p, start)
    except RuntimeError as error:
        print(opt.__name__, "RuntimeError:", str(error)[:85])
