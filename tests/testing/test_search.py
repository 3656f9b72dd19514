"""The search for a counterexample: it is small, and the program that it is given as fails as the report says."""

import subprocess
import sys

import pytest
import torch
from hypothesis import find, settings

import funcopt
from funcopt.testing import Case, check_laws, laws
from tests.testing import buggy


def test_the_smallest_counterexample_is_found():
    report = check_laws(buggy.uncorrected, laws=["constant_gradient"])
    verdict = report["constant_gradient"]
    assert not report.ok
    assert verdict.status == "broken"
    case = verdict.counterexample.case
    assert [tuple(p.shape) for p in case.params] == [()]
    assert len(case.grads) == 1
    assert float(case.params[0]) == 0
    assert float(case.grads[0][0]) == 1


@pytest.mark.parametrize("seed", range(6))
def test_nothing_can_be_left_out_of_a_counterexample(seed):
    """Whatever is drawn: one parameter of one element, and the steps that it takes to see it."""
    lion = check_laws(buggy.swapped_lion, laws=["sign_of_blend"], seed=seed)["sign_of_blend"].counterexample.case
    assert [tuple(p.shape) for p in lion.params] == [()]
    assert len(lion.grads) == 2
    late = check_laws(buggy.GlobalStep, laws=["missing_gradient"], seed=seed)["missing_gradient"].counterexample.case
    assert [tuple(p.shape) for p in late.params] == [()]
    assert len(late.grads) == 2


PROGRAMS = {
    "rule": (buggy.uncorrected, "constant_gradient", {}),
    "pure": (buggy.uncorrected(), "constant_gradient", {}),
    "class": (buggy.Uphill, "descent", {}),
    "flags": (funcopt.adamw(amsgrad=True, backend="eager"), "coupled_weight_decay", {}),
    "choices": (funcopt.muon, "coupled_weight_decay", {}),
    "choices made": (funcopt.muon(ns_dtype=torch.float32, adjust_lr_fn="original"), "coupled_weight_decay", {}),
    "backend": (funcopt.adamw, "coupled_weight_decay", {"backend": "triton"}),
    "torch": (torch.optim.Adam, "fixed_point", {}),
    "fixed": (torch.optim.Adam, "fixed_point", {"fixed": {"amsgrad": True, "lr": 0.5}}),
    "sparse": (buggy.Uphill, "descent", {"sparse": True}),
    "reference": (buggy.Uphill, "agrees_with_reference", {"reference": torch.optim.SGD}),
    "pure reference": (buggy.Uphill, "agrees_with_reference", {"reference": funcopt.sgd(backend="eager")}),
    "another name": (buggy.Elsewhere, "descent", {}),
    "another name of a rule": (buggy.renamed, "sign_of_blend", {}),
    "triton": (buggy.renamed, "sign_of_blend", {"backend": "triton"}),
    "own law": (buggy.Uphill, buggy.stays, {}),
    "own law of a rule": (buggy.uncorrected, buggy.stays, {}),
    "clip": (buggy.clip_each, "clip_bound", {"kind": "clip"}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_shows_the_failure_again(name, tmp_path):
    """Copied into a file and run, it fails with the message of the report."""
    opt, law, options = PROGRAMS[name]
    (verdict,) = check_laws(opt, laws=[law], **options).verdicts
    (tmp_path / "again.py").write_text(verdict.counterexample.program)
    done = subprocess.run([sys.executable, str(tmp_path / "again.py")], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"BrokenLawError: {verdict.counterexample.message}" in done.stderr


def test_cases_of_a_law_are_drawn_for_an_optimizer():
    """`laws.oddness.cases(opt)` is a strategy for tests of one's own, and takes what `check` takes."""
    for opt in (funcopt.adamw, funcopt.adamw(amsgrad=True), torch.optim.AdamW):
        case = find(laws.oddness.cases(opt), lambda _: True, settings=settings(database=None))
        assert isinstance(case, Case)
        laws.oddness.check(opt, case)
