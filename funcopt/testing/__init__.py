"""Property-based tests of update equations: for rules, pure optimizers, and any class with torch.optim's interface.

`check_laws` tries an optimizer on every law it should keep, and reports those it breaks with the smallest case that
shows it; `law_tests` makes a pytest test of each law:

    from funcopt.testing import check_laws, law_tests

    print(check_laws(torch.optim.AdamW))        # or funcopt.adamw, or a rule or class of your own
    test_laws = law_tests(torch.optim.AdamW)    # in a file of tests

`laws` are what they are tried on, `strategies` draw the cases. A law of one's own is a function of what is under test
and a case, and is named in `check_laws(…, laws=[small_steps])`:

    from funcopt.testing import BrokenLawError, Tried, law

    @law(Tried(steps=(1, 3)))
    def small_steps(subject, case):
        "No element moves by more than 1."      # what it asserts
        run = subject.run(case)                 # params[t][leaf] and state[t][leaf][name] after t steps
        for p, q in zip(run.params[0], run.params[1]):
            if ((p - q).abs() > 1).any():
                raise BrokenLawError(f"it moves by {(p - q).tolist()}")

A subject has `run(case)`, `has(name)` and `flags(case.flags)`; `Case.but` and `Case.mapped` make other cases of a case.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("funcopt.testing draws its cases by hypothesis; pip install 'funcopt[check]'") from error

from funcopt.testing import laws, strategies
from funcopt.testing.case import Case
from funcopt.testing.checking import check_laws, law_tests
from funcopt.testing.law import BrokenLawError, Law, SaysNothingError, Tried, law, near, rounding, same, scale_of
from funcopt.testing.problems import Problem, Schedule
from funcopt.testing.report import Report, Verdict
from funcopt.testing.search import Counterexample

__all__ = [
    "BrokenLawError",
    "Case",
    "Counterexample",
    "Law",
    "Problem",
    "Report",
    "SaysNothingError",
    "Schedule",
    "Tried",
    "Verdict",
    "check_laws",
    "law",
    "law_tests",
    "laws",
    "near",
    "rounding",
    "same",
    "scale_of",
    "strategies",
]
