"""Optimizers written by hand: three classes with torch.optim's interface, and two rules that funcopt does not have."""

import torch
from torch.optim import Optimizer

import funcopt
from funcopt import fraction, nonnegative
from funcopt.ops import sign, sqrt

# ---- classes --------------------------------------------------------------------------------------------------------


def wide(t):
    """The tensor in the dtype in which steps are worked out."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


class PlainSGD(Optimizer):
    """SGD with torch.optim's momentum; decay in the gradient."""

    def __init__(
        self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, *, maximize=False
    ):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            momentum, dampening = group["momentum"], group["dampening"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad
                state = self.state[p]
                if group["maximize"]:
                    g = -g
                if decay != 0:
                    g = g + decay * p
                if momentum != 0:
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = g.clone()
                    else:
                        state["momentum_buffer"].mul_(momentum).add_((1 - dampening) * g)
                    buffer = state["momentum_buffer"]
                    g = g + momentum * buffer if group["nesterov"] else buffer
                p.sub_(lr * g)
        return loss


class PlainAdam(Optimizer):
    """Adam; decay in the gradient."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, *, maximize=False
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, eps, decay = group["lr"], group["eps"], group["weight_decay"]
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = wide(p.grad)
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                    if group["amsgrad"]:
                        state["max_exp_avg_sq"] = torch.zeros_like(p)
                if group["maximize"]:
                    g = -g
                if decay != 0:
                    g = g + decay * wide(p)
                state["step"] += 1
                t = state["step"].item()
                m = beta1 * wide(state["exp_avg"]) + (1 - beta1) * g
                v = beta2 * wide(state["exp_avg_sq"]) + (1 - beta2) * g * g
                state["exp_avg"].copy_(m)
                state["exp_avg_sq"].copy_(v)
                if group["amsgrad"]:
                    v = torch.maximum(wide(state["max_exp_avg_sq"]), v)
                    state["max_exp_avg_sq"].copy_(v)
                below = (v / (1 - beta2**t)).sqrt() + eps
                p.copy_(wide(p) - lr * (m / (1 - beta1**t)) / below)
        return loss


class PlainAdamW(Optimizer):
    """Adam with decoupled decay."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, amsgrad=False, *, maximize=False
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, eps, decay = group["lr"], group["eps"], group["weight_decay"]
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = wide(p.grad)
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                    if group["amsgrad"]:
                        state["max_exp_avg_sq"] = torch.zeros_like(p)
                if group["maximize"]:
                    g = -g
                state["step"] += 1
                t = state["step"].item()
                m = beta1 * wide(state["exp_avg"]) + (1 - beta1) * g
                v = beta2 * wide(state["exp_avg_sq"]) + (1 - beta2) * g * g
                state["exp_avg"].copy_(m)
                state["exp_avg_sq"].copy_(v)
                if group["amsgrad"]:
                    v = torch.maximum(wide(state["max_exp_avg_sq"]), v)
                    state["max_exp_avg_sq"].copy_(v)
                below = (v / (1 - beta2**t)).sqrt() + eps
                p.copy_((1 - lr * decay) * wide(p) - lr * (m / (1 - beta1**t)) / below)
        return loss


# ---- rules ----------------------------------------------------------------------------------------------------------


def lion_coefficients(t, lr, betas, weight_decay):
    beta1, beta2 = betas
    return {
        "lr": lr,
        "beta1": beta1,
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "decay": 1 - lr * weight_decay,
    }


def lion_update(p, g, m, c, maximize):
    if maximize:
        g = -g
    p = c.decay * p - c.lr * sign(c.beta1 * m + c.one_minus_beta1 * g)
    return p, (c.beta2 * m + c.one_minus_beta2 * g,)


lion = funcopt.rule(
    "lion",
    hparams={
        "lr": nonnegative(1e-4, "learning rate"),
        "betas": (fraction(0.9, "beta parameter at index 0"), fraction(0.99, "beta parameter at index 1")),
        "weight_decay": nonnegative(0.0, "weight_decay value"),
    },
    slots=("exp_avg",),
    flags={"maximize": False},
    coefficients=lion_coefficients,
    update=lion_update,
    doc="Lion (Chen et al. 2023, algorithm 2).",
    exempt={"coupled_weight_decay": "weights decay beside the step"},
)


def adagrad_coefficients(t, lr, eps, weight_decay):
    return {"lr": lr, "eps": eps, "weight_decay": weight_decay}


def adagrad_update(p, g, total, c, maximize):
    if maximize:
        g = -g
    g = g + c.weight_decay * p
    total = total + g * g
    return p - c.lr * (g / (sqrt(total) + c.eps)), (total,)


plain_adagrad = funcopt.rule(
    "plain_adagrad",
    hparams={
        "lr": nonnegative(1e-2, "learning rate"),
        "eps": nonnegative(1e-10, "epsilon value"),
        "weight_decay": nonnegative(0.0, "weight_decay value"),
    },
    slots=("sum",),
    flags={"maximize": False},
    coefficients=adagrad_coefficients,
    update=adagrad_update,
    doc="Adagrad (Duchi et al. 2011, the diagonal form).",
    exempt={"decoupled_weight_decay": "weight decay is L2, part of the gradient"},
)
