"""The optimizers that are looked at, how each is tried, and what it does not mean to keep."""

import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from funcopt.testing import Law, Report, Verdict, check_laws, laws, strategies

EXAMPLES = 200
WRAPPER = "tests.findings.torchopt_functional"


@dataclass(frozen=True)
class Subject:
    """An optimizer, how it is tried, and what it is exempt from.

    Args:
        target: `package.module:name`.
        note: what tells it from others of that name.
        package: what must be installed; the target's own, if left out.
        fixed, dims, layouts, sparse, elementwise, decoupled, reference: as `python -m funcopt check` takes them.
        exempt: laws that the algorithm does not mean to keep, each with the reason.
        only: the laws it is tried on; all if empty.
        examples: cases a law.
    """

    target: str
    note: str = ""
    package: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dims: tuple[int, int] | None = None
    sparse: bool = False
    elementwise: bool | None = None
    decoupled: bool | None = None
    reference: str = ""
    exempt: Mapping[str, str] = field(default_factory=dict)
    only: Sequence[str] = ()
    layouts: Sequence[str] | None = None
    examples: int = EXAMPLES

    @property
    def name(self) -> str:
        """What the page calls it."""
        module, _, name = self.target.partition(":")
        full = "torchopt.adamw (functional)" if module == WRAPPER else f"{module}.{name}"
        return full + (f", {self.note}" if self.note else "")

    @property
    def needs(self) -> str:
        return self.package or self.target.partition(":")[0].partition(".")[0]

    def laws(self) -> list[Law]:
        """The laws it is tried on, those of classes."""
        found = [law for law in laws.LAWS.values() if law.of in ("any", "class")]
        if self.only:
            found = [law for law in found if law.name in self.only]
        return found

    def check(self, progress: Callable[[Verdict], None]) -> Report:
        """Try it on its laws."""
        shapes = None
        if self.dims:
            shapes = strategies.shapes(min_dims=self.dims[0], max_dims=self.dims[1], min_side=1)
        return check_laws(
            load(self.target),
            laws=self.laws(),
            exempt=self.exempt,
            max_examples=self.examples,
            elementwise=self.elementwise,
            decoupled=self.decoupled,
            fixed=self.fixed,
            shapes=shapes,
            layouts=self.layouts,
            sparse=self.sparse,
            reference=load(self.reference) if self.reference else None,
            progress=progress,
        )

    def command(self, law: str) -> str:
        """The shell command that shows a broken law."""
        claim = {True: "yes", False: "no"}
        options = ["--laws", law]
        options += ["--examples", str(self.examples)] if self.examples != 100 else []
        options += [part for k, v in self.fixed.items() for part in ("--fixed", f"{k}={v}")]
        options += ["--dims", f"{self.dims[0]}:{self.dims[1]}"] if self.dims else []
        options += ["--layouts", ",".join(self.layouts)] if self.layouts else []
        options += ["--sparse"] if self.sparse else []
        options += ["--elementwise", claim[self.elementwise]] if self.elementwise is not None else []
        options += ["--decoupled", claim[self.decoupled]] if self.decoupled is not None else []
        options += ["--reference", self.reference] if self.reference else []
        return shlex.join(["python", "-m", "funcopt", "check", self.target, *options])


def load(target: str) -> Any:
    """What `package.module:name` stands for."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


GROWS = "its first step makes its state, from the first gradient that is not zero on"
ALL_AT_ONCE = "it takes all parameters as one vector, and keeps the state of all with the first"
NO_GROUPS = "it takes one group of parameters, and says so when given two"
LBFGS = {
    "fixed_types": GROWS,
    "leaf_independence": ALL_AT_ONCE,
    "missing_gradient": "it takes all parameters as one vector, in which a missing gradient is zero",
    "own_numbers": NO_GROUPS,
    "life_cycle": NO_GROUPS,
    "learning_rate_linearity": "its first step is lr·min(1, 1/|g|₁)·g, the later ones are lr·H·g",
    "state_ignores_learning_rate": "its state holds the length t of the last step",
}
ADAFACTOR = {
    "learning_rate_linearity": "its rate is min(lr, 1/√t) times the root mean square of p",
    "translation": "its step is relative to the root mean square of p",
    "decoupled_weight_decay": "decay acts beside the step, but the step is relative to p, and p knows of the decay",
}
ASGD = {
    "fixed_point": "lambd, a decay of its own, shrinks p at every step",
    "translation": "lambd, a decay of its own, shrinks p at every step",
    "state_ignores_learning_rate": "its state eta is the rate of the next step",
}
RPROP = {
    "learning_rate_linearity": "lr is only its first step size",
    "state_ignores_learning_rate": "its state step_size begins at lr",
}
FOREACH = {"finite_derivatives": "foreach=True and differentiable=True exclude each other"}
FUSED = {"finite_derivatives": "fused=True and differentiable=True exclude each other"}
SCHEDULE_FREE = {
    "learning_rate_linearity": "lr is also the weight of an iterate in the average",
    "state_ignores_learning_rate": "its state z is an iterate, which moves by lr",
    "decoupled_weight_decay": "decay is part of the step that is averaged; its state z is an iterate",
}
DEBIASED = {"exponential_averages": "the moments it keeps are corrected already: averages with β̂_t = (β-βᵗ)/(1-βᵗ)"}
TORCHOPT = {
    "life_cycle": "its param_groups are tuples of tensors: there is no lr in them to change",
    "learning_rate_linearity": "its param_groups are tuples of tensors: a schedule is an argument of the constructor",
    "own_numbers": "its param_groups are tuples of tensors: a group has no numbers of its own",
}

DEFAULT = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")
DENSE = ("contiguous", "misaligned")  # no gaps, no other order
WITH_FUSED = ("Adagrad", "Adam", "AdamW", "SGD")
# For each a law that says exactly where p goes: what stands in the gaps of a tensor cannot keep it by chance.
EXACT = {
    "Adagrad": "adagrad_constant",
    "Adam": "constant_gradient",
    "AdamW": "constant_gradient",
    "SGD": "momentum_impulse",
}
torch_classes = [
    *(Subject(f"torch.optim:{name}") for name in DEFAULT),
    Subject("torch.optim:Adafactor", dims=(0, 2), decoupled=True, exempt=ADAFACTOR),
    Subject("torch.optim:Adafactor", "empty parameters too", decoupled=True, only=["repeatable"]),
    Subject("torch.optim:ASGD", exempt=ASGD),
    Subject("torch.optim:LBFGS", "vectors", dims=(1, 1), exempt=LBFGS, only=[
        law.name for law in laws.LAWS.values() if law.name not in ("rotation", "quadratic_solved", "two_loop_is_dense")
    ]),
    Subject("torch.optim:LBFGS", "a problem", only=["rotation", "quadratic_solved", "two_loop_is_dense"]),
    Subject("torch.optim:LBFGS", "matrices", dims=(2, 2), only=["descent"]),
    Subject("torch.optim:Muon", dims=(2, 2)),
    Subject("torch.optim:Rprop", exempt=RPROP),
    Subject("torch.optim:SparseAdam", sparse=True, dims=(1, 2)),
]  # fmt: skip
torch_ways = [
    *(
        Subject(
            f"torch.optim:{name}", "fused=True", fixed={"fused": True}, layouts=DENSE, exempt=FUSED,
            decoupled=None if name == "Adam" else name == "AdamW",
        )
        for name in WITH_FUSED
    ),
    *(
        Subject(f"torch.optim:{name}", "fused=True, strided tensors", fixed={"fused": True}, only=[law])
        for name, law in EXACT.items()
    ),
    *(
        Subject(f"torch.optim:{name}", "foreach=True", fixed={"foreach": True}, exempt=FOREACH)
        for name in DEFAULT
    ),
    Subject(
        "torch.optim:Adafactor", "foreach=True", fixed={"foreach": True}, dims=(0, 2), decoupled=True, exempt=ADAFACTOR,
    ),
    Subject(
        "torch.optim:SGD", "foreach=True, nesterov=True", only=["gradients_untouched"],
        fixed={"foreach": True, "nesterov": True, "weight_decay": 0.0},
    ),
    Subject("torch.optim:ASGD", "foreach=True", fixed={"foreach": True}, exempt={**ASGD, **FOREACH}),
    Subject("torch.optim:Rprop", "foreach=True", fixed={"foreach": True}, exempt={**RPROP, **FOREACH}),
]  # fmt: skip
peers = [
    Subject("torchopt:AdamW", exempt=TORCHOPT),
    Subject("torchopt:AdamW", "use_accelerated_op=True", fixed={"use_accelerated_op": True}, exempt=TORCHOPT),
    Subject(f"{WRAPPER}:TorchOptFunctional", package="torchopt", reference="torch.optim:AdamW", decoupled=True),
    Subject(
        f"{WRAPPER}:TorchOptFunctional", "eps_root=1e-8", package="torchopt", fixed={"eps_root": 1e-8},
        only=["finite_derivatives"],
    ),
    Subject("optimi:AdamW", "triton=False", fixed={"triton": False}, exempt=DEBIASED),
    Subject("optimi:AdamW", only=["repeatable"]),
    Subject(
        "optimi:AdamW", "triton=False, more cases", fixed={"triton": False}, only=["decoupled_weight_decay"],
        examples=1000,
    ),
    Subject("schedulefree:AdamWScheduleFree", decoupled=True, exempt=SCHEDULE_FREE),
    Subject("pytorch_optimizer:Lion"),
    Subject("pytorch_optimizer:StableAdamW", elementwise=False, decoupled=True, exempt={
        **DEBIASED,
        "decoupled_weight_decay": "it decays by lr/max(1, RMS), as its paper has it, and RMS knows of the gradients",
    }),
]  # fmt: skip
SUBJECTS = [*torch_classes, *torch_ways, *peers]

# Of the packages that are looked at, what `pip list` calls them.
PACKAGES = {
    "torch": "torch",
    "torchopt": "torchopt",
    "optimi": "torch-optimi",
    "schedulefree": "schedulefree",
    "pytorch_optimizer": "pytorch_optimizer",
}
