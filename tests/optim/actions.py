"""What may happen to an optimizer and its tensors between steps, the same to ours and torch.optim's."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch

from tests.optim.sides import Draw, Side

ACTIONS: dict[str, Callable[[Side, Draw], Any]] = {}


def action(f: Callable[[Side, Draw], Any]) -> Callable[[Side, Draw], Any]:
    ACTIONS[f.__name__] = f
    return f


@action
def other_gradients(side, draw):
    for p in side.params:
        p.grad = draw.normal(*p.shape)


@action
def no_gradient_for_some(side, draw):
    for p in draw.some(side.params):
        p.grad = None


@action
def gradients_written_in_place(side, draw):
    for p in side.params:
        if p.grad is not None:
            p.grad.copy_(draw.normal(*p.shape))


@action
def gradients_data_replaced(side, draw):
    for p in side.params:
        if p.grad is not None:
            p.grad.data = draw.normal(*p.shape)


@action
def gradients_that_lie_otherwise(side, draw):
    for p in side.params:
        p.grad = draw.normal(*reversed(p.shape)).permute(tuple(reversed(range(p.dim()))))


@action
def gradients_channels_last(side, draw):
    for p in side.params:
        if p.dim() == 4:
            p.grad = draw.normal(*p.shape).to(memory_format=torch.channels_last)


@action
def gradients_expanded(side, draw):
    for p in side.params:
        p.grad = draw.normal(*[1] * p.dim()).expand(p.shape)


@action
def gradients_that_are_negative_views(side, draw):
    for p in side.params:
        p.grad = torch.complex(draw.normal(*p.shape), draw.normal(*p.shape)).conj().imag


@action
def gradients_shared(side, draw):
    p, q = side.params[0], next(p for p in side.params[1:] if p.shape == side.params[0].shape)
    p.grad = q.grad


@action
def zero_grad(side, draw):
    side.optimizer.zero_grad(set_to_none=draw.one([False, True]))


@action
def lr(side, draw):
    draw.one(side.groups)["lr"] = draw.one([0.0, 0.02, 0.1, torch.tensor(0.05, dtype=torch.float64)])


@action
def lr_tensor_written_to(side, draw):
    group = draw.one(side.groups)
    group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    side.optimizer.step()
    group["lr"].fill_(0.07)


@action
def weight_decay(side, draw):
    draw.one(side.groups)["weight_decay"] = draw.one([0, 0.0, 0.1, 0.3])


@action
def maximize(side, draw):
    group = draw.one(side.groups)
    group["maximize"] = not group["maximize"]


@action
def momentum_or_betas(side, draw):
    group, value = draw.one(side.groups), draw.one([0.9, 0.5, 0])
    if "betas" in group:
        group["betas"] = (float(value), 0.99)
    elif not group["nesterov"]:
        group["momentum"] = value


@action
def data_cloned(side, draw):
    p = draw.one(side.params)
    p.data = p.data.clone()


@action
def data_elsewhere(side, draw):
    p = draw.one(side.params)
    p.data = draw.normal(p.numel() + 3)[3:].view(p.shape)


@action
def data_transposed_in_memory(side, draw):
    p = draw.one(side.params)
    p.data = draw.normal(*reversed(p.shape)).permute(tuple(reversed(range(p.dim()))))


@action
def data_with_gaps(side, draw):
    p = draw.one(side.params)
    p.data = draw.normal(*p.shape, 2)[..., 0]


@action
def parameters_written_to(side, draw):
    with torch.no_grad():
        for p in draw.some(side.params):
            p.mul_(0.5)


@action
def slots_cloned(side, draw):
    for p in draw.some(side.params):
        state = side.optimizer.state.get(p, {})
        state.update({name: value.clone() for name, value in state.items()})


@action
def slots_data_replaced(side, draw):
    for p in draw.some(side.params):
        for name, value in side.optimizer.state.get(p, {}).items():
            if name != "step":
                value.data = value.data.clone() + 0.01


@action
def slots_that_lie_otherwise(side, draw):
    for p in draw.some(side.params):
        for name, value in side.optimizer.state.get(p, {}).items():
            if name != "step":
                turned = tuple(reversed(range(p.dim())))
                side.optimizer.state[p][name] = value.permute(turned).contiguous().permute(turned)


@action
def step_count_replaced(side, draw):
    for p in draw.some(side.params):
        if "step" in side.optimizer.state.get(p, {}):
            side.optimizer.state[p]["step"] = torch.tensor(2.0)


@action
def step_count_written_to(side, draw):
    for p in draw.some(side.params):
        if "step" in side.optimizer.state.get(p, {}):
            side.optimizer.state[p]["step"].fill_(7)


@action
def state_replaced_by_an_equal_dict(side, draw):
    for p in draw.some(side.params):
        if p in side.optimizer.state:
            side.optimizer.state[p] = dict(side.optimizer.state[p])


@action
def state_popped(side, draw):
    side.optimizer.state.pop(draw.one(side.params), None)


@action
def state_of_all_replaced(side, draw):
    state = side.optimizer.state
    side.optimizer.state = type(state)(dict, {p: dict(own) for p, own in state.items()})


@action
def deepcopied(side, draw):
    side.params, side.optimizer = copied(side, copy.deepcopy)


@action
def pickled(side, draw):
    side.params, side.optimizer = copied(side, lambda value: pickle.loads(pickle.dumps(value)))


def copied(side: Side, duplicate: Any) -> Any:
    grads = [None if p.grad is None else p.grad.clone() for p in side.params]
    params, optimizer = duplicate((side.params, side.optimizer))
    for p, g in zip(params, grads, strict=True):
        p.grad = g  # a copy has none
    return params, optimizer


@action
def group_added(side, draw):
    if len(side.groups) < 4:
        p = draw.normal(3, 2).requires_grad_()
        side.params.append(p)
        side.optimizer.add_param_group({"params": [p], "lr": 0.03})


@action
def frozen_or_thawed(side, draw):
    p = draw.one(side.params)
    p.requires_grad_(not p.requires_grad)


@action
def moved_to_another_group(side, draw):
    source, target = draw.one(side.groups)["params"], draw.one(side.groups)["params"]
    if len(source) > 1:
        target.append(source.pop(draw.random.randrange(len(source))))


@action
def taken_out_and_put_back(side, draw):
    p = side.groups[0]["params"].pop()
    side.optimizer.step()
    side.groups[0]["params"].insert(0, p)


@action
def groups_in_another_order(side, draw):
    side.groups.reverse()


@action
def threads(side, draw):
    torch.set_num_threads(draw.one([1, 2]))


@action
def under_no_grad(side, draw):
    with torch.no_grad():
        side.optimizer.step()
