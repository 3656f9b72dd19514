"""Steps of our classes that torch.compile traces: no graph break, few graphs, the numbers of eager steps.

Nothing here is 0-d and of float64: torch.compile loses what is written to such a tensor, in torch.optim's classes too.
"""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.optim.table import INFOS, OURS, check_near, draw, give, inputs, much, seen

STEPS = 4

# The same operations on float64, some of which aot_eager writes otherwise; relative to the largest number.
FLOAT64 = 1e-13
# Muon multiplies in bfloat16, traced in another order: each step of 0.05 is off by a tenth of itself, of weights that
# grow to 0.3 by five of them. A step that is missing makes 0.1.
ROUGHER = {"Muon": 0.08}

TRACED = [name for name, info in INFOS.items() if not (info.step_requires_closure or info.only_supports_sparse_grads)]
FEW = ("SGD", "NAdam")  # without a count; with one, and another scalar


@pytest.fixture(autouse=True)
def _no_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(name: str, which: tuple[int, ...] = (0,), **kwargs: Any) -> Any:
    params = draw(which, torch.float64, 1)
    return OURS[name](params, **(much(name) | {"lr": 0.05} | kwargs)), params


def check_same(name: str, one: Any, other: Any) -> None:
    check_near([seen(*one)], [seen(*other)], ROUGHER.get(name, FLOAT64))


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "eager") for name in TRACED), *((name, "aot_eager") for name in FEW)]
)
def test_step(name, backend):
    """Two graphs: one that makes the state, and one for every step after it; eager steps may come between them."""
    counter = CompileCounterWithBackend(backend)
    (optimizer, params), (reference, own) = (made(name) for _ in range(2))
    groups = repr(optimizer)
    compiled = torch.compile(lambda: optimizer.step(), backend=counter, fullgraph=True)
    for t, step in enumerate([compiled, compiled, compiled, optimizer.step, compiled]):
        for ps in (params, own):
            give(name, ps, 10 + t)
        step()
        reference.step()
        check_same(name, (optimizer, params), (reference, own))
    assert counter.frame_count <= 2
    assert repr(optimizer) == groups, "a tracer says of every group that it is capturable; that must not stay there"


@pytest.mark.parametrize(("name", "kind"), [(FEW[0], float), (FEW[1], torch.tensor)])
def test_a_learning_rate_that_changes(name, kind):
    """One graph more, at most: a float is a constant to a tracer until it changes."""
    counter = CompileCounterWithBackend("eager")
    (optimizer, params), (reference, own) = (made(name, lr=kind(0.05)) for _ in range(2))
    compiled = torch.compile(lambda: optimizer.step(), backend=counter, fullgraph=True)
    for t in range(STEPS):
        for ps, opt, step in ((params, optimizer, compiled), (own, reference, reference.step)):
            give(name, ps, 0)
            step()
            group = opt.param_groups[0]
            group["lr"] = 0.05 / (t + 2) if kind is float else group["lr"].fill_(0.05 / (t + 2))
        check_same(name, (optimizer, params), (reference, own))
    assert counter.frame_count <= 2 + (kind is float)


@pytest.mark.parametrize("name", FEW[1:])
def test_gradients_that_are_not_there(name):
    """A graph for each set of parameters that have one."""
    counter = CompileCounterWithBackend("eager")
    (optimizer, params), (reference, own) = (made(name, (0, 2)) for _ in range(2))
    compiled = torch.compile(lambda: optimizer.step(), backend=counter, fullgraph=True)
    for t in (0, 2, 0, 2):  # at step 2 the last parameter has none
        for ps, step in ((params, compiled), (own, reference.step)):
            give(name, ps, t)
            step()
        check_same(name, (optimizer, params), (reference, own))
    assert counter.frame_count <= 3


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 6, dtype=torch.float64), torch.nn.Linear(6, 1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))).square().mean()


@pytest.mark.parametrize(("name", "set_to_none"), [(FEW[0], True), (FEW[1], False)])
def test_forward_backward_and_step_in_one_graph(name, set_to_none):
    ends = []
    for compiled in (True, False):
        torch.manual_seed(0)
        net = Net()
        optimizer = OURS[name](net.parameters(), **inputs(name)[0][1])

        def train(x, net=net, optimizer=optimizer):
            loss = net(x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            return loss.detach()

        counter = CompileCounterWithBackend("eager")
        call = torch.compile(train, backend=counter, fullgraph=True) if compiled else train
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            losses = [call(torch.randn(8, 4, dtype=torch.float64)) for _ in range(STEPS)]
        assert counter.frame_count <= 3
        ends.append([seen(optimizer, list(net.parameters())) | {"losses": torch.stack(losses)}])
    check_near(*ends, FLOAT64)


def test_a_state_that_is_there_in_part():
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = OURS["Adam"]([p])
    optimizer.step()
    del optimizer.state[p]["exp_avg_sq"]
    before = p.detach().clone()
    with pytest.raises(KeyError, match="its state has no exp_avg_sq, but"):
        torch.compile(optimizer.step, backend="eager")()
    assert torch.equal(p, before)
