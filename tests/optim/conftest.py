"""What the tests of prepared steps share."""

import pytest

from funcopt.kernels import host
from funcopt.kernels.plan import Plan


@pytest.fixture(params=["compiled", "Python"])
def looked(request, monkeypatch):
    """Who looks at the tensors before a step."""
    if request.param == "Python":
        monkeypatch.setattr(host, "_looking", lambda: None)


@pytest.fixture
def taken(monkeypatch):
    """An entry for each prepared step of a group."""
    steps = []
    plain = Plan.step

    def step(self, *args, **kwargs):
        steps.append(len(steps))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Plan, "step", step)
    return steps
