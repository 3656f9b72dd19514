"""float16 parameters turn NaN at a zero gradient

Met from the first step of a float16 parameter of which one element has had no gradient yet; with the default eps.

eps is added in float16, where 1e-8 and everything below 3e-8 is 0; what is divided is 0 too. In torch.optim the
default of 1e-8 (Adagrad 1e-10) is such an eps. Adadelta and optimi have 1e-6, which float16 has, and break only
with a smaller eps. `fused=True` computes in float32 and holds.

Seen by hand: torch.optim.RAdam without foreach, from its 6th step on; torch.optim.SparseAdam where a sparse gradient
has zeros among its values, as one of `nn.Embedding(sparse=True)` may.
"""

import torch

names = ["Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]
for name in names:
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
    opt = getattr(torch.optim, name)([p])
    path = []
    for _ in range(6):
        p.grad = torch.zeros(1, dtype=torch.float16)
        opt.step()
        path.append(p.item())
    print(name, path)
