"""`torch.optim.LBFGS` over `funcopt.lbfgs`, where the algorithm stands."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from funcopt import objective
from funcopt.adapter import deepcopied
from funcopt.rules.lbfgs import HPARAMS, Minimizer, Point, lbfgs, minimize

__all__ = ["LBFGS"]


class LBFGS(torch.optim.Optimizer):
    """`torch.optim.LBFGS` over `funcopt.lbfgs`, where the algorithm stands: the same arguments, defaults and state.

    All parameters are one vector, so there is one group. The state is kept with the first parameter. In bfloat16 and
    float16 the vectors are float32.

    Args:
        params: floating-point or complex parameters, (name, parameter) pairs, or a dict of one group.
        lr: length of a step, or of a line search's first trial, a number or a 1-element tensor ≥ 0.
        max_iter: most iterations of a step, ≥ 1.
        max_eval: a step ends when it has called the closure so often, ≥ 1; 5/4 of max_iter if left out.
        tolerance_grad: a step ends where no gradient is greater.
        tolerance_change: a step ends where no parameter moves by more, or the loss changes by less.
        history_size: how many pairs of steps and changes of the gradient are kept, ≥ 1.
        line_search_fn: None, or "strong_wolfe".

    Raises:
        ValueError: a number out of its range, or a second group.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": lbfgs(line_search_fn, max_iter, max_eval, history_size).max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        _pure(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the one group of parameters; raises ValueError for a second one, or a number that does not fit."""
        if isinstance(param_group, dict):
            _pure({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if len(self.param_groups) > 1:
            del self.param_groups[-1]
            raise ValueError(
                "LBFGS takes all parameters as one vector, and doesn't support per-parameter options (parameter "
                "groups); give all parameters in one"
            )

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Up to max_iter iterations: update all parameters in place; a gradient that is None counts as 0.

        Args:
            closure: reevaluates the model and returns the loss, a real number; called with gradients enabled, several
                times, for parameters that may be worse than those before. Where it raises an error, the parameters
                are given back the values that they had when it was first called, and the state stays as it was.

        Returns:
            What the closure returned first.
        """
        if not callable(closure):
            raise TypeError(f"LBFGS evaluates the loss several times a step: step takes a closure; got {closure!r}")
        (group,) = self.param_groups
        params: list[Tensor] = group["params"]
        opt, hparams = _pure(group)

        def evaluate() -> tuple[Any, Point]:
            with torch.enable_grad():
                loss = closure()
            f = objective.checked_loss(loss, "the closure")
            # The closure may change the parameters, as one that clamps them does.
            return loss, Point([p.clone() for p in params], f, objective.vector([p.grad for p in params], params))

        def put(x: list[Tensor]) -> None:
            for p, value in zip(params, x, strict=True):
                p.copy_(value)

        def evaluate_at(x: list[Tensor]) -> Point:
            put(x)
            return evaluate()[1]

        with torch.no_grad():
            loss, here = evaluate()
            state = {"func_evals": 0, "n_iter": 0, **self.state.get(params[0], {})}
            try:
                x, state = minimize(opt, evaluate_at, here, state, hparams)
            except BaseException:
                put(here.x)
                raise
            put(x)
        self.state[params[0]] = state
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state and the group's numbers; the state_dict given stays the caller's own.

        Args:
            state_dict: from `state_dict()` of this class or of torch.optim.LBFGS; the state keeps its dtypes.
        """
        seen: dict[str, Any] = {}
        last = self.register_load_state_dict_pre_hook(lambda _, final: seen.update(final))
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
        saved = seen["state"].get(seen["param_groups"][0]["params"][0])
        if saved:  # torch.optim has cast it to the first parameter's dtype, and shares with the caller what it has not
            first = self.param_groups[0]["params"][0]
            self.state[first].update({name: _copied(value, first.device) for name, value in saved.items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> "LBFGS":
        return deepcopied(self, memo)


def _pure(group: Mapping[str, Any]) -> tuple[Minimizer, dict[str, Any]]:
    """A group's choices and numbers; raises ValueError or TypeError."""
    opt = lbfgs(**{name: group[name] for name in ("line_search_fn", "max_iter", "max_eval", "history_size")})
    return opt, opt.hparams(**{name: group[name] for name in HPARAMS})


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_copied(part, device) for part in value]
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
