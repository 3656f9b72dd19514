"""A mutation test of the laws: each way in which people break an optimizer is caught by a law, or refused before.

`python -m pytest tests/testing/test_mutants.py -n 0 -s` prints the score, and by what each mutant was caught.
"""

import pytest
import torch

from funcopt.rules import RULES
from funcopt.testing import check_laws, laws, search
from tests.testing.mutants import MUTANTS, ORIGINALS, original

# Not those that compare with torch.optim, beside which anything wrong looks wrong, nor those that compile, which takes
# long. The costly ones come last.
APART = ("agrees_with_reference", "triton_agrees", "compile_agrees", "compiled_step")
TRIED = sorted((law for name, law in reversed(laws.LAWS.items()) if name not in APART), key=lambda law: law.cost)

# A mutant gets every law on a few cases first: most are caught at once, by some law.
EXAMPLES = (4, 12, 36, 108)

REFUSED = 25

caught: dict[str, str | None] = {}


class Caught(Exception):
    """A law is broken, by its name."""


def first_broken(mutant, **claims):
    """The name of the first law that a mutant is seen to break; None where it keeps them all."""

    def stop(verdict):
        if verdict.status == "broken":
            raise Caught(verdict.law.name)

    for examples in EXAMPLES:
        try:
            check_laws(mutant, laws=TRIED, max_examples=examples, seed=examples, progress=stop, **claims)
        except Caught as found:
            return str(found)
    return None


# Those of the rules are tried in test_rules.py, on more.
@pytest.mark.parametrize("name", [name for name in ORIGINALS if name not in RULES])
def test_the_originals_keep_all_laws(name):
    check_laws(original(name), laws=TRIED, max_examples=EXAMPLES[1], **ORIGINALS[name][1]).require()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_caught(mutant, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "SHRINKING", 0.0)  # a case that breaks a law is enough, however large
    caught[str(mutant)] = None
    try:
        made = mutant.make(tmp_path)
    except TypeError as refusal:
        caught[str(mutant)] = f"refused: {refusal}"
        return
    with torch.enable_grad():  # and back, for a mutant that switches gradients off
        caught[str(mutant)] = first_broken(made, **ORIGINALS[mutant.of][1])
    assert caught[str(mutant)], f"{mutant} keeps every law"


def test_the_mutation_score():
    if missing := [str(mutant) for mutant in MUTANTS if str(mutant) not in caught]:
        pytest.skip(f"{len(missing)} mutants have not been tried")
    refused = {name: by for name, by in caught.items() if by and by.startswith("refused")}
    laws_broken = {name: by for name, by in caught.items() if by and name not in refused}
    score = (len(laws_broken) + len(refused)) / len(MUTANTS)
    rows = [f"{name:<60} {' '.join((by or 'SURVIVED').split())[:100]}" for name, by in caught.items()]
    summary = (
        f"mutation score: {len(laws_broken)} of {len(MUTANTS)} caught by {len(set(laws_broken.values()))} laws, "
        f"{len(refused)} refused by funcopt.rule ({score:.0%})"
    )
    print("", *rows, summary, sep="\n")
    assert score == 1
    assert len(refused) == REFUSED
