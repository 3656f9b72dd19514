r"""L-BFGS, the quasi-Newton method of limited memory (Nocedal & Wright, "Numerical Optimization", 2nd edition, 2006).

All parameters are one vector x, with the loss f and its gradient g. One call makes up to max_iter iterations of
algorithm 7.5, each from the g at x:

    s ← t·d,  y ← g - g₋                  what the last iteration did, kept where yᵀs > 1e-10
    d ← -H·g                              algorithm 7.4, from the last history_size pairs; -g in the first iteration
    t ← lr                                lr·min(1, 1/‖g‖₁) in the first iteration
    t ← a good step, t tried first        for line_search_fn="strong_wolfe": algorithms 3.5 and 3.6
    x ← x + t·d

It ends before that where f has been evaluated max_eval times (a line search may add one), where
max|g| ≤ tolerance_grad, -gᵀd < tolerance_change, max|t·d| ≤ tolerance_change, or f changes by less than
tolerance_change, and where g is not finite, as nothing leads on from there. Without a line search the last iteration
does not evaluate f again; in one, where f or its slope is not finite is too far. Steps are those of torch.optim.LBFGS.

Numbers (`opt.hparams`), one for all parameters: lr in [0, inf), 1; tolerance_grad, any, 1e-7; tolerance_change, any,
1e-9. Choices: line_search_fn, None or "strong_wolfe"; max_iter ≥ 1, 20; max_eval ≥ 1, 5/4 of max_iter;
history_size ≥ 1, 100.

In the place of gradients the call takes a function `params -> (value, grads)`, which `funcopt.value_and_grad(loss)`
makes of a loss:

    opt = funcopt.lbfgs(line_search_fn="strong_wolfe")
    hparams = opt.hparams()
    params, state = opt(params, funcopt.value_and_grad(loss), opt.init(params), hparams)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcopt import hyper, objective, observed, tree
from funcopt.line_search import Trial, strong_wolfe, trial

HPARAMS: hyper.Spec = {
    "lr": hyper.nonnegative(1.0, "learning rate"),
    "tolerance_grad": hyper.Number(1e-7, "tolerance_grad"),
    "tolerance_change": hyper.Number(1e-9, "tolerance_change"),
}


# ---- algorithm 7.4: the two-loop recursion --------------------------------------------------------------------------


class History(NamedTuple):
    """The last pairs y and s, the oldest first, ρ = 1/yᵀs of each, and γ = yᵀs/yᵀy of the last, equation 7.20."""

    old_dirs: list[Tensor]
    old_stps: list[Tensor]
    ro: list[Tensor]
    H_diag: Tensor | float


def remembered(history: History, y: Tensor, s: Tensor, size: int) -> History:
    """The history with one more pair, and at most `size`. A pair along which f does not curve upward is left out."""
    ys = y.dot(s)
    if not ys > 1e-10:
        return history
    old_dirs, old_stps, ro, _ = history
    return History([*old_dirs, y][-size:], [*old_stps, s][-size:], [*ro, 1.0 / ys][-size:], ys / y.dot(y))


def direction(history: History, g: Tensor) -> tuple[Tensor, list[Tensor]]:
    """-H·g, where H is γ·I after one BFGS update, equation 6.17, for each pair; and α of each pair."""
    pairs = list(zip(history.old_dirs, history.old_stps, history.ro, strict=True))
    q, alphas = -g, []
    for y, s, rho in reversed(pairs):
        alphas.append(rho * s.dot(q))
        q.add_(y, alpha=-float(alphas[-1]))
    r = history.H_diag * q
    alphas.reverse()
    for (y, s, rho), alpha in zip(pairs, alphas, strict=True):
        r.add_(s, alpha=float(alpha - rho * y.dot(r)))
    return r, alphas


# ---- algorithm 7.5: L-BFGS ------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """Where f has been evaluated: x leaf by leaf, f(x), and the vector g(x)."""

    x: list[Tensor]
    f: float
    g: Tensor


def minimize(
    opt: "Minimizer",
    evaluate: Callable[[list[Tensor]], Point],
    here: Point,
    state: Mapping[str, Any],
    hparams: Mapping[str, Any],
) -> tuple[list[Tensor], dict[str, Any]]:
    """The iterations of one call, from a point that has been evaluated: x and the state after them.

    Args:
        opt: the choices.
        evaluate: gives f and g at an x, and x as it is to be gone on from, in tensors of its own.
        here: the point to begin from.
        state: see `Minimizer.__call__`. Nothing in it is written to.
        hparams: the numbers.
    """
    lr, tolerance_grad, tolerance_change = (float(_single(name, hparams[name])) for name in HPARAMS)
    x, f, g = here
    evals, n = 1, 0
    if _arrived(g, tolerance_grad):
        return x, {**state, "func_evals": state["func_evals"] + evals}

    def phi(t: Tensor | float) -> Trial:
        nonlocal evals
        evals += 1
        _, f, g = evaluate(objective.moved(x, t, d))
        return trial(t, f, g, d)

    def too_short(length: Tensor | float) -> bool:
        return bool(length * _largest(d) < tolerance_change)

    names = ("d", "t", "prev_flat_grad", *History._fields)
    d, t, old_g, *pairs = (_like(g, name, state.get(name)) for name in names)
    history, al = History(*pairs), state.get("al")
    while n < opt.max_iter:
        n += 1
        if old_g is None:
            history = History([], [], [], 1)
            norm: Any = g.abs().sum()
            d, t = -g, lr * min(1.0, 1.0 / norm)
        else:
            history = remembered(history, g - old_g, t * d, opt.history_size)
            (d, alphas), t = direction(history, g), lr
            al = [*alphas, *[None] * (opt.history_size - len(alphas))]  # as torch.optim keeps it
        old_f, old_g = f, g
        start = trial(0.0, f, g, d)
        if not start.slope <= -tolerance_change:
            break
        if opt.line_search_fn is None:
            x = objective.moved(x, t, d)
            if n < opt.max_iter:
                evals += 1
                x, f, g = evaluate(x)
        else:
            t, f, _, g = strong_wolfe(phi, start, t, budget=opt.max_eval - evals, too_short=too_short)
            x = objective.moved(x, t, d)
        if (
            evals >= opt.max_eval
            or _arrived(g, tolerance_grad)
            or _largest(t * d) <= tolerance_change
            or abs(f - old_f) < tolerance_change
        ):
            break
    counts = {"func_evals": state["func_evals"] + evals, "n_iter": state["n_iter"] + n}
    kept = {} if al is None else {"al": al}
    return x, {**counts, "d": d, "t": t, **history._asdict(), "prev_flat_grad": old_g, "prev_loss": old_f, **kept}


def _arrived(g: Tensor, tolerance_grad: float) -> bool:
    """Whether the gradient is small enough, or no number to go on with."""
    return not tolerance_grad < _largest(g) < math.inf


def _largest(v: Tensor) -> Tensor | float:
    return v.abs().max() if v.numel() else 0.0


def _single(name: str, value: Any) -> Any:
    """The number, detached; raises ValueError where there are several."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach()
    if isinstance(value, float | int):
        return value
    got = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ValueError(f"Tensor {name} must be 1-element, as lbfgs has one number for all parameters; got {got}")


def _like(g: Tensor, name: str, value: Any) -> Any:
    """An entry of the state in g's dtype and on its device; raises ValueError where it is that of other parameters."""
    if isinstance(value, list):
        return [_like(g, name, part) for part in value]
    if not isinstance(value, Tensor):
        return value
    if value.dim() and value.shape != g.shape:
        raise ValueError(f"state[{name!r}] has {value.numel()} elements; the parameters are {g.numel()} reals")
    return value.to(g.device, g.dtype)


# ---- the pure form --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minimizer:
    """L-BFGS with its choices made: what `funcopt.lbfgs` returns."""

    line_search_fn: str | None
    max_iter: int
    max_eval: int
    history_size: int

    def __repr__(self) -> str:
        return f"funcopt.lbfgs({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def hparams(self, **numbers: Any) -> dict[str, Any]:
        """The hyperparameters as a plain dict: the numbers given, the defaults for the rest.

        Args:
            **numbers: lr, tolerance_grad, tolerance_change, each a float or a floating-point tensor of one element.

        Raises:
            TypeError: an unknown name (the message has the closest spelling), or a value that is no number.
            ValueError: a number out of its range, or several of them.
        """
        made = hyper.validate("lbfgs", HPARAMS, numbers)
        for name, value in made.items():
            _single(name, value)
        return made

    def init(self, params: Any, hparams: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The state before the first call: the counts, `func_evals` and `n_iter`.

        Args:
            params: a pytree of floating-point or complex tensors.
            hparams: without effect.
        """
        objective.leaves(params)
        return {"func_evals": 0, "n_iter": 0}

    def __call__(
        self, params: Any, value_and_grad: Callable[[Any], Any], state: Mapping[str, Any], hparams: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Up to max_iter iterations: the new params and the new state. Nothing that is given is written to.

        What is done depends on the values of the loss, so that a call has no derivative: its results are detached.

        Args:
            params: a pytree of floating-point or complex tensors, the latter as pairs of reals. Where they differ in
                dtype and device, vectors lie where the first one does, in the widest of their dtypes and float32.
            value_and_grad: `params -> (value, grads)`: the loss, a real number, and its gradients, a tree like params
                of tensors, dense or sparse, or None for 0, which may stand for a subtree. It is called at least once,
                with gradients enabled, on detached tensors.
            state: from `init` or an earlier call, a dict with torch.optim.LBFGS's names: the counts `func_evals` and
                `n_iter`, and after an iteration the vectors `d` and `prev_flat_grad`, the numbers `t`, `prev_loss` and
                `H_diag` (γ), and the lists `old_dirs`, `old_stps` and `ro` of the last y, s and 1/yᵀs, and `al`, of
                their α in algorithm 7.4 when it was last run, which is of no further use.
            hparams: from `self.hparams`.

        Raises:
            ValueError, TypeError: something that does not fit, in what is given or in what value_and_grad returns, or
                a transform of torch.func around the call. Nothing has been changed by then.
        """
        if observed.transformed():
            raise TypeError(
                "lbfgs decides by the values of the loss, which torch.func's transforms (grad, vmap, jvp, …) do not "
                "let it see; call it outside of them, with any transform you need inside of value_and_grad"
            )
        if not callable(value_and_grad):
            raise TypeError(
                "lbfgs takes a function params -> (value, grads) in the place of gradients, such as "
                f"funcopt.value_and_grad(loss); got a {type(value_and_grad).__name__}"
            )
        for name in ("func_evals", "n_iter"):
            if name not in state:
                raise ValueError(f"state has no {name!r}; opt.init(params) makes a complete state")
        hyper.columns(HPARAMS, hparams)
        leaves, spec = objective.leaves(params)

        def evaluate(x: list[Tensor]) -> Point:
            at = tree.unflatten(x, spec)
            with torch.enable_grad():
                given = value_and_grad(at)
            f, grads = objective.unpacked(given, at, x, spec)
            return Point(x, f, objective.vector(grads, x))

        with torch.no_grad():
            here = evaluate([p.detach().resolve_conj() for p in leaves])
            x, state = minimize(self, evaluate, here, state, hparams)
        return tree.unflatten(x, spec), state


def lbfgs(
    line_search_fn: str | None = None, max_iter: int = 20, max_eval: int | None = None, history_size: int = 100
) -> Minimizer:
    if line_search_fn not in (None, "strong_wolfe"):
        raise ValueError(f"line_search_fn takes None or 'strong_wolfe'; got {line_search_fn!r}")
    limits: dict[str, Any] = {"max_iter": max_iter, "max_eval": max_eval, "history_size": history_size}
    for name, value in limits.items():
        if name == "max_eval" and value is None:
            limits[name] = limits["max_iter"] * 5 // 4
        elif not isinstance(value, int | float) or not (value >= 1 and float(value).is_integer()):
            raise ValueError(f"{name} takes an integer ≥ 1; got {value!r}")
    return Minimizer(line_search_fn, **{name: int(value) for name, value in limits.items()})


lbfgs.__doc__ = __doc__
