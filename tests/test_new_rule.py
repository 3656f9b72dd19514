"""Adding an optimizer takes one file: this one has a rule that torch does not have, and gets the rest for it.

The rule is AdaBelief (Zhuang et al. 2020, algorithm 2, without its projection): Adam with the variance of the gradient
around its average in place of its second moment.
"""

import copy
import json
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch.func import grad, vmap

import funcopt
from funcopt import Slot, fraction, nonnegative
from funcopt.ops import maximum, one_minus_power, sqrt


def coefficients(t, lr, betas, eps):
    beta1, beta2 = betas
    return {
        "one_minus_beta1": 1 - beta1,
        "beta2": beta2,
        "one_minus_beta2": 1 - beta2,
        "step_size": lr / one_minus_power(beta1, t),
        "sqrt_bias2": sqrt(one_minus_power(beta2, t)),
        "eps": eps,
    }


def update(p, g, m, s, s_max, c, amsgrad):
    m = m + c.one_minus_beta1 * (g - m)
    s = c.beta2 * s + c.one_minus_beta2 * (g - m) * (g - m) + c.eps
    if amsgrad:
        s_max = maximum(s_max, s)
        slots, s_hat = (m, s, s_max), s_max
    else:
        slots, s_hat = (m, s), s
    return p - c.step_size * m / (sqrt(s_hat) / c.sqrt_bias2 + c.eps), slots


adabelief = funcopt.rule(
    "adabelief",
    hparams={
        "lr": nonnegative(1e-3, "learning rate"),
        "betas": (fraction(0.9, "beta parameter at index 0"), fraction(0.999, "beta parameter at index 1")),
        "eps": nonnegative(1e-8, "epsilon value"),
    },
    slots=("exp_avg", "exp_avg_var", Slot("max_exp_avg_var", when="amsgrad")),
    flags={"amsgrad": False},
    coefficients=coefficients,
    update=update,
    doc="AdaBelief.",
)

# ---- everything below is what the rule gets for nothing --------------------------------------------------------------


def reference(p, grads, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8):
    """The paper's algorithm, written by hand."""
    m, s = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps
        p = p - lr * (m / (1 - beta1**t)) / ((s / (1 - beta2**t)).sqrt() + eps)
    return p


def run(opt, p, grads, **numbers):
    hparams = opt.hparams(lr=0.1, **numbers)
    state = opt.init(p, hparams)
    for g in grads:
        p, state = opt(p, g, state, hparams)
    return p


@pytest.fixture
def problem():
    return torch.randn(3, 5, dtype=torch.float64), [torch.randn(3, 5, dtype=torch.float64) for _ in range(10)]


@pytest.mark.parametrize("backend", ["eager", "triton", "compile"])
def test_pure(problem, backend):
    torch.testing.assert_close(run(adabelief(backend=backend), *problem), reference(*problem), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["eager", "triton", "compile", "auto"])
def test_adapter(problem, backend):
    p, grads = problem
    param = torch.nn.Parameter(p.clone())
    optimizer = funcopt.optim.from_pure(adabelief())([param], lr=0.1, backend=backend)
    assert type(optimizer).__name__ == "Adabelief"
    for g in grads:
        param.grad = g
        optimizer.step()
    torch.testing.assert_close(param.detach(), reference(p, grads), rtol=1e-12, atol=1e-13)
    assert list(optimizer.state[param]) == ["step", "exp_avg", "exp_avg_var"]


def test_compiled_by_the_user(problem):
    p, grads = problem
    opt = adabelief()
    step = torch.compile(opt, fullgraph=True)
    hparams = opt.hparams(lr=torch.tensor(0.1, dtype=torch.float64))
    state = opt.init(p, hparams)
    new = p
    for g in grads:
        new, state = step(new, g, state, hparams)
    torch.testing.assert_close(new, reference(p, grads), rtol=1e-12, atol=1e-13)


def test_vmap_over_learning_rates(problem):
    p, grads = problem
    lrs = torch.tensor([0.1, 0.2], dtype=torch.float64)
    got = vmap(lambda lr: run_with(p, grads, lr))(lrs)
    for i, lr in enumerate(lrs.tolist()):
        torch.testing.assert_close(got[i], reference(p, grads, lr), rtol=1e-12, atol=1e-13)


def run_with(p, grads, lr):
    opt = adabelief()
    hparams = opt.hparams(lr=lr)
    state = opt.init(p, hparams)
    for g in grads:
        p, state = opt(p, g, state, hparams)
    return p


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_gradcheck(amsgrad, backend):
    opt = adabelief(amsgrad=amsgrad, backend=backend)
    p, g, lr, eps = (torch.rand(4).double() + 0.5, torch.rand(4).double() + 1, torch.tensor(0.1), torch.tensor(1e-2))
    state = opt.init(p)
    _, state = opt(p, 0.3 * g, state, opt.hparams())

    def step(p, g, lr, eps):
        return opt(p, g, state, opt.hparams(lr=lr, eps=eps))[0]

    inputs = tuple(t.double().requires_grad_() for t in (p, g, lr, eps))
    assert torch.autograd.gradcheck(step, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(step, inputs)


def test_meta_gradient_is_finite_at_zero_gradients():
    p, g = torch.ones(3), torch.zeros(3)
    value = grad(lambda lr: run_with(p, [g, g], lr).sum())(torch.tensor(0.1))
    assert value.isfinite()


def test_its_kernel_moves_the_least_bytes():
    """p, g and two slots read, p and the slots written: 28 bytes an element in float32, in one launch."""
    program = (
        "import json, torch\n"
        "from funcopt.kernels import offline\n"
        "from tests.test_new_rule import adabelief\n"
        "text = offline.assembly(adabelief(), ['exp_avg', 'exp_avg_var'], 'sm_90', torch.float32)\n"
        "print(json.dumps([offline.bytes_per_element(text), offline.local_memory(text, 'sm_90')]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [28, 0]


def good(t, lr):
    return {"lr": lr}


def step(p, g, c):
    return p - c.lr * g, ()


def one_slot(p, g, m, c):
    return p - c.lr * m, (m + g,)


def reads_a_number(t, lr):
    return {"lr": lr * math.sqrt(t)}


def branches_on_a_number(t, lr):
    return {"lr": lr if t > 1 else 0.1}


def writes_in_place(p, g, c):
    p -= c.lr * g
    return p, ()


def returns_no_slots(p, g, m, c):
    return p - c.lr * g


def wrong_order(p, g, c, m):
    return p - c.lr * g, (m,)


DECLARATIONS = [
    ({"coefficients": lambda t, rate: {}}, r"wrong: coefficients takes \(t, lr\); got \(…, rate\)"),
    ({"coefficients": lambda t, lr: (lr,)}, "coefficients returns a dict of scalars by name; it returned a tuple"),
    ({"coefficients": reads_a_number}, "coefficients must work on float64 tensors too, .* It fails with RuntimeError"),
    ({"coefficients": branches_on_a_number}, "and no `if` on a number. It fails with"),
    ({"hparams": {"lr": 0.1}}, "a number is declared by funcopt.Number, nonnegative or fraction; got 0.1"),
    ({"slots": ("buf",), "flags": {"nesterov": False}}, r"update takes \(p, g, buf, c, nesterov\), .*got \(p, g, c\)"),
    ({"slots": ("m", "m"), "update": one_slot}, "the name 'm' is taken twice, or by the library"),
    ({"slots": ("step",), "update": one_slot}, "the name 'step' is taken twice, or by the library"),
    ({"flags": {"lr": False}}, "the name 'lr' is taken twice"),
    ({"slots": (Slot("m", when="lrr"),), "update": one_slot}, "slot 'm' depends on 'lrr', .* did you mean 'lr'"),
    ({"update": writes_in_place}, r"update writes to p; write p = p \+ … for \+="),
    ({"slots": ("m",), "update": returns_no_slots}, r"must return \(p, slots\), .* the 1 in use; it returned a number"),
    ({"slots": ("m",), "update": step}, r"update takes \(p, g, m, c\)"),
    ({"slots": ("m",), "update": lambda p, g, m, c: (p, ())}, r"it returned \(a number, \(\)\)"),
    ({"update": lambda p, g, c: (p - c.lr * torch.sign(g), ())}, "update must be an equation .* fails with TypeError"),
    ({"update": lambda p, g, c: (p - c.lr * g**2, ())}, r"there is no \*\* here; write x \* x"),
    ({"update": lambda p, g, c: (p - c.lr * (g if g > 0 else -g), ())}, "`if`, `and`, `or` and `not` need a flag"),
    ({"update": lambda p, g, c: (p - c.lr * g.mean(), ())}, r"a number has no \.mean here"),
    ({"update": lambda p, g, c: (p - torch.ones(()) * g, ())}, "update must be an equation"),
    (
        {"slots": ("m",), "update": wrong_order},
        r"wrong: update must be an equation .* fails with AttributeError: a number has no \.lr here",
    ),
]


@pytest.mark.parametrize(("change", "message"), DECLARATIONS, ids=[message for _, message in DECLARATIONS])
def test_what_does_not_fit_together_is_said_at_once(change, message):
    numbers = {"lr": nonnegative(1e-3, "learning rate")}
    with pytest.raises(TypeError, match=message):
        funcopt.rule("wrong", **{"hparams": numbers, "coefficients": good, "update": step} | change)


def test_a_rule_defined_in_a_function_is_copied_but_not_pickled():
    made = funcopt.rule("local", hparams={"lr": nonnegative(0.1, "lr")}, coefficients=good, update=step)
    assert copy.deepcopy(made()) == made()
    with pytest.raises(pickle.PicklingError, match=r"keep what funcopt\.rule gives as tests\.test_new_rule\.local"):
        pickle.dumps(made())
    assert pickle.loads(pickle.dumps(adabelief(amsgrad=True))) == adabelief(amsgrad=True)
