"""torchopt.adamw, which is no class, with torch.optim's interface."""

from collections.abc import Callable
from typing import Any

import torch
import torchopt


class TorchOptFunctional(torch.optim.Optimizer):
    """`torchopt.adamw`, the functional form, with torch.optim's interface: one gradient transformation a parameter.

    With `differentiable` it is run as `torchopt.MetaAdamW` runs it: `inplace=False`, and derivatives go through.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        eps_root: float = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "eps_root": eps_root}
        self._transformation(**numbers)  # raises ValueError for numbers that torchopt does not take
        super().__init__(params, {**numbers, "maximize": maximize, "differentiable": differentiable})

    @staticmethod
    def _transformation(**numbers: Any) -> Any:
        return torchopt.adamw(**numbers)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            numbers = {k: group[k] for k in ("lr", "betas", "eps", "weight_decay", "eps_root", "maximize")}
            through = group["differentiable"]
            with torch.set_grad_enabled(through):
                for p in group["params"]:
                    if p.grad is not None:
                        self._one(p, self._transformation(**numbers), through)
        return loss

    def _one(self, p: torch.Tensor, transformation: Any, through: bool) -> None:
        tree = torchopt.pytree
        leaves, spec = tree.tree_flatten(transformation.init((p,)))
        names = ("exp_avg", "exp_avg_sq", "step")  # the leaves in their order
        state = self.state[p] or dict(zip(names, leaves, strict=True))
        before = tree.tree_unflatten(spec, [state[name] for name in names])
        (update,), after = transformation.update((p.grad,), before, params=(p,), inplace=not through)
        self.state[p] = dict(zip(names, tree.tree_flatten(after)[0], strict=True))
        p.copy_(p + update)
