"""Every class on every input that torch's own table of optimizers lists, beside torch's class."""

import inspect
from typing import Any

import pytest
import torch

from tests.optim.runs import packed_groups, plain
from tests.optim.table import (
    INFOS,
    OURS,
    ROWS,
    SIDES,
    TORCH,
    check_near,
    draw,
    each_input,
    each_name,
    float64_by_default,
    inputs,
    much,
    offs,
    plain_torch,
    refusal,
    rows,
    run,
    seen,
    step,
    tolerance,
)

STEPS = 7  # RAdam's sixth is its first one that is rectified

# Of the ROWS, for what rounding does: a matrix, 0-d, a vector, and a matrix transposed.
FEW = (0, 1, 2, 5)

# Where torch's class goes wrong; ours is to be within some units in the last place of the truth.
WRONG = {
    ("Muon", "no Nesterov momentum", torch.bfloat16),  # it orthogonalises its buffer in place
}


def numbers(name: str, row: int, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    return inputs(name, dtype)[row][1] | more


def skip_unless_taken(name: str, dtype: torch.dtype) -> None:
    if not rows(name, dtype):
        pytest.skip(f"torch.optim.{name} takes no parameters of {dtype}")


# ---- trajectories and states ----------------------------------------------------------------------------------------


@each_input
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["float64", "complex128"])
def test_as_torch(name, row, dtype):
    skip_unless_taken(name, dtype)
    with float64_by_default():
        ours = run(name, OURS[name], numbers(name, row, dtype), dtype, STEPS)
        theirs = run(name, TORCH[name], numbers(name, row, dtype, **plain_torch(name)), dtype, STEPS)
    check_near(ours, theirs, tolerance(name))


@each_input
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.complex64],
    ids=["float32", "bfloat16", "float16", "complex64"],
)
def test_no_further_from_the_truth_than_torch(name, row, dtype):
    """At most twice torch's own error, and one unit in the last place, relative to the largest number on the way.

    Both errors are single samples of rounding, and torch's may be small by luck. The truth is torch's run in float64.
    """
    skip_unless_taken(name, dtype)
    if INFOS[name].step_requires_closure:
        pytest.skip("a difference of gradients has no digits left to compare, and a search takes other turns")
    few = tuple(which for which in rows(name, dtype) if which in FEW)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    ours = run(name, OURS[name], numbers(name, row, dtype), dtype, STEPS, which=few)
    theirs = run(name, TORCH[name], numbers(name, row, dtype, **plain_torch(name)), dtype, STEPS, which=few)
    check_near(ours, theirs, torch.inf)
    with float64_by_default():
        kwargs = numbers(name, row, dtype, **plain_torch(name))
        truth = run(name, TORCH[name], kwargs, wide, STEPS, which=few, drawn_in=dtype)
    off = offs(theirs, truth)
    if (name, inputs(name)[row][0], dtype) in WRONG:
        assert max(off.values()) > 0.1, "torch's class is right by now"
        off = dict.fromkeys(off, torch.finfo(dtype).eps)
    for key, own in offs(ours, truth).items():
        assert off[key] < 0.1, f"torch's {key} is no reference"
        assert own <= 2 * off[key] + torch.finfo(dtype).eps, f"{key}: off by {own:.2g}, torch by {off[key]:.2g}"


@each_name
@pytest.mark.parametrize("switch", ["foreach", "fused", "differentiable"])
def test_switches_change_nothing(name, switch):
    """Torch's switches among its implementations: of ours they choose none, or one that takes the same steps."""
    if switch not in INFOS[name].supported_impls:
        pytest.skip(f"torch.optim.{name} has no {switch}")
    runs = []
    for cls, own in ((OURS[name], {switch: True}), (TORCH[name], plain_torch(name))):
        with float64_by_default():
            runs.append(run(name, cls, much(name) | own, torch.float64, STEPS, leaves=switch != "differentiable"))
    check_near(*runs, tolerance(name))


# ---- sparse gradients -----------------------------------------------------------------------------------------------


def sparse_inputs() -> list[Any]:
    """The inputs with the numbers that torch's table asks for where gradients are sparse; each once."""
    found = {}
    for name in (name for name, info in INFOS.items() if info.supports_sparse):
        for _, kwargs in inputs(name):
            kwargs = dict(sorted((kwargs | INFOS[name].metadata_for_sparse[0]).items()))
            found[name, repr(kwargs)] = pytest.param(name, kwargs, id=f"{name}, {kwargs}")
    return list(found.values())


@pytest.mark.parametrize(("name", "kwargs"), sparse_inputs())
def test_sparse_gradients(name, kwargs):
    with float64_by_default():
        runs = [
            run(name, classes[name], kwargs, torch.float64, STEPS, sparse=True, which=(0, 2, 3, 5)) for classes in SIDES
        ]
    check_near(*runs, tolerance(name))


@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.supports_sparse])
def test_sparse_gradients_that_torch_refuses(name):
    """Weight decay has a gradient everywhere. Nothing is changed by then."""
    for classes in SIDES:
        params = draw([0], torch.float32, seed=0)
        optimizer = classes[name](params, weight_decay=0.1)
        before = seen(optimizer, params)
        with pytest.raises(RuntimeError, match="sparse" if classes is OURS else None):
            step(name, optimizer, params, 0, sparse=True)
        if classes is OURS:
            check_near([seen(optimizer, params)], [before], 0)


@pytest.mark.parametrize(
    "name",
    [n for n, i in INFOS.items() if not (i.supports_sparse or i.only_supports_sparse_grads or i.step_requires_closure)],
)
def test_sparse_gradients_are_refused(name):
    params = draw([0], torch.float32, seed=0)
    optimizer = OURS[name](params)
    step(name, optimizer, params, 0)
    before = seen(optimizer, params)
    with pytest.raises(RuntimeError, match="sparse"):
        step(name, optimizer, params, 1, sparse=True)
    check_near([seen(optimizer, params)], [before], 0)


# ---- what torch refuses ---------------------------------------------------------------------------------------------


def error_inputs(name: str) -> list[Any]:
    return INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name}, {error.optimizer_error_input.desc}")
        for name in INFOS
        for row, error in enumerate(error_inputs(name))
    ],
)
def test_errors(name, row):
    """The type, and the text, that torch's table has."""
    error = error_inputs(name)[row]
    given = error.optimizer_error_input
    expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    if error.error_on.name == "STEP_ERROR":
        optimizer = OURS[name](given.params, **given.kwargs)
        with expected(error.error_type, match=error.error_regex):
            optimizer.step()
    else:
        with expected(error.error_type, match=error.error_regex):
            OURS[name](given.params, **given.kwargs)  # of None, where the numbers are refused before the parameters


@each_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=["real", "complex"])
@pytest.mark.parametrize("row", range(len(ROWS)), ids=[str(shape) for shape, _ in ROWS])
def test_parameters_that_torch_refuses(name, row, dtype):
    """Where torch means to, and says so, so does ours; where it stumbles, as over what is empty, ours does not."""
    theirs, ours = (refusal(classes[name], name, row, dtype) for classes in (TORCH, OURS))
    if theirs is not None and name in str(theirs):
        assert type(ours) is type(theirs), (ours, theirs)
    else:
        assert ours is None


# ---- the interface --------------------------------------------------------------------------------------------------


@each_name
def test_signature(name):
    ours, theirs = (inspect.signature(classes[name]).parameters for classes in SIDES)
    own = [p for p in ours.values() if p.name not in theirs]
    assert [(p.name, p.default, p.kind) for p in ours.values() if p not in own] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    assert [(p.name, p.default, p.kind) for p in own] in ([], [("backend", "auto", inspect.Parameter.KEYWORD_ONLY)])


@each_input
def test_groups(name, row):
    """Defaults, groups, and how they are printed."""
    groups = []
    for classes in SIDES:
        params = draw(rows(name, torch.float32), torch.float32, 0)
        optimizer = classes[name](params, **numbers(name, row, torch.float32))
        if INFOS[name].supports_param_groups:
            optimizer.add_param_group({"params": draw([0], torch.float32, 1), "lr": 0.5})
        groups.append((repr(optimizer), plain(optimizer.defaults), packed_groups(optimizer)))
    assert groups[0] == groups[1]
