"""Property-based tests of update equations: for rules, pure optimizers, and any class with torch.optim's interface.

`check_laws` tries an optimizer on every law it should keep, and reports those it breaks with the smallest case that
shows it; `law_tests` makes a pytest test of each law; `laws` and `strategies` are the parts it is made of.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("funcopt.testing draws its cases by hypothesis; pip install 'funcopt[check]'") from error

from funcopt.testing import laws, strategies
from funcopt.testing.case import Case
from funcopt.testing.checking import check_laws, law_tests
from funcopt.testing.law import BrokenLawError, Law, Tried, law
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
    "Schedule",
    "Tried",
    "Verdict",
    "check_laws",
    "law",
    "law_tests",
    "laws",
    "strategies",
]
