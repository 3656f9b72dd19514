"""Parameters that FSDP shards over two processes, and checkpoints of the whole model, with every class."""

import copy
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed import fsdp
from torch.distributed.checkpoint import state_dict as dcp

from tests.optim.table import INFOS, OURS, TORCH, float64_by_default, much, plain_torch

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="needs torch.distributed with gloo"
)

DENSE = [name for name, info in INFOS.items() if not (info.only_supports_sparse_grads or info.step_requires_closure)]
BEFORE, AFTER = 3, 4

LR = 0.05

# The gradients are sums in another order, of some 2e-16; over seven steps, of parameters of about 1.
FLOAT64 = 1e-12
# Muon multiplies matrices in bfloat16, and what is sharded in parts: five products of numbers that are off by 0.4 %,
# each enlarged by up to 3.4, make some percents of a step, whose entries are at most lr.
ROUGHER = {"Muon": (BEFORE + AFTER) * LR / 10}
WHOLE = dcp.StateDictOptions(full_state_dict=True)


class Net(nn.Module):
    """Matrices alone, which is what Muon takes; of the second, the two processes have an uneven part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def begin(classes: dict[str, Any], name: str, mesh: Any = None) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = Net()
    if mesh is not None:
        fsdp.fully_shard(net, mesh=mesh)
    kwargs = much(name) | {"lr": LR}
    return net, classes[name](net.parameters(), **(plain_torch(name, **kwargs) if classes is TORCH else kwargs))


def loss(net: nn.Module, t: int, rank: int) -> torch.Tensor:
    """Each process has data of its own; FSDP takes the mean of their gradients."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * t + rank))
    return net(x).square().mean()


def train(net: nn.Module, optimizer: Any, times: range) -> dict[str, torch.Tensor]:
    """The whole parameters after some steps."""
    sharded = isinstance(net, fsdp.FSDPModule)
    for t in times:
        optimizer.zero_grad()
        (loss(net, t, distributed.get_rank()) if sharded else (loss(net, t, 0) + loss(net, t, 1)) / 2).backward()
        optimizer.step()
    return {name: (p.full_tensor() if sharded else p).detach() for name, p in net.named_parameters()}


def compare(name: str, mesh: Any) -> None:
    """With torch's class on parameters that are not sharded: not every one of them takes sharded ones."""
    truth = train(*begin(TORCH, name), range(BEFORE + AFTER))
    net, optimizer = begin(OURS, name, mesh)
    train(net, optimizer, range(BEFORE))
    saved = dcp.get_state_dict(net, optimizer, options=WHOLE)
    saved = copy.deepcopy(saved)  # it shares what is not sharded
    ends = [train(net, optimizer, range(BEFORE, BEFORE + AFTER))]
    for shards in (mesh, None):
        net, optimizer = begin(OURS, name, shards)
        model, state = copy.deepcopy(saved)
        dcp.set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=state, options=WHOLE)
        ends.append(train(net, optimizer, range(BEFORE, BEFORE + AFTER)))
    for end in ends:
        torch.testing.assert_close(end, truth, rtol=0, atol=ROUGHER.get(name, FLOAT64))


def work(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = distributed.init_device_mesh("cpu", (2,))
    for name in DENSE:
        try:
            with float64_by_default():
                compare(name, mesh)
            said = ""
        except Exception:
            said = traceback.format_exc()
        Path(folder, f"{name}.{rank}").write_text(said)
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # threads of gloo and of autograd may outlive the interpreter, which aborts


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each process says of each class: nothing, where all is well."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", DENSE)
def test_as_torch(name, said):
    for rank in range(2):
        text = Path(said, f"{name}.{rank}").read_text()
        assert not text, text
