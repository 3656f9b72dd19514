"""The kernel against torch's run of the same rule, on a GPU or in Triton's interpreter."""

import itertools

import pytest
import torch

import funcopt
from funcopt import observed, ops
from funcopt.kernels import launch
from tests.rules_table import ELEMENTWISE, MAXIMIZING, NUMBERS, later

BLOCK = launch.BLOCK
SIZES = [(), (0,), (1,), (2,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (33, 77)]
STEPS = 3


def draw(sizes, dtype, device):
    return {str(i): torch.randn(size, device=device).to(dtype) for i, size in enumerate(sizes)}


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def assert_same(got, want, largest):
    """Bit for bit in the interpreter. A GPU contracts a·b + c and divides within 2 ulp: an ulp of the largest."""
    for a, b in zip(leaves(got), leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.device.type == "cpu":
            assert torch.equal(a, b) or torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
        else:
            ulp = torch.finfo(b.dtype).eps
            torch.testing.assert_close(a, b, rtol=STEPS * ulp, atol=ulp * largest, equal_nan=True)


@pytest.mark.parametrize(("factory", "flags"), ELEMENTWISE.values(), ids=ELEMENTWISE)
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize(
    ("dtype", "slot_dtype"),
    [
        (torch.float32, None),
        (torch.float64, None),
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_is_the_torch_run_of_the_rule(factory, flags, donate, dtype, slot_dtype, device, ieee_sqrt):
    eager, triton = factory(backend="eager", **flags), factory(backend="triton", **flags)
    hparams = eager.hparams(**NUMBERS[factory.__name__])
    p_want = draw(SIZES, dtype, device)
    p_got = {name: p.clone() for name, p in p_want.items()}
    s_want = eager.init(p_want, hparams, slot_dtype=slot_dtype)
    s_got = triton.init(p_got, hparams, slot_dtype=slot_dtype)
    for t in range(STEPS):
        if t == 1:  # RAdam knows its rate from the 6th step on
            s_want, s_got = later(s_want, 4), later(s_got, 4)
        g = draw(SIZES, dtype, device)
        p_want, s_want = eager(p_want, g, s_want, hparams)
        before = p_got
        p_got, s_got = triton(p_got, g, s_got, hparams, donate=donate)
        assert all((p_got[name] is before[name]) == donate for name in before)
    assert_same((p_got, s_got), (p_want, s_want), largest=4)


@pytest.mark.parametrize("factory", MAXIMIZING.values(), ids=MAXIMIZING)
def test_to_maximize(factory, device):
    p, g = draw([(33, 7), (4, 5)], torch.float32, device), draw([(33, 7), (4, 5)], torch.float32, device)
    up, down = factory(backend="triton", maximize=True), factory(backend="triton")
    hparams = up.hparams(**NUMBERS[factory.__name__])
    state = up.init(p, hparams)
    want, _ = down(p, {name: -t for name, t in g.items()}, state, hparams)
    assert_same(up(p, g, state, hparams)[0], want, largest=4)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NumPy's, in the interpreter
def test_numbers_at_the_edges_of_the_dtype(device, ieee_sqrt):
    tiny, huge = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    edge = torch.tensor(
        [0.0, -0.0, tiny, -tiny, tiny / 8, huge, -huge, torch.inf, -torch.inf, torch.nan], device=device
    )
    p, g = (t.flatten().contiguous() for t in torch.meshgrid(edge, edge, indexing="ij"))
    eager, triton = funcopt.adamw(amsgrad=True, backend="eager"), funcopt.adamw(amsgrad=True, backend="triton")
    hparams = eager.hparams()
    want = eager({"p": p}, {"p": g}, eager.init({"p": p}, hparams), hparams)
    got = triton({"p": p}, {"p": g}, eager.init({"p": p}, hparams), hparams)
    if device.type == "cpu":
        assert_same(got, want, largest=1)
    for a, b in zip(leaves(got), leaves(want), strict=True):
        assert torch.equal(a.isnan(), b.isnan())


def count_launches(monkeypatch):
    kernel, grids = launch.multi_tensor_update, []

    class Counting:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(launch, "multi_tensor_update", Counting())
    return grids


def test_hundreds_of_leaves_are_one_launch(device, monkeypatch, ieee_sqrt):
    grids = count_launches(monkeypatch)
    sizes = [(int(n),) for n in torch.randint(0, 40, (400,))] + [(2 * BLOCK + 5,)]
    eager, triton = funcopt.adam(backend="eager"), funcopt.adam(backend="triton")
    p, g = draw(sizes, torch.float32, device), draw(sizes, torch.float32, device)
    lr = {name: 0.01 * (1 + i % 3) for i, name in enumerate(p)}
    hparams = eager.hparams(lr=lr)
    g["7"] = g["400"] = None
    state = eager.init(p, hparams)
    p, state = eager(p, g, state, hparams)  # from here on, leaves differ in their step numbers too
    g = draw(sizes, torch.float32, device)
    got = triton(p, g, state, hparams)
    assert grids == [(sum(-(-n // BLOCK) for (n,) in sizes),)]
    assert_same(got, eager(p, g, state, hparams), largest=4)


def test_one_launch_for_each_dtype(device, monkeypatch):
    grids = count_launches(monkeypatch)
    opt = funcopt.sgd(backend="triton")
    p = {dtype: torch.ones(3, device=device, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)}
    opt(p, p, opt.init(p), opt.hparams())
    assert len(grids) == 3


LAYOUTS = {
    "transposed": lambda t: t.t(),
    "every other column": lambda t: t[:, ::2],
    "a row off": lambda t: t[1:],
    "one element off": lambda t: t.flatten()[1:],
    "reversed by index": lambda t: t[:, 3:],
    "channels last": lambda t: t.reshape(1, 4, 40, -1).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("what", ["p", "g", "slots", "all"])
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_any_layout(layout, what, donate, device, ieee_sqrt):
    def make(name, seed):
        torch.manual_seed(seed)
        t = layout(torch.randn(40, 44, device=device).abs())
        return t if what in (name, "all") else t.clone(memory_format=torch.contiguous_format)

    p, g = make("p", 1), make("g", 2)
    slots = {"exp_avg": make("slots", 3), "exp_avg_sq": make("slots", 4)}
    eager, triton = funcopt.adamw(backend="eager"), funcopt.adamw(backend="triton")
    hparams = eager.hparams()
    state = {"step": torch.tensor(2.0), **slots}
    want, _ = eager(p, g, {**state, "step": torch.tensor(2.0)}, hparams)
    around = p._base.clone() if p._base is not None else None
    got, new = triton(p, g, state, hparams, donate=donate)
    assert_same(got, want, largest=5)
    assert (got is p) == donate
    assert new["exp_avg"].shape == p.shape
    if around is not None:  # what lies between and around the view's elements is another's
        mine = torch.zeros_like(around, dtype=torch.bool)
        mine.as_strided(p.shape, p.stride(), p.storage_offset()).fill_(True)
        assert torch.equal(p._base[~mine], around[~mine])


def test_offsets_beyond_32_bits(device, monkeypatch):
    """A tensor of more than 2³¹ elements: only its last chunks are run, and only their memory is touched."""
    n = 2**31 + BLOCK + 5
    p, g = (torch.empty(n, dtype=torch.bfloat16, device=device) for _ in range(2))
    p[: 2 * BLOCK] = 0  # where an offset cut to 32 bits would lead
    p[-4 * BLOCK :] = 0
    g[-4 * BLOCK :] = 1
    whole = launch._chunks
    monkeypatch.setattr(launch, "_chunks", lambda sizes, where: whole(sizes, where)[-3:])
    opt = funcopt.sgd(backend="triton")
    opt(p, g, {"step": torch.tensor(0.0)}, opt.hparams(lr=1.0), donate=True)
    assert p[-2 * BLOCK - 5 :].eq(-1).all()
    assert p[-4 * BLOCK : -2 * BLOCK - 5].eq(0).all()
    assert p[: 2 * BLOCK].eq(0).all()


def test_tables_are_kept_and_follow_what_moved(device):
    params = [torch.nn.Parameter(torch.randn(n, device=device)) for n in (5, 7, BLOCK + 1)]
    ours = funcopt.optim.AdamW(params, backend="triton")
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in params]
    reference = torch.optim.AdamW(theirs)
    kept, hold = [], []
    for t in range(6):
        for p, q in zip(params, theirs, strict=True):
            if t in (0, 3) or p.grad is None:  # new gradients at some steps, the same memory at the others
                hold.append(p.grad)
                p.grad, q.grad = torch.randn_like(p), torch.empty_like(q)
            q.grad.copy_(p.grad)
        if t == 4:
            hold.append(params[1].data)
            params[1].data = params[1].data.clone()
        ours.step()
        reference.step()
        (table,) = ours._stepper.tables[0].values()
        kept.append((table.on_device.data_ptr(), table.rows))
    for p, q in zip(params, theirs, strict=True):
        torch.testing.assert_close(p, q)
    assert len({address for address, _ in kept}) == 1
    changed = [(a != b).any(1).tolist() for (_, a), (_, b) in itertools.pairwise(kept)]
    assert changed == [[False] * 3, [False] * 3, [True] * 3, [False, True, False], [False] * 3]


def test_tables_do_not_pile_up(device):
    """Gradients that come and go change the leaves of a launch, and the one table is made anew."""
    params = [torch.nn.Parameter(torch.randn(3, device=device)) for _ in range(4)]
    optimizer = funcopt.optim.SGD(params, backend="triton")
    for pattern in range(1, 16):
        for i, p in enumerate(params):
            p.grad = torch.ones_like(p) if pattern >> i & 1 else None
        optimizer.step()
    assert len(optimizer._stepper.tables[0]) == 1


def test_a_table_that_a_graph_reads_is_not_written_to(device):
    tables = {}
    rows = torch.arange(6).reshape(2, 3)
    first = launch._table(rows, device, tables, "kind")
    tables["kind"].frozen = True
    assert launch._table(rows.clone(), device, tables, "kind") is first
    moved = launch._table(rows + 1, device, tables, "kind")
    assert torch.equal(first.cpu(), rows)
    assert torch.equal(moved.cpu(), rows + 1)


def test_a_table_written_by_kernels(device):
    rows = torch.randint(-(2**62), 2**62, (3, 7))
    assert torch.equal(launch._filled(rows, device).cpu(), rows)


def test_gradients_in_a_dtype_of_their_own(device):
    """As autograd gives them to a bfloat16 parameter whose grad_dtype is float32."""
    p = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16, device=device))
    p.grad_dtype = torch.float32
    p.grad = torch.full((5,), 0.5, device=device)
    funcopt.optim.SGD([p], lr=1.0, backend="triton").step()
    assert torch.equal(p, torch.full_like(p, 0.5))


def test_a_negative_view_is_what_it_says(device):
    opt = funcopt.sgd(backend="triton")
    p, g = torch.zeros(3, device=device), torch._neg_view(torch.ones(3, device=device))
    new, _ = opt(p, g, opt.init(p), opt.hparams(lr=1.0))
    assert torch.equal(new, torch.ones(3, device=device))


def test_another_default_device_changes_nothing(device):
    opt = funcopt.adamw(backend="triton")
    p = torch.ones(3, device=device)
    state = opt.init(p)
    want, _ = opt(p, p, state, opt.hparams())
    with torch.device("meta"):
        got, _ = opt(p, p, state, opt.hparams())
    assert torch.equal(got, want)


def test_autograd_sees_that_a_parameter_was_written(device):
    p = torch.nn.Parameter(torch.ones(3, device=device))
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    funcopt.optim.SGD([p], lr=1.0, backend="triton").step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_state_that_does_not_fit_is_named_before_anything_is_read(device):
    p = torch.nn.Parameter(torch.ones(4000, device=device))
    first = torch.nn.Parameter(torch.ones(2, device=device))
    groups = [{"params": [("first", first)]}, {"params": [("weight", p)]}]
    optimizer = funcopt.optim.AdamW(groups, backend="triton")
    p.grad, first.grad = torch.ones_like(p), torch.ones_like(first)
    optimizer.step()
    before, first_before = p.detach().clone(), first.detach().clone()
    optimizer.state[p]["exp_avg"] = torch.zeros(1, device=device)
    with pytest.raises(RuntimeError, match=r"parameter weight cannot be updated: its exp_avg is .*\(1,\)"):
        optimizer.step()
    assert torch.equal(p, before)
    assert torch.equal(first, first_before)
    assert optimizer.state[p]["step"] == optimizer.state[first]["step"] == 1


def test_empty_and_nothing_to_do(device):
    opt = funcopt.adamw(backend="triton")
    p = {"a": torch.zeros(0, 3, device=device)}
    new, state = opt(p, p, opt.init(p), opt.hparams())
    assert new["a"].shape == (0, 3)
    assert state["step"]["a"] == 1
    p = {"a": torch.ones(3, device=device)}
    state = opt.init(p)
    new, after = opt(p, {"a": None}, state, opt.hparams())
    assert new["a"] is p["a"]
    assert after["step"]["a"] == 0


# ---- what a rule may say --------------------------------------------------------------------------------------------

HALF = 0.5


def _helper(x):
    return ops.sqrt(x * x) * HALF


def _update(p, g, c):
    return p - c.lr * ops.where(g > 0, _helper(g), ops.minimum(g, -ops.abs(g)) + ops.sign(g) * 0), ()


def test_a_rule_may_call_functions_and_name_numbers(device, ieee_sqrt):
    made = funcopt.rule(
        "named",
        hparams={"lr": funcopt.nonnegative(0.1, "lr")},
        coefficients=lambda t, lr: {"lr": lr},
        update=_update,
    )
    p, g = torch.randn(300, device=device), torch.randn(300, device=device)
    eager, triton = made(backend="eager"), made(backend="triton")
    assert_same(triton(p, g, triton.init(p), triton.hparams()), eager(p, g, eager.init(p), eager.hparams()), largest=3)


def test_numbers_that_cannot_be_read_here(device, monkeypatch):
    """As with counts and hparams on a GPU, where nobody waits for them: the coefficients are worked out by torch."""
    params = {str(i): torch.randn(5, device=device, dtype=torch.float64) for i in range(3)}
    opt = funcopt.adamw(backend="triton")
    hparams = opt.hparams(lr=torch.tensor(0.1, device=device, dtype=torch.float64))
    state = opt.init(params, hparams, capturable=True)
    assert state["step"]["0"].device.type == device.type
    state = opt(params, params | {"1": None}, state, hparams)[1]
    want = opt(params, params, state, hparams)
    monkeypatch.setattr(observed, "readable", lambda value: False)
    got = opt(params, params, state, hparams)
    for a, b in zip(leaves(got), leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)
