"""RunningMeanStd against numpy's mean and variance, in whatever batches, modes, transforms and processes."""

import copy
import io
import itertools
import math
import pickle
import traceback

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel

import funcopt
from funcopt.nn import RunningMeanStd
from funcopt.train_state import TrainState

EPS = torch.finfo(torch.float64).eps


def buffers(module):
    return {name: b.clone() for name, b in module.named_buffers()}


def assert_seen(got, data, shape, eps=EPS, batches=1):
    """The statistics are those of the data. With R the range of the data, a batch rounds its mean and δ by some
    eps·max|x|, and the square of δ, at most R², by 2 R times that; sums of n terms round by less than n eps."""
    samples = data.double().reshape(-1, *shape).numpy()
    assert got["count"].item() == len(samples)
    if not samples.size:
        return
    size, spread = np.abs(samples).max(), np.ptp(samples)
    rounding = 4 * (batches + len(samples)) * eps * size
    np.testing.assert_allclose(got["mean"].numpy(), samples.mean(0), rtol=0, atol=rounding)
    np.testing.assert_allclose(got["var"].numpy(), samples.var(0), rtol=0, atol=2 * (spread + rounding) * rounding)


@pytest.fixture
def seen():
    """A module that has seen a batch."""
    module = RunningMeanStd(3)
    module.update(torch.randn(5, 3))
    return module


# ---- the statistics -------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from([(), (1,), (3,), (2, 2)]),
    sizes=st.lists(st.integers(0, 6), max_size=6),
    offset=st.sampled_from([0.0, 1.0, -1e6, 1e12]),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_any_split_gives_the_statistics_of_all_data(shape, sizes, offset, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    data = offset + scale * torch.randn((sum(sizes), *shape), generator=generator, dtype=torch.float64)
    module = RunningMeanStd(shape)
    for batch in data.split(sizes):
        module.update(batch)
    assert_seen(buffers(module), data, shape, batches=len(sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (0,), (3, 0)], ids=str)
def test_data_of_any_dtype_and_any_dimensions(dtype, lead):
    x = (100 * torch.rand((*lead, 2, 3))).to(dtype).transpose(-1, -2)
    module = RunningMeanStd((3, 2))
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert_seen(buffers(module), x, (3, 2))


def test_single_numbers():
    module = RunningMeanStd()
    data = torch.tensor([3.0, -1.0, 4.0, 1.0])
    for x in data:
        assert module(x).shape == ()
    assert_seen(buffers(module), data, (), batches=4)


def test_far_from_zero():
    """Of float32 data at 1e6 the sum of squares has no digit of the variance left."""
    data = 1e6 + torch.randn(10_000, 2)
    module = RunningMeanStd(2)
    for batch in data.split(100):
        module.update(batch)
    torch.testing.assert_close(module.var, data.double().var(0, correction=0), rtol=1e-9, atol=0)
    y = module.eval()(data)
    torch.testing.assert_close(y.double().std(0), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)
    assert y.mean().abs() < 1e-6


def test_float32_where_it_is_asked_for():
    """Each batch rounds mean and var once, arithmetic is float64."""
    data = torch.randn(1000, 2)
    module = RunningMeanStd(2, dtype=torch.float32)
    for batch in data.split(10):
        module.update(batch)
    assert module.mean.dtype == module.var.dtype == torch.float32
    assert_seen(buffers(module), data, (2,), eps=torch.finfo(torch.float32).eps, batches=100)


def test_the_count_goes_on_where_float32_would_stop():
    module = RunningMeanStd().half()
    module.count.fill_(2**24)
    module.update(torch.zeros(3))
    module.update(torch.zeros(1))
    assert module.count.item() == 2**24 + 4


def test_before_any_data_and_after_none():
    module = RunningMeanStd(2)
    x = torch.tensor([[3.0, -4.0]])
    torch.testing.assert_close(module.eval()(x), x)
    module.train()(x[:0])
    assert torch.equal(module.mean, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(module.var, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_batch_that_is_not_finite_is_left_out(bad, seen):
    """1e200 is finite, but not its square."""
    before = buffers(seen)
    x = torch.randn(4, 3, dtype=torch.float64)
    x[1, 2] = bad
    y = seen(x)
    assert all(torch.equal(before[name], b) for name, b in seen.named_buffers())
    assert y.isfinite().logical_not().sum() <= 1


def test_a_huge_number_alone_is_no_overflow():
    module = RunningMeanStd()
    module.update(torch.tensor([1e200], dtype=torch.float64))
    assert module.mean.item() == 1e200
    assert module.var.item() == 0


# ---- normalising ----------------------------------------------------------------------------------------------------


def test_normalize_and_back(seen):
    x = torch.randn(4, 3, dtype=torch.float64)
    before = buffers(seen)
    y = seen.eval()(x)
    torch.testing.assert_close(y, (x - before["mean"]) / (before["var"] + 1e-8).sqrt())
    assert torch.equal(seen.normalize(x), y)
    torch.testing.assert_close(seen.denormalize(y), x)
    assert seen.denormalize(y.bfloat16()).dtype == torch.bfloat16
    assert all(torch.equal(before[name], b) for name, b in seen.named_buffers())
    seen.update(x)  # in evaluation mode too
    assert seen.count.item() == 9


def test_in_training_a_batch_is_counted_first(seen):
    other = copy.deepcopy(seen)
    x = torch.randn(4, 3)
    other.update(x)
    assert torch.equal(seen(x), other.normalize(x))


def test_clip():
    module = RunningMeanStd(clip=2.0).eval()
    assert module(torch.tensor([-5.0, 1.0, 5.0])).tolist() == [-2.0, 1.0, 2.0]
    assert module(torch.tensor(math.nan)).isnan()


def test_statistics_are_constants_to_autograd(seen):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    first = seen(x)
    std = (seen.var + seen.eps).sqrt()
    second = seen(x + 1)  # the statistics change before the first backward pass
    assert not seen.mean.requires_grad
    (got,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(got, (1 / std).expand(4, 3))
    second.sum().backward()
    seen.eval()
    assert torch.autograd.gradcheck(seen, x)


# ---- as a module ----------------------------------------------------------------------------------------------------


def test_saved_copied_pickled(seen):
    file = io.BytesIO()
    torch.save(seen.state_dict(), file)
    file.seek(0)
    loaded = RunningMeanStd(3)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 3)
    want = seen(x)
    for other in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert torch.equal(other(x), want)
        assert all(torch.equal(a, b) for a, b in zip(seen.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize(
    ("cast", "dtype"),
    [
        (nn.Module.half, torch.float64),
        (nn.Module.bfloat16, torch.float64),
        (lambda m: m.to("cpu", torch.float16), torch.float64),
        (nn.Module.float, torch.float32),
        (nn.Module.double, torch.float64),
    ],
)
def test_casts_do_not_reach_half_precision(cast, dtype, seen):
    before = buffers(seen)
    module = nn.Sequential(seen, nn.Linear(3, 1))
    cast(module)
    assert seen.mean.dtype == seen.var.dtype == dtype
    assert seen.count.dtype == torch.int64
    assert torch.equal(seen.mean, before["mean"].to(dtype))


def test_moved_and_made_elsewhere(seen):
    assert {b.device.type for b in seen.to("meta").buffers()} == {"meta"}
    assert {b.device.type for b in RunningMeanStd(3, device="meta").to_empty(device="cpu").buffers()} == {"cpu"}


def test_outside_of_transforms_buffers_are_written_in_place(seen):
    before = [id(b) for b in seen.buffers()]
    seen(torch.randn(4, 3))
    assert [id(b) for b in seen.buffers()] == before


def test_printed():
    assert repr(RunningMeanStd(3, clip=5.0)) == "RunningMeanStd((3,), eps=1e-08, clip=5.0, sync=False)"


ERRORS = [
    (lambda: RunningMeanStd(eps=-1.0), ValueError, "eps takes a number of at least 0; got -1.0"),
    (lambda: RunningMeanStd(eps=math.nan), ValueError, "eps takes"),
    (lambda: RunningMeanStd(clip=0), ValueError, "clip takes a number above 0, or None; got 0"),
    (lambda: RunningMeanStd(dtype=torch.float16), ValueError, "dtype takes torch.float64 or torch.float32"),
    (lambda: RunningMeanStd(3)(torch.zeros(3, 4)), ValueError, r"shape ends in \(3,\); got \(3, 4\)"),
    (lambda: RunningMeanStd((2, 3))(torch.zeros(3)), ValueError, r"shape ends in \(2, 3\); got \(3,\)"),
    (lambda: RunningMeanStd()(np.zeros(3)), TypeError, "takes a tensor of real numbers; got a ndarray"),
    (lambda: RunningMeanStd()(torch.zeros(3) + 0j), TypeError, "got a tensor of torch.complex64"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# ---- under transforms -----------------------------------------------------------------------------------------------


def alone(x, module=None):
    """The statistics and what is normalised, of a module by itself."""
    module = RunningMeanStd(3) if module is None else copy.deepcopy(module)
    return module(x), buffers(module)


def assert_equal(got, want):
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (got, want)), strict=True):
        assert torch.equal(a, b)


def in_one_dict(module, given, x):
    given = dict(given)
    return functional_call(module, given, (x,)), given


def in_two_dicts(module, given, x):
    return functional_call(module, ({}, given), (x,)), given


@pytest.mark.parametrize("call", [in_one_dict, in_two_dicts])
def test_functional_call(call, seen):
    module, x = RunningMeanStd(3), torch.randn(4, 3)
    assert_equal(call(module, buffers(seen), x), alone(x, seen))
    assert module.count == 0


@pytest.mark.parametrize("call", [in_one_dict, in_two_dicts])
def test_vmap_with_statistics_for_each(call):
    modules, x = [RunningMeanStd(3) for _ in range(4)], torch.randn(4, 5, 3)
    _, stacked = stack_module_state(modules)
    y, new = vmap(lambda b, x: call(modules[0], b, x))(stacked, x)
    for i in range(4):
        assert_equal((y[i], {name: b[i] for name, b in new.items()}), alone(x[i]))


def test_vmap_from_statistics_in_common(seen):
    """Buffers without a batch cannot be written to; new ones come out, and the given ones stay as they were."""
    given, x = buffers(seen), torch.randn(4, 5, 3)
    before = {name: b.clone() for name, b in given.items()}
    y, new = vmap(lambda x: in_one_dict(RunningMeanStd(3), given, x))(x)
    for i in range(4):
        assert_equal((y[i], {name: b[i] for name, b in new.items()}), alone(x[i], seen))
    assert_equal(given, before)


def test_vmap_over_a_batch_that_is_not_finite():
    x = torch.randn(2, 5, 3)
    x[0, 0, 0] = math.nan
    _, new = vmap(lambda x: in_one_dict(RunningMeanStd(3), buffers(RunningMeanStd(3)), x))(x)
    assert new["count"].tolist() == [0, 5]
    assert new["var"][0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("outer", ["grad", "vmap"])
def test_transforms_in_transforms(outer):
    x = torch.randn(2, 5, 3)

    def loss(b, x):
        y, new = in_one_dict(RunningMeanStd(3), b, x)
        return y.square().sum(), new

    def of_all(b, x):
        y, new = vmap(loss)(b, x)
        return y.sum(), new

    given = {name: torch.stack([b, b]) for name, b in RunningMeanStd(3).named_buffers()}
    if outer == "grad":
        got, new = grad(of_all, argnums=1, has_aux=True)(given, x)
    else:
        got, new = vmap(grad(loss, argnums=1, has_aux=True))(given, x)
    for i in range(2):
        z = x[i].clone().requires_grad_()
        y, want = alone(z)
        y.square().sum().backward()
        torch.testing.assert_close(got[i], z.grad)
        assert_equal({name: b[i] for name, b in new.items()}, want)


def test_a_module_whose_statistics_no_transform_was_given(seen):
    """grad and jvp know no derivative of them, so the module keeps what it has seen."""
    x = torch.randn(4, 3)
    _, want = alone(x, seen)
    of_grad, of_jvp = copy.deepcopy(seen), copy.deepcopy(seen)
    grad(lambda x: of_grad(x).sum())(x)
    _, tangent = jvp(of_jvp, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent.double(), (1 / (of_jvp.var + of_jvp.eps).sqrt()).expand(4, 3), rtol=1e-6, atol=0)
    for module in (of_grad, of_jvp):
        assert_equal(buffers(copy.deepcopy(module)), want)


def test_in_a_train_state(seen):
    model = nn.Sequential(seen, nn.Linear(3, 1))
    state = TrainState.create(model, funcopt.sgd())
    before, x = buffers(seen), torch.randn(4, 3)
    y, new = state.apply(model, x)
    want, statistics = alone(x, seen)
    assert torch.equal(y, model[1](want))
    assert_equal(list(new.buffers.values()), list(statistics.values()))
    assert_equal(list(state.buffers.values()), list(before.values()))
    assert_equal(buffers(seen), before)
    _, per_task = vmap(lambda x: state.apply(model, x))(x[:, None])
    assert per_task.buffers["0.count"].tolist() == [6] * 4


def test_half_precision_of_a_train_state_gives_way(seen):
    """`TrainState.to` knows no modules, and casts what the module would not: from the next data on it is float32."""
    model = nn.Sequential(seen)
    _, new = TrainState.create(model, funcopt.sgd()).to(torch.bfloat16).apply(model, torch.randn(4, 3))
    assert new.buffers["0.mean"].dtype == new.buffers["0.var"].dtype == torch.float32


def test_compiled(seen):
    """In one piece: as a module, with batches of several sizes, and inside a transform."""
    compiled = copy.deepcopy(seen)
    call = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for n in (4, 4, 5, 7):
        x = torch.randn(n, 3)
        torch.testing.assert_close(call(x), seen(x))
    torch.testing.assert_close(buffers(compiled), buffers(seen))
    x, given = torch.randn(2, 4, 3), buffers(seen)
    vmapped = torch.compile(vmap(lambda x: in_one_dict(seen, given, x)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(vmapped(x), vmap(lambda x: in_one_dict(seen, given, x))(x))


# ---- in several processes -------------------------------------------------------------------------------------------

# What each of two processes sees, call by call.
PARTS = [[torch.arange(6.0).reshape(3, 2), torch.zeros(0, 2)], [torch.full((1, 2), 7.0), 1e6 + torch.ones(2, 2)]]


def process(rank, file, queue):
    try:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
        torch.set_num_threads(1)
        found = {}
        for sync in (True, False):
            by_itself = RunningMeanStd(2, sync=sync)
            wrapped = DistributedDataParallel(nn.Sequential(RunningMeanStd(2, sync=sync), nn.Linear(2, 1)))
            for x in PARTS[rank]:
                by_itself.update(x)
                wrapped(x).sum().backward()
            found[sync, "by itself"] = buffers(by_itself)
            found[sync, "wrapped"] = buffers(wrapped.module[0])
        bad = RunningMeanStd(2, sync=True, process_group=dist.group.WORLD)
        bad.update(torch.full((3, 2), math.nan if rank else 1.0))
        found["bad"] = buffers(bad)
        in_grad = RunningMeanStd(2, sync=True)
        grad(lambda x: in_grad(x).sum())(PARTS[rank][0])
        found["grad"] = buffers(in_grad)
        dist.destroy_process_group()
        queue.put((rank, pickle.dumps(found)))
    except Exception:
        queue.put((rank, traceback.format_exc()))


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=process, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for p in processes:
        p.start()
    answers = dict(queue.get(timeout=120) for _ in processes)
    for p in processes:
        p.join()
    assert not any(isinstance(answer, str) for answer in answers.values()), answers
    first, second = (pickle.loads(answers[rank]) for rank in range(2))

    for how in ("by itself", "wrapped"):
        assert_equal(first[True, how], second[True, how])
        assert_seen(first[True, how], torch.cat(list(itertools.chain(*PARTS))), (2,), batches=2)
    for found, parts in ((first, PARTS[0]), (second, PARTS[1])):
        assert_seen(found[False, "by itself"], torch.cat(parts), (2,), batches=2)
    assert_seen(first[False, "wrapped"], torch.cat(PARTS[0]), (2,), batches=2)
    # Rank 1 began its second batch with what rank 0 had seen.
    assert_seen(second[False, "wrapped"], torch.cat([PARTS[0][0], PARTS[1][1]]), (2,), batches=2)
    for found in (first, second):
        assert found["bad"]["count"] == 0
        assert_seen(found["grad"], torch.cat([PARTS[0][0], PARTS[1][0]]), (2,))
