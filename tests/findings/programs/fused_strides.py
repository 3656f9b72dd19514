"""`fused=True` on the CPU takes every tensor for a contiguous one

Met from the first step with a gradient or a parameter that is a view with gaps or in another order.

The fused CPU kernels walk through memory from a tensor's first element on and look at no strides. Of a gradient
that is a slice of a buffer they read the neighbours; an expanded one, such as that of `torch.autograd.grad(p.sum(),
p)`, they read beyond the end of its memory; of a parameter that is a slice they write to the neighbours.
`backward()` makes gradients with their parameter's order in memory, so a training loop meets this only where
`p.grad` is set by hand or a parameter has gaps. The default on the CPU is not fused, and right. Kernels of other
devices were not tried.
"""

import torch

memory = torch.tensor([1.0, 9.0, 1.0, 9.0])
p = torch.nn.Parameter(torch.zeros(2))
p.grad = memory[::2]
torch.optim.SGD([p], lr=1.0, fused=True).step()
print("gradient", p.grad.tolist(), "step", p.tolist())
memory = torch.zeros(4)
p = torch.nn.Parameter(memory[::2])
p.grad = torch.ones(2)
torch.optim.SGD([p], lr=1.0, fused=True).step()
print("memory", memory.tolist(), "of which the parameter is the 1st and the 3rd")
