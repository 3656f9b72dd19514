"""Importing funcopt: no Triton, nothing compiled, no GPU touched; and it works where there is no Triton."""

import subprocess
import sys

import pytest

CHECK = """
import sys, torch
import funcopt
assert not [name for name in sys.modules if name.split(".")[0] == "triton" or name.startswith("funcopt.kernels")]
assert not torch.cuda.is_initialized()
assert not {"torch._inductor", "hypothesis", "pytest"} & set(sys.modules)
"""

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else found(name, package)
import torch, funcopt
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
funcopt.optim.AdamW([p]).step()
assert not torch.equal(p, torch.ones(3))
try:
    funcopt.optim.AdamW([p], backend="triton")
except ValueError as error:
    assert "Triton is not installed" in str(error), error
else:
    raise AssertionError("no error")
"""


@pytest.mark.parametrize("program", [CHECK, WITHOUT], ids=["imports no Triton", "works without Triton"])
def test_in_a_process_of_its_own(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_checkout_that_is_not_installed_finds_its_kernels():
    """As on a machine where nothing can be installed: `-S` leaves site-packages' editable finders out."""
    program = (
        "import sys, importlib.util\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "import funcopt\n"
        "assert importlib.util.find_spec('funcopt.kernels.launch') is not None"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
