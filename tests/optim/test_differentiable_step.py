"""Gradients through steps with `differentiable=True`, against the equations written out and unrolled in float64.

Torch's own classes are no reference here: SGD's first momentum buffer is cut off there, and AMSGrad's backward raises.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from funcopt import optim
from tests.optim.runs import FLOAT64, error

STEPS = 7

# Ten times what trajectories get: a derivative may be the difference of terms that are a thousand times as large.
# State that is one number is float32, as torch.optim has it: rounded to 6e-8 at every step.
TOLERANCE = 10 * FLOAT64
ROUNDED = {"ASGD": 1e-6, "NAdam": 1e-6}


def start() -> list[Tensor]:
    """Two parameters, one of them 0-d."""
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in ([0.5, -1.0, 2.0], -0.7)]


def inner_loss(w: Tensor, b: Tensor) -> Tensor:
    return (w**4 / 4 + torch.sin(w) * b + b**2).sum()


def outer_loss(w: Tensor, b: Tensor) -> Tensor:
    return (w * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)).sum() + b**3


# ---- the equations --------------------------------------------------------------------------------------------------


def sgd(p, g, b, t, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
    g = (-g if maximize else g) + weight_decay * p
    b = g if t == 1 else momentum * b + (1 - dampening) * g
    return p - lr * (g + momentum * b if nesterov else b), b


def adam(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, maximize=False):
    return adam_step(p, (-g if maximize else g) + weight_decay * p, state, t, lr, betas, eps, amsgrad)


def adamw(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, amsgrad=False, maximize=False):
    return adam_step(p - lr * weight_decay * p, -g if maximize else g, state, t, lr, betas, eps, amsgrad)


def adam_step(p, g, state, t, lr, betas, eps, amsgrad):
    m, v, v_max = state or [torch.zeros_like(g)] * 3
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    v_max = torch.maximum(v_max, v) if amsgrad else v
    return p - lr * (m / (1 - betas[0] ** t)) / (torch.sqrt(v_max / (1 - betas[1] ** t)) + eps), (m, v, v_max)


def adadelta(p, g, state, t, lr, rho=0.9, eps=1e-6, weight_decay=0):
    v, u = state or [torch.zeros_like(g)] * 2
    g = g + weight_decay * p
    v = rho * v + (1 - rho) * g**2
    step = torch.sqrt(u + eps) / torch.sqrt(v + eps) * g
    return p - lr * step, (v, rho * u + (1 - rho) * step**2)


def adagrad(p, g, s, t, lr, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10):
    g = g + weight_decay * p
    s = (initial_accumulator_value if t == 1 else s) + g**2
    return p - lr / (1 + (t - 1) * lr_decay) * g / (torch.sqrt(s) + eps), s


def adamax(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
    m, u = state or [torch.zeros_like(g)] * 2
    g = g + weight_decay * p
    m = betas[0] * m + (1 - betas[0]) * g
    u = torch.maximum(betas[1] * u, g.abs() + eps)
    return p - lr / (1 - betas[0] ** t) * m / u, (m, u)


def asgd(p, g, state, t, lr, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0):
    eta = state or lr
    g = g + weight_decay * p
    return p - lambd * eta * p - eta * g, lr / (1 + lambd * lr * t) ** alpha


def nadam(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, momentum_decay=4e-3):
    m, v, product = state or [torch.zeros_like(g)] * 2 + [1.0]
    mu, mu_next = (betas[0] * (1 - 0.96 ** (s * momentum_decay) / 2) for s in (t, t + 1))
    g, product = g + weight_decay * p, product * mu
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    return p - lr * m_hat / (torch.sqrt(v / (1 - betas[1] ** t)) + eps), (m, v, product)


def radam(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
    m, v = state or [torch.zeros_like(g)] * 2
    g = g + weight_decay * p
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    longest = 2 / (1 - betas[1]) - 1
    length = longest - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
    step = m / (1 - betas[0] ** t)
    if length > 5:
        rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        step = step * (rectified * (1 - betas[1] ** t)) ** 0.5 / (torch.sqrt(v) + eps)
    return p - lr * step, (m, v)


def rmsprop(p, g, state, t, lr, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    v, h, b = state or [torch.zeros_like(g)] * 3
    g = g + weight_decay * p
    v = alpha * v + (1 - alpha) * g**2
    h = alpha * h + (1 - alpha) * g
    b = momentum * b + g / (torch.sqrt(v - h**2 if centered else v) + eps)
    return p - lr * b, (v, h, b)


def rprop(p, g, state, t, lr, etas=(0.5, 1.2), step_sizes=(1e-6, 50)):
    before, size = state or (torch.zeros_like(g), lr * torch.ones_like(g))
    turned = (g * before).sign()
    ones = torch.ones_like(g)
    size = size * torch.where(turned > 0, ones * etas[1], torch.where(turned < 0, ones * etas[0], ones))
    size = torch.minimum(torch.maximum(size, ones * step_sizes[0]), ones * step_sizes[1])
    g = torch.where(turned < 0, torch.zeros_like(g), g)
    return p - g.sign() * size, (g, size)


EQUATIONS = {
    "SGD": sgd,
    "Adam": adam,
    "AdamW": adamw,
    "Adadelta": adadelta,
    "Adagrad": adagrad,
    "Adamax": adamax,
    "ASGD": asgd,
    "NAdam": nadam,
    "RAdam": radam,
    "RMSprop": rmsprop,
    "Rprop": rprop,
}
CLASSES = {name: getattr(optim, name) for name in EQUATIONS}


def test_every_class_that_is_differentiable_has_an_equation_here():
    takes = {n for n in dir(optim) if "differentiable" in getattr(getattr(optim, n), "_older", ())}
    assert takes == EQUATIONS.keys()


# ---- both ways to the end -------------------------------------------------------------------------------------------


def unrolled(name: str, params: list[Tensor], kwargs: dict[str, Any]) -> list[Tensor]:
    states: list[Any] = [None] * len(params)
    for t in range(1, STEPS + 1):
        grads = torch.autograd.grad(inner_loss(*params), params, create_graph=True)
        new = [EQUATIONS[name](*row, t, **kwargs) for row in zip(params, grads, states, strict=True)]
        params, states = [p for p, _ in new], [state for _, state in new]
    return params


def stepped(name: str, params: list[Tensor], kwargs: dict[str, Any]) -> list[Tensor]:
    """By the optimizer, which writes into its parameters: the loss keeps copies of them for its backward."""
    params = [p.clone() for p in params]
    optimizer = CLASSES[name](params, differentiable=True, **kwargs)
    for _ in range(STEPS):
        grads = torch.autograd.grad(inner_loss(*(p.clone() for p in params)), params, create_graph=True)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
    return params


CASES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.05}, {}),
    ("SGD", {"lr": 0.05, "weight_decay": 0.1}, {}),
    ("SGD", {"lr": 0.05}, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01}, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}, {}),
    ("Adam", {"lr": 0.05}, {}),
    ("Adam", {"lr": 0.05}, {"amsgrad": True, "maximize": True}),
    ("Adam", {"lr": 0.05, "weight_decay": 0.1, "eps": 0.01}, {"amsgrad": True}),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.9)}, {"weight_decay": 0.1}),
    ("AdamW", {"lr": 0.05}, {}),
    ("AdamW", {"lr": 0.05}, {"amsgrad": True, "betas": (0.5, 0.7)}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.9)}, {"maximize": True}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}, {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.1, "initial_accumulator_value": 0.1, "eps": 0.01}, {}),
    ("Adamax", {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.1}, {}),
    ("ASGD", {"lr": 0.05, "lambd": 0.1, "alpha": 0.75, "weight_decay": 0.1}, {}),
    ("NAdam", {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.1, "momentum_decay": 0.1}, {}),
    ("RAdam", {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.1}, {}),
    ("RAdam", {"lr": 0.05, "betas": (0.8, 0.99)}, {}),
    ("RMSprop", {"lr": 0.05, "alpha": 0.9, "eps": 0.01, "weight_decay": 0.1, "momentum": 0.5}, {"centered": True}),
    ("RMSprop", {"lr": 0.05}, {}),
    ("Rprop", {"lr": 0.4, "etas": (0.5, 1.2)}, {}),
)


def parameter(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(parameter, value))
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(("name", "learned", "fixed"), CASES)
def test_gradients_of_parameters_and_numbers(name, learned, fixed, backend):
    ends = []
    for run, more in ((stepped, {"backend": backend}), (unrolled, {})):
        params, numbers = start(), {key: parameter(value) for key, value in learned.items()}
        final = run(name, params, {**numbers, **fixed, **more})
        wanted = [*params, *(t for value in numbers.values() for t in (value if isinstance(value, tuple) else [value]))]
        ends.append([*final, *torch.autograd.grad(outer_loss(*final), wanted)])
    for ours, truth in zip(*ends, strict=True):
        assert truth.abs().max() > 1e-6, "nothing to compare"
        assert error(ours, truth) <= ROUNDED.get(name, TOLERANCE)


@pytest.mark.parametrize("lr", [torch.tensor([0.05]), torch.tensor([[0.05]])], ids=["1-d", "2-d"])
@pytest.mark.parametrize("name", EQUATIONS)
def test_gradient_of_a_one_element_lr(name, lr):
    ends = []
    for run, number in ((stepped, lr.double().requires_grad_()), (unrolled, parameter(lr.double().item()))):
        final = run(name, start(), {"lr": number})
        ends.append(torch.autograd.grad(outer_loss(*final), number)[0].reshape(()))
    assert error(*ends) <= ROUNDED.get(name, TOLERANCE)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *((name, {}) for name in EQUATIONS),
        ("Adam", {"amsgrad": True}),
        ("RMSprop", {"centered": True, "momentum": 0.9}),
    ],
)
def test_a_zero_gradient_leaves_the_meta_gradient_finite(name, kwargs):
    """The second moment is 0 there, where a square root has no slope."""
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    lr = parameter(0.1)
    p = x.clone()
    optimizer = CLASSES[name]([p], lr=lr, differentiable=True, **kwargs)
    for _ in range(3):
        p.grad = torch.autograd.grad(p.clone()[0] ** 3, p, create_graph=True)[0]
        optimizer.step()
    to_x, to_lr = torch.autograd.grad(p.sum(), [x, lr])
    assert to_x.isfinite().all()
    assert to_lr.isfinite()


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_leaf_that_requires_a_gradient_is_refused(name):
    """As torch does: such a tensor cannot be written to where autograd records it."""
    p = torch.ones(2, requires_grad=True)
    optimizer = CLASSES[name]([p], differentiable=True)
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        optimizer.step()


@pytest.mark.parametrize("name", EQUATIONS)
def test_without_the_flag_nothing_is_recorded(name):
    p = torch.ones(2, requires_grad=True)
    lr = torch.tensor(0.1, requires_grad=True)
    optimizer = CLASSES[name]([p], lr=lr)
    p.grad = torch.ones(2, requires_grad=True)
    optimizer.step()
    assert p.is_leaf
    assert all(not value.requires_grad for state in optimizer.state.values() for value in state.values())
