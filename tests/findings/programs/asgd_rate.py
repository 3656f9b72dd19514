"""ASGD's learning rate comes a step late, and in float32

Met with any scheduler; in float64 at every step.

A step is taken with `eta` of the state, which is worked out from lr at the end of the step before: a rate that a
scheduler sets acts one step later. `eta` is a tensor of torch's default dtype, float32, whatever the parameters
are.
"""

import torch

p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
opt = torch.optim.ASGD([p], lr=1.0, lambd=0.0)
for lr in (1.0, 0.0, 0.0):
    opt.param_groups[0]["lr"] = lr
    p.grad = torch.ones_like(p)
    opt.step()
    print("lr", lr, "p", p.item())
p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
p.grad = torch.ones_like(p)
torch.optim.ASGD([p], lr=0.1, lambd=0.0).step()
print("lr 0.1 p", p.item())
