"""`SGD(nesterov=True)` overwrites the gradients with `foreach`, the default on a GPU

Met as soon as `p.grad` is read after a step, or kept for another one: logging of norms, accumulation, a step
without a new `backward()`; on a GPU without a choice of one's own, elsewhere with `foreach=True`.

The multi-tensor step adds momentum times the buffer to the gradient in place, where there is no weight decay to
make a copy for. The plain and the fused step leave the gradient as it is. Seen with `foreach=True` on the CPU; that
this is the default on CUDA is what torch's documentation says.
"""

import torch

for more in ({}, {"fused": True}, {"foreach": True}):
    p = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True, **more)
    p.grad = torch.full((1,), 2.0)
    for _ in range(3):
        opt.step()
    print(more, "after three steps on a gradient of 2 it is", p.grad.item(), "and p", p.item())
