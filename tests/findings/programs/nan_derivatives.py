"""NaN derivatives at a zero gradient

Met from the first differentiable step in which one gradient of one element is 0, as behind a dead ReLU.

The step divides by √v + eps, and the derivative of √v at v = 0 is infinite; times the zero that follows it is NaN,
and one NaN spoils the gradient of everything before. TorchOpt has `eps_root` against it, which is 0 by default;
with `eps_root=1e-8` the law holds.

Seen by hand: torch.optim.RAdam, from its 6th step on (before it there is no √v); torchopt.MetaAdamW.
"""

import torch

for opt in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adagrad, torch.optim.RMSprop):
    start = torch.ones((), requires_grad=True)
    p, scale = start.clone(), torch.zeros((), requires_grad=True)
    p.grad = scale * start
    opt([p], differentiable=True).step()
    print(opt.__name__, [d.item() for d in torch.autograd.grad(p, [start, scale])])
