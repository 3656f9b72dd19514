"""Steps are counted for the group, not for the parameter

Met when a parameter gets its first gradient after the others: a layer that is unfrozen, an expert that was not
chosen before.

The bias correction is then that of a run that is long under way, while the moments begin at 0. The first step is
not lr·sign(g), but (1-β₁)/√(1-β₂) times as long: 3.2 at betas of (0.9, 0.999). It is 32 for Schedule-Free's z,
which has no first moment, and 0.1 for StableAdamW, which clips what is too long.
"""

import optimi
import pytorch_optimizer
import schedulefree
import torch

for opt, more in (
    (torch.optim.AdamW, {}),
    (optimi.AdamW, {"triton": False}),
    (pytorch_optimizer.StableAdamW, {}),
    (schedulefree.AdamWScheduleFree, {}),
):
    p, late = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    opt = opt([p, late], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, **more)
    getattr(opt, "train", lambda: None)()
    for t in range(10000):
        p.grad = torch.ones(1)
        late.grad = torch.ones(1) if t == 9999 else None
        opt.step()
    moved = opt.state[late].get("z", late)
    print(type(opt).__module__.partition(".")[0], "first step / lr:", round(moved.item() / 1e-3, 3))
