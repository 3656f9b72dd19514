"""The page of findings: every broken law is explained by a program there is, and the programs run."""

import pytest

from funcopt.testing import laws
from tests.findings.explained import FINDINGS, OF_LAW, OF_SUBJECT
from tests.findings.subjects import SUBJECTS


def test_what_is_explained_is_there():
    assert {*OF_LAW.values(), *OF_SUBJECT.values(), "fused_sgd_momentum"} == set(FINDINGS)
    assert {*OF_LAW, *(law for _, law in OF_SUBJECT)} <= set(laws.LAWS)
    assert {name for name, _ in OF_SUBJECT} <= {subject.name for subject in SUBJECTS}


@pytest.mark.parametrize("finding", FINDINGS.values(), ids=FINDINGS)
def test_a_finding_is_seen_without_funcopt(finding):
    assert "funcopt" not in finding.source
    assert finding.title
    assert finding.met
    assert finding.text
    output = finding.output
    if output is None:
        pytest.skip("a package that it looks at is not installed")
    assert output
