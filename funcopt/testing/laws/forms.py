"""Laws of what may be given in another form: complex parameters, sparse gradients, schedules for numbers."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt import tree
from funcopt.testing import ranges
from funcopt.testing.case import Case
from funcopt.testing.law import Tried, law, same
from funcopt.testing.laws.structure import same_params, same_runs
from funcopt.testing.subject import PureSubject, Run


@law(
    Tried(missing=True, dtypes=(torch.float64, torch.float32), more={"conjugate": st.booleans()}),
    of="pure",
    claim="complex",
)
def complex_is_pairs(subject: PureSubject, case: Case) -> None:
    """A complex parameter is a pair of reals, and its state too: run(p + iq, g + ih) = run((p, q), (g, h)), exactly."""

    def other(x: Tensor) -> Tensor:
        return -0.5 * x.flip(tuple(range(x.dim())))

    def numbers(x: Tensor) -> Tensor:
        return torch.complex(x, -other(x)).conj() if case.more["conjugate"] else torch.complex(x, other(x))

    def pairs(x: Tensor) -> Tensor:
        return torch.stack([x, other(x)], -1)

    def real(x: Any) -> Any:
        return torch.view_as_real(x.resolve_conj()) if isinstance(x, Tensor) and x.is_complex() else x

    run, want = subject.run(case.mapped(numbers, numbers)), subject.run(case.mapped(pairs, pairs))
    same_runs(Run(tree.map(real, run.params), tree.map(real, run.state)), want, "complex parameters")


# A gradient as a sparse one, in the ways in which it may be given: element by element, by rows, which then may have
# zeros among their elements, with indices that come twice, and without any.
SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "elements": Tensor.to_sparse,
    "rows": lambda g: g.to_sparse(min(1, g.dim())),
    "twice": lambda g: _twice(g.to_sparse()),
    "nothing": lambda g: torch.zeros_like(g).to_sparse(),
}


def _twice(g: Tensor) -> Tensor:
    indices, halves = g.coalesce().indices(), g.coalesce().values() / 2
    return torch.sparse_coo_tensor(
        torch.cat([indices, indices], 1), torch.cat([halves, halves]), g.shape, check_invariants=True
    )


@law(Tried(missing=True, more={"form": st.sampled_from(list(SPARSE))}), of="pure", claim="sparse")
def sparse_is_dense(subject: PureSubject, case: Case) -> None:
    """A sparse gradient is the dense one for the elements that it has; the others stay, with their state, where an optimizer leaves alone what has no gradient, and else, and without dimensions, have gradient 0, bit for bit."""  # noqa: E501
    opt, form = subject.optimizer(case), SPARSE[case.more["form"]]
    hparams = opt.hparams(**case.numbers)
    by_rows = subject.rule.rows is not None and subject.rule.rows(hparams)
    params, state = list(case.params), opt.init(list(case.params), hparams)
    for t, step in enumerate(case.grads):
        grads = [None if g is None else form(g) for g in step]
        given = tree.map(torch.clone, (params, state))
        new, after = opt(params, grads, state, hparams)
        donated = opt(given[0], grads, given[1], hparams, donate=True)
        for a, b in zip(tree.flatten(donated)[0], tree.flatten((new, after))[0], strict=True):
            same(a, b, f"what a donated step {t + 1} gives")
        dense = [None if g is None else g.to_dense() for g in grads]
        want, wanted = opt(params, dense, state, hparams)
        for leaf, (g, p) in enumerate(zip(grads, params, strict=True)):
            has = torch.ones_like(p, dtype=torch.bool)
            if g is not None and by_rows and g.sparse_dim():
                ones = torch.sparse_coo_tensor(
                    g._indices(), torch.ones_like(g._values()), g.shape, check_invariants=True
                )
                has = ones.to_dense() != 0
            same(new[leaf], torch.where(has, want[leaf], p), f"params[{leaf}] after step {t + 1}")
            for name, values in after.items():
                now = torch.where(has, wanted[name][leaf], state[name][leaf])
                same(values[leaf], now if values[leaf].dim() else wanted[name][leaf], f"{name} of params[{leaf}]")
        params, state = new, after


@law(Tried(missing=True), of="pure")
def schedule_is_its_numbers(subject: PureSubject, case: Case) -> None:
    """A schedule for a number is its value at each step, by a parameter's own count of steps, bit for bit."""
    sets = case.numbers, ranges.scaled(subject.spec, case.numbers, 0.5)

    def schedule(first: float | None, second: float | None) -> Any:
        return None if first is None else lambda t: (first, second)[int(t) % 2]

    run = subject.run(case.but(numbers=tree.map(schedule, *map(dict, sets))))
    for leaf in range(len(case.params)):
        alone = case.only(leaf)
        by_step = {name: [sets[t % 2][name] for t in range(len(alone.grads))] for name in case.numbers}
        want = subject.run(alone.but(more={"by_step": by_step}))
        same_params(Run([[ps[leaf]] for ps in run.params], []), want, f"params[{leaf}] by schedules")
