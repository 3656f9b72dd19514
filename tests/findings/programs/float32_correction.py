"""Bias correction in float32

Met from the first step on, in every dtype: 7e-6 of the step at β₂ = 0.999, 8e-5 at 0.9999, 7e-4 at 0.99999; less
as 1-β₂ᵗ grows.

TorchOpt works 1-βᵗ out as `1 - pow(β, t)` with an integer tensor t, which torch makes float32; near 1 that
difference keeps few digits.
"""

import torch
import torchopt

for beta2 in (0.999, 0.9999, 0.99999):
    for opt in (torch.optim.AdamW, torchopt.AdamW):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        p.grad = torch.ones_like(p)
        opt([p], lr=1.0, betas=(0.9, beta2), weight_decay=0.0).step()
        print(beta2, opt.__module__.partition(".")[0], p.item())
