import time

import pytest
import torch
from torch import nn

import funcopt
from funcopt.describe import describe

OPTIMIZERS = [
    (funcopt.optim.SGD, {"momentum": 0.9}),
    (funcopt.optim.Adam, {}),
    (funcopt.optim.AdamW, {"amsgrad": True}),
    (funcopt.optim.from_pure(funcopt.adam()), {}),
    (torch.optim.SGD, {}),
    (torch.optim.AdamW, {}),
    (torch.optim.Adafactor, {}),
    (torch.optim.LBFGS, {}),
]


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))


def step(optimizer, model):
    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def names(rows):
    return [row["name"] for row in rows]


@pytest.mark.parametrize(("kind", "numbers"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", None))
def test_every_optimizer_is_counted_and_left_as_it_is(kind, numbers, model, capsys):
    optimizer = kind(model.parameters(), lr=0.1, **numbers)
    assert sum(row["state_bytes"] for row in describe(optimizer, model)) == 0
    assert len(optimizer.state) == 0
    step(optimizer, model)
    rows = describe(optimizer, model)
    assert names(rows) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [row["shape"] for row in rows] == [(5, 3), (5,), (2, 5), (2,)]
    assert [row["elements"] for row in rows] == [15, 5, 10, 2]
    held = [leaf for leaf in torch.utils._pytree.tree_leaves(dict(optimizer.state)) if isinstance(leaf, torch.Tensor)]
    assert sum(row["state_bytes"] for row in rows) == sum(t.numel() * t.element_size() for t in held)
    assert "lr=0.1" in capsys.readouterr().out


def test_adamw_state_is_two_moments_and_a_count(model, capsys):
    optimizer = funcopt.optim.AdamW(model.parameters())
    step(optimizer, model)
    rows = describe(optimizer)
    assert [row["state_bytes"] for row in rows] == [2 * 4 * n + 4 for n in (15, 5, 10, 2)]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "funcopt.optim.AdamW"
    total = "total: 4 parameters, 32 elements, 128 bytes of parameters, 272 bytes of state"
    assert out.splitlines()[-1] == total


def test_names_come_from_the_group_then_the_model_then_the_position(model):
    named = [(f"own {index}", p) for index, p in enumerate(model.parameters())]
    assert names(describe(funcopt.optim.SGD(named), model)) == ["own 0", "own 1", "own 2", "own 3"]
    groups = [{"params": list(layer.parameters())} for layer in model]
    assert names(describe(funcopt.optim.SGD(groups), model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    rows = describe(funcopt.optim.SGD(groups))
    assert names(rows) == ["param 0", "param 1", "param 2", "param 3"]
    assert [row["group"] for row in rows] == [0, 0, 1, 1]


def test_groups_show_their_own_numbers_and_an_empty_group_is_shown(model, capsys):
    groups = [{"params": model[0].parameters()}, {"params": [], "lr": torch.tensor(0.5)}]
    describe(funcopt.optim.AdamW(groups, lr=0.25, betas=(0.5, 0.75)))
    out = capsys.readouterr().out
    assert "group 0: lr=0.25, betas=(0.5, 0.75)" in out
    assert "group 1: lr=tensor(0.5), betas=(0.5, 0.75)" in out
    assert "no parameters" in out
    assert "foreach" not in out  # None: nobody chose it


def test_columns_stand_below_each_other(model, capsys):
    describe(funcopt.optim.SGD(model.parameters()), model)
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("name"))
    end = header.index("elements") + len("elements")
    rows = [line for line in lines if "float32" in line]
    assert [line[:end].split()[-1] for line in rows] == ["15", "5", "10", "2"]


def test_scalar_empty_and_low_precision_parameters():
    params = [torch.tensor(1.0), torch.empty(0, 3), torch.zeros(4, dtype=torch.bfloat16)]
    optimizer = funcopt.optim.Adam([nn.Parameter(p) for p in params])
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    rows = describe(optimizer)
    assert [row["shape"] for row in rows] == [(), (0, 3), (4,)]
    assert [row["bytes"] for row in rows] == [4, 0, 8]
    assert [row["state_bytes"] for row in rows] == [2 * 4 + 4, 4, 2 * 8 + 4]
    assert [row["dtype"] for row in rows] == [p.dtype for p in params]


def test_a_tied_parameter_is_listed_once_under_its_first_name(capsys):
    model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    rows = describe(funcopt.optim.SGD(model.parameters()), model)
    assert names(rows) == ["embed.weight"]
    assert rows[0]["aliases"] == ["head.weight"]
    out = capsys.readouterr().out
    assert "tied: also head.weight" in out
    assert "total: 1 parameter, 21 elements" in out


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_the_optimizer_lists_twice_is_counted_once():
    p = nn.Parameter(torch.zeros(3))
    rows = describe(funcopt.optim.SGD([("a", p), ("b", p)]))
    assert names(rows) == ["a"]
    assert rows[0]["aliases"] == ["b"]


def test_what_the_optimizer_does_not_update_is_said_at_the_end(model, capsys):
    frozen = model[1].bias.requires_grad_(False)
    stranger = nn.Parameter(torch.zeros(1))
    rows = describe(funcopt.optim.SGD([frozen, stranger]), model)
    assert [(row["name"], row["requires_grad"], row["in_model"]) for row in rows] == [
        ("1.bias", False, True),
        ("param 1", True, False),
    ]
    out = capsys.readouterr().out
    assert "requires no gradient" in out
    assert "not in the model" in out
    expected = "not updated: 3 parameters of the model, 30 elements: 0.weight, 0.bias, 1.weight"
    assert out.splitlines()[-1] == expected


def test_only_the_first_few_left_out_are_named(capsys):
    model = nn.ParameterList(torch.zeros(1) for _ in range(9))
    describe(funcopt.optim.SGD([nn.Parameter(torch.zeros(1))]), model)
    assert capsys.readouterr().out.endswith("not updated: 9 parameters of the model, 9 elements: 0, 1, 2, 3, 4, …\n")


@pytest.mark.parametrize("given", [funcopt.adamw(), [], None])
def test_something_else_than_an_optimizer_is_refused(given):
    with pytest.raises(TypeError, match=rf"optimizer is a {type(given).__name__}; give a torch\.optim\.Optimizer"):
        describe(given)


def test_something_else_than_a_model_is_refused(model):
    with pytest.raises(TypeError, match=r"model is a dict; give a torch\.nn\.Module"):
        describe(funcopt.optim.SGD(model.parameters()), dict(model.named_parameters()))


def test_the_time_is_linear_in_the_parameters(capsys):
    def seconds(count):
        model = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(count)])
        optimizer = torch.optim.SGD(list(model.parameters()))
        start = time.process_time()
        describe(optimizer, model)
        return time.process_time() - start

    seconds(100)
    # 20 times the parameters: linear work takes 20 times as long, a scan within a scan 400 times.
    assert seconds(20_000) < 100 * seconds(1_000)
