"""Which finding a broken law is a case of, and what each finding is: a program of programs/."""

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from funcopt.testing import Verdict
from tests.findings.subjects import EXACT, Subject

PROGRAMS = Path(__file__).parent / "programs"

# Which finding a broken law is: of a subject by its name, else of all.
OF_LAW = {
    "finite_derivatives": "nan_derivatives",
    "fixed_point": "float16",
    "gradients_untouched": "gradients_written",
    "constant_gradient": "float32_correction",
    "step_bound": "float32_correction",
    "agrees_with_reference": "float32_correction",
    "missing_gradient": "group_steps",
}
OF_SUBJECT = {
    **{(f"torch.optim.{name}, fused=True, strided tensors", law): "fused_strides" for name, law in EXACT.items()},
    ("torch.optim.SGD, fused=True", "life_cycle"): "fused_sgd_momentum",
    ("torch.optim.Adamax", "finite_derivatives"): "second_step_raises",
    ("torch.optim.Rprop", "finite_derivatives"): "second_step_raises",
    **{
        (f"torch.optim.NAdam{way}", law): "loaded_scalars"
        for way in ("", ", foreach=True")
        for law in ("resume", "life_cycle", "saved_is_loaded")
    },
    ("torch.optim.ASGD", "saved_is_loaded"): "loaded_scalars",
    ("torch.optim.ASGD, foreach=True", "saved_is_loaded"): "loaded_scalars",
    ("optimi.AdamW, triton=False", "life_cycle"): "group_steps",
    ("torch.optim.LBFGS, matrices", "descent"): "lbfgs_layout",
    ("torch.optim.LBFGS, a problem", "rotation"): "lbfgs_axes",
    ("torch.optim.Adafactor, empty parameters too", "repeatable"): "adafactor_empty",
    ("torch.optim.ASGD", "learning_rate_linearity"): "asgd_rate",
    ("torch.optim.ASGD, foreach=True", "learning_rate_linearity"): "asgd_rate",
    ("torch.optim.SGD, foreach=True", "gradients_untouched"): "nesterov_gradients",
    ("torch.optim.SGD, foreach=True, nesterov=True", "gradients_untouched"): "nesterov_gradients",
    ("torch.optim.Rprop", "geometric_steps"): "rprop_zero",
    ("torch.optim.Rprop, foreach=True", "geometric_steps"): "rprop_zero",
    ("torchopt.AdamW", "resume"): "weights_only",
    ("torchopt.AdamW, use_accelerated_op=True", "resume"): "weights_only",
    ("optimi.AdamW, triton=False", "agrees_with_reference"): "group_steps",
    ("optimi.AdamW, triton=False", "own_numbers"): "group_betas",
    ("optimi.AdamW, triton=False", "decoupled_weight_decay"): "whole_decay",
    ("optimi.AdamW, triton=False, more cases", "decoupled_weight_decay"): "whole_decay",
    ("optimi.AdamW", "repeatable"): "triton_for_none",
    ("schedulefree.AdamWScheduleFree", "life_cycle"): "group_steps",
    ("pytorch_optimizer.Lion", "life_cycle"): "copies",
    ("pytorch_optimizer.StableAdamW", "life_cycle"): "copies",
}


@dataclass(frozen=True)
class Finding:
    """A kind of surprise: a program that shows it without funcopt, with its docstring.

    Args:
        title: what it is.
        met: when a user meets it.
        text: what happens and why.
        seen: who else has it, though no law here shows it.
        source: the program.
    """

    path: Path
    title: str
    met: str
    text: str
    seen: str
    source: str

    @property
    def output(self) -> str | None:
        """What the program prints; None where a package that it looks at is missing."""
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        done = subprocess.run([sys.executable, str(self.path)], capture_output=True, text=True, env=env)
        if "ModuleNotFoundError" in done.stderr:
            return None
        if done.returncode:
            raise RuntimeError(f"{self.path} fails:\n{done.stderr}")
        return done.stdout.rstrip()


def finding(path: Path) -> Finding:
    """The finding that a program shows."""
    tree = ast.parse(path.read_text())
    title, met, *texts = (ast.get_docstring(tree) or "").split("\n\n")
    seen = "".join(text for text in texts if text.startswith("Seen by hand: "))
    body = path.read_text().splitlines()[tree.body[0].end_lineno :]
    return Finding(
        path,
        title,
        _line(met.removeprefix("Met ")).removesuffix("."),
        _line(" ".join(text for text in texts if text != seen)),
        _line(seen.removeprefix("Seen by hand: ")).removesuffix("."),
        "\n".join(body).strip(),
    )


def _line(text: str) -> str:
    return " ".join(text.split())


FINDINGS = {path.stem: finding(path) for path in sorted(PROGRAMS.glob("*.py"))}


def finding_of(subject: Subject, verdict: Verdict) -> str | None:
    """The finding that a broken law shows; None where nobody has explained it."""
    if subject.name == "torch.optim.SGD, fused=True" and "NoneType" in verdict.detail:  # in any law with two parameters
        return "fused_sgd_momentum"
    return OF_SUBJECT.get((subject.name, verdict.law.name), OF_LAW.get(verdict.law.name))
