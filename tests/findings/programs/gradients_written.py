"""A step overwrites the gradients

Met as soon as `p.grad` is read after a step, or kept for another one: logging of norms, accumulation, a second
optimizer, a step without a new `backward()`.

Schedule-Free divides the gradient by √v̂ + eps in place. With `maximize=True` pytorch_optimizer and TorchOpt negate
it in place, so that a second step on the same gradient goes the other way; TorchOpt's accelerated op leaves the
update in it. Their aim is to save memory; torch.optim's AdamW leaves gradients as they are.

Seen by hand: optimi.AdamW for bfloat16 and float16 parameters, whose gradients are scratch memory for its Kahan sums.
"""

import pytorch_optimizer
import schedulefree
import torch
import torchopt

for opt, more in (
    (torch.optim.AdamW, {"maximize": True}),
    (schedulefree.AdamWScheduleFree, {}),
    (pytorch_optimizer.Lion, {"maximize": True}),
    (torchopt.AdamW, {"maximize": True}),
    (torchopt.AdamW, {"use_accelerated_op": True}),
):
    p = torch.nn.Parameter(torch.zeros(1))
    opt = opt([p], lr=0.1, **more)
    getattr(opt, "train", lambda: None)()
    p.grad = torch.full((1,), 2.0)
    opt.step()
    print(type(opt).__module__.partition(".")[0], type(opt).__name__, more, "2 became", p.grad.item())
