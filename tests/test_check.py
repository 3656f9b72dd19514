"""`python -m funcopt check`: what it runs on, what it prints, and its exit status."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from funcopt import check
from funcopt.rules import RULES
from funcopt.testing import laws

ROOT = Path(__file__).parent.parent
FEW = ["--laws", "oddness,descent", "--examples", "5"]


def run(*arguments, cwd=ROOT):
    """The command in a process of its own, as a user has it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "funcopt", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize(
    "target",
    ["funcopt:adamw", "funcopt:muon", "funcopt:optim.SparseAdam", "torch.optim:SGD", "tests.testing.buggy:Downhill"],
)
def test_all_laws_hold(target, capsys):
    assert check.main([target, *FEW]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^oddness +held +5 ", printed, re.MULTILINE)
    assert "2 held" in printed


def test_a_broken_law(capsys):
    assert check.main(["tests.testing.buggy:Uphill", *FEW]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^descent +broken ", printed, re.MULTILINE)
    assert "from tests.testing.buggy import Uphill" in printed
    assert "laws.descent.check(Uphill, Case(" in printed


def test_an_exemption(capsys):
    assert check.main(["tests.testing.buggy:Uphill", *FEW, "--exempt", "descent=it climbs"]) == 0
    assert "it climbs" in capsys.readouterr().out
    assert check.main(["tests.testing.buggy:Downhill", *FEW, "--exempt", "descent=it climbs"]) == 1
    assert "unneeded" in capsys.readouterr().out


def test_several_at_once(capsys):
    assert check.main(["tests.testing.buggy:Downhill", "tests.testing.buggy:Uphill", *FEW]) == 1
    printed = capsys.readouterr().out
    assert printed.count("descent") > 2


def test_everything_of_ours_if_nothing_is_named(capsys):
    assert check.main(["--laws", "oddness", "--examples", "2"]) == 0
    named = capsys.readouterr().out
    assert check.main(["--all", "--laws", "oddness", "--examples", "2"]) == 0
    assert capsys.readouterr().out == named
    titles = re.findall(r"^(\S+): ", named, re.MULTILINE)
    rules = [title for title in titles if "." not in title]
    classes = {title.removeprefix("funcopt.optim.").lower() for title in titles if title not in rules}
    assert rules == list(RULES)
    assert classes == {name.replace("_", "") for name in RULES}


def test_options_reach_the_laws(capsys):
    options = [
        "--laws",
        "oddness,permutation,decoupled_weight_decay",
        "--examples",
        "5",
        "--seed",
        "7",
        "--backend",
        "eager",
    ]
    claims = ["--elementwise", "no", "--decoupled", "no", "--family", "none"]
    assert check.main(["funcopt.optim:AdamW", *options, *claims]) == 0
    printed = capsys.readouterr().out
    assert "not elementwise (given)" in printed
    assert "weight decay in the gradient (L2) (given)" in printed
    assert "of no family (given)" in printed
    sparse = ["--sparse", "--dims", "1:2", "--laws", "repeatable", "--examples", "5"]
    assert check.main(["torch.optim:SparseAdam", *sparse]) == 0
    muon = ["torch.optim:Muon", "--dims", "2", "--fixed", "ns_steps=3", "--laws", "repeatable", "--examples", "3"]
    assert check.main(muon) == 0
    reference = ["--reference", "torch.optim:SGD", "--laws", "agrees_with_reference", "--examples", "5"]
    assert check.main(["tests.testing.buggy:Downhill", *reference]) == 0
    assert check.main(["tests.testing.buggy:Uphill", *reference]) == 1
    assert check.main(["funcopt:adam", "--reference", "none", "--laws", "oddness", "--examples", "2"]) == 0


CANNOT = [
    (["no.such.module:thing"], "there is no module 'no.such.module' here"),
    (["funcopt:adamww"], "funcopt has no 'adamww'; did you mean 'adamw'?"),
    (["funcopt"], "'funcopt' is not of the form package.module:name"),
    (["funcopt:"], "is not of the form package.module:name"),
    (["tests.testing.buggy:number"], "an instance of int is no optimizer"),
    (["tests.testing.buggy:instance"], "give its class"),
    (["tests.testing.buggy:Crashing"], "cannot take one step on a float64 parameter of shape (2, 3): IndexError"),
    (["funcopt:adamw", "--laws", "odness"], "there is no law 'odness'; did you mean 'oddness'?"),
    (["funcopt:adamw", "--examples", "0"], "max_examples is 0"),
    (["funcopt:adamw", "--backend", "gpu"], "backend='gpu' is unknown"),
    (["funcopt:adamw", "--exempt", "oddness"], "--exempt takes NAME=…; got 'oddness'"),
    (["funcopt:adamw", "--dims", "many"], "--dims takes MIN:MAX"),
    (["funcopt:adamw", "--laws", ""], "there is no law ''"),
    (["funcopt:adamw", "--sparse"], "sparse=True is for classes"),
    (["funcopt:adamw", "--dtypes", "float33"], "dtypes are ['float33']; torch.float64, and any of"),
    (["torch.optim:SGD", "--sparse"], "it was given {'lr': "),
    (["funcopt:adamw.rule.name.y"], "funcopt has no 'adamw.rule.name.y'"),
    (["../mine:opt"], "'../mine' is no module's name"),
    (["mine.py:opt"], "of opts.py in this folder is opts, as in opts:opt"),
    (["funcopt:adamw", "--all"], "give names or --all, not both"),
]


@pytest.mark.parametrize(("arguments", "message"), CANNOT, ids=[" ".join(a) for a, _ in CANNOT])
def test_it_cannot_run(arguments, message, capsys):
    assert check.main([*arguments, *([] if "--laws" in arguments else ["--laws", "oddness"])]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("python -m funcopt check: ")
    assert "Traceback" not in captured.err
    assert not captured.out


def test_a_module_that_fails_to_import_is_said_plainly(tmp_path):
    (tmp_path / "broken.py").write_text("import not_there\n")
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    (tmp_path / "script.py").write_text("raise SystemExit(0)\n")
    for name, reason in (
        ("broken", "No module named 'not_there'"),
        ("wrong", "ZeroDivisionError: division by zero"),
        ("script", "SystemExit: 0"),
    ):
        done = run(f"{name}:opt", cwd=tmp_path)
        assert done.returncode == 2
        assert f"{name} cannot be imported: {reason}" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_class_may_be_picky(capsys):
    """One that refuses numbers by assertion, and one that has no more than step()."""
    for name in ("Asserting", "Bare"):
        assert check.main([f"tests.testing.buggy:{name}", "--examples", "5", "--brief"]) == 0
    printed = capsys.readouterr().out
    assert "laws" not in printed
    assert "held" in printed


def test_an_optimizer_in_the_folder_where_it_is_run(tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "tests/testing/buggy.py").read_text())
    done = run("mine:uncorrected", "--laws", "constant_gradient", cwd=tmp_path)
    assert done.returncode == 1
    assert "from mine import uncorrected" in done.stdout
    assert not done.stderr  # no bar where nobody looks


def test_the_laws_are_listed(capsys):
    assert check.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, law in laws.LAWS.items():
        assert name in printed
        assert law.equation.split("\n")[0] in printed


def test_laws_that_are_not_about_it_are_no_success(capsys):
    assert check.main(["funcopt:adamw", "--laws", "clip_bound,schedule_values"]) == 2
    assert "none of these laws could be tried: is about a clip" in capsys.readouterr().err


def test_a_wrong_option_is_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        check.main(["funcopt:adamw", "--exmaples", "3"])
    assert stopped.value.code == 2
    assert "--exmaples" in capsys.readouterr().err


def test_without_what_it_needs_it_says_what_to_install():
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from funcopt.__main__ import main\n"
        "sys.exit(main(['check', 'funcopt:adamw']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "pip install 'funcopt[check]'" in done.stderr
    assert "Traceback" not in done.stderr
