"""`fused=True` on the CPU rounds an element by its place in the tensor

Met in the last bit, from the first steps on.

The fused CPU kernels take most of a tensor in vectors and the rest one by one, and the two round otherwise:
elements that have had the same gradients drift apart, and a tensor does not step as its parts do.
"""

import torch

for opt, more in (
    (torch.optim.Adam, {}),
    (torch.optim.AdamW, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
):
    for fused in (False, True):
        torch.manual_seed(0)
        apart = 0
        for _ in range(200):
            p = torch.nn.Parameter(torch.randn(1, dtype=torch.float64).repeat(9))
            one = opt([p], lr=0.1, fused=fused, **more)
            for _ in range(3):
                p.grad = torch.randn(1, dtype=torch.float64).repeat(9)
                one.step()
            apart += not bool((p == p[0]).all())
        print(opt.__name__, f"fused={fused}:", apart, "of 200 tensors of equal elements are no longer so")
