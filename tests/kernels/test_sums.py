"""Rules with sums over whole tensors, compiled for the CPU: against the same text run by torch, and by hand."""

import pytest
import torch

import funcopt
from funcopt import backends
from funcopt.kernels import whole
from funcopt.ops import is_matrix, mean, size, sqrt, total, where

pytestmark = pytest.mark.skipif(not backends.compiler(), reason="there is no C++ compiler")

SHAPES = [
    (3, 4),
    (5,),
    (),
    (2, 3, 4),
    (1,),
    (1, 7),
    (7, 1),
    (0, 3),
    (3, 0),
    (2, 2, 5, 3),
    (300, 200),
    (70_000,),
    (2, 190, 180),
]

# Sums are worked out in float64 on both sides, in another order: a result may round to the number beside it, and low
# precision keeps half of its bits or fewer.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def per_tensor(p, g, m, c):
    """Sums of all kinds: of elements, of rows and columns, of sums of those."""
    row, column = mean(g * g, "rows"), mean(g * p, "columns")
    matrix = total(row, "columns") + total(column, "rows")
    m = m + (g - mean(g)) * sqrt(1 + row) + column / (1 + total(column * column)) + matrix / size(p, "columns")
    return p - c.lr * m / (1 + sqrt(total(m * m)) + total(row)), (m,)


def by_unit(p, g, m, c):
    m = m + (g - mean(g, "units") if is_matrix(g) else g / (1 + total(g * g)))
    return p - c.lr * where(total(m * m) > 1, m / size(m), m), (m,)


def means_of_means(p, g, m, c):
    """Of tensors with any number of dimensions: what has no rows, or one of each, is its own mean."""
    row, column = mean(g * p, "rows"), mean(g * g, "columns")
    m = m + mean(row, "rows") + mean(mean(column, "columns"), "rows") + mean(row) + mean(column)
    return p - c.lr * m * size(row) / (size(mean(g)) + size(column, "rows") + size(g)), (m,)


def means_of_units(p, g, m, c):
    unit = mean(g * p, "units")
    return p - c.lr * (m + mean(unit, "units") + mean(unit)) / size(unit), (m + total(unit, "units"),)


def made(update, name):
    return funcopt.rule(
        name,
        hparams={"lr": funcopt.nonnegative(0.1, "learning rate")},
        slots=("buffer",),
        coefficients=lambda t, lr: {"lr": lr},
        update=update,
        elementwise=False,
    )


sums, units = made(per_tensor, "sums"), made(by_unit, "units")
nested, nested_units = made(means_of_means, "nested"), made(means_of_units, "nested_units")
adamw = funcopt.adamw
OPTIMIZERS = {
    "adafactor": lambda backend: funcopt.adafactor(backend=backend),
    "adafactor maximize": lambda backend: funcopt.adafactor(maximize=True, backend=backend),
    "sums": lambda backend: sums(backend=backend),
    "units": lambda backend: units(backend=backend),
    "nested": lambda backend: nested(backend=backend),
    "nested units": lambda backend: nested_units(backend=backend),
    "clip_by_norm": lambda backend: funcopt.clip_by_norm(adamw(backend=backend), 0.5),
    "adaptive_clip": lambda backend: funcopt.adaptive_clip(adamw(backend=backend), 0.1),
    "centralize": lambda backend: funcopt.centralize(adamw(backend=backend)),
    "cautious": lambda backend: funcopt.cautious(funcopt.nadam(backend=backend)),
    "several": lambda backend: funcopt.cautious(funcopt.centralize(funcopt.clip_by_norm(adamw(backend=backend), 0.5))),
}


def drawn(shapes, dtype, seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=random).to(dtype) for shape in shapes]


def run(opt, params, dtype, donate=False, steps=3):
    hparams = opt.hparams(lr=0.1)
    params = [p.clone() for p in params]
    state = opt.init(params, hparams)
    for t in range(steps):
        params, state = opt(params, drawn([p.shape for p in params], dtype, 1 + t), state, hparams, donate=donate)
    return params, state


def taken(name):
    """The shapes that an optimizer takes: sums over columns are of matrices."""
    return [shape for shape in SHAPES if len(shape) > 1] if name == "sums" else SHAPES


def check(got, want, dtype, shapes):
    (params, state), (expected, before) = got, want
    for name, column in {"p": params, **state}.items():
        for i, (a, b) in enumerate(zip(column, {"p": expected, **before}[name], strict=True)):
            assert (a is None) == (b is None)
            if a is not None:
                scale = max(1.0, b.double().abs().max().item() if b.numel() else 0.0)
                off = (a.double() - b.double()).abs().max().item() if b.numel() else 0.0
                assert off <= TOLERANCE[dtype] * scale, f"{name} of shape {shapes[i]} is off by {off}"


# Compiling takes the time: all are tried in float64, two in every dtype.
CASES = [(name, dtype) for name in OPTIMIZERS for dtype in TOLERANCE if dtype == torch.float64]
CASES += [(name, dtype) for name in ("adafactor", "several") for dtype in TOLERANCE if dtype != torch.float64]


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_it_is_what_torch_makes_of_the_text(name, dtype, donate, monkeypatch):
    calls = []
    monkeypatch.setattr(whole, "step", lambda work, step=whole.step: calls.append(1) or step(work))
    shapes = taken(name)
    params = drawn(shapes, dtype, 0)
    got = run(OPTIMIZERS[name]("compile"), params, dtype, donate)
    assert len(calls) == 3
    check(got, run(OPTIMIZERS[name]("eager"), params, dtype), dtype, shapes)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_number_of_threads(name, threads):
    shapes = taken(name)
    params = drawn(shapes, torch.float64, 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = run(OPTIMIZERS[name]("compile"), params, torch.float64)
    finally:
        torch.set_num_threads(before)
    check(got, run(OPTIMIZERS[name]("eager"), params, torch.float64), torch.float64, shapes)


def test_by_hand():
    p, g = drawn([(3, 4), (3, 4)], torch.float64, 0)
    opt = sums(backend="compile")
    new, state = opt(p, g, opt.init(p), opt.hparams(lr=0.1))
    row, column = (g * g).mean(1, keepdim=True), (g * p).mean(0, keepdim=True)
    matrix = row.sum() + column.sum()
    m = (g - g.mean()) * (1 + row).sqrt() + column / (1 + (column**2).sum()) + matrix / 3
    torch.testing.assert_close(state["buffer"], m, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(new, p - 0.1 * m / (1 + m.norm() + row.sum()), rtol=1e-14, atol=1e-14)


def test_means_of_means_by_hand():
    for shape in ((3, 4), (5,), ()):
        p, g = drawn([shape, shape], torch.float64, 0)
        for backend in ("compile", "eager"):
            opt = nested(backend=backend)
            new, _ = opt(p, g, opt.init(p), opt.hparams(lr=0.1))
            x, y = (t.reshape((1,) * (2 - t.dim()) + tuple(t.shape)) for t in (g * p, g * g))
            m = x.mean(1, keepdim=True) + y.mean() + x.mean() + y.mean()
            step = 0.1 * m * len(x) / (1 + x.shape[1] + x.numel())
            torch.testing.assert_close(new, (p - step).reshape(shape) if p.dim() else p - step[0, 0])


def test_tensors_that_do_not_lie_row_after_row():
    params = [drawn([(4, 6)], torch.float64, 0)[0].t(), drawn([(2, 3, 4, 5)], torch.float64, 1)[0][:, ::2]]
    params.append(drawn([(2, 3, 4, 5)], torch.float64, 2)[0].to(memory_format=torch.channels_last))
    for donate in (False, True):
        got, _ = run(funcopt.adafactor(backend="compile"), params, torch.float64, donate)
        want, _ = run(funcopt.adafactor(backend="eager"), [p.contiguous() for p in params], torch.float64)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_slots_in_another_dtype():
    (p, g), opt = drawn([(6, 5), (6, 5)], torch.bfloat16, 0), funcopt.adafactor
    results = []
    for backend in ("compile", "eager"):
        made = opt(backend=backend)
        state = made.init(p, slot_dtype=torch.float32)
        new, state = made(p, g, state, made.hparams())
        assert state["row_var"].dtype == torch.float32
        results.append((new, state["row_var"]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-6)


def test_what_cannot_be_written_down_is_run_by_torch(monkeypatch):
    """Rows and units of one equation would be two ways to look at a tensor; Muon takes more of torch than sums."""
    monkeypatch.setattr(whole, "step", lambda work: pytest.fail("it was compiled"))
    both = made(lambda p, g, m, c: (p - c.lr * (g - mean(g, "units") - mean(g, "rows")), (m,)), "both")
    p, g = drawn([(2, 3, 4), (2, 3, 4)], torch.float64, 0)
    opt = both(backend="compile")
    new, _ = opt(p, g, opt.init(p), opt.hparams(lr=1.0))
    expected = p - (g - g.mean((1, 2), keepdim=True) - g.mean(2, keepdim=True))
    torch.testing.assert_close(new, expected, rtol=1e-14, atol=1e-14)
    opt = funcopt.muon(backend="compile")
    opt(p[0], g[0], opt.init(p[0]), opt.hparams())


def test_without_a_compiler(monkeypatch):
    def none(work):
        raise backends.CompilationError("there is none")

    monkeypatch.setattr(whole, "step", none)
    backends._say_once.cache_clear()
    params = drawn([(3, 4), (5,)], torch.float64, 0)
    with pytest.warns(RuntimeWarning, match="updated without compiled code: there is none"):
        got = run(funcopt.adafactor(), params, torch.float64)
    backends._say_once.cache_clear()
    check(got, run(funcopt.adafactor(backend="eager"), params, torch.float64), torch.float64, [(3, 4), (5,)])
    with pytest.raises(backends.CompilationError):
        run(funcopt.adafactor(backend="compile"), params, torch.float64)


def test_derivatives_are_those_of_the_text():
    (p, g), opt = drawn([(3, 4), (3, 4)], torch.float64, 0), funcopt.clip_by_norm(funcopt.adafactor(), 0.5)

    def function(p, g, lr):
        hparams = opt.hparams(lr=lr, eps=(1e-8, 1e-3))
        state = opt.init(p, hparams)
        for _ in range(2):
            p, state = opt(p, g * p, state, hparams)
        return p

    inputs = [t.requires_grad_() for t in (p, g, torch.tensor(0.1, dtype=torch.float64))]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)
