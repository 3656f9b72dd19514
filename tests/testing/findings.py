"""What the laws find in other optimizers: `python -m tests.testing.findings` tries them all and writes FINDINGS.md.

It takes some twenty minutes on one core. A peer that is not installed is left out; `pip install --no-deps` the peers,
so that torch stays as it is.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import platform
import re
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from funcopt.testing import Law, Report, Verdict, check_laws, laws, strategies

PAGE = Path(__file__).parents[1] / "FINDINGS.md"
ME = "tests.testing.findings"
EXAMPLES = 200

# ---- a wrapper ------------------------------------------------------------------------------------------------------


class TorchOptFunctional(torch.optim.Optimizer):
    """`torchopt.adamw`, the functional form, with torch.optim's interface: one gradient transformation a parameter.

    With `differentiable` it is run as `torchopt.MetaAdamW` runs it: `inplace=False`, and derivatives go through.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        eps_root: float = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "eps_root": eps_root}
        self._transformation(**numbers)  # raises ValueError for numbers that torchopt does not take
        super().__init__(params, {**numbers, "maximize": maximize, "differentiable": differentiable})

    @staticmethod
    def _transformation(**numbers: Any) -> Any:
        return importlib.import_module("torchopt").adamw(**numbers)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            numbers = {k: group[k] for k in ("lr", "betas", "eps", "weight_decay", "eps_root", "maximize")}
            through = group["differentiable"]
            with torch.set_grad_enabled(through):
                for p in group["params"]:
                    if p.grad is not None:
                        self._one(p, self._transformation(**numbers), through)
        return loss

    def _one(self, p: torch.Tensor, transformation: Any, through: bool) -> None:
        tree = importlib.import_module("torchopt").pytree
        leaves, spec = tree.tree_flatten(transformation.init((p,)))
        names = ("exp_avg", "exp_avg_sq", "step")  # the leaves in their order
        state = self.state[p] or dict(zip(names, leaves, strict=True))
        before = tree.tree_unflatten(spec, [state[name] for name in names])
        (update,), after = transformation.update((p.grad,), before, params=(p,), inplace=not through)
        self.state[p] = dict(zip(names, tree.tree_flatten(after)[0], strict=True))
        p.copy_(p + update)


# ---- the subjects ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """An optimizer, how it is tried, and what it is exempt from.

    Args:
        target: `package.module:name`.
        note: what tells it from others of that name.
        package: what must be installed; the target's own, if left out.
        fixed, dims, sparse, elementwise, decoupled, reference: as `python -m funcopt check` takes them.
        exempt: laws that the algorithm does not mean to keep, each with the reason.
        only: the laws it is tried on; all if empty.
        dense: leave out tensors with gaps or in reverse order.
        examples: cases a law.
        like: the subject whose findings are not repeated for this one.
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
    dense: bool = False
    examples: int = EXAMPLES
    like: str = ""

    @property
    def name(self) -> str:
        """What the page calls it."""
        module, _, name = self.target.partition(":")
        top = "torchopt" if module == ME else "torch.optim" if module.startswith("torch.") else module.partition(".")[0]
        return f"{top}.{'adamw (functional)' if module == ME else name}" + (f", {self.note}" if self.note else "")

    @property
    def needs(self) -> str:
        return self.package or self.target.partition(":")[0].partition(".")[0]

    def laws(self) -> list[Law]:
        """The laws it is tried on, those of classes."""
        found = [law for law in laws.LAWS.values() if law.of in ("any", "class")]
        if self.only:
            found = [law for law in found if law.name in self.only]
        if self.dense:
            found = [replace(law, tried=replace(law.tried, layouts=("contiguous", "misaligned"))) for law in found]
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
    "late_counts": "its state_dict is a tuple of named tuples, with no counts by name to set",
}

DEFAULT = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")
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
            f"torch.optim:{name}", "fused=True", fixed={"fused": True}, dense=True, exempt=FUSED, like=name,
            decoupled=None if name == "Adam" else name == "AdamW",
        )
        for name in WITH_FUSED
    ),
    *(
        Subject(f"torch.optim:{name}", "fused=True, strided tensors", fixed={"fused": True}, only=[law])
        for name, law in EXACT.items()
    ),
    *(
        Subject(f"torch.optim:{name}", "foreach=True", fixed={"foreach": True}, exempt=FOREACH, like=name)
        for name in DEFAULT
    ),
    Subject(
        "torch.optim:Adafactor", "foreach=True", fixed={"foreach": True}, dims=(0, 2), decoupled=True, exempt=ADAFACTOR,
        like="Adafactor",
    ),
    Subject(
        "torch.optim:SGD", "foreach=True, nesterov=True", only=["gradients_untouched"],
        fixed={"foreach": True, "nesterov": True, "weight_decay": 0.0}, like="SGD, foreach=True",
    ),
    Subject("torch.optim:ASGD", "foreach=True", fixed={"foreach": True}, exempt={**ASGD, **FOREACH}, like="ASGD"),
    Subject("torch.optim:Rprop", "foreach=True", fixed={"foreach": True}, exempt={**RPROP, **FOREACH}, like="Rprop"),
]  # fmt: skip
peers = [
    Subject("torchopt:AdamW", exempt=TORCHOPT),
    Subject(
        "torchopt:AdamW", "use_accelerated_op=True", fixed={"use_accelerated_op": True}, exempt=TORCHOPT,
        like="torchopt.AdamW",
    ),
    Subject(
        f"{ME}:TorchOptFunctional", package="torchopt", reference="torch.optim:AdamW", decoupled=True,
        like="torchopt.AdamW",
    ),
    Subject(
        f"{ME}:TorchOptFunctional", "eps_root=1e-8", package="torchopt", fixed={"eps_root": 1e-8},
        only=["finite_derivatives"],
    ),
    Subject("optimi:AdamW", "triton=False", fixed={"triton": False}, exempt=DEBIASED),
    Subject("optimi:AdamW", only=["repeatable"]),
    Subject(
        "optimi:AdamW", "triton=False, more cases", fixed={"triton": False}, only=["decoupled_weight_decay"],
        examples=1000, like="optimi.AdamW, triton=False",
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


# ---- the findings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A kind of surprise, in words.

    Args:
        title: what it is.
        when: when a user meets it.
        text: what happens and why.
        plain: a program without funcopt that prints it.
        needs: the package that the program needs.
        also: who has it though no law here shows it, each checked by hand.
    """

    title: str
    when: str
    text: str
    plain: str
    needs: str = "torch"
    also: str = ""


FINDINGS = {
    "fused_strides": Finding(
        "`fused=True` on the CPU takes every tensor for a contiguous one",
        "from the first step with a gradient or a parameter that is a view with gaps or in another order",
        "The fused CPU kernels walk through memory from a tensor's first element on and look at no strides. Of a "
        "gradient that is a slice of a buffer they read the neighbours; an expanded one, such as that of "
        "`torch.autograd.grad(p.sum(), p)`, they read beyond the end of its memory; of a parameter that is a slice "
        "they write to the neighbours. `backward()` makes gradients with their parameter's order in memory, so a "
        "training loop meets this only where `p.grad` is set by hand or a parameter has gaps. The default on the CPU "
        "is not fused, and right. Kernels of other devices were not tried.",
        """
        memory = torch.tensor([1.0, 9.0, 1.0, 9.0])
        p = torch.nn.Parameter(torch.zeros(2))
        p.grad = memory[::2]
        torch.optim.SGD([p], lr=1.0, fused=True).step()
        print("gradient", p.grad.tolist(), "step", p.tolist())
        memory = torch.zeros(4)
        p = torch.nn.Parameter(memory[::2])
        p.grad = torch.ones(2)
        torch.optim.SGD([p], lr=1.0, fused=True).step()
        print("memory", memory.tolist(), "of which the parameter is the 1st and the 3rd")
        """,
    ),
    "fused_rounding": Finding(
        "`fused=True` on the CPU rounds an element by its place in the tensor",
        "in the last bit, from the first steps on",
        "The fused CPU kernels take most of a tensor in vectors and the rest one by one, and the two round otherwise: "
        "elements that have had the same gradients drift apart, and a tensor does not step as its parts do.",
        """
        for opt, more in (
            (torch.optim.Adam, {}),
            (torch.optim.AdamW, {}),
            (torch.optim.SGD, {"momentum": 0.9}),
        ):
            for fused in (False, True):
                torch.manual_seed(0)
                apart = 0
                for _ in range(200):
                    p = torch.nn.Parameter(torch.randn(1, dtype=torch.float64).repeat(9))
                    one = opt([p], lr=0.1, fused=fused, **more)
                    for _ in range(3):
                        p.grad = torch.randn(1, dtype=torch.float64).repeat(9)
                        one.step()
                    apart += not bool((p == p[0]).all())
                print(opt.__name__, f"fused={fused}:", apart, "of 200 tensors of equal elements are no longer so")
        """,
    ),
    "fused_sgd_momentum": Finding(
        "`SGD(fused=True)` with momentum fails once a parameter joins later",
        "at the first step in which one parameter has momentum already and another has its first gradient: a layer "
        "that is unfrozen, a branch that was not taken before",
        "The list of momentum buffers that goes to the kernel then has a `None` in it. Without `fused` it works.",
        """
        p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        opt = torch.optim.SGD([p, q], lr=0.1, momentum=0.9, fused=True)
        p.grad = torch.ones(2)
        opt.step()
        q.grad = torch.ones(2)
        try:
            opt.step()
        except TypeError as error:
            print("TypeError:", error)
        """,
    ),
    "nan_derivatives": Finding(
        "NaN derivatives at a zero gradient",
        "from the first differentiable step in which one gradient of one element is 0, as behind a dead ReLU",
        "The step divides by √v + eps, and the derivative of √v at v = 0 is infinite; times the zero that follows it "
        "is NaN, and one NaN spoils the gradient of everything before. TorchOpt has `eps_root` against it, which is 0 "
        "by default; with `eps_root=1e-8` the law holds.",
        """
        for opt in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adagrad, torch.optim.RMSprop):
            start = torch.ones((), requires_grad=True)
            p, scale = start.clone(), torch.zeros((), requires_grad=True)
            p.grad = scale * start
            opt([p], differentiable=True).step()
            print(opt.__name__, [d.item() for d in torch.autograd.grad(p, [start, scale])])
        """,
        also="torch.optim.RAdam, from its 6th step on (before it there is no √v); torchopt.MetaAdamW",
    ),
    "second_step_raises": Finding(
        "`differentiable=True` cannot be differentiated beyond one step",
        "at `backward()` through two steps or more",
        "The step overwrites a tensor of its state that autograd has kept for the derivative of the step before, and "
        "autograd says so.",
        """
        for opt in (torch.optim.Adamax, torch.optim.Rprop):
            start = torch.ones((), requires_grad=True)
            p, opt_of_p = start.clone(), None
            opt_of_p = opt([p], differentiable=True)
            for _ in range(2):
                p.grad = start * 2
                opt_of_p.step()
            try:
                torch.autograd.grad(p, start)
            except RuntimeError as error:
                print(opt.__name__, "RuntimeError:", str(error)[:85])
        """,
    ),
    "float16": Finding(
        "float16 parameters turn NaN at a zero gradient",
        "from the first step of a float16 parameter of which one element has had no gradient yet; with the default eps",
        "eps is added in float16, where 1e-8 and everything below 3e-8 is 0; what is divided is 0 too. In torch.optim "
        "the default of 1e-8 (Adagrad 1e-10) is such an eps. Adadelta and optimi have 1e-6, which float16 has, and "
        "break only with a smaller eps. `fused=True` computes in float32 and holds.",
        """
        names = "Adadelta Adagrad Adam Adamax AdamW NAdam RAdam RMSprop Rprop SGD".split()
        for name in names:
            p = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
            opt = getattr(torch.optim, name)([p])
            path = []
            for _ in range(6):
                p.grad = torch.zeros(1, dtype=torch.float16)
                opt.step()
                path.append(p.item())
            print(name, path)
        """,
        also="torch.optim.RAdam without foreach, from its 6th step on; torch.optim.SparseAdam where a sparse gradient "
        "has zeros among its values, as one of `nn.Embedding(sparse=True)` may",
    ),
    "loaded_scalars": Finding(
        "Scalars of a loaded state take the parameter's dtype",
        "at `load_state_dict`, for parameters that are not float32",
        "`load_state_dict` gives every tensor of the state but `step` the parameter's dtype. NAdam's `mu_product` is a "
        "float32 scalar: for float64 parameters it goes on in float64, and the run differs from one that was not "
        "interrupted by some 1e-9; for bfloat16 it is rounded to 8 bits. ASGD's `eta` and `mu` are cast too, but no "
        "run was seen to differ by it.",
        """
        p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        for opt, name in ((torch.optim.NAdam, "mu_product"), (torch.optim.ASGD, "eta")):
            one, again = opt([p]), opt([p])
            p.grad = torch.ones_like(p)
            one.step()
            again.load_state_dict(one.state_dict())
            for each, what in ((one, "saved"), (again, "loaded")):
                scalar = each.state[p][name]
                print(opt.__name__, what, name, scalar.dtype, scalar.item())
        """,
    ),
    "lbfgs_layout": Finding(
        "L-BFGS refuses gradients that are not contiguous",
        "from the first step of a model with a transposed or a channels_last parameter",
        "It flattens each gradient with `view(-1)`, and `backward()` gives a gradient its parameter's order in memory.",
        """
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        opt = torch.optim.LBFGS(model.parameters())

        def closure():
            opt.zero_grad()
            loss = model(torch.ones(1, 3, 5, 5)).square().sum()
            loss.backward()
            return loss

        try:
            opt.step(closure)
        except RuntimeError as error:
            print("RuntimeError:", str(error)[:75])
        """,
    ),
    "lbfgs_axes": Finding(
        "L-BFGS's first step depends on the axes",
        "in the first iteration, more so with more parameters",
        "L-BFGS with a line search is a method without axes. Here the first step, and with a line search its first "
        "trial, is lr·min(1, 1/|g|₁) along -g, and the 1-norm has axes: of gradients of one length, one along an axis "
        "of n gets a step √n times as long as one along the diagonal.",
        """
        for g in ([2.0, 0.0], [2**0.5, 2**0.5]):
            p = torch.nn.Parameter(torch.zeros(2))
            opt = torch.optim.LBFGS([p], lr=1.0, max_iter=1)
            p.grad = torch.tensor(g)
            opt.step(lambda: torch.zeros(()))
            print("gradient of length", p.grad.norm().item(), "step of length", p.detach().norm().item())
        """,
    ),
    "adafactor_empty": Finding(
        "Adafactor raises ZeroDivisionError for an empty parameter",
        "from the first step of a model with a parameter without elements, which every other class passes over",
        "The root mean square of p is divided by its number of elements. L-BFGS raises only if all are empty.",
        """
        p = torch.nn.Parameter(torch.zeros(0))
        p.grad = torch.zeros(0)
        for opt in (torch.optim.AdamW, torch.optim.Adafactor):
            try:
                opt([p]).step()
                print(opt.__name__, "steps")
            except ZeroDivisionError as error:
                print(opt.__name__, "ZeroDivisionError:", error)
        """,
    ),
    "asgd_rate": Finding(
        "ASGD's learning rate comes a step late, and in float32",
        "with any scheduler; in float64 at every step",
        "A step is taken with `eta` of the state, which is worked out from lr at the end of the step before: a rate "
        "that a scheduler sets acts one step later. `eta` is a tensor of torch's default dtype, float32, whatever the "
        "parameters are.",
        """
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        opt = torch.optim.ASGD([p], lr=1.0, lambd=0.0)
        for lr in (1.0, 0.0, 0.0):
            opt.param_groups[0]["lr"] = lr
            p.grad = torch.ones_like(p)
            opt.step()
            print("lr", lr, "p", p.item())
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        p.grad = torch.ones_like(p)
        torch.optim.ASGD([p], lr=0.1, lambd=0.0).step()
        print("lr 0.1 p", p.item())
        """,
    ),
    "rprop_zero": Finding(
        "Rprop moves at lr = 0",
        "with lr below 1e-6 or above 50, the default `step_sizes`",
        "The first step size is lr, but clamped to `step_sizes` before it is used: a group cannot be frozen by lr = 0. "
        "Later ones do not look at lr at all, so a scheduler does nothing to Rprop.",
        """
        p = torch.nn.Parameter(torch.zeros(1))
        opt = torch.optim.Rprop([p], lr=0.0)
        for _ in range(3):
            p.grad = torch.ones(1)
            opt.step()
            print(p.item())
        """,
    ),
    "float32_correction": Finding(
        "Bias correction in float32",
        "from the first step on, in every dtype: 7e-6 of the step at β₂ = 0.999, 8e-5 at 0.9999, 7e-4 at 0.99999; "
        "less as 1-β₂ᵗ grows",
        "TorchOpt works 1-βᵗ out as `1 - pow(β, t)` with an integer tensor t, which torch makes float32; near 1 that "
        "difference keeps few digits.",
        """
        import torchopt

        for beta2 in (0.999, 0.9999, 0.99999):
            for opt in (torch.optim.AdamW, torchopt.AdamW):
                p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
                p.grad = torch.ones_like(p)
                opt([p], lr=1.0, betas=(0.9, beta2), weight_decay=0.0).step()
                print(beta2, opt.__module__.partition(".")[0], p.item())
        """,
        needs="torchopt",
    ),
    "gradients_written": Finding(
        "A step overwrites the gradients",
        "as soon as `p.grad` is read after a step, or kept for another one: logging of norms, accumulation, a second "
        "optimizer, a step without a new `backward()`",
        "Schedule-Free divides the gradient by √v̂ + eps in place. With `maximize=True` pytorch_optimizer and TorchOpt "
        "negate it in place, so that a second step on the same gradient goes the other way; TorchOpt's accelerated op "
        "leaves the update in it. Their aim is to save memory; torch.optim's AdamW leaves gradients as they are.",
        """
        import pytorch_optimizer, schedulefree, torchopt

        for opt, more in (
            (torch.optim.AdamW, {"maximize": True}),
            (schedulefree.AdamWScheduleFree, {}),
            (pytorch_optimizer.Lion, {"maximize": True}),
            (torchopt.AdamW, {"maximize": True}),
            (torchopt.AdamW, {"use_accelerated_op": True}),
        ):
            p = torch.nn.Parameter(torch.zeros(1))
            opt = opt([p], lr=0.1, **more)
            getattr(opt, "train", lambda: None)()
            p.grad = torch.full((1,), 2.0)
            opt.step()
            print(type(opt).__module__.partition(".")[0], type(opt).__name__, more, "2 became", p.grad.item())
        """,
        needs="pytorch_optimizer schedulefree torchopt",
        also="optimi.AdamW for bfloat16 and float16 parameters, whose gradients are scratch memory for its Kahan sums",
    ),
    "nesterov_gradients": Finding(
        "`SGD(nesterov=True)` overwrites the gradients with `foreach`, the default on a GPU",
        "as soon as `p.grad` is read after a step, or kept for another one: logging of norms, accumulation, a step "
        "without a new `backward()`; on a GPU without a choice of one's own, elsewhere with `foreach=True`",
        "The multi-tensor step adds momentum times the buffer to the gradient in place, where there is no weight decay "
        "to make a copy for. The plain and the fused step leave the gradient as it is. Seen with `foreach=True` on the "
        "CPU; that this is the default on CUDA is what torch's documentation says.",
        """
        for more in ({}, {"fused": True}, {"foreach": True}):
            p = torch.nn.Parameter(torch.zeros(1))
            opt = torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True, **more)
            p.grad = torch.full((1,), 2.0)
            for _ in range(3):
                opt.step()
            print(more, "after three steps on a gradient of 2 it is", p.grad.item(), "and p", p.item())
        """,
    ),
    "weights_only": Finding(
        "A saved state cannot be loaded as torch loads by default",
        "at `torch.load` of a checkpoint, with torch 2.6 or later",
        "TorchOpt's state_dict holds named tuples of its own, which `torch.load(weights_only=True)`, the default, "
        "refuses; the optimizer itself cannot be pickled.",
        """
        import io, torchopt

        p, file = torch.nn.Parameter(torch.zeros(1)), io.BytesIO()
        opt = torchopt.AdamW([p])
        p.grad = torch.ones(1)
        opt.step()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        try:
            torch.load(file)
        except Exception as error:
            print(type(error).__name__, str(error)[:24])
        """,
        needs="torchopt",
    ),
    "group_steps": Finding(
        "Steps are counted for the group, not for the parameter",
        "when a parameter gets its first gradient after the others: a layer that is unfrozen, an expert that was not "
        "chosen before",
        "The bias correction is then that of a run that is long under way, while the moments begin at 0. The first "
        "step is not lr·sign(g), but (1-β₁)/√(1-β₂) times as long: 3.2 at betas of (0.9, 0.999). It is 32 for "
        "Schedule-Free's z, which has no first moment, and 0.1 for StableAdamW, which clips what is too long.",
        """
        import optimi, pytorch_optimizer, schedulefree

        for opt, more in (
            (torch.optim.AdamW, {}),
            (optimi.AdamW, {"triton": False}),
            (pytorch_optimizer.StableAdamW, {}),
            (schedulefree.AdamWScheduleFree, {}),
        ):
            p, late = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
            opt = opt([p, late], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, **more)
            getattr(opt, "train", lambda: None)()
            for t in range(10000):
                p.grad = torch.ones(1)
                late.grad = torch.ones(1) if t == 9999 else None
                opt.step()
            moved = opt.state[late].get("z", late)
            print(type(opt).__module__.partition(".")[0], "first step / lr:", round(moved.item() / 1e-3, 3))
        """,
        needs="optimi pytorch_optimizer schedulefree",
    ),
    "group_betas": Finding(
        "`betas` of a parameter group are ignored",
        "from the first step with groups that have betas of their own",
        "optimi reads `beta1` and `beta2` of a group; `betas` is taken by the constructor alone, and in a group it is "
        "kept and never read.",
        """
        import optimi

        for opt, more in ((torch.optim.AdamW, {}), (optimi.AdamW, {"triton": False})):
            p, q = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
            opt = opt([{"params": [p]}, {"params": [q], "betas": (0.5, 0.5)}], lr=0.1, **more)
            for g in (1.0, -0.5, 0.25):
                p.grad, q.grad = torch.full((1,), g), torch.full((1,), g)
                opt.step()
            print(type(opt).__module__.partition(".")[0], "default betas", p.item(), "betas of (0.5, 0.5)", q.item())
        """,
        needs="optimi",
    ),
    "triton_for_none": Finding(
        "Triton is chosen for the CPU after a step without gradients",
        "on a machine without a GPU but with Triton, where no parameter of a group has a gradient at its first step",
        "Whether to use Triton is found out from the parameters that have gradients at a group's first step, and kept. "
        "All of none are on a GPU.",
        """
        import optimi

        p = torch.nn.Parameter(torch.zeros(1))
        opt = optimi.AdamW([p], lr=0.1)
        opt.step()
        p.grad = torch.ones(1)
        try:
            opt.step()
        except RuntimeError as error:
            print("RuntimeError:", error)
        """,
        needs="optimi",
    ),
    "whole_decay": Finding(
        "No decay where lr·λ is exactly 1",
        "with lr = 1 and weight_decay = 1",
        "The factor 1 - lr·λ is put in place of λ, and a factor of 0 is then taken for no decay.",
        """
        import optimi

        for decay in (0.9, 0.99, 1.0):
            p = torch.nn.Parameter(torch.ones(1))
            opt = optimi.AdamW([p], lr=1.0, weight_decay=decay, triton=False)
            p.grad = torch.zeros(1)
            opt.step()
            print("weight_decay", decay, "p", p.item())
        """,
        needs="optimi",
    ),
    "copies": Finding(
        "A copy of the optimizer cannot step",
        "at the first step after `copy.deepcopy`, or after unpickling the optimizer itself",
        "The class keeps `maximize` as an attribute of its own, which torch's `Optimizer.__getstate__` leaves out.",
        """
        import copy, pytorch_optimizer

        p = torch.nn.Parameter(torch.zeros(1))
        opt = copy.deepcopy(pytorch_optimizer.Lion([p]))
        opt.param_groups[0]["params"][0].grad = torch.ones(1)
        try:
            opt.step()
        except AttributeError as error:
            print("AttributeError:", error)
        """,
        needs="pytorch_optimizer",
    ),
}

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
    **{
        (f"torch.optim.{name}, fused=True", law): "fused_rounding"
        for name in WITH_FUSED
        for law in ("concatenation", "permutation")
    },
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


# What is a fault of a law, or of how it is tried, and not of the optimizer: words of the message that tell it.
OURS = [
    ("torch.optim.LBFGS, vectors", "repeatable", "value of Tensor", "it cannot compare lists of tensors in a state"),
    ("torch.optim.LBFGS, a problem", "quadratic_solved", "", "tolerance_change, 1e-9, ends the search before 1e-6"),
    ("torch.optim.Muon", "orthogonal_steps", "1024 times", "eps is drawn up to 0.01, and the gradient is as small"),
    *(
        (f"torch.optim.Adafactor{way}", law, "bit for bit", "a negated tensor has no gaps; torch sums it up otherwise")
        for way in ("", ", foreach=True")
        for law in ("oddness", "maximize")
    ),
    *(
        (name, "life_cycle", r"after \[('step'(, )?)+\]", "the reference is given the gradient that the step has overwritten")
        for name in (
            "torch.optim.SGD, foreach=True",
            "schedulefree.AdamWScheduleFree",
            "torchopt.adamw (functional)",
            "pytorch_optimizer.StableAdamW",
            "pytorch_optimizer.Lion",
        )
    ),
]  # fmt: skip


def fault_of(subject: Subject, verdict: Verdict) -> str | None:
    """Why a broken law is our fault; None where it is not."""
    for name, law, words, why in OURS:
        if (name, law) == (subject.name, verdict.law.name) and re.search(words, verdict.detail):
            return why
    return None


def finding_of(subject: Subject, verdict: Verdict) -> str | None:
    """The finding that a broken law shows; None where nobody has explained it."""
    if fault_of(subject, verdict):
        return None
    if subject.name == "torch.optim.SGD, fused=True" and "NoneType" in verdict.detail:  # in any law with two parameters
        return "fused_sgd_momentum"
    return OF_SUBJECT.get((subject.name, verdict.law.name), OF_LAW.get(verdict.law.name))


# ---- the run --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Try all subjects, and write the page.

    Returns:
        0 where every broken law is explained and every exemption needed, else 1.
    """
    from tqdm import tqdm

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
    odd = []
    for subject, report in reports:
        for v in report.verdicts:
            explained = finding_of(subject, v) or fault_of(subject, v)
            if v.status == "unneeded" or (v.status == "broken" and not explained):
                odd.append(f"{subject.name}: {v.law.name} is {v.status}: {v.detail}")
    print("\n".join([*odd, f"{len(reports)} subjects, {len(broken(reports))} broken laws: tests/{PAGE.name}"]))
    return 1 if odd else 0


def broken(reports: Sequence[tuple[Subject, Report]]) -> list[tuple[Subject, Verdict]]:
    """Every subject with every law that it breaks."""
    return [(subject, v) for subject, report in reports for v in report.verdicts if v.status == "broken"]


def output_of(finding: Finding) -> str | None:
    """What the program of a finding prints; None where a package is missing."""
    if not all(importlib.util.find_spec(package) for package in finding.needs.split()):
        return None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(source(finding), {"__name__": "finding"})
        except Exception:
            print(traceback.format_exc(limit=0))
    return out.getvalue().rstrip()


def source(finding: Finding) -> str:
    """A finding's program."""
    lines = finding.plain.strip("\n").splitlines()
    return (
        "\n".join(["import torch", "", *(line.removeprefix(" " * 8) for line in lines)])
        .rstrip()
        .replace("import torch\n\nimport ", "import torch\nimport ")
    )


# ---- the page -------------------------------------------------------------------------------------------------------


def page(reports: Sequence[tuple[Subject, Report]], missing: Sequence[str], minutes: float) -> Iterator[str]:
    """The lines of FINDINGS.md."""
    versions = [f"{name} {importlib.metadata.version(name)}" for p, name in PACKAGES.items() if p not in missing]
    yield "# What the laws find in other optimizers"
    yield ""
    yield "Written by `python -m tests.testing.findings`, the words by hand, all else by the run; do not edit it here."
    yield f"This run: Python {platform.python_version()}, {', '.join(versions)};"
    yield f"on a CPU, {EXAMPLES} cases for an ordinary law, seed 0; {minutes:.0f} minutes of one core."
    if missing:
        yield f"Not installed, and left out: {', '.join(missing)}."
    yield ""
    yield "The laws are those of [`funcopt.testing`](../funcopt/testing/laws); `python -m funcopt check --list` prints"
    yield "them. A broken law is one that an optimizer does not keep. Where it does not mean to, it is exempt, and the"
    yield "reason is at the end. Each finding is seen again without funcopt, by the program that stands with it."
    yield "`pytorch_optimizer.AdamW` is torch.optim's own class, so two others of that package are here instead."
    yield ""
    found = {key: [(s, v) for s, v in broken(reports) if finding_of(s, v) == key] for key in FINDINGS}
    yield from summary(found)
    yield from table_of(reports)
    yield from details(found)
    yield from counterexamples(reports)
    yield from exemptions(reports)


def who(cases: Sequence[tuple[Subject, Verdict]]) -> str:
    """The optimizers of some broken laws, each once."""
    names = {s.name: None for s, _ in cases if s.like == "" or not any(base(o, s) for o, _ in cases)}
    return "; ".join(names)


def base(subject: Subject, other: Subject) -> bool:
    """Whether a subject is the one that another repeats."""
    return bool(other.like) and subject is not other and subject.name in (other.like, f"torch.optim.{other.like}")


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in body:
        yield "| " + " | ".join(map(cell, row)) + " |"
    yield ""


def summary(found: Mapping[str, Sequence[tuple[Subject, Verdict]]]) -> Iterator[str]:
    yield "## Summary"
    yield ""
    body = []
    for key, cases in found.items():
        if cases:
            finding = FINDINGS[key]
            has = who(cases) + (f"; by hand: {finding.also}" if finding.also else "")
            body.append((f"[{finding.title}](#{anchor(finding.title)})", has, finding.when))
    yield from rows(("finding", "who has it", "when a user meets it"), body)


def anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def table_of(reports: Sequence[tuple[Subject, Report]]) -> Iterator[str]:
    yield "## Optimizers"
    yield ""
    yield "`foreach=True` is the default on a GPU; it and `fused=True` are run on the CPU here."
    yield ""
    body = []
    for subject, report in reports:
        names: dict[str, list[str]] = {"held": [], "broken": [], "exempt": [], "unneeded": []}
        for v in report.verdicts:
            if v.status != "exempt" or v.counterexample is not None:  # the others are not about it
                names[v.status].append(v.law.name)
        body.append(
            (
                subject.name,
                str(len(names["held"])),
                ", ".join(names["broken"]) or "none",
                ", ".join(names["exempt"]) or "none",
                str(report.claims),
            )
        )
    yield from rows(("optimizer", "laws held", "broken", "exempt, reasons below", "taken to be"), body)


def details(found: Mapping[str, Sequence[tuple[Subject, Verdict]]]) -> Iterator[str]:
    yield "## Findings"
    yield ""
    for key, cases in found.items():
        if not cases:
            continue
        finding = FINDINGS[key]
        yield f"### {finding.title}"
        yield ""
        yield finding.text
        yield ""
        yield from (f"- {s.name}: `{v.law.name}`" for s, v in cases)
        if finding.also:
            yield f"- seen by hand: {finding.also}"
        yield ""
        yield "```python"
        yield source(finding)
        yield "```"
        yield ""
        printed = output_of(finding)
        if printed is not None:
            yield "It prints"
            yield ""
            yield "```text"
            yield printed
            yield "```"
            yield ""


def counterexamples(reports: Sequence[tuple[Subject, Report]]) -> Iterator[str]:
    yield "## Broken laws"
    yield ""
    yield "For each the smallest case that was found, as a program that raises `BrokenLawError`, and the command that"
    yield "finds it again. What a `foreach` or `fused` run has in common with the plain one is not repeated."
    yield ""
    for subject, report in reports:
        verdicts = [v for v in report.verdicts if v.status == "broken"]
        bases = [r for s, r in reports if base(s, subject)]
        same = {v.law.name for r in bases for v in r.verdicts if v.status == "broken"}
        fresh = [v for v in verdicts if v.law.name not in same]
        if not verdicts:
            continue
        yield f"### {subject.name}"
        yield ""
        if len(fresh) < len(verdicts):
            yield f"As above: {', '.join(f'`{v.law.name}`' for v in verdicts if v.law.name in same)}."
            yield ""
        for v in fresh:
            yield from one(subject, v)


def one(subject: Subject, verdict: Verdict) -> Iterator[str]:
    found, law = verdict.counterexample, verdict.law
    key, fault = finding_of(subject, verdict), fault_of(subject, verdict)
    yield f"**`{law.name}`**: {' '.join(law.equation.split())}"
    yield ""
    message = " ".join(re.sub("\x1b\\[\\d*m", "", found.message).split())
    yield f"Seen: {message if len(message) < 300 else message[:299] + '…'}"
    yield f"Finding: {FINDINGS[key].title}." if key else f"A fault of the law: {fault}." if fault else "Not explained."
    yield ""
    if not subject.dense:  # the command has no option for it
        yield "```sh"
        yield subject.command(law.name)
        yield "```"
        yield ""
    yield "```python"
    yield found.program
    yield "```"
    yield ""


def exemptions(reports: Sequence[tuple[Subject, Report]]) -> Iterator[str]:
    yield "## Exemptions"
    yield ""
    yield "Laws that an algorithm does not mean to keep. Each was tried all the same, and is indeed not kept."
    yield ""
    known: dict[tuple[str, str], list[str]] = {}
    for subject, report in reports:
        for v in report.verdicts:
            if v.status == "exempt" and v.counterexample is not None:
                known.setdefault((v.law.name, subject.exempt[v.law.name]), []).append(subject.name)
    yield from rows(
        ("law", "optimizers", "reason"), [(f"`{law}`", "; ".join(s), why) for (law, why), s in known.items()]
    )


if __name__ == "__main__":
    # The module by its own name, so that programs can import the wrapper from it.
    sys.exit(importlib.import_module(ME).main())
