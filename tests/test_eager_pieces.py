"""Large leaves on the CPU, updated by torch piece by piece: the same bits as in one go, in little memory."""

import pytest
import torch

import funcopt
from funcopt import backends, ops
from funcopt.ops import where
from tests.rules_table import ELEMENTWISE, NUMBERS, later

PIECE = 64  # whole vectors of every width, so that torch has the same elements left over as without pieces


def leaves(dtype, slot_dtype=None):
    """Pieces and a rest, one piece, less than one, 0-d, empty, another order in memory, gaps."""
    shapes = [(3, 100), (PIECE,), (5,), (), (0,), (7, 5, 11)]
    params = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [*params, torch.randn(20, 30, dtype=dtype).t(), torch.randn(30, 40, dtype=dtype)[::2, ::2]]


def run(opt, params, grads, hparams, monkeypatch, piece, **how):
    monkeypatch.setattr(backends, "PIECE", piece)
    state = opt.init(params, hparams, slot_dtype=how.pop("slot_dtype", None))
    params = [p.clone() for p in params]
    for own in grads:
        params, state = opt(params, own, later(state, 2), hparams, **how)
    return params, state


@pytest.mark.parametrize(("factory", "flags"), ELEMENTWISE.values(), ids=ELEMENTWISE)
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    ("dtype", "slot_dtype"),
    [(torch.float32, None), (torch.float64, None), (torch.bfloat16, torch.float32), (torch.float16, None)],
    ids=str,
)
def test_the_same_bits(factory, flags, donate, dtype, slot_dtype, monkeypatch):
    opt, params = factory(backend="eager", **flags), leaves(dtype)
    hparams = opt.hparams(**NUMBERS[factory.__name__])
    grads = [[None if i == 1 else torch.randn_like(p) for i, p in enumerate(params)] for _ in range(3)]
    got = run(opt, params, grads, hparams, monkeypatch, PIECE, donate=donate, slot_dtype=slot_dtype)
    want = run(opt, params, grads, hparams, monkeypatch, 1 << 40, donate=donate, slot_dtype=slot_dtype)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    for p, q in zip(got[0], want[0], strict=True):
        assert p.stride() == q.stride()


@pytest.mark.parametrize("donate", [False, True])
def test_what_is_written(donate, monkeypatch):
    monkeypatch.setattr(backends, "PIECE", PIECE)
    opt, p, g = funcopt.adamw(backend="eager"), torch.randn(500), torch.randn(500)
    state, before = opt.init(p), [p.clone(), g.clone(), p._version, g._version]
    new, after = opt(p, g, state, opt.hparams(), donate=donate)
    assert torch.equal(g, before[1])
    assert g._version == before[3]
    assert (new is p, after["exp_avg"] is state["exp_avg"]) == (donate, donate)
    assert (p._version > before[2]) == donate
    assert torch.equal(p, before[0]) != donate


def test_numbers_by_weight_and_by_layer(monkeypatch):
    opt = funcopt.adamw(backend="eager")
    for lr in (torch.rand(300), [torch.tensor(0.1), torch.rand(20)], [0.1, 0.2]):
        params = [torch.randn(300), *([torch.randn(10, 20)] if isinstance(lr, list) else [])]
        hparams = opt.hparams(lr=lr)
        grads = [[torch.randn_like(p) for p in params] for _ in range(3)]
        got = run(opt, params, grads, hparams, monkeypatch, PIECE)
        want = run(opt, params, grads, hparams, monkeypatch, 1 << 40)
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_pieces_are_what_is_run(monkeypatch):
    """A choice between numbers sees pieces; where a derivative is wanted, or a transform is at work, whole leaves."""
    seen = []

    def coefficients(t, lr):
        return {"lr": lr}

    def update(p, g, c):
        seen.append(getattr(p, "shape", None))
        return p - c.lr * where(g > 0, 1.0, -1.0), ()

    numbers = {"lr": funcopt.nonnegative(0.1, "learning rate")}
    steps = funcopt.rule("steps", hparams=numbers, coefficients=coefficients, update=update)
    monkeypatch.setattr(backends, "PIECE", PIECE)
    opt, p, g = steps(backend="eager"), torch.zeros(150), torch.randn(150)
    want = -0.1 * g.sign()

    def shapes(step):
        seen.clear()
        torch.testing.assert_close(step(p, g), want)
        return {shape for shape in seen if shape is not None}

    def step(p, g):
        return opt(p, g, opt.init(p), opt.hparams())[0]

    assert shapes(step) == {(64,), (22,)}
    assert shapes(lambda p, g: step(p.clone().requires_grad_(), g)) == {(150,)}
    assert shapes(lambda p, g: torch.func.vmap(step)(p[None], g[None])[0]) == {(150,)}
    assert shapes(lambda p, g: torch.func.jvp(step, (p, g), (p, g))[0]) == {(150,)}

    def fails(work):
        raise backends.CompilationError("no kernel")

    monkeypatch.setattr(backends, "_run_compiled", fails)
    opt = steps()
    with pytest.warns(RuntimeWarning, match="without compiled code: no kernel"):
        assert shapes(step) == {(64,), (22,)}
    assert ops.where(torch.tensor(True), 1.0, 2.0).dtype == torch.float64


# ---- what an equation hands through ---------------------------------------------------------------------------------

HANDED = {
    "p as a slot": lambda p, g, a, b, c: (p - c.lr * g, (p, b)),
    "slots exchanged": lambda p, g, a, b, c: (p - c.lr * a, (b, a)),
    "g as a slot": lambda p, g, a, b, c: (p - c.lr * a, (g, a)),
    "p left alone": lambda p, g, a, b, c: (p, (a + g, b)),
    "p for a slot, a slot for p": lambda p, g, a, b, c: (a + g, (p, a)),
}


@pytest.mark.parametrize("update", HANDED.values(), ids=HANDED.keys())
@pytest.mark.parametrize("elements", [3, 3 * PIECE + 5])
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_what_an_equation_hands_through(update, elements, donate, backend, monkeypatch):
    """It is what it was before the step, and the caller's own tensors stay the caller's."""
    monkeypatch.setattr(backends, "PIECE", PIECE)
    rule = funcopt.rule(
        "handing",
        hparams={"lr": funcopt.nonnegative(0.5, "learning rate")},
        slots=("a", "b"),
        coefficients=lambda t, lr: {"lr": lr},
        update=update,
    )
    opt = rule(backend=backend)
    p, a, b = (torch.randn(elements, dtype=torch.float64) for _ in range(3))
    wanted, got = (p, a, b), (p.clone(), {"step": torch.zeros(()), "a": a.clone(), "b": b.clone()})
    numbers = type("Numbers", (), {"lr": 0.5})
    for _ in range(3):
        g = torch.randn(elements, dtype=torch.float64)
        new, slots = update(wanted[0], g.clone(), *wanted[1:], numbers)
        wanted = (new, *slots)
        got = opt(*(got[0], g, got[1]), opt.hparams(), donate=donate)
        g.zero_()
    torch.testing.assert_close((got[0], got[1]["a"], got[1]["b"]), wanted, rtol=0, atol=0)
