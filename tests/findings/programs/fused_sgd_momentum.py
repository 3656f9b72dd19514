"""`SGD(fused=True)` with momentum fails once a parameter joins later

Met at the first step in which one parameter has momentum already and another has its first gradient: a layer that
is unfrozen, a branch that was not taken before.

The list of momentum buffers that goes to the kernel then has a `None` in it. Without `fused` it works.
"""

import torch

p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
opt = torch.optim.SGD([p, q], lr=0.1, momentum=0.9, fused=True)
p.grad = torch.ones(2)
opt.step()
q.grad = torch.ones(2)
try:
    opt.step()
except TypeError as error:
    print("TypeError:", error)
