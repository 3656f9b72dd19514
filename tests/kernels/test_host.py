"""What is looked at before a step, by compiled code and by Python: nothing that a kernel would trip over is missed."""

import pytest
import torch

from funcopt import backends
from funcopt.kernels import host

pytestmark = pytest.mark.skipif(not backends.compiler(), reason="there is no C++ compiler")


@pytest.fixture(params=["compiled", "Python"])
def looked(request, monkeypatch):
    """Whether compiled code looks; Python looks again where that says no."""
    if request.param == "Python":
        monkeypatch.setattr(host, "_looking", lambda: None)
    else:
        assert host._looking() is not None
        monkeypatch.setattr(host.Seen, "_alike", lambda self, tensors: False)
    return request.param


SHAPES = ((), (0,), (1,), (5,), (3, 4), (1, 5), (2, 3, 4, 5), (0, 3))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def drawn(shape=(3, 4), dtype=torch.float32, kind=torch.Tensor):
    t = torch.randn(shape).to(dtype)
    return t if kind is torch.Tensor else torch.nn.Parameter(t, requires_grad=False)


def everything():
    """Tensors of all shapes and dtypes, and some that lie in another order."""
    tensors = [drawn(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    tensors += [drawn(kind=torch.nn.Parameter), drawn().t(), drawn((12,))[2:8], drawn((2, 3, 4, 5)).transpose(1, 3)]
    return [*tensors, drawn((2, 3, 4, 5)).to(memory_format=torch.channels_last)]


def test_what_has_not_changed(looked):
    tensors = everything()
    seen = host.Seen(tensors, tensors)
    assert seen.same(list(tensors), tensors)
    for t in tensors:
        t.detach().fill_(2)
    assert seen.same(list(tensors), tensors)
    assert seen.addresses.tolist() == [t.data_ptr() for t in tensors]


def move(t):
    t.data = t.data.clone()


def cut(t):
    t.data = t.data[:2]


def turn(t):
    t.data = t.data.t()


def reshape(t):
    t.data = t.data.view(4, 3)


def retype(t):
    t.data = t.data.to(torch.float64)


def same_bytes(t):
    t.data = t.data.view(torch.int32)


def empty(t):
    t.data.untyped_storage().resize_(0)


def spread(t):
    t.data = torch.randn(6, 8)[::2, ::2]


@pytest.mark.parametrize("change", [move, cut, turn, reshape, retype, same_bytes, empty, spread])
@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter])
def test_what_has_changed(looked, kind, change):
    if change is reshape and looked == "Python":
        pytest.skip("as many numbers, in the same order")
    tensors = [drawn((2, 2)), drawn(kind=kind), drawn(())]
    seen = host.Seen(tensors, tensors)
    change(tensors[1])
    assert not seen.same(list(tensors), tensors)


def test_another_tensor_in_the_same_place(looked):
    tensors = [drawn() for _ in range(3)]
    seen = host.Seen(tensors, tensors)
    assert not seen.same([tensors[0], tensors[1].detach(), tensors[2]], tensors)
    assert not seen.same([tensors[1], tensors[0], tensors[2]], tensors)
    assert not seen.same(tensors[:2], tensors)
    assert not seen.same([*tensors, tensors[0]], tensors)
    assert seen.same(tensors, tensors)


def test_gradients_that_are_taken(looked):
    like = everything()
    seen = host.Seen(like, like)
    grads = [torch.empty_like(t) for t in like]
    assert seen.take(grads) == all(g.stride() == t.stride() for g, t in zip(grads, like, strict=True))
    dense = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in like]
    assert seen.take(dense)
    assert seen.addresses.tolist() == [t.data_ptr() for t in dense]


@pytest.mark.parametrize(
    "other",
    [
        lambda: drawn((4, 3)).t(),
        lambda: drawn(dtype=torch.float64),
        lambda: drawn().to(torch.int32),
        lambda: drawn((3, 3)),
        lambda: drawn((3, 8))[:, ::2],
        lambda: drawn((1, 4)).expand(3, 4),
        lambda: drawn().to(torch.complex64),
    ],
)
def test_gradients_that_are_not(looked, other):
    like = [drawn() for _ in range(3)]
    seen = host.Seen(like, like)
    before = seen.addresses.tolist()
    assert not seen.take([like[0], other(), like[2]])
    assert seen.addresses.tolist() == before


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_gradient(looked, capfd):
    like = [drawn() for _ in range(2)]
    seen = host.Seen(like, like)
    if looked == "compiled":
        assert not seen.take([like[0], drawn().to_sparse()])
        assert not seen.take([like[0], drawn().to_sparse_csr()])
    assert capfd.readouterr() == ("", "")


def test_a_dimension_of_one_lies_anyhow(looked):
    like = [drawn((1, 5)), drawn((5, 1)), drawn((1,)), drawn((2, 1, 3))]
    seen = host.Seen(like, like)
    strange = [(7, 1), (1, 9), (4,), (3, 100, 1)]
    grads = [torch.empty_strided(t.shape, stride) for t, stride in zip(like, strange, strict=True)]
    assert all(g.is_contiguous() for g in grads)
    assert seen.take(grads)


def test_no_tensor_at_all(looked):
    seen = host.Seen([], [])
    assert seen.same([], [])
    assert seen.take([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [True, False])
def test_counts(dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(host, "_counting", lambda dtype: (None, None))
    tensors = [torch.tensor(3.0, dtype=dtype) for _ in range(4)]
    counts = host.Counts(tensors)
    assert set(counts.read()) == {3.0}
    counts.advance()
    counts.advance([1, 3])
    assert [t.item() for t in tensors] == counts.read() == [4.0, 5.0, 4.0, 5.0]
    counts.advance([0, 2])
    assert set(counts.read()) == {5.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [True, False])
def test_scalars_are_written(dtype, compiled, monkeypatch):
    """Each its row's value, rounded once to its dtype; those that are not active stay, and so do what lies beside."""
    if not compiled:
        monkeypatch.setattr(host, "_counting", lambda dtype: (None, None))
    memory = torch.full((6,), -1.0, dtype=dtype)
    tensors = [memory[1], memory[3], memory[4]]
    scalars = host.Counts(tensors)
    scalars.write([0.1, 2.5], [0, 1, 0])
    want = torch.tensor([-1.0, 0.1, -1.0, 2.5, 0.1, -1.0], dtype=torch.float64).to(dtype)
    assert torch.equal(memory, want)
    scalars.write([7.0, 8.0], [1, 1, 0], [0, 2])
    assert memory.tolist()[1:5] == [8.0, -1.0, 2.5, 7.0]
    assert scalars.read() == [8.0, 2.5, 7.0]
