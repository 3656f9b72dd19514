"""What an optimizer is: its family, whether it is elementwise, how its weights decay; given, declared, or found out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from funcopt import hyper
from funcopt.testing.subject import AnySubject, FunctionSubject, PureSubject, Subject

__all__ = ["FAMILIES", "Claims", "claims_of"]


@dataclass(frozen=True)
class Claims:
    """What an optimizer claims to be, and for each claim who says so: `given`, `declared` or `found`.

    Args:
        family: the algorithm whose exact values it has: sgd, adam, nadam, …; None for none known.
        elementwise: whether an element's step depends on that element alone.
        complex: whether it takes complex parameters, and shows it in the pure form.
        sparse: whether it takes sparse gradients, likewise.
        decoupled: whether weight decay acts beside the step (True), as L2 in the gradient (False), or, where a flag
            chooses, either (None).
        differentiable: whether derivatives go through a step.
        skips_nonfinite: whether a step with a gradient that is not finite is skipped.
    """

    family: str | None = None
    elementwise: bool = True
    complex: bool = False
    sparse: bool = False
    decoupled: bool | None = None
    differentiable: bool = True
    skips_nonfinite: bool = False
    source: Mapping[str, str] = field(default_factory=dict)

    def lacks(self, claim: str) -> str | None:
        """Why a law that needs a claim does not apply; None where it does."""
        kinds = {
            "elementwise": (self.elementwise, "not elementwise"),
            "complex": (self.complex, "complex parameters are refused"),
            "sparse": (self.sparse, "sparse gradients are refused"),
            "decoupled": (self.decoupled is not False, "weight decay is in the gradient (L2)"),
            "coupled": (self.decoupled is not True, "weight decay is decoupled"),
            "differentiable": (self.differentiable, "no derivative goes through a step"),
            "shows_nonfinite": (not self.skips_nonfinite, "it claims to skip a step that is not finite"),
            "skips_nonfinite": (self.skips_nonfinite, "it does not claim to skip a step that is not finite"),
        }
        holds, reason = kinds[claim]
        source = self.source.get("decoupled" if claim == "coupled" else claim)
        return None if holds else f"{reason} ({source})" if source else reason

    def __str__(self) -> str:
        by_flag = "flag" in self.source.get("decoupled", "")
        decay = {
            True: "decoupled weight decay",
            False: "weight decay in the gradient (L2)",
            None: "weight decay by flag" if by_flag else "weight decay of its own kind",
        }
        parts = {
            "family": self.family or "of no family",
            "elementwise": "elementwise" if self.elementwise else "not elementwise",
            "decoupled": decay[self.decoupled],
            "differentiable": "differentiable" if self.differentiable else "not differentiable",
        }
        return ", ".join(f"{parts[name]} ({who})" for name, who in self.source.items() if name in parts)


# The family of what has such a name; what is elementwise among them.
FAMILIES: Mapping[str, str] = {
    **{name: name for name in ("sgd", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop", "rprop", "lion")},
    **{name: name for name in ("lbfgs", "muon", "asgd", "adafactor", "sparseadam")},
    **dict.fromkeys(("adam", "adamw", "amsgrad"), "adam"),
}
ELEMENTWISE = ("sgd", "adam", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop", "rprop", "lion", "asgd")

BY_SLOTS = "by its slots and numbers"

# The family of what has these slots and numbers, and not those.
MARKS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("adam", ("exp_avg", "exp_avg_sq", "betas", "eps"), ("momentum_decay",)),
    ("adamax", ("exp_avg", "exp_inf", "betas"), ()),
    ("rmsprop", ("square_avg", "alpha"), ("acc_delta",)),
    ("adagrad", ("sum", "eps"), ()),
    ("lion", ("exp_avg", "betas"), ("exp_avg_sq", "eps")),
    ("sgd", ("momentum_buffer", "momentum"), ("eps",)),
)


def claims_of(
    subject: AnySubject,
    exempt: Mapping[str, str],
    holds: Callable[[str], bool],
    *,
    family: str | None,
    elementwise: bool | None,
    decoupled: bool | None,
    skips_nonfinite: bool,
) -> Claims:
    """What an optimizer claims to be.

    Args:
        subject: which.
        exempt: the laws that it is exempt from.
        holds: tries the law of a name on a few cases.
        family: as given; None to find out.
        elementwise: likewise.
        decoupled: likewise.
        skips_nonfinite: as given.
    """
    if isinstance(subject, FunctionSubject):
        return Claims()
    source = {}
    known = {*FAMILIES.values(), "none"}
    if family is not None and family not in known:
        raise ValueError(f"family is {family!r}; {hyper.suggest(family, sorted(known))}")
    if family is None:
        family, source["family"] = _family(subject)
    else:
        family, source["family"] = None if family == "none" else family, "given"

    if elementwise is not None:
        source["elementwise"] = "given"
    elif isinstance(subject, PureSubject):
        elementwise, source["elementwise"] = subject.rule.elementwise, "declared"
    elif family in ELEMENTWISE and source["family"] != BY_SLOTS:
        elementwise, source["elementwise"] = True, "by family"
    else:
        probes = ("permutation", "concatenation", "nan_containment")
        elementwise, source["elementwise"] = all(holds(name) for name in probes), "found by trying"

    flag = subject.flags({}).get("decoupled_weight_decay")
    if decoupled is not None:
        source["decoupled"] = "given"
    elif not subject.has("weight_decay"):
        pass
    elif "decoupled_weight_decay" in subject.choices:
        source["decoupled"] = "the flag decoupled_weight_decay"
    elif flag is not None and subject.has("decoupled_weight_decay"):
        decoupled, source["decoupled"] = flag, "its flag"
    elif "decoupled_weight_decay" in exempt or "coupled_weight_decay" in exempt:
        decoupled, source["decoupled"] = "coupled_weight_decay" in exempt, "declared"
    elif "adamw" in subject.name.rpartition(".")[-1].lower():
        decoupled, source["decoupled"] = True, "by name"
    else:
        beside, inside = (holds(name) for name in ("decoupled_weight_decay", "coupled_weight_decay"))
        decoupled, source["decoupled"] = (None if beside == inside else beside), "found by trying"

    differentiable = isinstance(subject, PureSubject) or "differentiable" in subject.defaults
    source["differentiable"] = "as every rule" if isinstance(subject, PureSubject) else "its constructor's arguments"
    takes = {}
    if isinstance(subject, PureSubject):
        takes = {"complex": subject.rule.complex, "sparse": subject.rule.rows is not None}
    return Claims(
        family,
        bool(elementwise),
        decoupled=decoupled,
        differentiable=differentiable,
        skips_nonfinite=skips_nonfinite,
        source=source,
        **takes,
    )


def _family(subject: Subject) -> tuple[str | None, str]:
    name = subject.rule.name if isinstance(subject, PureSubject) else subject.cls.__name__
    if (plain := name.lower().replace("_", "")) in FAMILIES:
        return FAMILIES[plain], "by name"
    for family, there, absent in MARKS:
        if all(map(subject.has, there)) and not any(map(subject.has, absent)):
            return family, BY_SLOTS
    return None, "none found"
