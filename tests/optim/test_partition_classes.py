"""Classes of partitions against one torch.optim optimizer for each part."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.utils import clip_grad_norm_
from torch.optim import lr_scheduler

import funcopt

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def label(p):
    """Matrices; vectors, of which the last layer's bias stays."""
    return "matrix" if p.dim() == 2 else "still" if p.shape == (3,) else "rest"


def labels(params):
    if isinstance(params, dict):
        return {name: label(p) for name, p in params.items()}
    return [label(p) for p in params]


def of(net, which):
    return [p for p in net.parameters() if label(p) == which]


PARTS = {"matrix": funcopt.muon(ns_steps=0, ns_dtype=torch.float64), "rest": funcopt.adamw(), "still": None}
Parts = funcopt.optim.from_pure(funcopt.partition(PARTS, labels), "Parts")
Clipped = funcopt.optim.from_pure(
    funcopt.clip_by_global_norm(
        funcopt.ema(
            funcopt.partition(
                {"matrix": funcopt.sgd(), "rest": funcopt.lookahead(funcopt.adamw()), "still": None}, labels
            ),
            0.5,
        ),
        0.1,
    ),
    "Clipped",
)
LRS = {"matrix_lr": 0.05, "rest_lr": 0.01}


def backward(net, scale=1.0):
    dtype = net[0].weight.dtype
    value = scale * (net(X.to(dtype)) - Y.to(dtype)).square().mean()
    value.backward()
    return value


def train(net, optimizer, steps=4, **options):
    for _ in range(steps):
        optimizer.zero_grad()
        backward(net)
        optimizer.step(**options)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(list(got.parameters()), list(want.parameters()), rtol=tolerance, atol=tolerance)


def clipped_by_hand(steps=4, dtype=torch.float64):
    net = network(dtype)
    matrix = torch.optim.SGD(of(net, "matrix"), 0.05)
    rest = torch.optim.AdamW(of(net, "rest"), 0.01)
    slow = [p.detach().clone() for p in of(net, "rest")]
    for t in range(1, steps + 1):
        net.zero_grad()
        backward(net)
        clip_grad_norm_([*of(net, "matrix"), *of(net, "rest")], 0.1)
        matrix.step()
        rest.step()
        if t % 5 == 0:
            with torch.no_grad():
                for p, s in zip(of(net, "rest"), slow, strict=True):
                    s += 0.5 * (p - s)
                    p.copy_(s)
    return net


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_each_part_has_its_optimizer(named, flat):
    ours, theirs = network(), network()
    optimizer = Parts(ours.named_parameters() if named else ours.parameters(), **LRS)
    if flat:
        optimizer.flatten()
    train(ours, optimizer)
    own = [torch.optim.Muon(of(theirs, "matrix"), 0.05, ns_steps=0), torch.optim.AdamW(of(theirs, "rest"), 0.01)]
    for _ in range(4):
        theirs.zero_grad()
        backward(theirs)
        for other in own:
            other.step()
    close(ours, theirs, 4 * 0.05 * 2**-8)  # torch.optim.Muon rounds each step to bfloat16, without iterations too
    assert ours[3].bias not in optimizer.state
    assert {g["label"]: len(g["params"]) for g in optimizer.param_groups} == {"matrix": 2, "rest": 3, "still": 1}


@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("zero_grad", [False, True])
def test_one_norm_of_all_parts(backend, flat, zero_grad):
    net = network()
    optimizer = Clipped(net.parameters(), backend=backend, **LRS)
    if flat:
        optimizer.flatten()
    train(net, optimizer, 6, **({"zero_grad": True} if zero_grad else {}))
    close(net, clipped_by_hand(6))


def test_norms_within_parts():
    within = {
        "matrix": funcopt.clip_by_global_norm(funcopt.sgd(), 0.1),
        "rest": funcopt.clip_by_global_norm(funcopt.sgd(), 0.1),
    }
    cls = funcopt.optim.from_pure(funcopt.partition({**within, "still": None}, labels))
    ours, theirs = network(), network()
    params = list(ours.parameters())
    optimizer = cls([{"params": params[:3]}, {"params": params[3:]}], matrix_lr=0.1, rest_lr=0.1)
    train(ours, optimizer, 3)
    own = torch.optim.SGD([*of(theirs, "matrix"), *of(theirs, "rest")], 0.1)
    for _ in range(3):
        theirs.zero_grad()
        backward(theirs)
        clip_grad_norm_(of(theirs, "matrix"), 0.1)
        clip_grad_norm_(of(theirs, "rest"), 0.1)
        own.step()
    close(ours, theirs)


def test_a_part_that_skips_skips_alone():
    within = {"matrix": funcopt.skip_nonfinite(funcopt.sgd()), "rest": funcopt.skip_nonfinite(funcopt.adamw())}
    cls = funcopt.optim.from_pure(funcopt.partition({**within, "still": None}, labels))
    net = network()
    optimizer = cls(net.parameters())
    train(net, optimizer, 1)
    before = copy.deepcopy(net.state_dict())
    backward(net)
    net[0].bias.grad[0] = torch.nan
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "3.weight"}


def test_grad_scaler():
    net = network(torch.float32)
    optimizer, scaler = Clipped(net.parameters(), **LRS), torch.amp.GradScaler("cpu", init_scale=64.0)
    for t in range(6):
        optimizer.zero_grad()
        scaler.scale(backward(net, 0.0) + 1)
        backward(net, scaler.get_scale())
        if t == 2:
            net[3].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    close(net, clipped_by_hand(5, torch.float32), 1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
        lambda o: lr_scheduler.LambdaLR(o, [lambda t: 1 / (t + 1)] * 3),
        lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2, 0.3], 10, cycle_momentum=False),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    ],
    ids=["step", "cosine", "lambda", "one cycle", "plateau"],
)
def test_schedulers(scheduler):
    """Each part's rate is that of a torch.optim optimizer of its own; what stays has one too."""
    ours, theirs = network(), network()
    optimizer = Parts(ours.parameters(), **LRS)
    groups = [{"params": of(theirs, "matrix"), "lr": 0.05}, {"params": of(theirs, "rest"), "lr": 0.01}]
    reference = torch.optim.SGD([*groups, {"params": of(theirs, "still"), "lr": 0.0}])
    mine, other = scheduler(optimizer), scheduler(reference)
    for _ in range(4):
        train(ours, optimizer, 1)
        reference.step()
        for one in (mine, other):
            one.step(*[1.0] * isinstance(one, lr_scheduler.ReduceLROnPlateau))
        assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in reference.param_groups]


def test_a_scheduler_where_there_is_one_optimizer():
    net = network()
    optimizer = funcopt.optim.from_pure(funcopt.masked(funcopt.adamw(), lambda ps: [p.dim() == 2 for p in ps]))(
        net.parameters(), lr=0.5
    )
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(net, optimizer, 1)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.0]


# ---- groups ---------------------------------------------------------------------------------------------------------


def test_what_groups_hold():
    optimizer = Clipped(network().parameters(), max_norm=0.2, rest_lookahead_k=7, **LRS)
    matrix, rest, still = optimizer.param_groups
    assert matrix.keys() == {
        *("params", "label", "lr", "momentum", "dampening", "weight_decay", "nesterov", "decoupled_weight_decay"),
        *("maximize", "max_norm", "ema_decay", "capturable", "differentiable"),
    }
    assert (matrix["lr"], rest["lr"], rest["lookahead_k"], rest["max_norm"], matrix["max_norm"]) == (
        0.05,
        0.01,
        7,
        0.2,
        0.2,
    )
    assert still.keys() == {"params", "label", "lr", "capturable", "differentiable"}


def test_groups_that_are_given_and_added():
    """Numbers by label and name, or by name for all that have it; other keys stay."""
    net, late = network(), nn.Linear(4, 3).double()
    optimizer = Parts(
        [{"params": net[0].parameters(), "rest_lr": 0.5}, {"params": net[1].parameters(), "name": "norm"}], **LRS
    )
    optimizer.add_param_group({"params": late.parameters(), "lr": 0.25, "momentum": 0.5, "name": "late"})
    got = [(g["label"], g["lr"], g.get("momentum"), g.get("name")) for g in optimizer.param_groups]
    assert got == [
        ("matrix", 0.05, 0.95, None),
        ("rest", 0.5, None, None),
        ("rest", 0.01, None, "norm"),
        ("matrix", 0.25, 0.5, "late"),
        ("still", 0.0, None, "late"),
    ]
    late(X).square().sum().backward()
    optimizer.step()
    assert optimizer.state[late.weight]
    assert not optimizer.state.get(net[0].weight)


REFUSED = {
    "an argument": (lambda: Parts(network().parameters(), matrix_lrr=1.0), TypeError, "did you mean 'matrix_lr'"),
    "a number": (lambda: Parts(network().parameters(), matrix_lr=-1.0), ValueError, "Learning rate"),
    "a number of a group": (
        lambda: Parts([{"params": network().parameters(), "rest_betas": (2.0, 0.9)}]),
        ValueError,
        "beta parameter at index 0",
    ),
    "two of one name": (
        lambda: Parts([("a", nn.Parameter(torch.ones(2))), ("a", nn.Parameter(torch.ones(2, 2)))]),
        ValueError,
        "two parameters have the same name",
    ),
    "none": (lambda: Parts([]), ValueError, "empty parameter list"),
    "what is no parameter": (
        lambda: funcopt.optim.from_pure(funcopt.masked(funcopt.sgd(), True))([1.0]),
        TypeError,
        "one of the params is float",
    ),
    "a vector": (
        lambda: funcopt.optim.from_pure(funcopt.masked(funcopt.muon(), True))(network().parameters()),
        ValueError,
        "Muon only supports 2D parameters",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_group_that_is_refused_leaves_the_optimizer():
    optimizer = Parts(network().parameters(), **LRS)
    before = repr(optimizer)
    group = {"params": [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(4))], "betas": (2.0, 0.9)}
    with pytest.raises(ValueError, match="beta parameter"):
        optimizer.add_param_group(group)
    assert repr(optimizer) == before


def test_a_parameter_that_comes_twice():
    p = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = Parts([p, p])
    assert [len(g["params"]) for g in optimizer.param_groups] == [2]


# ---- saving, copying, the pure form ---------------------------------------------------------------------------------


def saved(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("cls", [Parts, Clipped])
@pytest.mark.parametrize("flat", [False, True])
def test_it_goes_on_from_a_file(cls, flat):
    net = network()
    optimizer = cls(net.parameters(), **LRS)
    train(net, optimizer)
    other = copy.deepcopy(net)
    again = cls(other.parameters())
    if flat:
        again.flatten()
    again.load_state_dict(saved(optimizer.state_dict()))
    train(net, optimizer)
    train(other, again)
    torch.testing.assert_close(list(other.parameters()), list(net.parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("cls", [Parts, Clipped])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_go_on_alone(cls, duplicate):
    net = network()
    optimizer = cls(net.parameters(), **LRS)
    train(net, optimizer)
    other, again = duplicate((net, optimizer))
    train(other, again)
    train(net, optimizer)
    torch.testing.assert_close(list(other.parameters()), list(net.parameters()), rtol=0, atol=0)


def test_a_state_dict_of_torchs_own_optimizer():
    """A group for each label; numbers that it lacks, and labels, stay."""
    net = network()
    groups = [{"params": of(net, which)} for which in ("matrix", "rest", "still")]
    theirs = torch.optim.AdamW(groups, lr=0.5)
    train(net, theirs, 2)
    optimizer = Clipped(net.parameters(), max_norm=0.3, **LRS)
    optimizer.load_state_dict(theirs.state_dict())
    assert [g["label"] for g in optimizer.param_groups] == ["matrix", "rest", "still"]
    assert [g["lr"] for g in optimizer.param_groups] == [0.5] * 3
    assert optimizer.param_groups[0]["max_norm"] == 0.3
    p = net[0].bias
    assert torch.equal(optimizer.state[p]["exp_avg"], theirs.state[p]["exp_avg"])
    train(net, optimizer, 1)
    assert optimizer.state[p]["step"] == 3


def test_a_state_dict_of_other_labels():
    first = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))]
    other = lambda params: ["rest" if k == 0 else "matrix" for k, _ in enumerate(params)]
    flipped = funcopt.optim.from_pure(
        funcopt.partition({"rest": funcopt.adamw(), "matrix": funcopt.adamw(), "still": None}, other)
    )
    optimizer = flipped(first)
    before = repr(optimizer)
    with pytest.raises(ValueError, match="group 0 of the state_dict has the label 'matrix', and here it has 'rest'"):
        optimizer.load_state_dict(Parts(first).state_dict())
    assert repr(optimizer) == before


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("cls", [Parts, Clipped])
def test_to_the_pure_form_and_back(cls, named):
    """A functional loop from the middle on, with a group that differs; then the class again."""
    net = network()
    first = list(net[0].named_parameters(prefix="0"))
    second = [pair for k in (1, 3) for pair in net[k].named_parameters(prefix=str(k))]
    groups = [first, second] if named else [[p for _, p in pairs] for pairs in (first, second)]
    optimizer = cls([{"params": groups[0]}, {"params": groups[1], "lr": 0.03}], **LRS)
    train(net, optimizer)
    straight_net, straight = copy.deepcopy((net, optimizer))
    opt, params, state, hparams = optimizer.to_pure()
    names = {id(p): name for name, p in net.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def loss(params):
        own = params if named else dict(zip(order, params, strict=True))
        return (functional_call(net, own, (X,)) - Y).square().mean()

    for _ in range(4):
        params, state = opt(params, grad(loss)(params), state, hparams)
    assert state["step"]["3.bias" if named else order.index("3.bias")] is None
    optimizer.load_pure(params, state)
    train(straight_net, straight)
    close(net, straight_net)
    train(net, optimizer)
    train(straight_net, straight)
    close(net, straight_net)


def test_numbers_of_groups_of_one_label():
    net = network()
    params = list(net.parameters())
    optimizer = Parts([{"params": params[:2]}, {"params": params[2:], "lr": 0.5, "rest_betas": (0.5, 0.6)}], **LRS)
    opt, _, _, hparams = optimizer.to_pure()
    assert opt.labels == [g["label"] for g in optimizer.param_groups for _ in g["params"]]
    assert hparams["matrix_weight_decay"] == 0.1
    at = {kind: [k for k, name in enumerate(opt.labels) if name == kind] for kind in ("matrix", "rest")}
    assert [hparams["matrix_lr"][k] for k in at["matrix"]] == [0.05, 0.5]
    assert [hparams["rest_betas"][0][k] for k in at["rest"]] == [0.9, 0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["step"].pop(), "state.*"),
        (lambda state: state["exp_avg"].__setitem__(0, torch.ones(6, 4).double()), r"exp_avg'\]\[0\] must be None"),
        (lambda state: state["exp_avg"].__setitem__(2, None), r"exp_avg'\]\[2\] must be a tensor of shape \(6,\)"),
        (lambda state: state["step"].__setitem__(5, torch.zeros(())), r"step'\]\[5\] must be None"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    net = network()
    optimizer = Parts(net.parameters(), **LRS)
    train(net, optimizer)
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"]))
    _, params, state, _ = optimizer.to_pure()
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_pure([2 * p for p in params], state)
    torch.testing.assert_close((net.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)


def test_describe(capsys):
    net = network()
    optimizer = Clipped(net.named_parameters())
    train(net, optimizer, 1)
    rows = funcopt.describe(optimizer, net)
    assert [row["name"] for row in rows][-1] == "3.bias"
    assert rows[-1]["state_bytes"] == 0 < rows[0]["state_bytes"]
    assert "label=matrix" in capsys.readouterr().out


def cycles(optimizer):
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    seen = []
    for _ in range(8):
        optimizer.step()
        scheduler.step()
        seen.append([(group["label"], group.get("lr"), group.get("betas")) for group in optimizer.param_groups])
    return seen


def test_a_scheduler_that_changes_betas_too():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    plain = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=0.1, total_steps=9)
    wanted = []
    for _ in range(8):
        plain.step()
        scheduler.step()
        wanted.append((plain.param_groups[0]["lr"], plain.param_groups[0]["betas"]))
    first = lambda params: {name: name.startswith("0.") for name in params}
    label = lambda params: {name: "a" if name.startswith("0.") else "b" for name in params}
    frozen = funcopt.optim.from_pure(funcopt.freeze(funcopt.adamw(), first))(model.named_parameters())
    parted = funcopt.partition({"a": funcopt.adamw(), "b": funcopt.adam(amsgrad=True)}, label)
    for optimizer in (frozen, funcopt.optim.from_pure(parted)(model.named_parameters())):
        for groups, own in zip(cycles(optimizer), wanted, strict=True):
            assert [group[1:] for group in groups] == [own] * 2


@pytest.mark.parametrize("given", [{"params": {torch.ones(1)}}, 3])
def test_groups_that_are_none(given):
    opt = funcopt.partition({"a": funcopt.sgd(), "b": None}, "a")
    optimizer = funcopt.optim.from_pure(opt)([torch.ones(2, requires_grad=True)])
    with pytest.raises(TypeError):
        optimizer.add_param_group(given)
    assert len(optimizer.param_groups) == 1
