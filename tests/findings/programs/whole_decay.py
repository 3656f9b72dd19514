"""No decay where lr·λ is exactly 1

Met with lr = 1 and weight_decay = 1.

The factor 1 - lr·λ is put in place of λ, and a factor of 0 is then taken for no decay.
"""

import optimi
import torch

for decay in (0.9, 0.99, 1.0):
    p = torch.nn.Parameter(torch.ones(1))
    opt = optimi.AdamW([p], lr=1.0, weight_decay=decay, triton=False)
    p.grad = torch.zeros(1)
    opt.step()
    print("weight_decay", decay, "p", p.item())
