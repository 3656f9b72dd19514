"""A plain function under test: one that clips gradients, or a schedule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from funcopt.testing.case import Takes
from funcopt.testing.pure_form import importing

__all__ = ["FunctionSubject"]


@dataclass(frozen=True, eq=False, repr=False)
class FunctionSubject:
    """A function that clips, `(grads, max_norm) -> grads`, or a schedule, `step -> number`.

    `says` is what a schedule says of itself: its `peak`, the step `warmup` where it is reached, and the steps `joins`
    at which it is continuous.
    """

    function: Callable[..., Any]
    interface: str
    says: Mapping[str, Any]
    reference: Callable[..., Any] | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    exempt: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    dims: Sequence[int] = range(5)
    takes: Takes = field(default_factory=Takes)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__qualname__", self.function))

    @property
    def expression(self) -> tuple[str, str]:
        """The import and the expression that give it in a program."""
        module = getattr(self.function, "__module__", "__main__")
        return importing(module, self.name, lambda found: found is self.function)

    def has(self, name: str) -> bool:
        """Whether it says this of itself."""
        return name in self.says

    def unfit(self, flags: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        return None

    def flags(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return dict(drawn)

    def draw_numbers(
        self, flags: Mapping[str, Any], numbers: Mapping[str, Any], nonzero: Sequence[str] = ()
    ) -> SearchStrategy[dict[str, Any]]:
        return st.just({})

    def gradient(self, g: Tensor) -> Tensor:
        return g
