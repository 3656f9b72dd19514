"""torch.compile: one graph, whatever the step number and the numbers are."""

import pytest
import torch

import funcopt
from tests.rules_table import FULLEST, NUMBERS, fitted, tried


class Counting:
    """Graphs compiled since it was made, by AOTAutograd too, whose pass for Python numbers decides what recompiles."""

    backend = "aot_eager"

    def __init__(self):
        torch._dynamo.utils.counters.clear()

    @property
    def graphs(self):
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def problem(opt, numbers):
    w, b, s = (torch.randn(fitted(opt, shape)) for shape in ((3, 4), (5,), ()))
    params = {"w": w, "layers": [b, s]}
    return params, opt.init(params, opt.hparams(**numbers))


def like(params):
    return torch.utils._pytree.tree_map(torch.randn_like, params)


def schedule(t):
    return 0.1 / (1 + t)


@pytest.mark.parametrize(("factory", "flags"), FULLEST.values(), ids=FULLEST)
@pytest.mark.parametrize(
    ("number", "graphs"), [(lambda x: torch.tensor(x, dtype=torch.float64), 1), (float, 2)], ids=["tensors", "floats"]
)
def test_numbers_that_change_at_every_step_do_not_recompile(factory, flags, number, graphs):
    """Every number of the rule follows a schedule, over 30 steps: as tensors in one graph, as floats in two."""
    opt = factory(**flags)
    params, state = problem(opt, NUMBERS[factory.__name__])
    counting = Counting()
    compiled = torch.compile(opt, backend=counting.backend, fullgraph=True)
    expected, expected_state = params, state
    for t in range(30):
        numbers = opt.hparams(**NUMBERS[factory.__name__])
        changing = torch.utils._pytree.tree_map(lambda x, t=t: number(x * (1 - t / 200) + t * 1e-4), numbers)
        grads = like(params)
        params, state = compiled(params, grads, state, changing)
        expected, expected_state = opt(expected, grads, expected_state, changing)
    assert counting.graphs == graphs
    # The graph rounds each coefficient from float64 as eager does; the same operations follow.
    torch.testing.assert_close((params, state), (expected, expected_state), rtol=1e-5, atol=1e-6)


def test_a_step_number_that_is_very_large():
    opt = funcopt.adamw()
    params, state = problem(opt, {})
    counting = Counting()
    compiled = torch.compile(opt, backend=counting.backend, fullgraph=True)
    for start in (0.0, 1.0, 1e6, 2.0**24):
        state = {
            **state,
            "step": torch.utils._pytree.tree_map(lambda s, start=start: torch.full_like(s, start), state["step"]),
        }
        grads = like(params)
        got = compiled(params, grads, state, opt.hparams())
        want = opt(params, grads, state, opt.hparams())
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    # The counts come as one tensor for all leaves from init, and as one each from tree_map: at most a graph for either.
    assert counting.graphs <= 2


def test_inductor_gives_the_eager_result(factory):
    opt = factory(**tried(factory))
    hparams = opt.hparams(**NUMBERS[factory.__name__] | {"lr": torch.tensor(0.1)})
    params, _ = problem(opt, {})
    params = params if factory.rule.elementwise else params["w"]  # where it takes its time
    state = opt.init(params, hparams)
    grads = like(params)
    got = torch.compile(opt, fullgraph=True)(params, grads, state, hparams)
    # Inductor contracts a·b + c where the machine can, which is one rounding fewer.
    torch.testing.assert_close(got, opt(params, grads, state, hparams), rtol=1e-6, atol=1e-7)


def test_a_training_step_that_contains_it_has_no_graph_break():
    """The user's own step: the loss, its gradient by torch.func, a schedule in tensors, the optimizer."""
    opt = funcopt.adamw()
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    params = {name: p.detach() for name, p in net.named_parameters()}
    x, y = torch.randn(16, 4), torch.randn(16, 1)

    def train(params, state, lr):
        def loss(params):
            return ((torch.func.functional_call(net, params, (x,)) - y) ** 2).mean()

        grads, value = torch.func.grad_and_value(loss)(params)
        params, state = opt(params, grads, state, opt.hparams(lr=lr))
        return params, state, value

    counting = Counting()
    compiled = torch.compile(train, backend=counting.backend, fullgraph=True)
    state = opt.init(params)
    expected, expected_state = params, state
    for t in range(5):
        lr = torch.tensor(schedule(t))
        params, state, loss = compiled(params, state, lr)
        expected, expected_state, wanted = train(expected, expected_state, lr)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    assert counting.graphs == 1


def test_donation_writes_in_place():
    opt = funcopt.sgd()
    p, g = torch.ones(3), torch.ones(3)
    compiled = torch.compile(lambda p, g, s: opt(p, g, s, opt.hparams(lr=0.5), donate=True), fullgraph=True)
    new, _ = compiled(p, g, opt.init(p))
    assert torch.equal(p, torch.full((3,), 0.5))
    assert torch.equal(new, p)


def test_donation_is_ignored_inside_transforms():
    opt = funcopt.sgd()
    p, g = torch.ones(3), torch.ones(3)

    def loss(g):
        return opt(p, g, opt.init(p), opt.hparams(lr=0.5), donate=True)[0].sum()

    for transformed in (torch.func.grad(loss), torch.vmap(lambda x: loss(g * x))):
        assert torch.equal(torch.compile(transformed, backend="aot_eager")(g), transformed(g))
    assert torch.equal(p, torch.ones(3))


def test_a_missing_slot_is_named():
    """Whether a number needs a slot is asked where the slot is missing, compiled too."""
    opt = funcopt.sgd()
    p = torch.ones(3)
    with pytest.raises(Exception, match="state has no 'momentum_buffer'"):
        torch.compile(opt, backend="eager")(p, p, opt.init(p), opt.hparams(momentum=0.9))


def test_a_mismatch_is_still_named():
    opt = funcopt.sgd()
    params, state = problem(opt, {})
    compiled = torch.compile(opt, backend="eager")
    with pytest.raises(Exception, match=r"grads\['w'\] has shape \(2,\)"):
        compiled(params, like(params) | {"w": torch.zeros(2)}, state, opt.hparams())


def test_make_fx_traces_the_rule():
    """A tracer of real tensors sees the step number as a tensor, and makes no constant of it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    opt = funcopt.adam()
    params, state = problem(opt, {})
    hparams = opt.hparams(lr=torch.tensor(0.1))
    grads = like(params)
    graph = make_fx(opt)(params, grads, state, hparams)
    later = opt(params, grads, state, hparams)[1]
    torch.testing.assert_close(
        graph(params, grads, later, hparams), opt(params, grads, later, hparams), rtol=1e-6, atol=1e-7
    )
