"""What a law is: a named assertion about an optimizer, whom it concerns, and what it is tried on."""

import contextlib
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from funcopt import backends
from funcopt.testing import strategies
from funcopt.testing.case import Case, code
from funcopt.testing.claims import Claims
from funcopt.testing.subject import KINDS, AnySubject, ClassSubject, Run, subject_of

__all__ = [
    "NO_DECAY",
    "BrokenLawError",
    "Law",
    "SaysNothingError",
    "Tried",
    "in_float64",
    "law",
    "moved",
    "near",
    "rounding",
    "same",
    "scale_of",
]


class BrokenLawError(AssertionError):
    """A law does not hold: what was found, and what the law says."""


class SaysNothingError(Exception):
    """A law says nothing of a case, and why: the case does not count."""


@dataclass(frozen=True)
class Tried:
    """What a law is tried on: how its cases are drawn.

    Args:
        steps: the fewest and the most steps.
        leaves: the fewest and the most parameters.
        max_side, max_dims: of the parameters' shapes; min_side, min_dims likewise.
        dtypes: of the parameters, and so of gradients and state.
        params, grads: the kinds of values, see `strategies.elements`.
        layouts: how tensors lie in memory, see `strategies.tensors`.
        missing: whether gradients may be None.
        constant: whether the gradient is the same at every step.
        numbers: hyperparameters held at a value, where the optimizer has them.
        flags: flags held at a value, where the optimizer has them.
        nonzero: hyperparameters that are not 0.
        more: what else is drawn: strategies by name.
    """

    steps: tuple[int, int] = (1, 4)
    leaves: tuple[int, int] = (1, 2)
    min_side: int = 0
    max_side: int = 3
    min_dims: int = 0
    max_dims: int = 2
    dtypes: Sequence[torch.dtype] = (torch.float64,)
    params: Sequence[str] = ("zero", "moderate")
    grads: Sequence[str] = ("zero", "moderate")
    layouts: Sequence[str] = strategies.LAYOUTS
    missing: bool = False
    constant: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    nonzero: Sequence[str] = ("eps",)
    more: Mapping[str, SearchStrategy[Any]] = field(default_factory=dict)


Check = Callable[[Any, Case], None]


@dataclass(frozen=True, eq=False)
class Law:
    """A named assertion about optimizers. Its docstring, `equation`, is what it asserts.

    Args:
        name: what reports and exemptions call it.
        equation: what it asserts, in symbols: p, g and t are a parameter, its gradient and the step number, `run` the
            trajectory of an optimizer on a given sequence of gradients.
        holds: raises `BrokenLawError` where a case breaks it.
        tried: how its cases are drawn.
        of: "pure" where it needs the pure form, "class" where it needs the stateful one, "any" for either; "clip" and
            "schedule" for laws of such functions.
        families: the algorithms it is about; empty where it is about all.
        needs: the hyperparameters, flags and slots that it speaks of.
        uses: the parts of torch.optim's interface that it uses of a class.
        claim: what the optimizer must claim to be, as `Claims.lacks` knows it: "elementwise", "decoupled", ….
        backend: the one that it needs to work here.
        cost: how many cases of an ordinary law one of its own costs; it is tried on so many fewer.
    """

    name: str
    equation: str
    holds: Check
    tried: Tried
    of: str = "any"
    families: Sequence[str] = ()
    needs: Sequence[str] = ()
    uses: Sequence[str] = ()
    claim: str | None = None
    backend: str | None = None
    cost: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.equation)

    def __repr__(self) -> str:
        return f"<law {self.name}: {self.equation.splitlines()[0]}>"

    def check(self, opt: Any, case: Case, **options: Any) -> None:
        """Try an optimizer on one case.

        Args:
            opt: whatever `check_laws` takes.
            case: what it is tried on.
            **options: of `check_laws`, those that say how it is run: backend, fixed, reference.

        Raises:
            BrokenLawError: the law does not hold for it.
            ValueError: the law compares it with a reference, and there is none.
        """
        subject = self._subject(opt, **options)
        if self.claim == "reference" and subject.reference is None:
            raise ValueError(f"{self.name} compares with a reference; give reference=, such as torch.optim.AdamW")
        self.holds(subject, case)

    def _subject(self, opt: Any, **options: Any) -> AnySubject:
        kind = self.of if self.of in KINDS else "optimizer"
        return opt if isinstance(opt, AnySubject) else subject_of(opt, kind=kind, **options)

    def excuse(self, subject: AnySubject, claims: Claims) -> str | None:
        """Why the law is not about this optimizer; None where it is."""
        if self.of not in ("any", subject.interface):
            forms = {"pure": "needs the pure form", "class": "is about the stateful form"}
            return forms.get(self.of, f"is about a {self.of}")
        if self.families and claims.family not in self.families:
            found = f"this is {claims.family}" if claims.family else "this is none known"
            return f"is about {', '.join(self.families)}; {found}"
        for name in self.needs:
            if not subject.has(name):
                return f"there is no {name}"
        for part in self.uses:
            if isinstance(subject, ClassSubject) and part not in subject.parts:
                return f"there is no {part}"
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.backend and (reason := backends.unavailable(self.backend, device)):
            return reason
        if self.claim == "reference":
            if subject.reference is None:
                return "there is no reference to compare with"
        elif self.claim and (reason := claims.lacks(self.claim)):
            return reason
        for kind in ("dtypes", "layouts"):
            if not self._among(kind, subject):
                tried = ", ".join(code(value).strip("'") for value in getattr(self.tried, kind))
                return f"is tried on {kind} {tried}, which are left out"
        return subject.unfit(self.tried.flags, self.tried.numbers)

    def _among(self, kind: str, subject: AnySubject) -> list[Any]:
        """What the law is tried on, "dtypes" or "layouts", of that which the optimizer takes."""
        taken = getattr(subject.takes, kind)
        return [value for value in getattr(self.tried, kind) if taken is None or value in taken]

    def cases(self, opt: Any, **options: Any) -> SearchStrategy[Case]:
        """The cases it is tried on, for an optimizer and options as `check` takes them."""
        subject = self._subject(opt, **options)
        tried = replace(self.tried, dtypes=self._among("dtypes", subject), layouts=self._among("layouts", subject))
        held = {name: value for name, value in tried.flags.items() if name in subject.choices}
        numbers = {}
        for flags in _combinations(subject.choices, held):
            with contextlib.suppress(ValueError):  # no numbers go with these flags
                numbers[flags] = subject.draw_numbers(dict(flags), tried.numbers, tried.nonzero)
        shapes = _shapes(tried, subject.dims) if subject.takes.shapes is None else subject.takes.shapes
        return _cases(subject, tried, shapes, numbers)


def _shapes(tried: Tried, dims: Sequence[int]) -> SearchStrategy[tuple[int, ...]]:
    """Shapes that a law is tried on, of the numbers of dimensions that an optimizer takes; else those nearest."""
    wanted = range(tried.min_dims, tried.max_dims + 1)
    there = [d for d in wanted if d in dims] or [min(dims, key=lambda d: abs(d - tried.max_dims))]

    def shapes(least: int, most: int) -> SearchStrategy[tuple[int, ...]]:
        return strategies.shapes(min_dims=least, max_dims=most, min_side=tried.min_side, max_side=tried.max_side)

    if there == list(range(there[0], there[-1] + 1)):
        return shapes(there[0], there[-1])
    return st.one_of([shapes(d, d) for d in there])


def _combinations(
    choices: Mapping[str, Sequence[Any]], held: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, Any], ...]]:
    values = [(held[name],) if name in held else choices[name] for name in choices]
    for chosen in itertools.product(*values):
        yield tuple(zip(choices, chosen, strict=True))


@st.composite
def _cases(
    draw: Any,
    subject: AnySubject,
    tried: Tried,
    shapes: SearchStrategy[tuple[int, ...]],
    numbers: Mapping[tuple[tuple[str, Any], ...], SearchStrategy[dict[str, Any]]],
) -> Case:
    flags = draw(st.sampled_from(list(numbers)))
    dtype = draw(st.sampled_from(list(tried.dtypes)))
    layouts = st.sampled_from(list(tried.layouts))
    params, each = [], []
    for _ in range(draw(st.integers(*tried.leaves))):
        shape = draw(shapes)
        params.append(draw(_tensors(shape, dtype, tuple(tried.params), draw(layouts))))
        each.append(_tensors(shape, dtype, tuple(tried.grads), draw(layouts)))

    def gradient(strategy: SearchStrategy[Tensor]) -> Tensor | None:
        return None if tried.missing and draw(st.integers(0, 3)) == 3 else subject.gradient(draw(strategy))

    steps = draw(st.integers(*tried.steps))
    grads = [[gradient(strategy) for strategy in each] for _ in range(1 if tried.constant else steps)]
    grads = grads * steps if tried.constant else grads
    more = {name: draw(strategy) for name, strategy in tried.more.items()}
    return Case(params, grads, draw(numbers[flags]), dict(flags), more)


@functools.lru_cache(maxsize=4096)
def _tensors(
    shape: tuple[int, ...], dtype: torch.dtype, include: tuple[str, ...], layout: str
) -> SearchStrategy[Tensor]:
    return strategies.tensors(shape, dtype, include=include, layouts=(layout,))


def law(tried: Tried | None = None, **fields: Any) -> Callable[[Check], Law]:
    """Make a law of a function `(subject, case)` that raises `BrokenLawError`; its docstring is the equation."""

    def make(holds: Check) -> Law:
        equation = textwrap.dedent(inspect.cleandoc(holds.__doc__ or "")).strip()
        if not equation:
            raise TypeError(f"the law {holds.__name__} says nothing: give it a docstring with what it asserts")
        return Law(holds.__name__, equation, holds, tried or Tried(), **fields)

    return make


# ---- what laws are written with -------------------------------------------------------------------------------------


# ASGD's λ is another decay of weights.
NO_DECAY = {"weight_decay": 0.0, "lambd": 0.0}


def in_float64(holds: Check) -> Check:
    """Have a law tried where float64 is the default dtype.

    What an optimizer keeps as a single number, such as NAdam's product of momenta, is then float64 as the rest is, and
    not float32, which would be rounded coarsely.
    """

    @functools.wraps(holds)
    def exactly(subject: Any, case: Case) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            holds(subject, case)
        finally:
            torch.set_default_dtype(before)

    return exactly


# A step of any of these algorithms rounds some ten times, each time by at most half a unit in the last place.
ROUNDINGS = 16


def rounding(dtype: torch.dtype, steps: int) -> float:
    """The relative error that `steps` steps of elementwise arithmetic may come to in a dtype."""
    return ROUNDINGS * (steps + 1) * torch.finfo(dtype).eps


def scale_of(*runs: Run) -> list[Tensor]:
    """For each parameter the size of what was added up in some runs: its values and all that it moved."""
    scales = []
    for leaf in range(len(runs[0].params[0])):
        sizes = []
        for run in runs:
            path = [at[leaf].double() for at in run.params]
            steps = [(b - a).abs() for a, b in itertools.pairwise(path)]
            sizes.append(sum(steps, torch.stack([p.abs() for p in path]).amax(0)))
        scales.append(torch.stack(sizes).amax(0))
    return scales


def moved(run: Run, leaf: int) -> Tensor:
    """How far a parameter has moved, in float64."""
    return run.params[-1][leaf].double() - run.params[0][leaf].double()


def same(got: Any, want: Any, what: str) -> None:
    """Raise `BrokenLawError` where two tensors differ in a bit, a dtype or a shape; NaN equals NaN, and 0 equals -0.

    Of containers every part is compared; other values are equal where Python says so.
    """
    if isinstance(want, dict | list | tuple) and type(got) is type(want):
        items, others = (x if isinstance(x, dict) else dict(enumerate(x)) for x in (want, got))
        if list(others) != list(items):
            raise BrokenLawError(f"{what} has {list(others)}; the law says {list(items)}")
        for key, value in items.items():
            same(others[key], value, f"{what}[{key!r}]")
        return
    if not isinstance(got, Tensor) or not isinstance(want, Tensor):
        if type(got) is not type(want) or got != want:
            raise BrokenLawError(f"{what} is {got!r}; the law says {want!r}")
        return
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        raise BrokenLawError(
            f"{what} is {got.dtype} of shape {tuple(got.shape)}; the law says {want.dtype} of shape {tuple(want.shape)}"
        )
    _compare(got, want, torch.zeros((), dtype=torch.float64), what)


def near(got: Tensor, want: Tensor, allowed: Tensor | float, what: str) -> None:
    """Raise `BrokenLawError` where two tensors differ by more than is allowed; NaN equals NaN, and inf itself."""
    _compare(got, want, torch.as_tensor(allowed, dtype=torch.float64), what)


def _compare(got: Tensor, want: Tensor, allowed: Tensor, what: str) -> None:
    dtype, got, want = got.dtype, got.detach().double(), want.detach().double()
    equal = (got == want) | (got.isnan() & want.isnan()) | ((got - want).abs() <= allowed)
    if bool(equal.all()):
        return
    first = (~equal).nonzero()[0].tolist()
    at = tuple(first)
    limit = allowed.expand_as(got)[at].item()
    margin = f" within {limit:.3g}" if limit else ", bit for bit"
    where = f"{what}{first if first else ''}" + ("" if dtype == torch.float64 else f", in {code(dtype)},")
    raise BrokenLawError(f"{where} is {got[at].item():.17g}; the law says {want[at].item():.17g}{margin}")
