"""The algorithms written out from their papers and torch's documentation, in operations that autograd knows.

Each is a function of a parameter, its gradients, and numbers; `start` steps have been counted before. They are what the
rules are compared with, so nothing of the rules' text is in them.
"""

import math

import torch

__all__ = ["BY_HAND"]


def sgd(p, grads, start, lr, momentum, weight_decay):
    for t, g in enumerate(grads, start + 1):
        g = g + weight_decay * p
        b = g if t == start + 1 else momentum * b + g  # noqa: F821
        p = p - lr * b
    return p


def adam(p, grads, start, lr, weight_decay=0.0, decoupled=0.0, betas=(0.9, 0.999), eps=1e-8):
    """Kingma & Ba, algorithm 1."""
    m = v = torch.zeros_like(p)
    for t, g in enumerate(grads, start + 1):
        p = p - lr * decoupled * p
        g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * m_hat / (v_hat**0.5 + eps)
    return p


def adamw(p, grads, start, lr, weight_decay):
    return adam(p, grads, start, lr, decoupled=weight_decay)


def sparse_adam(p, grads, start, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """Kingma & Ba, the end of section 2: α_t = α·√(1 - β₂ᵗ)/(1 - β₁ᵗ)."""
    m = v = torch.zeros_like(p)
    for t, g in enumerate(grads, start + 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        rate = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        p = p - rate * m / (v**0.5 + eps)
    return p


def adamax(p, grads, start, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """Kingma & Ba, algorithm 2; eps is torch's."""
    m = u = torch.zeros_like(p)
    for t, g in enumerate(grads, start + 1):
        g = g + weight_decay * p
        m, u = beta1 * m + (1 - beta1) * g, torch.stack([beta2 * u, g.abs() + eps]).amax(0)
        p = p - lr / (1 - beta1**t) * m / u
    return p


def nadam(p, grads, start, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8, psi=4e-3):
    """Dozat, algorithm 2, with the schedule of momenta that torch gives."""
    m, v, product = torch.zeros_like(p), torch.zeros_like(p), 1.0
    for t, g in enumerate(grads, start + 1):
        g = g + weight_decay * p
        now, later = (beta1 * (1 - 0.96 ** (s * psi) / 2) for s in (t, t + 1))
        product = product * now
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        m_hat = later * m / (1 - product * later) + (1 - now) * g / (1 - product)
        p = p - lr * m_hat / ((v / (1 - beta2**t)) ** 0.5 + eps)
    return p


def radam(p, grads, start, lr, weight_decay, betas, eps=1e-8):
    """Liu et al., algorithm 2, with 5 for the 4 there, as torch has it."""
    beta1, beta2 = betas
    m = v = torch.zeros_like(p)
    longest = 2 / (1 - beta2) - 1
    for t, g in enumerate(grads, start + 1):
        g = g + weight_decay * p
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        step = m / (1 - beta1**t)
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        if length > 5:
            above = (length - 4) * (length - 2) * longest
            below = (longest - 4) * (longest - 2) * length
            step = step * math.sqrt(above / below) * math.sqrt(1 - beta2**t) / (v**0.5 + eps)
        p = p - lr * step
    return p


def adagrad(p, grads, start, lr, lr_decay, weight_decay, initial_accumulator_value, eps=1e-10):
    total = torch.full_like(p, initial_accumulator_value)
    for t, g in enumerate(grads, start + 1):
        g = g + weight_decay * p
        total = total + g**2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (total**0.5 + eps)
    return p


def adadelta(p, grads, start, lr, rho, eps, weight_decay):
    """Zeiler, algorithm 1: the step is the ratio of root mean squares."""
    squares = deltas = torch.zeros_like(p)
    for g in grads:
        g = g + weight_decay * p
        squares = rho * squares + (1 - rho) * g**2
        step = -((deltas + eps) ** 0.5) / (squares + eps) ** 0.5 * g
        deltas = rho * deltas + (1 - rho) * step**2
        p = p + lr * step
    return p


def rmsprop(p, grads, start, lr, momentum, weight_decay, alpha=0.99, eps=1e-8):
    squares = buffer = torch.zeros_like(p)
    for g in grads:
        g = g + weight_decay * p
        squares = alpha * squares + (1 - alpha) * g**2
        buffer = momentum * buffer + g / (squares**0.5 + eps)
        p = p - lr * buffer
    return p


def rprop(p, grads, start, lr, shrink=0.5, grow=1.2, least=1e-6, most=50.0):
    """Igel & Hüsken's iRprop⁻."""
    sizes, last = lr * torch.ones_like(p), torch.zeros_like(p)
    for g in grads:
        same = g.detach().sign() * last.detach().sign()
        sizes = (sizes * torch.tensor([shrink, 1.0, grow], dtype=p.dtype)[(same + 1).long()]).clamp(least, most)
        last = g * (same >= 0)
        p = p - last.detach().sign() * sizes
    return p


def asgd(p, grads, start, lr, lambd, t0, weight_decay, alpha=0.75):
    """Bottou's schedule: the first step is by lr, each one after by the rate of the step before."""
    rate = lr
    for t, g in enumerate(grads, start + 1):
        g = g + weight_decay * p
        p = p - rate * lambd * p - rate * g
        rate = lr / (1 + lambd * lr * t) ** alpha
    return p


def adafactor(p, grads, start, lr, eps, weight_decay, d=1.0, tau=-0.8):
    """Shazeer & Stern, algorithms 4 and 5."""
    root_mean_square = lambda x: (x**2).mean() ** 0.5
    rows = columns = squares = 0.0
    for t, g in enumerate(grads, start + 1):
        forget = 1 - t**tau
        rate = root_mean_square(p).clamp(min=eps[1]) * lr.clamp(max=t**-0.5)
        if p.dim() == 2:
            rows = forget * rows + (1 - forget) * (g**2).mean(1)
            columns = forget * columns + (1 - forget) * (g**2).mean(0)
            second = torch.outer(rows, columns) / rows.mean()
        else:
            second = squares = forget * squares + (1 - forget) * g**2
        step = g / second**0.5
        p = p * (1 - lr * weight_decay) - rate * step / (root_mean_square(step) / d).clamp(min=1.0)
    return p


def muon(p, grads, start, lr, weight_decay, momentum=0.95, steps=5):
    """Jordan et al.: Nesterov's momentum, divided by its norm, five times through an odd polynomial."""
    m = torch.zeros_like(p)
    for g in grads:
        m = momentum * m + (1 - momentum) * g
        x = momentum * m + (1 - momentum) * g
        x = x / (x**2).sum() ** 0.5
        for _ in range(steps):
            cube = x @ x.T @ x
            x = 3.4445 * x - 4.775 * cube + 2.0315 * (x @ x.T @ cube)
        p = p - lr * weight_decay * p - lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5 * x
    return p


# By the names of the rules.
BY_HAND = {
    algorithm.__name__: algorithm
    for algorithm in (
        sgd, adam, adamw, sparse_adam, adamax, nadam, radam, adagrad, adadelta, rmsprop, rprop, asgd, adafactor, muon,
    )
}  # fmt: skip
