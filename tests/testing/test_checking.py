"""`check_laws` and `law_tests`: what they find, what they say, and what they refuse."""

import subprocess
import sys

import pytest
import torch

import funcopt
from funcopt.testing import BrokenLawError, Case, Tried, check_laws, law, law_tests, laws
from tests.testing import buggy


def test_a_report_has_a_verdict_for_each_law_and_prints_them():
    report = check_laws(funcopt.adamw, max_examples=3)
    assert report.ok
    assert report.require() is report
    assert [v.law.name for v in report.verdicts] == [
        name for name, law in laws.LAWS.items() if law.of in ("any", "pure", "class")
    ]
    assert {v.status for v in report.verdicts} == {"held", "exempt"}
    assert all(v.detail for v in report.verdicts if v.status == "exempt")
    assert all(v.examples > 0 for v in report.verdicts if v.status == "held")
    text = str(report)
    assert all(name in text for name in ("oddness", "held", "about sgd; this is adam", "the paper's point"))


def test_a_law_is_documented_by_what_it_says():
    assert laws.oddness.__doc__ == laws.oddness.equation
    assert all(law.name == name and law.equation.endswith(".") for name, law in laws.LAWS.items())


def test_the_same_seed_finds_the_same():
    first, second = (check_laws(buggy.uncorrected, laws=["oddness", "step_bound"], seed=3) for _ in range(2))
    assert str(first) == str(second)


def test_a_crash_breaks_the_law_that_met_it():
    verdict = check_laws(buggy.NoScalars, laws=["oddness"])["oddness"]
    assert verdict.status == "broken"
    assert "it raises IndexError" in verdict.detail


def test_an_exemption_needs_to_be_needed():
    reason = "it is what it is"
    report = check_laws(funcopt.sgd, laws=["oddness", "translation"], exempt={"oddness": reason}, max_examples=5)
    assert not report.ok
    assert report["oddness"].status == "unneeded"
    assert reason in report["oddness"].detail
    with pytest.raises(BrokenLawError, match=r"oddness +unneeded"):
        report.require()


def test_an_exemption_that_is_needed_is_shown_to_be():
    report = check_laws(buggy.Uphill, laws=["descent"], exempt={"descent": "it climbs"})
    assert report.ok
    assert report["descent"].status == "exempt"
    assert report["descent"].detail == "it climbs"
    assert report["descent"].counterexample is not None


def test_a_rule_declares_its_exemptions():
    rule = funcopt.adam.rule
    assert set(rule.exempt) == {"decoupled_weight_decay"}
    assert check_laws(funcopt.adam, laws=["decoupled_weight_decay"])["decoupled_weight_decay"].status == "exempt"


# ---- what a class is -------------------------------------------------------------------------------------------------


class Mixing(buggy.Downhill):
    """Steps by the mean of the gradient: not elementwise; and knows weight decay of neither kind."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    p.sub_(p.grad.mean(), alpha=group["lr"])


def claims(opt, **given):
    return check_laws(opt, laws=[], **given).claims


def test_what_a_class_is_is_found_out():
    assert claims(buggy.Downhill).elementwise
    assert not claims(Mixing).elementwise
    assert "found" in claims(Mixing).source["elementwise"]
    assert claims(torch.optim.Adam).family == "adam"
    assert claims(torch.optim.SGD).decoupled is False
    assert claims(torch.optim.AdamW).decoupled is True
    assert claims(torch.optim.Adam).decoupled is None  # its flag chooses
    assert claims(torch.optim.SparseAdam, sparse=True).family == "sparseadam"
    assert claims(buggy.Downhill).family is None


def test_what_is_given_is_not_doubted():
    report = check_laws(Mixing, laws=["concatenation"], elementwise=True)
    assert report["concatenation"].status == "broken"
    assert report.claims.source["elementwise"] == "given"
    assert (
        "not elementwise" in check_laws(buggy.Downhill, laws=["permutation"], elementwise=False)["permutation"].detail
    )
    assert check_laws(torch.optim.SGD, laws=["decoupled_weight_decay"], decoupled=True)["decoupled_weight_decay"].status
    assert claims(torch.optim.Adam, family="none").family is None


def test_the_claims_are_printed():
    text = str(check_laws(torch.optim.SGD, laws=["oddness"], max_examples=2))
    assert text.startswith("torch.optim.sgd.SGD: sgd (by name), elementwise (by family), ")


class Skipping(buggy.Downhill):
    """Leaves a parameter alone whose gradient is not finite."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.isfinite().all():
                    p.sub_(p.grad, alpha=group["lr"])


def test_skipping_is_a_law_for_those_who_claim_it():
    assert check_laws(Skipping, laws=["skipped_step"], skips_nonfinite=True)["skipped_step"].status == "held"
    assert check_laws(buggy.Downhill, laws=["skipped_step"], skips_nonfinite=True)["skipped_step"].status == "broken"
    assert check_laws(buggy.Downhill, laws=["skipped_step"])["skipped_step"].status == "exempt"


@pytest.mark.parametrize(
    ("opt", "reference", "status"),
    [
        (buggy.Downhill, torch.optim.SGD, "held"),
        (buggy.Uphill, torch.optim.SGD, "broken"),
        (funcopt.adam, funcopt.optim.Adam, "held"),
        (funcopt.adam, "none", "exempt"),
        (funcopt.optim.AdamW, funcopt.adamw, "held"),
        (funcopt.sgd(nesterov=True), None, "held"),
        (funcopt.sgd(decoupled_weight_decay=True), None, "exempt"),  # torch's has no such flag
        (buggy.Downhill, None, "exempt"),
    ],
)
def test_a_reference(opt, reference, status):
    verdict = check_laws(opt, laws=["agrees_with_reference"], reference=reference, max_examples=30)
    assert verdict["agrees_with_reference"].status == status


# ---- laws of one's own, and what is refused --------------------------------------------------------------------------


@law(Tried(steps=(1, 1)))
def moves_little(subject, case):
    """No element moves by more than 1000."""
    run = subject.run(case)
    for p, q in zip(run.params[0], run.params[1], strict=True):
        if bool(((p - q).abs() > 1000).any()):
            raise BrokenLawError(f"it moves by {(p - q).tolist()}")


def test_a_law_of_ones_own():
    assert moves_little.equation == "No element moves by more than 1000."
    assert check_laws(funcopt.sgd, laws=[moves_little])["moves_little"].status == "held"
    assert check_laws(buggy.Downhill, laws=[moves_little])["moves_little"].status == "held"
    with pytest.raises(BrokenLawError, match="it moves by"):
        moves_little.check(buggy.Downhill, Case([torch.zeros(2)], [[torch.full((2,), 1e5)]]))
    with pytest.raises(TypeError, match="says nothing"):
        law()(lambda subject, case: None)


REFUSED = [
    (lambda: check_laws(3), TypeError, "an instance of int is no optimizer"),
    (lambda: check_laws(buggy.instance), TypeError, "give its class"),
    (lambda: check_laws(int), TypeError, "the class int is no optimizer"),
    (lambda: check_laws(buggy.Crashing), RuntimeError, r"cannot take one step .* IndexError: out of luck"),
    (lambda: check_laws(funcopt.sgd, laws=["odness"]), ValueError, "no law 'odness'; did you mean 'oddness'"),
    (lambda: check_laws(funcopt.sgd, max_examples=0), ValueError, "max_examples is 0"),
    (lambda: check_laws(funcopt.sgd, exempt={"odness": "so"}), ValueError, "no law 'odness' to be exempt from"),
    (lambda: check_laws(funcopt.sgd, exempt={"oddness": ""}), ValueError, "exemption from oddness has no reason"),
    (lambda: check_laws(funcopt.sgd, family="adma"), ValueError, "family is 'adma'; did you mean"),
    (lambda: check_laws(funcopt.sgd, backend="gpu"), ValueError, "backend='gpu' is unknown"),
    (lambda: check_laws(funcopt.sgd, kind="optimiser"), ValueError, "kind is 'optimiser'; did you mean 'optimizer'"),
    (lambda: check_laws(3, kind="clip"), TypeError, "a clip is a function; got 3"),
    (lambda: check_laws(funcopt.sgd, laws=["oddness"], max_examples=1)["translation"], KeyError, "was not tried"),
    (lambda: check_laws(funcopt.sgd, fixed={"lr": 1.0}), ValueError, r"fixed=\{'lr': 1.0\} is for classes"),
    (lambda: check_laws(funcopt.sgd, sparse=True), ValueError, "sparse=True is for classes; the declaration of sgd"),
    (lambda: check_laws(funcopt.sgd, dtypes=[torch.int8]), ValueError, "dtypes are .*int8.*; torch.float64, and any"),
    (lambda: check_laws(funcopt.sgd, dtypes=[torch.float32]), ValueError, "dtypes are .*; torch.float64, and any of"),
    (lambda: check_laws(funcopt.sgd, layouts=["odd"]), ValueError, "layouts are .*'odd'.*; contiguous, and any of"),
    (lambda: check_laws(funcopt.sgd, layouts=["strided"]), ValueError, "layouts are .*; contiguous, and any of"),
    (lambda: check_laws(max, kind="clip", sparse=True), ValueError, "sparse=True is for optimizers; a clip has none"),
    (lambda: law_tests(funcopt.sgd, exampels=3), TypeError, "no argument 'exampels'"),
    (lambda: law_tests(funcopt.sgd, progress=print), TypeError, "no argument 'progress'"),
    (lambda: laws.agrees_with_reference.check(buggy.Downhill, Case([], [])), ValueError, "give reference="),
    (lambda: law_tests(funcopt.sgd, laws=["odness"]), ValueError, "no law 'odness'"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_progress_is_told():
    seen = []
    check_laws(funcopt.sgd, laws=["oddness", "translation"], max_examples=2, progress=seen.append)
    assert [v.law.name for v in seen] == ["oddness", "translation"]


def test_a_brief_report_leaves_out_what_is_well():
    report = check_laws(buggy.Uphill, laws=["oddness", "descent", "maximize"], max_examples=20)
    assert "oddness " in report.text()
    brief = report.text(brief=True)
    assert "oddness " not in brief
    assert "1 broken, 1 held, 1 exempt" in brief
    assert "laws.descent.check(Uphill, Case(" in brief
    assert len(check_laws(buggy.Downhill, laws=["oddness"], max_examples=2).text(brief=True).splitlines()) == 3


def test_an_exception_is_shown_once():
    text = str(check_laws(buggy.NoScalars, laws=["oddness", "translation", "permutation"], elementwise=True))
    assert text.count("laws.oddness.check(NoScalars, Case(") == 1
    assert "laws.translation.check" not in text
    assert "So it does in translation, permutation." in text
    assert "buggy.py, line " in text


def test_what_to_do_about_it_is_said():
    assert 'If it is not meant to be adam (constant_gradient): family="none"' in str(
        check_laws(buggy.uncorrected, laws=["constant_gradient"])
    )
    assert "If it is not" not in str(check_laws(buggy.uncorrected, laws=["constant_gradient"], family="adam"))
    assert "dtypes=, or --dtypes" in str(check_laws(torch.optim.Adam, laws=["fixed_point"]))
    decay = ["coupled_weight_decay", "decoupled_weight_decay"]
    assert "decoupled=True or False" in str(check_laws(buggy.DecayedTwice, laws=decay, max_examples=30))


def test_dtypes_and_layouts_may_be_left_out():
    whole = {"dtypes": [torch.float32, torch.float64]}
    assert check_laws(torch.optim.Adam, laws=["fixed_point"], max_examples=300, **whole).ok
    assert not claims(Mixing, **whole).elementwise
    verdict = check_laws(funcopt.sgd, laws=["follows_float64"], dtypes=[torch.float64])["follows_float64"]
    assert (verdict.status, verdict.detail) == (
        "exempt",
        "is tried on dtypes float32, bfloat16, float16, which are left out",
    )
    fused = {"fixed": {"fused": True}, "laws": ["constant_gradient"]}
    assert not check_laws(torch.optim.AdamW, **fused).ok
    assert check_laws(torch.optim.AdamW, layouts=["contiguous", "misaligned"], **fused).ok


def test_one_line_is_one_test_for_each_law(tmp_path):
    """In a file of its own, run by pytest: the law that is broken fails, with the counterexample, the others do not."""
    (tmp_path / "test_mine.py").write_text(
        "from funcopt.testing import law_tests\n"
        "from tests.testing.buggy import uncorrected\n"
        "test_laws = law_tests(uncorrected, max_examples=20, laws=['oddness', 'constant_gradient', 'maximize'])\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", str(tmp_path / "test_mine.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "1 failed, 1 passed, 1 skipped" in done.stdout
    assert "SKIPPED [1]" in done.stdout
    assert "laws.constant_gradient.check(uncorrected, Case(" in done.stdout
    assert "there is no maximize" in done.stdout
    assert "BrokenLawError: constant_gradient: params[0]" in done.stdout
    assert "checking.py" not in done.stdout


def test_without_hypothesis_the_error_says_what_to_install():
    program = "import sys; sys.modules['hypothesis'] = None\nimport funcopt\nimport funcopt.testing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'funcopt[check]'" in done.stderr.splitlines()[-1]
