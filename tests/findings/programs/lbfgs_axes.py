"""L-BFGS's first step depends on the axes

Met in the first iteration, more so with more parameters.

L-BFGS with a line search is a method without axes. Here the first step, and with a line search its first trial, is
lr·min(1, 1/|g|₁) along -g, and the 1-norm has axes: of gradients of one length, one along an axis of n gets a step
√n times as long as one along the diagonal.
"""

import torch

for g in ([2.0, 0.0], [2**0.5, 2**0.5]):
    p = torch.nn.Parameter(torch.zeros(2))
    opt = torch.optim.LBFGS([p], lr=1.0, max_iter=1)
    p.grad = torch.tensor(g)
    opt.step(lambda: torch.zeros(()))
    print("gradient of length", p.grad.norm().item(), "step of length", p.detach().norm().item())
