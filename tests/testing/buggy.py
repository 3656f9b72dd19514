"""Optimizers with one bug each, and what is none, for tests of how they are reported."""

import torch

import funcopt
from funcopt.ops import one_minus_power, sqrt


def coefficients(t, lr, betas, eps):
    return {"lr": lr / one_minus_power(betas[0], t), "beta1": betas[0], "beta2": betas[1], "eps": eps}


def update(p, g, m, v, c):
    m = c.beta1 * m + (1 - c.beta1) * g
    v = c.beta2 * v + (1 - c.beta2) * g * g  # and no bias correction
    return p - c.lr * m / (sqrt(v) + c.eps), (m, v)


uncorrected = funcopt.rule(
    "uncorrected",
    hparams={
        "lr": funcopt.nonnegative(1e-3, "learning rate"),
        "betas": (
            funcopt.fraction(0.9, "beta parameter at index 0"),
            funcopt.fraction(0.999, "beta parameter at index 1"),
        ),
        "eps": funcopt.nonnegative(1e-8, "epsilon value"),
    },
    slots=("exp_avg", "exp_avg_sq"),
    coefficients=coefficients,
    update=update,
)


class Uphill(torch.optim.Optimizer):
    """Adds the gradient."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=group["lr"])


class Downhill(Uphill):
    """Subtracts it."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


class Crashing(Uphill):
    """Does not take a step at all."""

    @torch.no_grad()
    def step(self, closure=None):
        raise IndexError("out of luck")


class NoScalars(Downhill):
    """Cannot do 0-d tensors."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p[:] -= group["lr"] * p.grad


instance = Downhill([torch.zeros(1, requires_grad=True)])
number = 3
