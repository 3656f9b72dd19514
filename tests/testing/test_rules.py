"""Every rule with every combination of its flags keeps every law that speaks of it."""

import pytest

from funcopt.testing import check_laws
from funcopt.testing.checking import chosen_laws
from tests.rules_table import COMBINATIONS, IDS

# Each law of each combination is tried on so many cases, drawn from a fixed seed.
EXAMPLES = 24

LAWS = [law for law in chosen_laws(None) if law.of != "class"]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize(("factory", "flags"), COMBINATIONS, ids=IDS)
def test_law(factory, flags, law):
    report = check_laws(factory(**flags), laws=[law], max_examples=EXAMPLES).require()
    assert report[law].status == "exempt" or report[law].examples > 0
