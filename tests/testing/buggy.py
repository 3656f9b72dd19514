"""Optimizers with one bug each, and what is none, for tests of how they are reported."""

import torch

import funcopt
from funcopt.ops import one_minus_power, sign, sqrt
from funcopt.testing import BrokenLawError, Tried, law


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
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
        return loss


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


class GlobalStep(torch.optim.Optimizer):
    """Divides by the number of steps that it has taken, instead of those of the parameter."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.t = 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.t += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"] / self.t)
        return loss


class DecayedTwice(torch.optim.Optimizer):
    """Has weight decay in the gradient and beside it."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    g = (p.grad + group["weight_decay"] * p).sign()
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(g, alpha=group["lr"])


def lion_coefficients(t, lr, betas):
    return {"lr": lr, "beta1": betas[1], "beta2": betas[0]}  # swapped


def lion_update(p, g, m, c):
    return p - c.lr * sign(c.beta1 * m + (1 - c.beta1) * g), (c.beta2 * m + (1 - c.beta2) * g,)


swapped_lion = funcopt.rule(
    "swapped_lion",
    hparams={name: uncorrected.rule.hparams[name] for name in ("lr", "betas")},
    slots=("exp_avg",),
    coefficients=lion_coefficients,
    update=lion_update,
)


@law(Tried(steps=(1, 3)))
def stays(subject, case):
    """Nothing moves."""
    run = subject.run(case)
    for p, q in zip(run.params[0], run.params[-1], strict=True):
        if not torch.equal(p, q):
            raise BrokenLawError("it moves")


def clip_each(grads, max_norm):
    """Clips each gradient by itself, not all together."""
    return [g * min(1.0, max_norm / (float(g.norm()) + 1e-30)) for g in grads]


class Asserting(Downhill):
    """Takes no learning rate of 0, and says so in no torch way."""

    def __init__(self, params, lr=0.1):
        assert lr > 0
        super().__init__(params, lr)


class Bare:
    """Has a constructor and a step, and nothing else."""

    def __init__(self, params, lr=0.1):
        self.params, self.lr = list(params), lr

    @torch.no_grad()
    def step(self):
        for p in self.params:
            if p.grad is not None:
                p.sub_(p.grad, alpha=self.lr)


def _made():
    class Local(Uphill):
        """Made in a function, bound to another name."""

    return Local


Elsewhere = _made()
renamed = funcopt.rule(
    "another_name",
    hparams=swapped_lion.rule.hparams,
    slots=("exp_avg",),
    coefficients=lion_coefficients,
    update=lion_update,
)
