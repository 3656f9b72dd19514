"""What only a GPU can show: CUDA graphs, kernels that are not compiled again, tensors beyond 2³¹ elements."""

import pytest
import torch

import funcopt
from funcopt.kernels.multi_tensor import multi_tensor_update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def pair(kind, capturable=True):
    """Our optimizer and torch's over equal parameters; SGD keeps no step count that could be on the device."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in (1, 1000, 5000)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    kwargs = {"capturable": True} if capturable else {}
    return ours, theirs, getattr(funcopt.optim, kind)(ours, **kwargs), getattr(torch.optim, kind)(theirs, **kwargs)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_capturable_in_eager_mode(kind):
    ours, theirs, a, b = pair(kind)
    for t in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.full_like(p, 0.1 * (t + 1))
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)
    assert a.state[ours[0]]["step"].is_cuda


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_a_cuda_graph_of_the_step(kind):
    ours, theirs, a, b = pair(kind)
    grads = [torch.randn_like(p) for p in ours]
    for p, q, g in zip(ours, theirs, grads, strict=True):
        p.grad, q.grad = g, g.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            a.step()
            b.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        a.step()
    for t in range(5):
        for q, g in zip(theirs, grads, strict=True):
            g.mul_(1 - 0.1 * t)
            q.grad.copy_(g)
        graph.replay()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert a.state[ours[0]]["step"].item() == 8


def test_capture_without_capturable_is_refused():
    ours, _, a, _ = pair("AdamW", capturable=False)
    for p in ours:
        p.grad = torch.randn_like(p)
    a.step()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capturable"), torch.cuda.graph(graph):
        a.step()


def test_a_training_step_in_a_cuda_graph_with_gradients_that_move():
    """Gradients made within the capture lie elsewhere than those of the warm-up."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, device="cuda")
    other = torch.nn.Linear(64, 64, device="cuda")
    other.load_state_dict(model.state_dict())
    a, b = funcopt.optim.AdamW(model.parameters(), capturable=True), torch.optim.AdamW(other.parameters())
    x = torch.randn(8, 64, device="cuda")

    def train(model, optimizer):
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train(model, a)
    torch.cuda.current_stream().wait_stream(stream)
    a.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(model, a)
    for _ in range(4):
        graph.replay()
    for _ in range(7):
        train(other, b)
    torch.testing.assert_close(model.weight, other.weight, rtol=1e-4, atol=1e-6)


def test_numbers_and_steps_do_not_compile_again():
    p = torch.nn.Parameter(torch.randn(1000, device="cuda"))
    optimizer = funcopt.optim.AdamW([p])
    p.grad = torch.randn_like(p)
    optimizer.step()

    def compiled():
        return sum(len(caches[0]) for caches in multi_tensor_update.device_caches.values())

    before = compiled()
    for t in range(20):
        optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
        optimizer.step()
    assert compiled() == before


def test_a_tensor_of_more_than_32_bits_of_elements():
    n = 2**31 + 1000
    p, g = torch.zeros(n, dtype=torch.bfloat16, device="cuda"), torch.ones(n, dtype=torch.bfloat16, device="cuda")
    opt = funcopt.sgd()
    opt(p, g, opt.init(p), opt.hparams(lr=1.0), donate=True)
    assert p.eq(-1).all()


def test_a_pure_step_in_a_cuda_graph():
    opt = funcopt.adamw()
    p, g = torch.ones(1000, device="cuda"), torch.randn(1000, device="cuda")
    hparams = opt.hparams(lr=torch.tensor(0.1, device="cuda"))
    state = opt.init(p, hparams, capturable=True)
    opt(p, g, state, hparams)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        new, after = opt(p, g, state, hparams)
    hparams["lr"].fill_(0.2)
    graph.replay()
    want, _ = opt(p, g, state, hparams)
    torch.testing.assert_close(new, want)
    assert after["step"] == 1


def test_a_graph_replayed_after_an_eager_step_reads_its_own_table():
    p = torch.nn.Parameter(torch.zeros(1000, device="cuda"))
    optimizer = funcopt.optim.Adam([p], lr=1.0, capturable=True)
    mine, other = torch.ones_like(p), -torch.ones_like(p)
    p.grad = mine
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    p.grad = other
    optimizer.step()
    before = p.detach().clone()
    m = optimizer.state[p]["exp_avg"].clone()
    graph.replay()
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.9 * m + 0.1 * mine)
    assert not torch.equal(p, before)
