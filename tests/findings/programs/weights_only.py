"""A saved state cannot be loaded as torch loads by default

Met at `torch.load` of a checkpoint, with torch 2.6 or later.

TorchOpt's state_dict holds named tuples of its own, which `torch.load(weights_only=True)`, the default, refuses;
the optimizer itself cannot be pickled.
"""

import io

import torch
import torchopt

p, file = torch.nn.Parameter(torch.zeros(1)), io.BytesIO()
opt = torchopt.AdamW([p])
p.grad = torch.ones(1)
opt.step()
torch.save(opt.state_dict(), file)
file.seek(0)
try:
    torch.load(file)
except Exception as error:
    print(type(error).__name__, str(error)[:24])
