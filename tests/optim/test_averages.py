"""torch.optim.swa_utils around training with every class: averages, batch norm's statistics, as with torch's class."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from tests.optim.runs import FLOAT64, check_same, packed_groups
from tests.optim.table import INFOS, SIDES, TORCH, each_name, float64_by_default, inputs, plain_torch, tolerance

AVERAGES: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean, with buffers": {"use_buffers": True},
    "all at once": {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()},
    "one by one": {"avg_fn": swa_utils.get_swa_avg_fn()},
    "EMA at once": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "EMA one by one, with buffers": {"avg_fn": swa_utils.get_ema_avg_fn(0.9), "use_buffers": True},
}


class Net(nn.Module):
    """Matrices alone, which is what Muon takes, and statistics between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, affine=False)
        self.second = nn.Linear(6, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.norm(self.first(x))))


def train(classes: dict[str, Any], name: str, average: dict[str, Any]) -> Any:
    """The averaged model after some epochs, and the groups."""
    torch.manual_seed(0)
    net = Net()
    x, y = torch.randn(3, 8, 4), torch.randn(3, 8, 1)
    kwargs = inputs(name)[0][1] | {"lr": 0.05}
    optimizer = classes[name](net.parameters(), **(plain_torch(name, **kwargs) if classes is TORCH else kwargs))
    averaged = swa_utils.AveragedModel(net, **average)
    schedule = swa_utils.SWALR(optimizer, swa_lr=0.02, anneal_epochs=2)
    batch = 0

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (net(x[batch]) - y[batch]).square().mean()
        loss.backward()
        for p in net.parameters() if INFOS[name].only_supports_sparse_grads else ():
            p.grad = p.grad.to_sparse()
        return loss

    for _ in range(3):
        for batch in range(3):  # noqa: B007  the closure reads it
            optimizer.step(closure)
        averaged.update_parameters(net)
        schedule.step()
    swa_utils.update_bn(list(x), averaged)
    return averaged.state_dict(), packed_groups(optimizer)


@each_name
@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_as_torch(name, average):
    with float64_by_default():
        (ours, our_groups), (theirs, their_groups) = (train(classes, name, average) for classes in SIDES)
    check_same(ours, theirs, max(tolerance(name), FLOAT64))
    assert [g["lr"] for g in our_groups] == [g["lr"] for g in their_groups]
