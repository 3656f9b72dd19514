"""Classes of transformed optimizers: how they train, are saved and loaded, copied, scaled, laid out and traced."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import funcopt
from tests.optim.runs import check_same, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def backward(net, t, scale=1.0):
    """The loss of batch t; not all parameters have a gradient at every step."""
    dtype = net[0].weight.dtype
    part = slice(4 * (t % 4), 4 * (t % 4) + 4)
    (scale * (net(X[part].to(dtype)) - Y[part].to(dtype)).square().mean()).backward()
    if t % 5 == 3:
        net[0].bias.grad = None


def train(net, optimizer, steps, **options):
    for t in steps:
        optimizer.zero_grad()
        backward(net, t)
        optimizer.step(**options)


# Under their own names in a module, as users keep them, to pickle them. Held scalars, held whole tensors, what is
# measured of what is held, what takes a copy of the parameters, what counts.
Held = funcopt.optim.from_pure(
    funcopt.accumulate(funcopt.clip_by_global_norm(funcopt.ema(funcopt.nadam(), 0.75), 0.05), 3), "Held"
)
HeldAsgd = funcopt.optim.from_pure(funcopt.skip_nonfinite(funcopt.accumulate(funcopt.asgd(), 2)), "HeldAsgd")
Slow = funcopt.optim.from_pure(
    funcopt.clip_by_value(funcopt.lookahead(funcopt.accumulate(funcopt.sgd(), 2), 3, 0.25), 0.01), "Slow"
)
Whole = funcopt.optim.from_pure(
    funcopt.accumulate(funcopt.cautious(funcopt.adaptive_clip(funcopt.adafactor(), 0.05)), 2), "Whole"
)
CLASSES = {cls.__name__: cls for cls in (Held, HeldAsgd, Slow, Whole)}
each_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES.keys())


def made(cls, net, **options):
    """Two groups that differ in their learning rate."""
    return cls([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.03}], lr=0.1, **options)


def trained(cls, steps, flat=False, zero_grad=False, **options):
    net = network()
    optimizer = made(cls, net, **options)
    if flat:
        optimizer.flatten()
    train(net, optimizer, steps, **({"zero_grad": True} if zero_grad else {}))
    return net, optimizer


# What reads float32 scalars, or sums in another order, differs by that.
def close(got, want, tolerance=1e-9):
    torch.testing.assert_close(list(got.parameters()), list(want.parameters()), rtol=tolerance, atol=tolerance)


# ---- training -------------------------------------------------------------------------------------------------------


def test_accumulated_and_clipped_by_hand():
    """The mean of three batches, its norm clipped, a step of NAdam, the average: for each parameter at its own pace."""
    ours, _ = net, optimizer = trained(Held, range(9))
    theirs = network()
    params = dict(theirs.named_parameters())
    inner = {n: torch.optim.NAdam([p], 0.1 if n[0] == "0" else 0.03) for n, p in params.items()}
    average = {n: p.detach().clone() for n, p in params.items()}
    kept = {n: [] for n in params}
    for t in range(9):
        theirs.zero_grad()
        backward(theirs, t)
        for n, p in params.items():
            kept[n] += [] if p.grad is None else [p.grad]
            p.grad = None
        due = [n for n in params if len(kept[n]) == 3 and kept[n]]
        for n in due:
            params[n].grad, kept[n] = torch.stack(kept[n]).mean(0), []
        if due:
            clip_grad_norm_([params[n] for n in due], 0.05)
        for n in due:
            inner[n].step()
            average[n] += 0.25 * (params[n].detach() - average[n])
    close(ours, theirs, 1e-6)
    for n, p in net.named_parameters():
        torch.testing.assert_close(optimizer.state[p]["ema"], average[n], rtol=1e-6, atol=1e-7)


@each_class
@pytest.mark.parametrize("zero_grad", [False, True])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("backend", ["auto", "eager", "compile"])
def test_however_it_runs_it_is_the_same(cls, backend, flat, zero_grad):
    want, plain = trained(cls, range(7), backend="eager")
    got, optimizer = trained(cls, range(7), flat, zero_grad, backend=backend)
    close(got, want)
    ours, theirs = snapshot(optimizer, list(got.parameters())), snapshot(plain, list(want.parameters()))
    check_same(ours, theirs, tolerance=1e-9)


@each_class
def test_it_is_the_pure_optimizer(cls):
    """From the middle on, in a functional loop; and back."""
    net, optimizer = trained(cls, range(4))
    opt, params, state, hparams = optimizer.to_pure()
    straight = copy.deepcopy((net, optimizer))
    for t in range(4, 7):
        net.zero_grad()
        with torch.no_grad():
            for p, value in zip(net.parameters(), params, strict=True):
                p.copy_(value)
        backward(net, t)
        params, state = opt(params, [p.grad for p in net.parameters()], state, hparams)
    optimizer.load_pure(params, state)
    train(*straight, range(4, 7))
    close(net, straight[0])
    train(net, optimizer, range(7, 10))
    train(*straight, range(7, 10))
    close(net, straight[0])


def test_groups_that_are_added_later_begin_later():
    net = network()
    optimizer = Slow(net[0].parameters(), lr=0.1)
    train(net, optimizer, range(3))
    optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.2, "accumulate_every": 1.0})
    train(net, optimizer, range(4, 6))
    counts = [optimizer.state[p]["step"].item() for p in net.parameters()]
    assert counts == [5, 5, 2, 2]
    assert optimizer.param_groups[1]["lookahead_k"] == 3
    with pytest.raises(ValueError, match="accumulate_every"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "accumulate_every": 1.5})


def test_labels_that_people_give_their_groups():
    """They are theirs: the norm is of all groups."""
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    cls = funcopt.optim.from_pure(funcopt.clip_by_global_norm(funcopt.sgd(), 1.0))
    optimizer = cls([{"params": [p], "label": f"layer {k}"} for k, p in enumerate(params)], lr=1.0)
    for p, g in zip(params, (3.0, 4.0), strict=True):
        p.grad = torch.tensor([g])
    optimizer.step()
    torch.testing.assert_close(torch.cat(params).detach(), torch.tensor([-0.6, -0.8]))
    optimizer.param_groups[1]["maximize"] = True
    with pytest.raises(ValueError, match="one pure optimizer cannot be both"):
        optimizer.to_pure()


def test_parameters_that_are_frozen_or_twice_there():
    """One that comes twice is stepped twice, as torch.optim steps it."""
    net = network()
    net[2].weight.requires_grad_(False)
    p = net[0].weight
    optimizer = Held([p, *net[2].parameters(), p], accumulate_every=1.0)
    train(net, optimizer, range(2))
    assert optimizer.state[p]["step"] == 4
    assert net[2].weight not in optimizer.state
    assert optimizer.state[net[2].bias]["step"] == 2


@pytest.mark.parametrize("transform", [lambda o: funcopt.lookahead(o, 2, 0.25), lambda o: funcopt.accumulate(o, 2)])
def test_a_differentiable_step(transform):
    """Against finite differences: h = 1e-6, error h² and 1e-16/h. Lookahead's weights begin as the parameters."""
    cls = funcopt.optim.from_pure(transform(funcopt.adamw()))

    def end(lr, start, **options):
        p = start.clone()
        optimizer = cls([p], lr=lr, **options)
        for t in range(4):
            p.grad = torch.cos(torch.arange(4, dtype=torch.float64) + t) + p.clone() ** 2
            optimizer.step()
        return p.square().sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start = torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_()
    by_lr, by_start = torch.autograd.grad(end(lr, start, differentiable=True), (lr, start))
    h = 1e-6
    with torch.no_grad():
        lr, start = lr.detach(), start.detach()
        assert abs(by_lr - (end(lr + h, start) - end(lr - h, start)) / (2 * h)) < 1e-7
        for k in range(4):
            e = h * torch.eye(4, dtype=torch.float64)[k]
            assert abs(by_start[k] - (end(lr, start + e) - end(lr, start - e)) / (2 * h)) < 1e-7


def test_a_step_that_torch_compile_traces():
    ours, theirs = network(), network()
    optimizer, reference = Slow(ours.parameters(), lr=0.1), Slow(theirs.parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    for t in (0, 1, 2, 4, 5, 6):  # which have all gradients
        for net in (ours, theirs):
            net.zero_grad()
            backward(net, t)
        step()
        reference.step()
    close(ours, theirs)


# ---- saving, loading, copying ---------------------------------------------------------------------------------------


def saved(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_class
@pytest.mark.parametrize("flat", [False, True])
def test_it_goes_on_from_a_file(cls, flat):
    """In the middle of what is accumulated, into an optimizer made with other numbers."""
    net, optimizer = trained(cls, range(4), flat)
    other = copy.deepcopy(net)
    again = cls([{"params": other[0].parameters()}, {"params": other[2].parameters()}])
    if flat:
        again.flatten()
    again.load_state_dict(saved(optimizer.state_dict()))
    assert [g["lr"] for g in again.param_groups] == [0.1, 0.03]
    train(net, optimizer, range(4, 9))
    train(other, again, range(4, 9))
    torch.testing.assert_close(list(other.parameters()), list(net.parameters()), rtol=0, atol=0)


@each_class
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_go_on_alone(cls, duplicate):
    net, optimizer = trained(cls, range(4))
    other, again = duplicate((net, optimizer))
    assert type(again) is cls
    before = copy.deepcopy(net.state_dict())
    train(other, again, range(4, 9))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    train(net, optimizer, range(4, 9))
    torch.testing.assert_close(list(other.parameters()), list(net.parameters()), rtol=0, atol=0)


def test_what_the_state_has_and_describe_counts(capsys):
    net, optimizer = trained(Held, range(4))
    slots = {"step", "exp_avg", "exp_avg_sq", "mu_product", "ema", "accumulated"}
    assert {frozenset(state) for state in optimizer.state.values()} == {frozenset(slots)}
    rows = funcopt.describe(optimizer, net)
    assert rows[0]["state_bytes"] == 4 * net[0].weight.numel() * 8 + 2 * 4
    assert "accumulate_every=3.0" in capsys.readouterr().out


# ---- GradScaler -----------------------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_grad_scaler(cls, backend):
    """Scaled by a power of 2, which is exact; with a gradient that is not finite the step is as if never taken."""
    ours, theirs = network(torch.float32), network(torch.float32)
    optimizer, reference = made(cls, ours, backend=backend), made(cls, theirs, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for t in range(8):
        ours.zero_grad()
        backward(ours, t, scaler.get_scale())
        scaler.scale(torch.ones(()))  # which it must have seen
        if t in (0, 4):
            ours[2].bias.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if t not in (0, 4):
            train(theirs, reference, [t])
    close(ours, theirs, 1e-5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert optimizer.state[p]["step"] == reference.state[q]["step"]
