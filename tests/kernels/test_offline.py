"""The kernel as GPUs will run it, compiled for them without one: access widths, bytes per element, local memory."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.rules_table import FULLEST, NUMBERS

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
# On every target the two that differ most, on one the others as well.
KINDS = [(target, kind) for target in TARGETS for kind in ("float32", "bfloat16")]
KINDS += [("sm_90", "float16"), ("sm_90", "bfloat16/float32")]
NAMES = [name for name, (factory, _) in FULLEST.items() if factory.rule.elementwise]

# Triton compiles or interprets, one or the other in a process, so the kernels are compiled in another.
PROGRAM = """
import json, sys, torch
from funcopt.kernels import offline
from tests.kernels.test_offline import made

names, kinds = json.loads(sys.argv[1])
for name in names:
    opt, slots = made(name)
    for target, kind in kinds:
        dtype, slot_dtype = (getattr(torch, part) for part in (kind.split("/") * 2)[:2])
        text = offline.assembly(opt, slots, target, dtype, slot_dtype)
        facts = {"bytes": offline.bytes_per_element(text), "local": offline.local_memory(text, target)}
        print(json.dumps([name, target, kind, facts | offline.accesses(text)]))
"""


def made(name):
    """The optimizer, and the slots that are tensors."""
    factory, flags = FULLEST[name]
    opt = factory(**flags)
    hparams = opt.hparams(**NUMBERS[name])
    return opt, [slot.name for slot in opt.rule.tensors if opt.rule.needs(slot, hparams, opt.flags)]


@pytest.fixture(scope="module")
def compiled():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM, json.dumps([NAMES, KINDS])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {(name, target, kind): facts for name, target, kind, facts in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("target", "kind"), KINDS)
def test_moves_the_least_bytes_in_wide_accesses(compiled, name, target, kind):
    facts = compiled[name, target, kind]
    slots = len(made(name)[1])
    dtype, slot_dtype = (getattr(torch, part) for part in (kind.split("/") * 2)[:2])
    # p, g and the slots are read, p and the slots written: AMSGrad in float32 5 · 4 + 4 · 4 = 36.
    assert facts["bytes"] == 3 * dtype.itemsize + 2 * slots * slot_dtype.itemsize
    assert min(facts["load"] + facts["store"]) >= (16 if dtype == torch.float32 else 8)
    assert facts["local"] == 0


def test_rmsprop_in_float32_moves_36_bytes(compiled):
    """The parameter, its gradient, and three slots, which are written too."""
    assert [compiled["rmsprop", target, "float32"]["bytes"] for target in TARGETS] == [36] * 4


PIPELINE = """
import json, torch, funcopt
from funcopt.kernels import offline

opt = funcopt.clip_by_global_norm(funcopt.ema(funcopt.adamw()))
opt = funcopt.unscale(funcopt.skip_nonfinite(opt))
for target in ("sm_80", "sm_90", "sm_100"):
    slots = ["exp_avg", "exp_avg_sq", "ema"]
    text = offline.assembly(opt, slots, target, torch.float32)
    facts = [offline.bytes_per_element(text), offline.local_memory(text, target)]
    text = offline.measuring_assembly(opt, slots, 0, target, torch.float32)
    widths = {int(n or 1) * 4 for n in __import__("re").findall(r"ld\\.global(?:\\.v(\\d))?\\.b32", text)}
    print(json.dumps([*facts, max(widths), offline.local_memory(text, target)]))
"""


def test_all_that_people_do_around_a_step_is_a_reduction_and_36_bytes():
    """AdamW in float32 with its average of the weights, unscaled, clipped, skipped where not finite: 28 + 8."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PIPELINE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[36, 0, 16, 0]] * 3
