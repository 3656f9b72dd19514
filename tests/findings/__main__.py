"""Try all subjects on the laws, and write FINDINGS.md: `python -m tests.findings`, some twenty minutes on one core.

A package that is not installed is left out; `pip install --no-deps` them, so that torch stays as it is.
"""

import importlib.util
import sys
import time
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from funcopt.testing import Report
from tests.findings.explained import finding_of
from tests.findings.page import page
from tests.findings.subjects import SUBJECTS, Subject

PAGE = Path(__file__).parents[1] / "FINDINGS.md"


def main() -> int:
    """Try them, and write the page.

    Returns:
        0 where every broken law is explained and every exemption needed, else 1.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.process_time()
    there = [s for s in SUBJECTS if importlib.util.find_spec(s.needs)]
    missing = sorted({s.needs for s in SUBJECTS} - {s.needs for s in there})
    for package in missing:
        print(f"{package} is not installed; its optimizers are left out")
    reports: list[tuple[Subject, Report]] = []
    with tqdm(total=sum(len(s.laws()) for s in there), unit="law", disable=None) as bar:
        for subject in there:
            bar.set_description(subject.name)
            reports.append((subject, subject.check(lambda _: bar.update())))
    minutes = (time.process_time() - start) / 60
    PAGE.write_text("\n".join(page(reports, missing, minutes)) + "\n")
    odd = [
        f"{subject.name}: {v.law.name} is {v.status}: {v.detail}"
        for subject, report in reports
        for v in report.verdicts
        if v.status == "unneeded" or (v.status == "broken" and not finding_of(subject, v))
    ]
    print("\n".join([*odd, f"{len(reports)} subjects: tests/{PAGE.name}"]))
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
