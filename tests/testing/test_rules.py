"""Every rule with every combination of its flags keeps every law that speaks of it."""

import functools

import pytest

from funcopt.rules import RULES
from funcopt.testing import check_laws, law_tests
from funcopt.testing.checking import chosen_laws
from tests.rules_table import COMBINATIONS, FULLEST, IDS

# Each law of each combination is tried on so many cases, drawn from a fixed seed.
EXAMPLES = 20

LAWS = [law for law in chosen_laws(None) if law.of != "class"]
# What takes longest, to compile a step, for the combination with the most parts alone.
PAIRS = [
    (name, law)
    for name, combination in zip(IDS, COMBINATIONS, strict=True)
    for law in LAWS
    if law.cost < 32 or combination in FULLEST.values()
]


@functools.cache
def tried(name):
    factory, flags = COMBINATIONS[IDS.index(name)]
    return law_tests(factory(**flags), max_examples=EXAMPLES)


@pytest.mark.parametrize(("name", "law"), PAIRS, ids=[f"{name}-{law.name}" for name, law in PAIRS])
def test_law(name, law):
    tried(name)(law)


@pytest.mark.parametrize("factory", RULES.values(), ids=RULES)
def test_the_laws_of_its_family_speak_of_it(factory):
    """None of them is passed over: what they need is there, by the names that they know it by."""
    family = check_laws(factory, laws=[]).claims.family
    report = check_laws(factory, laws=[law for law in LAWS if family in law.families], max_examples=5)
    assert len(report.verdicts) > 0
    assert {v.law.name: v.status for v in report.verdicts} == {v.law.name: "held" for v in report.verdicts}
