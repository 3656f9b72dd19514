"""The pure L-BFGS: its algebra against dense matrices and closed forms, its line search, what it takes and leaves."""

import collections
import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch

from funcopt.line_search import strong_wolfe, trial
from funcopt.objective import value_and_grad
from funcopt.optim.lbfgs import LBFGS
from funcopt.rules.lbfgs import History, direction, lbfgs, remembered

by_search = pytest.mark.parametrize("search", [None, "strong_wolfe"])

EMPTY = History([], [], [], 1)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive_definite(n: int) -> torch.Tensor:
    """A matrix with eigenvalues in [1, 10]."""
    q = torch.linalg.qr(random(n, n)).Q
    return q @ torch.diag(torch.linspace(1, 10, n, dtype=torch.float64)) @ q.T


def rosenbrock(params: Any) -> torch.Tensor:
    p = torch.cat([params["x"].reshape(1), params["rest"][0]])
    return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()


def start(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return {"x": torch.tensor(-1.2, dtype=dtype), "rest": (torch.tensor([1.0, -0.5], dtype=dtype),)}


def run(opt: Any, loss: Any, params: Any, calls: int = 1, **numbers: float) -> tuple[Any, Any]:
    state, hparams = opt.init(params), opt.hparams(**numbers)
    for _ in range(calls):
        params, state = opt(params, value_and_grad(loss), state, hparams)
    return params, state


# ---- the two-loop recursion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_recursion_is_the_dense_update(size):
    """-H·g, for H made by equation 6.17 as matrices, from the scaled identity of equation 7.20 on."""
    matrix = positive_definite(6)
    history = EMPTY
    pairs = [(matrix @ s, s) for s in random(5, 6, seed=1)]
    for y, s in pairs:
        history = remembered(history, y, s, size)
    y, s = pairs[-1]
    eye = torch.eye(6, dtype=torch.float64)
    dense = eye * (s @ y) / (y @ y)
    for y, s in pairs[-size:]:
        rho = 1 / (y @ s)
        dense = (eye - rho * torch.outer(s, y)) @ dense @ (eye - rho * torch.outer(y, s)) + rho * torch.outer(s, s)
    for g in random(4, 6, seed=2):
        # Six dozen roundings for each of 5 pairs, of numbers that are up to 10² times as large as the result's.
        assert torch.allclose(direction(history, g)[0], -dense @ g, rtol=0, atol=1e-12 * g.norm())
    assert torch.allclose(-direction(history, y)[0], s, rtol=0, atol=1e-12)  # the secant equation, H·y = s


def test_a_pair_without_curvature_is_left_out():
    y, s = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    history = remembered(EMPTY, y, s, 3)
    for bad in (-s, 0 * s, 1e-11 * s, torch.nan * s):
        assert remembered(history, y, bad, 3) is history
    assert len(remembered(history, y, 2e-10 * s, 3).ro) == 2


@pytest.mark.parametrize("size", [1, 10])
def test_exact_line_searches_solve_a_quadratic_in_n_steps(size):
    """With t = -gᵀd / dᵀAd the directions are those of conjugate gradients, whatever the memory."""
    n = 6
    matrix, at = positive_definite(n), random(n, seed=3)
    x, history, d = torch.zeros(n, dtype=torch.float64), EMPTY, None
    g = matrix @ (x - at)
    for _ in range(n):
        d = direction(history, g)[0]
        s = d * -(g @ d) / (d @ matrix @ d)
        x = x + s
        y = matrix @ (x - at) - g
        history, g = remembered(history, y, s, size), g + y
    assert torch.allclose(x, at, rtol=0, atol=1e-10)
    assert (x - s - at).norm() > 1e-3  # not before


@by_search
def test_least_squares(search):
    a, b = random(20, 5, seed=4), random(20, seed=5)
    opt = lbfgs(search, max_iter=100)
    found, state = run(opt, lambda p: (a @ p - b).square().sum(), torch.zeros(5, dtype=torch.float64), calls=2)
    # It ends at max|g| ≤ 1e-7 or a change of the loss of 1e-9, and is far closer by then: steps shrink superlinearly.
    assert torch.allclose(found, torch.linalg.lstsq(a, b[:, None]).solution[:, 0], rtol=0, atol=1e-5)
    assert state["n_iter"] < 30


def test_rosenbrock():
    found, state = run(lbfgs("strong_wolfe", max_iter=100), rosenbrock, start(), calls=2)
    assert torch.allclose(torch.stack([found["x"], *found["rest"][0]]), torch.ones(3, dtype=torch.float64), atol=1e-4)
    assert state["func_evals"] < 100


# ---- the line search ------------------------------------------------------------------------------------------------

RAYS: dict[str, Any] = {
    "quadratic": lambda t: (t - 1) ** 2,
    "quartic": lambda t: (t - 3) ** 4 - t,
    "narrow": lambda t: (100 * (t - 0.01)) ** 2,
    "wavy": lambda t: -t - 2 * torch.sin(3 * t) + 0.1 * t**2,
    "flat": lambda t: -t / (t**2 + 2),  # Moré and Thuente (1994), equation 5.1
    "wall": lambda t: -torch.log(1 - t) - 5 * t,
    "cliff": lambda t: t**2 - t if t < 0.5 else t * torch.nan,
}


# From 1000 on the search takes the tail of "flat", low but not low enough, for the better end, and stays there, as
# torch.optim's does.
FIRST = [(name, first) for name in RAYS for first in (1e-3, 0.1, 1.0, 10.0, 1e3) if (name, first) != ("flat", 1e3)]


@pytest.mark.parametrize(("name", "first"), FIRST)
def test_strong_wolfe_conditions(name, first):
    ts: list[Any] = []

    def phi(t):
        ts.append(t)
        at = torch.tensor([float(t)], dtype=torch.float64, requires_grad=True)
        f = RAYS[name](at).sum()
        (slope,) = torch.autograd.grad(f, at)
        return trial(t, f.item(), slope, torch.ones(1, dtype=torch.float64))

    begin = phi(0.0)
    found = strong_wolfe(phi, begin, first, budget=40, too_short=lambda length: False)
    assert ts[1] == first
    assert len(ts) <= 42
    again = phi(found.t)
    assert (again.f, again.slope, again.g) == (found.f, found.slope, found.g)
    assert found.f <= begin.f + 1e-4 * found.t * begin.slope
    assert abs(found.slope) <= 0.9 * abs(begin.slope)


def test_the_cubic_is_exact():
    """Of a cubic the first interpolation finds the minimum: t³ - 3t + t²/2 on [0, 2], where 3t² + t - 3 = 0."""
    ts = []

    def phi(t):
        ts.append(float(t))
        slope = torch.tensor([3 * t**2 + t - 3.0], dtype=torch.float64)
        return trial(t, float(t**3 + t**2 / 2 - 3 * t), slope, torch.ones(1, dtype=torch.float64))

    strong_wolfe(phi, phi(0.0), 2.0, budget=1, too_short=lambda length: False)
    assert ts == [0.0, 2.0, pytest.approx((37**0.5 - 1) / 6, rel=1e-14)]


def test_a_search_ends_with_what_it_has():
    def search(f, budget=5, **kwargs):
        phi = lambda t: trial(t, f(float(t)), torch.tensor([-1.0]), torch.ones(1))
        return strong_wolfe(phi, phi(0.0), 1.0, budget=budget, **{"too_short": lambda length: False, **kwargs})

    assert search(lambda t: -t).t > 1e3  # falls forever: ten times as far with every trial
    assert search(lambda t: t).t == 0.0  # rises, whatever its slope says
    assert search(lambda t: math.nan if t else 0.0).t == 0.0
    assert search(lambda t: -t, budget=0).t == 1.0
    assert search(lambda t: t, budget=0).t == 0.0
    lengths = []
    assert search(lambda t: t, too_short=lambda length: lengths.append(length) or True).t == 0.0
    assert lengths == [1.0]


# ---- the call -------------------------------------------------------------------------------------------------------


@by_search
def test_the_class_does_the_same(search):
    opt = lbfgs(search, max_iter=6, history_size=3)
    params, state, hparams = start(), opt.init(start()), opt.hparams(lr=0.5)
    x, rest = (p.clone().requires_grad_() for p in (start()["x"], start()["rest"][0]))
    optimizer = LBFGS([x, rest], lr=0.5, max_iter=6, history_size=3, line_search_fn=search)

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock({"x": x, "rest": (rest,)})
        loss.backward()
        return loss

    for _ in range(4):
        params, state = opt(params, value_and_grad(rosenbrock), state, hparams)
        optimizer.step(closure)
        assert torch.equal(params["x"], x)
        assert torch.equal(params["rest"][0], rest)
        own = optimizer.state[x]
        assert state.keys() == own.keys()
        assert (state["n_iter"], state["prev_loss"]) == (own["n_iter"], own["prev_loss"])
        assert all(map(torch.equal, tensors_in(state), tensors_in(own)))


def tensors_in(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@by_search
def test_nothing_is_written_to(search):
    opt = lbfgs(search, max_iter=4, history_size=2)
    params = {
        "strided": random(4, 3).T,
        "complex": random(2, dtype=torch.complex128).conj(),
        "scalar": torch.tensor(0.3),
        "empty": torch.zeros(0, 2),
        "leaf": random(3, seed=1).requires_grad_(),
    }
    targets = {name: random(*p.shape, seed=2, dtype=p.dtype) for name, p in params.items()}
    given = []

    def loss(p):
        return sum(((p[name] - targets[name]).abs() ** 4).sum() for name in p)

    def objective(p):
        given.extend(tensors_in(p))
        assert torch.is_grad_enabled()
        value, grads = value_and_grad(loss)(p)
        given.extend(tensors_in(grads))
        return value, grads

    hparams = opt.hparams(lr=torch.tensor(0.1))
    _, state = opt(params, objective, opt.init(params), hparams)
    seen = [*tensors_in((params, state, hparams)), *given]
    before = [(t, t._version, t.detach().clone()) for t in seen]
    structure = copy.deepcopy(state)
    for _ in range(2):
        new, after = opt(params, objective, state, hparams)
    for t, version, value in before:
        assert t._version == version
        assert torch.equal(t, value)
    assert str(state) == str(structure)
    for name, p in params.items():
        assert (new[name].shape, new[name].dtype, new[name].requires_grad) == (p.shape, p.dtype, False)
    assert not any(t.requires_grad for t in tensors_in(after))
    assert loss(new) < loss(params)


@by_search
def test_trees(search):
    """Any pytree of the same leaves, and gradients whose entries come in another order."""
    Pair = collections.namedtuple("Pair", "x rest")
    opt = lbfgs(search, max_iter=5)
    expected, state = run(opt, rosenbrock, start())
    pair, pair_state = run(
        opt, lambda p: rosenbrock({"x": p.x, "rest": [p.rest]}), Pair(start()["x"], start()["rest"][0])
    )
    assert isinstance(pair, Pair)
    assert torch.equal(pair.x, expected["x"])
    assert torch.equal(pair.rest, expected["rest"][0])
    assert torch.equal(pair_state["d"], state["d"])

    def reversed_order(p):
        value, grads = value_and_grad(rosenbrock)(p)
        return value, dict(reversed(grads.items()))

    other, _ = opt(start(), reversed_order, opt.init(start()), opt.hparams())
    assert torch.equal(other["x"], expected["x"])
    assert opt({}, lambda p: (0.0, {}), opt.init({}), opt.hparams())[0] == {}


@by_search
def test_gradients_of_all_kinds(search):
    """None is 0, also for a subtree; a sparse gradient is dense; the value may be a Python number."""
    opt = lbfgs(search, max_iter=5)
    params = {"w": torch.tensor([1.0, 2.0, 3.0]), "frozen": {"a": torch.ones(2), "b": torch.ones(())}}

    def objective(p):
        value, grad = value_and_grad(lambda w: (w[1:] - 1).pow(4).sum())(p["w"])
        return value.item(), {"w": grad.to_sparse(), "frozen": None}

    new, state = opt(params, objective, opt.init(params), opt.hparams())
    assert torch.equal(new["frozen"]["a"], torch.ones(2))
    assert new["w"][0] == 1
    assert (new["w"][1:] - 1).abs().max() < 0.5
    assert state["d"].shape == (6,)
    assert not state["d"][3:].any()


@by_search
def test_complex_is_pairs_of_reals(search):
    z, a = random(3, dtype=torch.complex128), random(3, 3, seed=1, dtype=torch.complex128)
    opt = lbfgs(search, max_iter=5)
    loss = lambda z: ((a @ z - 1).abs() ** 2).sum()
    as_complex, state = run(opt, loss, z, lr=0.1)
    as_reals, expected = run(opt, lambda r: loss(torch.view_as_complex(r)), torch.view_as_real(z).clone(), lr=0.1)
    # The derivatives of a complex product are the same sums, and may be rounded in another order.
    assert torch.allclose(torch.view_as_real(as_complex), as_reals, rtol=1e-10)
    assert torch.allclose(state["d"], expected["d"], rtol=1e-6, atol=1e-9)
    assert state["d"].dtype == torch.float64


def test_dtypes():
    """Each parameter keeps its dtype; vectors have the widest, and float32 at least."""
    for dtypes, wide in [
        ([torch.bfloat16], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.bfloat16, torch.complex128], torch.float64),
        ([torch.float32, torch.float64], torch.float64),
    ]:
        params = [torch.ones(2, dtype=dtype) for dtype in dtypes]
        new, state = run(lbfgs(max_iter=3), lambda ps: sum((p.abs() ** 4).sum().double() for p in ps), params, lr=0.1)
        assert [p.dtype for p in new] == dtypes
        assert {t.dtype for t in tensors_in(state)} == {wide}


@by_search
def test_a_saved_state_goes_on(search):
    opt = lbfgs(search, max_iter=3, history_size=2)
    hparams = opt.hparams(lr=0.1)
    params, state = run(opt, rosenbrock, start(), calls=2, lr=0.1)
    assert set(state) == {
        "func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "al", "H_diag", "prev_flat_grad", "prev_loss"
    }  # fmt: skip
    assert len(state["old_dirs"]) == len(state["old_stps"]) == len(state["ro"]) == 2
    file = io.BytesIO()
    torch.save({"params": params, "state": state, "hparams": hparams}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again, _ = opt(loaded["params"], value_and_grad(rosenbrock), loaded["state"], loaded["hparams"])
    expected, _ = opt(params, value_and_grad(rosenbrock), state, hparams)
    assert torch.equal(again["x"], expected["x"])
    assert torch.equal(again["rest"][0], expected["rest"][0])


def test_values_are_counted():
    calls = []

    def loss(p):
        calls.append(p)
        return rosenbrock(p)

    for kwargs, most in [({"max_iter": 3}, 3), ({"max_eval": 7}, 7), ({"line_search_fn": "strong_wolfe"}, 26)]:
        calls.clear()
        _, state = run(lbfgs(**kwargs), loss, start(), lr=1e-3)
        assert state["func_evals"] == len(calls) <= most


def test_already_there():
    opt = lbfgs("strong_wolfe")
    params = torch.ones(3)
    new, state = opt(params, lambda p: (0.0, torch.zeros(3)), opt.init(params), opt.hparams())
    assert torch.equal(new, params)
    assert state == {"func_evals": 1, "n_iter": 0}


# ---- the object, the helper -----------------------------------------------------------------------------------------


def test_the_object():
    opt = lbfgs("strong_wolfe", max_iter=10)
    assert repr(opt) == "funcopt.lbfgs(line_search_fn='strong_wolfe', max_iter=10, max_eval=12, history_size=100)"
    assert opt == lbfgs(line_search_fn="strong_wolfe", max_iter=10.0, max_eval=12)
    assert opt != lbfgs(max_iter=10)
    assert pickle.loads(pickle.dumps(opt)) == copy.deepcopy(opt) == opt
    assert len({opt, lbfgs("strong_wolfe", max_iter=10)}) == 1
    assert opt.hparams(lr=2) == {"lr": 2.0, "tolerance_grad": 1e-7, "tolerance_change": 1e-9}
    assert lbfgs.__doc__.startswith("L-BFGS")
    with pytest.raises(AttributeError):
        opt.max_iter = 3


def test_value_and_grad():
    p = {"a": torch.tensor([1.0, 2.0]), "z": torch.tensor(1 + 2j)}
    value, grads = value_and_grad(lambda p, k, *, c: k * (p["a"] ** 2).sum() + c * p["z"].abs() ** 2)(p, 3.0, c=2.0)
    assert value == 25
    assert torch.equal(grads["a"], 6 * p["a"])
    assert torch.allclose(grads["z"], 4 * p["z"])


def test_a_number_is_one_for_all():
    opt = lbfgs(max_iter=3)
    expected, _ = run(opt, rosenbrock, start(), lr=0.25)
    for lr in (torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(0.25, requires_grad=True)):
        assert torch.equal(run(opt, rosenbrock, start(), lr=lr)[0]["x"], expected["x"])


# ---- errors ---------------------------------------------------------------------------------------------------------


def refused(opt: Any, params: Any, objective: Any, state: Any = None, hparams: Any = None) -> None:
    opt(params, objective, opt.init(params) if state is None else state, opt.hparams() if hparams is None else hparams)


def good(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return value_and_grad(lambda q: q.square().sum())(p)


ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((ONES, ONES), TypeError, r"takes a function params -> \(value, grads\).*got a Tensor"),
        ((ONES, lambda p: p.sum()), TypeError, r"must return a pair \(value, grads\); it returned a Tensor"),
        ((ONES, lambda p: good(p)[::-1]), ValueError, r"a loss of shape \(2,\); one number is needed"),
        (([ONES], lambda p: ([ONES], torch.ones(()))), TypeError, "the loss first; it returned a list first"),
        ((ONES, lambda p: (None, p)), TypeError, "a loss that is None; a real number is needed"),
        ((ONES, lambda p: (torch.tensor(1j), p)), TypeError, "a real number is needed"),
        ((ONES, lambda p: (1.0, p[:1])), ValueError, r"grads is torch.float32 of shape \(1,\), but params is"),
        (({"a": ONES}, lambda p: (1.0, {"a": ONES.double()})), ValueError, r"grads\['a'\] is torch.float64"),
        (({"a": ONES}, lambda p: (1.0, {"b": ONES})), ValueError, r"grads\['b'\] has no counterpart in params"),
        (({"a": torch.ones(2, dtype=torch.int64)}, good), TypeError, r"params\['a'\] is a tensor of torch.int64"),
        (({"a": 1.0}, good), TypeError, r"params\['a'\] is a float"),
        ((ONES, good, {"n_iter": 0}), ValueError, "state has no 'func_evals'; opt.init"),
        ((ONES, good, None, {"lr": 1.0}), ValueError, r"hparams\['tolerance_grad'\] is missing"),
        ((ONES, good, None, {**lbfgs().hparams(), "lr": {"a": 1.0}}), ValueError, "Tensor lr must be 1-element.*dict"),
    ],
)
def test_refused_calls(given, error, message):
    with pytest.raises(error, match=message):
        refused(lbfgs(), *given)


def test_refused_state():
    _, state = run(lbfgs(), lambda p: p.square().sum(), ONES)
    with pytest.raises(ValueError, match=r"state\['d'\] has 2 elements; the parameters are 3 reals"):
        refused(lbfgs(), torch.ones(3), good, state)


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ({"lr": -1}, ValueError, "Invalid learning rate: -1"),
        ({"lr": torch.ones(2)}, ValueError, r"Tensor lr must be 1-element.*\(2,\)"),
        ({"lr": [1.0, 2.0]}, ValueError, "Tensor lr must be 1-element.*list"),
        ({"tolerance": 1.0}, TypeError, "did you mean 'tolerance_"),
        ({"max_iter": 3}, TypeError, "no hyperparameter 'max_iter'"),
    ],
)
def test_refused_numbers(numbers, error, message):
    with pytest.raises(error, match=message):
        lbfgs().hparams(**numbers)


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(ONES),
    "vmap": lambda f: torch.vmap(f)(torch.ones(3, 2)),
    "jvp": lambda f: torch.func.jvp(f, (ONES,), (ONES,)),
    "vjp": lambda f: torch.func.vjp(f, ONES),
    "functionalize": lambda f: torch.func.functionalize(f)(ONES),
    "forward-mode": lambda f: forward(f),
}


def forward(f: Any) -> Any:
    with torch.autograd.forward_ad.dual_level():
        return f(torch.autograd.forward_ad.make_dual(ONES, ONES))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_are_refused(transform):
    opt = lbfgs()
    with pytest.raises(TypeError, match="call it outside of them"):
        transform(lambda p: opt(p, good, opt.init(p), opt.hparams())[0])
