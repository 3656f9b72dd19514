"""The two groups that everybody writes by hand."""

import pytest
import torch
from torch import nn

import funcopt
from funcopt import no_decay


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.first = nn.Linear(4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.BatchNorm1d(4), nn.RMSNorm(4), nn.GroupNorm(2, 4)])
        self.conv = nn.Conv1d(4, 4, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.words.weight


def names(group):
    return [name for name, _ in group["params"]]


def test_matrices_decay_and_the_rest_does_not():
    model = Model()
    decayed, rest = no_decay(model, weight_decay=0.1, lr=0.5)
    assert names(decayed) == ["words.weight", "first.weight", "conv.weight"]
    assert {k: v for k, v in decayed.items() if k != "params"} == {"weight_decay": 0.1, "lr": 0.5}
    norms = [f"norms.{k}.{what}" for k in range(4) for what in ("weight", "bias") if (k, what) != (2, "bias")]
    assert sorted(names(rest)) == sorted(["scale", "first.bias", *norms, "conv.bias"])
    assert {k: v for k, v in rest.items() if k != "params"} == {"weight_decay": 0.0}
    assert {id(p) for group in (decayed, rest) for _, p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


@pytest.mark.parametrize("cls", [torch.optim.AdamW, funcopt.optim.AdamW])
def test_in_an_optimizer(cls):
    """Without gradients but of 0 a step is what decays."""
    model = Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = cls(no_decay(model), lr=0.5, weight_decay=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    decayed = {"words.weight", "first.weight", "conv.weight"}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if name in decayed else 1.0))


def test_one_group_where_the_other_would_be_empty():
    (matrices,) = no_decay(nn.Linear(2, 2, bias=False))
    assert matrices.keys() == {"params"}
    (vectors,) = no_decay(nn.LayerNorm(3), weight_decay=0.1)
    assert vectors["weight_decay"] == 0.0
    assert no_decay(nn.Linear(2, 2).requires_grad_(False)) == []


@pytest.mark.parametrize("given", [Model().parameters(), [torch.ones(2)], Model])
def test_what_is_no_module(given):
    with pytest.raises(TypeError, match=r"no_decay takes a torch\.nn\.Module; got a "):
        no_decay(given)
