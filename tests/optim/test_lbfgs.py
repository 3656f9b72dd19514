"""LBFGS beside torch.optim.LBFGS: the same steps to the bit, and what torch's class does not do.

Both do the same operations of torch in the same order on the same numbers, so nothing is left to a tolerance; L-BFGS
would make much of any difference.
"""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch

from funcopt.optim.lbfgs import LBFGS

CLASSES = {"funcopt": LBFGS, "torch": torch.optim.LBFGS}

# ---- problems: parameters, and the loss of them ---------------------------------------------------------------------


def rosenbrock(dtype):
    p = torch.tensor([-1.2, 1.0, -0.5, 2.0], dtype=dtype, requires_grad=True)
    return [p], lambda: (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()


def quadratic(dtype):
    chance = torch.Generator().manual_seed(0)
    root = torch.randn(10, 10, generator=chance, dtype=torch.float64)
    matrix = (root @ root.T + torch.eye(10)).to(dtype)
    p = torch.ones(10, dtype=dtype, requires_grad=True)
    return [p], lambda: p @ matrix @ p / 2 - p.sum()


def network(dtype):
    chance = torch.Generator().manual_seed(0)
    w1, b1, w2, b2 = params = [
        (torch.randn(shape, generator=chance, dtype=torch.float64) / 2).to(dtype).requires_grad_()
        for shape in [(4, 8), (8,), (8, 1), ()]
    ]
    x = torch.randn(50, 4, generator=chance, dtype=torch.float64).to(dtype)
    y = x.sum(1, keepdim=True).sin()
    return params, lambda: ((torch.tanh(x @ w1 + b1) @ w2 + b2 - y) ** 2).mean()


def complex_and_real(dtype):
    chance = torch.Generator().manual_seed(0)
    own = torch.complex64 if dtype == torch.float32 else torch.complex128
    matrix = torch.randn(3, 3, generator=chance, dtype=torch.complex128).to(own)
    z = torch.randn(3, 2, generator=chance, dtype=torch.complex128).to(own).requires_grad_()
    r = torch.ones(2, dtype=dtype, requires_grad=True)
    return [z, r], lambda: ((matrix @ z - 1).abs() ** 2).sum() + ((z.real.sum(0) - r) ** 4).sum()


def two_dtypes(dtype):
    other = torch.float64 if dtype == torch.float32 else torch.float32
    p = torch.tensor([-1.2, 0.3], dtype=dtype, requires_grad=True)
    q = torch.tensor([1.0], dtype=other, requires_grad=True)
    return [p, q], lambda: ((p**2 - q) ** 2).sum() + (1 - p[0]) ** 2 + (q - p[1]).square().sum()


PROBLEMS = (rosenbrock, quadratic, network, complex_and_real, two_dtypes)

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"lr": 0.1, "max_iter": 5, "history_size": 2},
    {"max_iter": 7, "max_eval": 4},
    {"max_iter": 1, "lr": 0.5},
    {"max_iter": 10, "max_eval": 1, "lr": 3.0},
    {"lr": 1e-3, "tolerance_grad": 1e-2, "tolerance_change": 1e-2},
    {"tolerance_grad": 0.1, "tolerance_change": 0.0},
)


def taken(optimizer: Any, params: Any, loss: Any, steps: int) -> list[Any]:
    """What each step returns, the parameters after it, and the state, of which torch keeps scratch space too."""

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    seen = []
    for _ in range(steps):
        returned = optimizer.step(closure).item()
        state = dict(optimizer.state[params[0]])
        seen.append(copy.deepcopy((returned, [p.detach() for p in params], state)))
    return seen


def run(cls: Any, problem: Any, dtype: torch.dtype = torch.float64, steps: int = 3, **kwargs: Any) -> list[Any]:
    params, loss = problem(dtype)
    return taken(cls(params, **kwargs), params, loss, steps)


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same to the bit, tensors of one dtype or numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return not isinstance(b, torch.Tensor) and a == b


def check_same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for t, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        assert own[0] == other[0], f"the loss of step {t}"
        assert same(own[1], other[1]), f"the parameters after step {t}"
        state, expected = dict(own[2]), dict(other[2])
        assert state.keys() == expected.keys()
        if state.get("t") == 0 != expected["t"]:
            # No step was taken in the last iteration; torch writes down what it would have been.
            assert -state["d"].dot(state["prev_flat_grad"]) < 1e-2
            del state["t"], expected["t"]
        assert [name for name in state if not same(state[name], expected[name])] == [], f"the state after step {t}"


by_search = pytest.mark.parametrize("search", [None, "strong_wolfe"])


# ---- the same steps -------------------------------------------------------------------------------------------------


@by_search
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_steps_are_torchs(problem, dtype, settings, search):
    settings = {**settings, "line_search_fn": search}
    ours, theirs = (run(cls, problem, dtype, **settings) for cls in (LBFGS, torch.optim.LBFGS))
    # Steps of length 1 may go astray, and what comes after the first overflow is told apart below.
    finite = next((t for t, (_, ps, _) in enumerate(theirs) if not all(p.isfinite().all() for p in ps)), len(theirs))
    assert finite > 0
    check_same(ours[:finite], theirs[:finite])


def test_signature_and_groups():
    ours, theirs = (inspect.signature(cls).parameters for cls in (LBFGS, torch.optim.LBFGS))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    for args in ((), (0.5, 10, None, 1e-3, 1e-4, 5, "strong_wolfe"), (torch.tensor([0.5]), 7, 3)):
        ours, theirs = (cls([torch.ones(2)], *args) for cls in (LBFGS, torch.optim.LBFGS))
        assert ours.defaults == theirs.defaults
        assert ours.state_dict() == theirs.state_dict()
        assert repr(ours) == repr(theirs)


@by_search
@pytest.mark.parametrize("lr", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3]])], ids=str)
def test_a_tensor_lr_is_a_number(lr, search):
    given = float(lr)
    expected = run(torch.optim.LBFGS, network, lr=given, line_search_fn=search)
    check_same(run(LBFGS, network, lr=lr, line_search_fn=search), expected)
    assert float(lr) == given


def test_a_tensor_lr_may_change_between_steps():
    """The pair of the last step is made with the lr of the last step, though a scheduler has written to the tensor."""
    results = []
    for cls, lr in ((LBFGS, torch.tensor(0.5, dtype=torch.float64)), (torch.optim.LBFGS, 0.5)):
        params, loss = network(torch.float64)
        optimizer = cls(params, lr=lr, max_iter=3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        seen = []
        for _ in range(4):
            seen += taken(optimizer, params, loss, 1)
            scheduler.step()
        results.append(seen)
    check_same(*results)


@pytest.mark.parametrize("tolerance", [torch.inf, -torch.inf])
@by_search
def test_the_first_loss_is_returned_as_it_is(tolerance, search):
    p = torch.ones(3, requires_grad=True)
    optimizer = LBFGS([p], tolerance_grad=tolerance, line_search_fn=search)
    losses = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        losses.append(p.square().sum())
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
    assert (len(losses) == 1) is (tolerance > 0)
    assert optimizer.state[p]["func_evals"] == len(losses)
    assert optimizer.step(lambda: 7) == 7


# ---- states, copies -------------------------------------------------------------------------------------------------


def saved(value: Any) -> Any:
    """The value through a file, by the unpickler that runs no code."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@by_search
@pytest.mark.parametrize("problem", [network, complex_and_real])
@pytest.mark.parametrize("through", [copy.deepcopy, saved], ids=["deepcopy", "torch.save"])
@pytest.mark.parametrize(("source", "target"), [("torch", "funcopt"), ("funcopt", "torch"), ("funcopt", "funcopt")])
def test_training_goes_on_in_the_other_class(source, target, through, problem, search):
    params, loss = problem(torch.float64)
    old = CLASSES[source](params, lr=0.5, max_iter=3, history_size=4, line_search_fn=search)
    taken(old, params, loss, 2)
    new_params, new_loss = problem(torch.float64)
    new = CLASSES[target](new_params)
    for p, q in zip(new_params, params, strict=True):
        p.data.copy_(q)
    new.load_state_dict(through(old.state_dict()))
    check_same(taken(new, new_params, new_loss, 3), taken(old, params, loss, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("problem", [rosenbrock, two_dtypes])
def test_a_loaded_state_has_all_its_bits(problem, dtype):
    """Also where the vectors are wider than the first parameter, to which torch.optim casts what is loaded."""
    params, loss = problem(dtype)
    old = LBFGS(params, lr=0.1, max_iter=3)
    taken(old, params, loss, 2)
    new_params, new_loss = problem(dtype)
    for p, q in zip(new_params, params, strict=True):
        p.data.copy_(q)
    new = LBFGS(new_params)
    given = saved(old.state_dict())
    new.load_state_dict(given)
    assert same(new.state_dict(), given)
    assert new.state[new_params[0]]["d"].dtype == max(
        torch.float32, *(p.dtype for p in params), key=lambda d: d.itemsize
    )
    check_same(taken(new, new_params, new_loss, 2), taken(old, params, loss, 2))


def test_a_loaded_state_is_not_shared():
    params, loss = rosenbrock(torch.float64)
    theirs = torch.optim.LBFGS(params, max_iter=3)
    taken(theirs, params, loss, 1)
    ours = LBFGS([p.detach().clone().requires_grad_() for p in params])
    ours.load_state_dict(theirs.state_dict())
    before = copy.deepcopy(ours.state_dict())
    taken(theirs, params, loss, 1)  # writes to its prev_flat_grad
    assert same(ours.state_dict(), before)


def test_a_state_that_was_read_stays_what_it_was():
    params, loss = rosenbrock(torch.float64)
    optimizer = LBFGS(params, max_iter=3)
    taken(optimizer, params, loss, 1)
    read = optimizer.state_dict()
    before = copy.deepcopy(read)
    taken(optimizer, params, loss, 1)
    assert same(read, before)


@by_search
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
def test_copies_go_on(copied, search):
    params, loss = rosenbrock(torch.float64)
    optimizer = LBFGS(params, lr=0.5, max_iter=3, line_search_fn=search)
    taken(optimizer, params, loss, 2)
    twin, (p,) = copied((optimizer, params))
    assert twin.param_groups[0]["params"][0] is p is not params[0]
    rest = taken(optimizer, params, loss, 2)
    check_same(taken(twin, [p], lambda: (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum(), 2), rest)


def test_a_deepcopy_has_the_hooks():
    optimizer = LBFGS([torch.ones(2)])
    seen = []
    optimizer.register_step_post_hook(lambda opt, *_: seen.append(opt))
    twin = copy.deepcopy(optimizer)
    twin.step(lambda: 0)
    assert seen == [twin]


def test_hooks_and_profiler():
    optimizer = LBFGS([torch.ones(2)])
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step(lambda: seen.append("closure") or 0)
        optimizer.zero_grad()
    assert seen == ["pre", "closure", "post"]
    names = {event.name for event in profile.events()}
    assert {"Optimizer.step#LBFGS.step", "Optimizer.zero_grad#LBFGS.zero_grad"} <= names


# ---- gradients ------------------------------------------------------------------------------------------------------


@by_search
def test_a_missing_gradient_is_zero(search):
    """Of a parameter that is frozen, and of one that the loss does not depend on."""
    results = []
    for cls in CLASSES.values():
        params, loss = rosenbrock(torch.float64)
        frozen, unused = torch.full((2,), 5.0), torch.ones(3, dtype=torch.complex128, requires_grad=True)
        optimizer = cls([*params, frozen, unused], line_search_fn=search)
        results.append(taken(optimizer, [*params, frozen, unused], loss, 2))
    check_same(*results)
    assert torch.equal(results[1][-1][1][1], torch.full((2,), 5.0))


@by_search
def test_sparse_gradients(search):
    index = torch.tensor([0, 2, 2])
    results = []
    for cls, sparse in ((LBFGS, True), (torch.optim.LBFGS, True), (LBFGS, False)):
        weight = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()
        look_up = lambda w=weight, s=sparse: torch.nn.functional.embedding(index, w, sparse=s).cos().sum()
        results.append(taken(cls([weight], max_iter=4, line_search_fn=search), [weight], look_up, 2))
    check_same(results[0], results[1])
    check_same(results[0], results[2])


@by_search
def test_any_layout(search):
    """Gradients have their parameter's layout; torch's class refuses those that are not contiguous."""
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        chance = torch.Generator().manual_seed(0)
        p = torch.randn(2, 3, 4, 4, generator=chance, dtype=torch.float64).contiguous(memory_format=layout)
        z = torch.randn(3, 2, generator=chance, dtype=torch.complex128)
        z = z.T.contiguous().T if layout is torch.channels_last else z
        params = [p.requires_grad_(), z.requires_grad_()]
        target = torch.linspace(0, 1, p.numel(), dtype=torch.float64).reshape(p.shape)
        loss = lambda p=p, z=z, at=target: ((p.sin() - at) ** 2).sum() + (z.abs() ** 4).sum()
        results.append((params, taken(LBFGS(params, max_iter=4, line_search_fn=search), params, loss, 2)))
    (_, dense), (params, strided) = results
    assert not params[0].is_contiguous()
    assert not params[1].is_contiguous()
    for (_, a, _), (_, b, _) in zip(dense, strided, strict=True):
        # The loss, and so the length of a step, is a sum in another order.
        assert all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in zip(a, b, strict=True))


def test_gradients_are_not_written_to():
    params, loss = network(torch.float64)
    optimizer = LBFGS(params, line_search_fn="strong_wolfe", max_iter=3)
    before = []

    def closure():
        for p, (g, version, value) in zip(params, before, strict=False):
            assert p.grad is g
            assert (g._version, g.tolist()) == (version, value)
        optimizer.zero_grad()
        value = loss()
        value.backward()
        before[:] = [(p.grad, p.grad._version, p.grad.tolist()) for p in params]
        return value

    optimizer.step(closure)
    optimizer.step(closure)


@by_search
def test_a_closure_that_clamps_its_parameters(search):
    results = []
    for cls in CLASSES.values():
        p = torch.linspace(-1, 2, 5, dtype=torch.float64).requires_grad_()

        def loss(p=p):
            with torch.no_grad():
                p.clamp_(0, 1)
            return ((p - torch.linspace(-1, 1, 5)).exp() - p).sum()

        results.append(taken(cls([p], lr=0.5, max_iter=4, line_search_fn=search), [p], loss, 3))
    check_same(*results)


# ---- where torch's class fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall", [torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_line_search_comes_back_from_where_the_loss_is_not_finite(wall, dtype):
    """x - log x has its minimum at 1, and none below 0, where the first trials are."""
    p = torch.tensor([5.0, 3.0], dtype=dtype, requires_grad=True)
    optimizer = LBFGS([p], lr=100.0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = (p - p.log()).sum()
        value.backward()
        return value if bool((p > 0).all()) else value * wall

    for _ in range(5):
        optimizer.step(closure)
    # It ends where the loss, 2 + |p - 1|²/2, no longer falls by its rounding, or by tolerance_change.
    assert (p - 1).norm() < (2 * max(4 * torch.finfo(dtype).eps, 1e-9)) ** 0.5


@by_search
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_leads_nowhere(bad, search):
    params, loss = rosenbrock(torch.float64)
    optimizer = LBFGS(params, max_iter=3, line_search_fn=search)
    taken(optimizer, params, loss, 2)
    before = copy.deepcopy((params, optimizer.state[params[0]]))

    def closure():
        params[0].grad = torch.full_like(params[0], bad)
        return torch.tensor(bad)

    returned = optimizer.step(closure)
    assert same(returned, torch.tensor(bad)) or returned.isnan()
    assert torch.equal(params[0], before[0][0])
    expected = {**before[1], "func_evals": before[1]["func_evals"] + 1}
    assert same(optimizer.state[params[0]], expected)
    assert taken(optimizer, params, loss, 3)[-1][0] < loss().item() + 1
    assert params[0].isfinite().all()


@by_search
def test_an_objective_that_changes_between_calls(search):
    """As of batch after batch, where a direction of the last objective may not go down, and no step is taken."""
    ends = []
    for cls in (LBFGS, torch.optim.LBFGS):
        p = torch.ones(2, dtype=torch.float64, requires_grad=True)
        optimizer = cls([p], tolerance_change=1e-2, line_search_fn=search)

        def closure(at, p=p, optimizer=optimizer):
            optimizer.zero_grad()
            value = ((p - at).square() * torch.tensor([1.0, 10.0])).sum() + (p - at).pow(4).sum()
            value.backward()
            return value

        for at in (0.0, 0.0, 3.0, 3.0, -1.0):
            optimizer.step(lambda at=at: closure(at))
            ends.append((p.detach().clone(), float(optimizer.state[p]["t"]), optimizer.state[p]["n_iter"]))
    for (ours, t, n), (theirs, their_t, their_n) in zip(ends[:5], ends[5:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert t == pytest.approx(their_t, rel=1e-9)
        assert n == their_n


@by_search
def test_an_error_in_the_closure_undoes_the_step(search):
    params, loss = rosenbrock(torch.float64)
    optimizer = LBFGS(params, line_search_fn=search)
    taken(optimizer, params, loss, 1)
    before = copy.deepcopy((params, optimizer.state_dict()))
    calls = []

    def closure():
        calls.append(params[0].tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert calls[0] != calls[1] != calls[2]
    assert same([p.detach() for p in params], [p.detach() for p in before[0]])
    assert same(optimizer.state_dict(), before[1])
    assert torch.is_grad_enabled()


@by_search
def test_nothing_to_do(search):
    optimizer = LBFGS([torch.ones(0, requires_grad=True)], line_search_fn=search, tolerance_grad=-1.0)
    optimizer.step(lambda: torch.zeros(()))
    p = torch.ones(3, requires_grad=True)
    still = LBFGS([p], lr=0, line_search_fn=search, max_iter=2)
    taken(still, [p], lambda: p.square().sum(), 2)
    assert torch.equal(p, torch.ones(3))


@by_search
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, search):
    """Vectors in float32 find the least of a quadratic whose gradients have squares that float16 cannot hold."""
    p = torch.tensor([1.0, -2.0, 3.0], dtype=dtype, requires_grad=True)
    scale = torch.tensor([300.0, 200.0, 100.0])
    optimizer = LBFGS([p], line_search_fn=search, max_iter=10)
    target = torch.tensor([0.5, 0.25, -1.0])
    taken(optimizer, [p], lambda: (scale * (p.float() - target) ** 2).sum(), 4)
    assert p.dtype == dtype
    assert optimizer.state[p]["d"].dtype == torch.float32
    assert torch.equal(p.detach().float(), target)  # which these dtypes have, as the least loss of all


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"Invalid learning rate: -1.0"),
        ({"lr": torch.tensor([1.0, 2.0])}, ValueError, r"Tensor lr must be 1-element.*\(2,\)"),
        ({"lr": "fast"}, TypeError, r"lr takes a float"),
        ({"line_search_fn": "armijo"}, ValueError, r"line_search_fn takes None or 'strong_wolfe'; got 'armijo'"),
        ({"max_iter": 0}, ValueError, r"max_iter takes an integer ≥ 1; got 0"),
        ({"max_iter": None}, ValueError, r"max_iter takes an integer ≥ 1; got None"),
        ({"max_eval": 1.5}, ValueError, r"max_eval takes an integer ≥ 1; got 1.5"),
        ({"history_size": 0}, ValueError, r"history_size takes an integer ≥ 1; got 0"),
        ({"tolerance_grad": "small"}, TypeError, r"tolerance_grad takes a float"),
    ],
)
def test_refused_numbers(kwargs, error, message):
    with pytest.raises(error, match=message):
        LBFGS([torch.ones(2)], **kwargs)
    with pytest.raises(error, match=message):
        LBFGS([{"params": [torch.ones(2)], **kwargs}])


def test_one_group():
    with pytest.raises(ValueError, match="parameter groups"):
        LBFGS([{"params": [torch.ones(2)]}, {"params": [torch.ones(2)]}])
    optimizer = LBFGS([torch.ones(2)])
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.add_param_group({"params": [torch.ones(2)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((), TypeError, "closure"),
        ((None,), TypeError, "step takes a closure; got None"),
        ((lambda: None,), TypeError, "the closure gave a loss that is None"),
        ((lambda: torch.ones(2),), ValueError, r"the closure gave a loss of shape \(2,\)"),
        ((lambda: torch.tensor(1j),), TypeError, "a real number is needed"),
    ],
)
def test_refused_closures(args, error, message):
    p = torch.ones(2)
    optimizer = LBFGS([p])
    with pytest.raises(error, match=message):
        optimizer.step(*args)
    assert torch.equal(p, torch.ones(2))
    assert not optimizer.state


def test_a_state_of_other_parameters():
    params, loss = rosenbrock(torch.float64)
    optimizer = LBFGS(params)
    taken(optimizer, params, loss, 1)
    p = torch.ones(3, requires_grad=True)
    other = LBFGS([p])
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"state\['d'\] has 4 elements; the parameters are 3 reals"):
        taken(other, [p], lambda: p.square().sum(), 1)
    assert torch.equal(p, torch.ones(3))
