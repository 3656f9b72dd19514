"""`betas` of a parameter group are ignored

Met from the first step with groups that have betas of their own.

optimi reads `beta1` and `beta2` of a group; `betas` is taken by the constructor alone, and in a group it is kept
and never read.
"""

import optimi
import torch

for opt, more in ((torch.optim.AdamW, {}), (optimi.AdamW, {"triton": False})):
    p, q = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    opt = opt([{"params": [p]}, {"params": [q], "betas": (0.5, 0.5)}], lr=0.1, **more)
    for g in (1.0, -0.5, 0.25):
        p.grad, q.grad = torch.full((1,), g), torch.full((1,), g)
        opt.step()
    print(type(opt).__module__.partition(".")[0], "default betas", p.item(), "betas of (0.5, 0.5)", q.item())
