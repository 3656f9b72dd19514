"""What every test runs under."""

import os

import pytest
import torch

# Before anything imports Triton: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

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
