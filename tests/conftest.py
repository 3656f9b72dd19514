"""What every test runs under."""

import os

import numpy as np
import pytest
import torch

# Before anything imports Triton: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from funcopt import ops
from funcopt.rules import RULES

torch.set_num_threads(1)  # two workers, two cores


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def factory(request):
    """Each rule's factory."""
    return request.param


@pytest.fixture(scope="session")
def device():
    """Where kernels run: a GPU, else the CPU in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _TorchWithSqrt:
    """torch, with the square root of NumPy, which is IEEE's. (Torch itself must stay as it is: Dynamo keeps a list.)"""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def sqrt(x):
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(x.numpy()))) if x.device.type == "cpu" else torch.sqrt(x)


@pytest.fixture
def ieee_sqrt(monkeypatch):
    """torch.sqrt on the CPU is MKL's, which is off by one bit for one number in a hundred; the kernels' is IEEE's."""
    monkeypatch.setattr(ops, "torch", _TorchWithSqrt())
