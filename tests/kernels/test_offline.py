"""The kernel as GPUs will run it, compiled for them without one: access widths, bytes per element, local memory."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.rules_table import COMBINATIONS, IDS, NUMBERS

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
# On every target the two that differ most, on one the others as well.
KINDS = [(target, kind) for target in TARGETS for kind in ("float32", "bfloat16")]
KINDS += [("sm_90", "float16"), ("sm_90", "bfloat16/float32")]
# `maximize` changes a sign and nothing of memory.
NAMES = [name for name in IDS if "maximize" not in name]

# Triton compiles or interprets, one or the other in a process, so the kernels are compiled in another.
PROGRAM = """
import json, sys, torch
from funcopt.kernels import offline
from tests.rules_table import COMBINATIONS, IDS, NUMBERS

names, kinds = json.loads(sys.argv[1])
for name in names:
    factory, flags = COMBINATIONS[IDS.index(name)]
    opt = factory(**flags)
    slots = list(opt.init(torch.zeros(1), opt.hparams(**NUMBERS[factory.__name__])))[1:]
    for target, kind in kinds:
        dtype, slot_dtype = (getattr(torch, part) for part in (kind.split("/") * 2)[:2])
        text = offline.assembly(opt, slots, target, dtype, slot_dtype)
        facts = {"bytes": offline.bytes_per_element(text), "local": offline.local_memory(text, target)}
        print(json.dumps([name, target, kind, facts | offline.accesses(text)]))
"""


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
    factory, flags = COMBINATIONS[IDS.index(name)]
    facts = compiled[name, target, kind]
    opt = factory(**flags)
    slots = len(opt.init(torch.zeros(1), opt.hparams(**NUMBERS[factory.__name__]))) - 1
    dtype, slot_dtype = (getattr(torch, part) for part in (kind.split("/") * 2)[:2])
    # p, g and the slots are read, p and the slots written: AdamW in float32 4 · 4 + 3 · 4 = 28.
    assert facts["bytes"] == 3 * dtype.itemsize + 2 * slots * slot_dtype.itemsize
    assert min(facts["load"] + facts["store"]) >= (16 if dtype == torch.float32 else 8)
    assert facts["local"] == 0


def test_adamw_in_float32_moves_28_bytes(compiled):
    assert [compiled["adamw", target, "float32"]["bytes"] for target in TARGETS] == [28] * 4


PIPELINE = """
import json, torch, funcopt
from funcopt.kernels import offline

opt = funcopt.clip_by_global_norm(funcopt.ema(funcopt.adamw()))
opt = funcopt.unscale(funcopt.skip_nonfinite(opt))
for target in ("sm_80", "sm_90", "sm_100"):
    text = offline.assembly(opt, ["exp_avg", "exp_avg_sq", "ema"], target, torch.float32)
    facts = [offline.bytes_per_element(text), offline.local_memory(text, target)]
    text = offline.measuring_assembly(opt, 0, target, torch.float32)
    widths = {int(n or 1) * 4 for n in __import__("re").findall(r"ld\\.global(?:\\.v(\\d))?\\.b32", text)}
    print(json.dumps([*facts, max(widths), offline.local_memory(text, target)]))
"""


def test_all_that_people_do_around_a_step_is_a_reduction_and_36_bytes():
    """AdamW in float32 with its average of the weights, unscaled, clipped, skipped where not finite: 28 + 8."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PIPELINE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[36, 0, 16, 0]] * 3
