"""Scalars of a loaded state take the parameter's dtype

Met at `load_state_dict`, for parameters that are not float32.

`load_state_dict` gives every tensor of the state but `step` the parameter's dtype. NAdam's `mu_product` is a
float32 scalar: for float64 parameters it goes on in float64, and the run differs from one that was not interrupted
by some 1e-9; for bfloat16 it is rounded to 8 bits. ASGD's `eta` and `mu` are cast too, but no run was seen to
differ by it.
"""

import torch

p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
for opt, name in ((torch.optim.NAdam, "mu_product"), (torch.optim.ASGD, "eta")):
    one, again = opt([p]), opt([p])
    p.grad = torch.ones_like(p)
    one.step()
    again.load_state_dict(one.state_dict())
    for each, what in ((one, "saved"), (again, "loaded")):
        scalar = each.state[p][name]
        print(opt.__name__, what, name, scalar.dtype, scalar.item())
