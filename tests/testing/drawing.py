"""What tests of strategies draw with, and a rule whose numbers have ranges that torch's do not have."""

import itertools
import math
import random

import torch
from hypothesis import HealthCheck, Phase, find, given, settings

import funcopt
from funcopt import Number, fraction, nonnegative
from tests.rules_table import COMBINATIONS, IDS

# The same cases at every run. Of the health checks only the one that looks at the clock is off.
FIXED = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
MANY = settings(FIXED, max_examples=75)
inf, nan = math.inf, math.nan


def every(strategy, check, settings=FIXED):
    """Call a check on what a strategy draws: it asserts, or returns whether all is well."""

    def test(drawn):
        assert check(drawn) in (None, True)

    settings(given(strategy)(test))()


def smallest(strategy, predicate=lambda drawn: True, phases=FIXED.phases):
    """The example that hypothesis shrinks to."""
    return find(
        strategy, predicate, settings=settings(FIXED, max_examples=1000, phases=phases), random=random.Random(0)
    )


def reaches(strategy, predicate):
    """Whether a strategy draws what a predicate wants; hypothesis raises NoSuchExample where it does not."""
    return predicate(smallest(strategy, predicate, phases=[Phase.generate]))


# ---- a rule of one's own, with ranges that torch's rules do not have ------------------------------------------------

SPEC = {
    "rate": Number(0.3, "rate", low=0.25, high=0.75),
    "share": Number(0.5, "share", low=1 / 3, high=2 / 3),
    "pull": Number(-0.5, "pull", low=-2.0, high=0.25),
    "three": (fraction(0.9, "three[0]"), nonnegative(3.0, "three[1]"), Number(0.0, "three[2]")),
    "low": nonnegative(0.5, "low"),
    "high": nonnegative(0.5, "high"),
    "tiny": Number(4e-6, "tiny", low=3e-6, high=5e-6),
}


def coefficients(t, rate, share, pull, three, low, high, tiny):
    return {"rate": rate + share + pull + three[0] + low + high + tiny}


def update(p, g, c, ordered, pulled):
    return p - c.rate * g, ()


def check(hparams, flags):
    low, high, pull = (hparams[name] for name in ("low", "high", "pull"))
    wanted = (not flags["ordered"] or low < high) and (not flags["pulled"] or pull < 0)
    return None if wanted else f"low < high and pull < 0 are needed; got {low}, {high} and {pull}"


odd = funcopt.rule(
    "odd",
    hparams=SPEC,
    flags={"ordered": False, "pulled": False},
    coefficients=coefficients,
    update=update,
    check=check,
)
ODD = [(odd, {"ordered": a, "pulled": b}) for a, b in itertools.product([False, True], repeat=2)]
ALL = [*COMBINATIONS, *ODD]
ALL_IDS = [*IDS, *("-".join(["odd", *(flag for flag in flags if flags[flag])]) for _, flags in ODD)]

P = [torch.zeros(2)]
PARAMS = {"w": [torch.ones(2, 3), torch.ones((), dtype=torch.float16)], "b": (torch.ones(0), torch.ones(4).double())}


def same_form(t, like):
    assert (t.dtype, t.shape, t.device) == (like.dtype, like.shape, like.device)
