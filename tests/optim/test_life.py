"""A life of every class beside torch.optim's: steps, changes, saves and copies in any order come to the same."""

import copy
import io
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from funcopt import optim

# What a class is made with, so that all of its state is there, and the shapes that it takes.
ANY = [(), (3,), (2, 2), (0, 2)]
MATRICES = [(3, 2), (2, 4)]
CLASSES = {
    "Adadelta": ({}, ANY),
    "Adafactor": (
        {"weight_decay": 0.1, "eps": (1e-8, 1e-3)},
        [(3,), (2, 2), (2, 3, 2)],
    ),  # torch's divides by no elements
    "Adagrad": ({"lr_decay": 0.1, "initial_accumulator_value": 0.1}, ANY),
    "Adam": ({"amsgrad": True}, ANY),
    "AdamW": ({}, ANY),
    "Adamax": ({"weight_decay": 0.1}, ANY),
    "ASGD": ({"lambd": 0.1, "t0": 2}, ANY),
    "Muon": ({}, MATRICES),
    "NAdam": ({"weight_decay": 0.1}, ANY),
    "RAdam": ({}, ANY),
    "RMSprop": ({"momentum": 0.9, "centered": True}, ANY),
    "Rprop": ({}, ANY),
    "SGD": ({"momentum": 0.9, "dampening": 0.3}, ANY),
    "SparseAdam": ({}, MATRICES),
}

# Rounding in another order over a few dozen steps, where a division by a small root makes more of it. What torch keeps
# in float32, or works out in bfloat16, is rounded there first.
TOLERANCE = {"ASGD": 1e-6, "NAdam": 1e-6, "Muon": 1e-4}


class Life(RuleBasedStateMachine):
    """Ours and theirs; `params` are both sides' parameters, group by group."""

    name = "Adam"

    @initialize(shapes=st.data(), lr=st.sampled_from([0.1, 0.01]))
    def begin(self, shapes, lr):
        kwargs, self.shapes = CLASSES[self.name]
        self.seed, self.frozen = 0, set()
        drawn = [shapes.draw(st.sampled_from(self.shapes)) for _ in range(2)]
        self.params = [[made] for made in self.made(drawn)]
        self.sides = [
            cls(groups[0], lr=lr, **kwargs)
            for cls, groups in zip(
                (getattr(optim, self.name), getattr(torch.optim, self.name)), self.params, strict=True
            )
        ]

    def normal(self, shape):
        self.seed += 1
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))

    def made(self, shapes):
        values = [self.normal(shape) for shape in shapes]
        return [[value.clone().requires_grad_() for value in values] for _ in range(2)]

    def flat(self, side):
        return [p for group in self.params[side] for p in group]

    @rule(without=st.integers(0, 3))
    def step(self, without):
        for i, (ours, theirs) in enumerate(zip(self.flat(0), self.flat(1), strict=True)):
            g = None if i == without or i in self.frozen else self.normal(ours.shape)
            if g is not None and self.name == "SparseAdam":
                g[0] = 0
                g = g.to_sparse(1)
            ours.grad, theirs.grad = g, None if g is None else g.clone()
        for optimizer in self.sides:
            optimizer.step()

    @rule(group=st.integers(0, 2), lr=st.sampled_from([0.3, 0.05, 0.0025]))
    def change_lr(self, group, lr):
        for optimizer in self.sides:
            optimizer.param_groups[group % len(optimizer.param_groups)]["lr"] = lr

    @precondition(lambda self: len(self.params[0]) < 3)
    @rule(data=st.data(), lr=st.sampled_from([0.2, 0.02]))
    def add_group(self, data, lr):
        shape = data.draw(st.sampled_from(self.shapes))
        for optimizer, params, new in zip(self.sides, self.params, self.made([shape]), strict=True):
            params.append(new)
            if self.name == "Adagrad":  # whose class in torch makes no state for a later group
                optimizer.add_param_group({"params": new, "lr": lr})
                optimizer.state[new[0]] = {
                    "step": torch.tensor(0.0), "sum": torch.full_like(new[0], 0.1).detach()
                }  # fmt: skip
            else:
                optimizer.add_param_group({"params": new, "lr": lr})

    @rule(which=st.integers(0, 3))
    def freeze(self, which):
        if which < len(self.flat(0)):
            self.frozen ^= {which}
            for side in (0, 1):
                p = self.flat(side)[which]
                p.requires_grad_(which not in self.frozen)

    def again(self, side):
        """The class, over the same parameters, with the same groups, as one makes it to load a state into."""
        cls = type(self.sides[side])
        return cls([{"params": group} for group in self.params[side]], **CLASSES[self.name][0])

    @rule(sides=st.sampled_from([(0, 1), (1, 0), (0, 0)]))
    def save_and_load(self, sides):
        """Each side goes on from its own state, or each from the other's."""
        saved = []
        for optimizer in self.sides:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            saved.append(torch.load(file, weights_only=True))
        new = [self.again(side) for side in (0, 1)]
        for optimizer, source in zip(new, sides if sides != (0, 0) else (1, 0), strict=True):
            optimizer.load_state_dict(saved[source])
        self.sides = new

    @rule()
    def copy(self):
        pairs = [copy.deepcopy((params, optimizer)) for params, optimizer in zip(self.params, self.sides, strict=True)]
        self.params, self.sides = [list(column) for column in zip(*pairs, strict=True)]

    @rule()
    def pickled(self):
        pairs = [pickle.loads(pickle.dumps(pair)) for pair in zip(self.params, self.sides, strict=True)]
        self.params, self.sides = [list(column) for column in zip(*pairs, strict=True)]

    @invariant()
    def same(self):
        if not hasattr(self, "sides"):
            return
        tolerance = TOLERANCE.get(self.name, 1e-10)
        ours, theirs = self.sides
        for p, q in zip(self.flat(0), self.flat(1), strict=True):
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
            got, want = ours.state.get(p, {}), theirs.state.get(q, {})
            assert got.keys() == want.keys()
            for key, value in want.items():
                if isinstance(value, torch.Tensor):
                    assert got[key].dtype == value.dtype or self.name in (
                        "ASGD",
                        "NAdam",
                    )  # which torch casts at a load
                    torch.testing.assert_close(
                        got[key],
                        value,
                        rtol=tolerance,
                        atol=tolerance,
                        check_dtype=False,
                        msg=lambda m, k=key: f"{k}: {m}",
                    )
                else:
                    assert got[key] == value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in CLASSES if hasattr(torch.optim, n)])
def test_any_life_is_the_same(name):
    machine = type(f"LifeOf{name}", (Life,), {"name": name})
    fixed = settings(
        max_examples=20,
        stateful_step_count=16,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=fixed)
