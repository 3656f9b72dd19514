"""Laws of structure: what a step may touch, and what its result may depend on."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from funcopt import tree
from funcopt.adapter import Adapter
from funcopt.testing import ranges, strategies
from funcopt.testing.case import Case
from funcopt.testing.law import BrokenLawError, SaysNothingError, Tried, law, near, rounding, same, scale_of
from funcopt.testing.subject import ClassSubject, PureSubject, Run, Subject, copied

at = st.integers(0, 63)  # a place, modulo how many there are


def same_runs(got: Run, want: Run, what: str) -> None:
    """Raise `BrokenLawError` unless two runs have the same bits at every step."""
    for t, (a, b) in enumerate(zip(got.params, want.params, strict=True)):
        for leaf, (p, q) in enumerate(zip(a, b, strict=True)):
            same(p, q, f"{what}, params[{leaf}] after step {t}")
    for t, (s, r) in enumerate(zip(got.state, want.state, strict=True)):
        for leaf, (own, other) in enumerate(zip(s, r, strict=True)):
            same(sorted(own), sorted(other), f"{what}, the names in the state of params[{leaf}] after step {t}")
            for name in own:
                same(own[name], other[name], f"{what}, {name} of params[{leaf}] after step {t}")


def leaf_of(run: Run, leaf: int) -> Run:
    """The run of one of the parameters."""
    return Run([[ps[leaf]] for ps in run.params], [[s[leaf]] for s in run.state])


@law(Tried(missing=True, nonzero=(), params=("zero", "moderate", "denormal", "inf", "nan")), of="pure")
def purity(subject: PureSubject, case: Case) -> None:
    """A step writes to none of its inputs, by bits and versions, and a second call gives the same bits."""
    opt = subject.optimizer(case)
    hparams = opt.hparams(**case.numbers)
    params, state = list(case.params), opt.init(list(case.params), hparams)
    for grads in case.grads:
        inputs = tree.flatten((params, list(grads), state))[0]
        tensors = [t for t in inputs if isinstance(t, Tensor)]
        before = [(t._version, t.clone()) for t in tensors]
        first, second = (opt(params, list(grads), state, hparams) for _ in range(2))
        for t, (version, value) in zip(tensors, before, strict=True):
            same(t, value, "an input after the step")
            same(t._version, version, "the version of an input after the step")
        for a, b in zip(tree.flatten(second)[0], tree.flatten(first)[0], strict=True):
            same(a, b, "the second of two equal calls")
        params, state = first


@law(Tried(missing=True), of="class")
def gradients_untouched(subject: ClassSubject, case: Case) -> None:
    """A step reads the gradients and no more: g is as before, and what p.grad holds between steps means nothing."""
    params = [torch.nn.Parameter(copied(p)) for p in case.params]
    opt = subject.make(params, case)
    want = subject.run(case)
    for t, grads in enumerate(case.grads):
        own = [None if g is None else copied(g) for g in grads]
        subject.step(opt, params, own)
        for leaf, (g, given) in enumerate(zip(own, grads, strict=True)):
            if g is not None and given is not None:
                same(_dense(g), _dense(given), f"the gradient of params[{leaf}] after step {t + 1}")
                _dense(g).fill_(torch.nan)
        for leaf, p in enumerate(params):
            same(p.detach(), want.params[t + 1][leaf], f"params[{leaf}] after step {t + 1}, old gradients overwritten")


def _dense(g: Tensor) -> Tensor:
    return g._values() if g.is_sparse else g


@law(Tried(missing=True), of="class")
def in_place(subject: ClassSubject, case: Case) -> None:
    """A step writes p where it lies, and p.grad stays the tensor that was given: who holds a view of either sees it."""
    params = [torch.nn.Parameter(copied(p)) for p in case.params]
    opt = subject.make(params, case)
    places = [(p.data_ptr(), p.stride()) for p in params]
    for t, grads in enumerate(case.grads):
        own = [None if g is None else copied(g) for g in grads]
        subject.step(opt, params, own)
        for leaf, p in enumerate(params):
            if (p.data_ptr(), p.stride()) != places[leaf]:
                raise BrokenLawError(f"params[{leaf}] lies elsewhere after step {t + 1}")
            if p.grad is not own[leaf]:
                raise BrokenLawError(f"the grad of params[{leaf}] is another tensor, or none, after step {t + 1}")


@law(Tried(missing=True, more={"seed": st.integers(10**6, 10**9)}))
def surroundings(subject: Subject, case: Case) -> None:
    """Steps leave what is around them as it is: torch's random numbers, whether gradients are on, the default dtype."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(case.more["seed"])
        before = _surroundings()
        subject.run(case)
        after = _surroundings()
    for name, value in after.items():
        same(value, before[name], f"{name} after the run")


def _surroundings() -> dict[str, object]:
    return {
        "the state of torch's random numbers": torch.get_rng_state(),
        "whether gradients are enabled": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
    }


@law(Tried(missing=True))
def repeatable(subject: Subject, case: Case) -> None:
    """The same run twice gives the same bits, whatever has been run before."""
    same_runs(subject.run(case), subject.run(case), "the second run")


@law(Tried(dtypes=strategies.DTYPES, missing=True, steps=(1, 5)))
def fixed_types(subject: Subject, case: Case) -> None:
    """Dtype, shape and device of p, and names, dtypes, shapes and devices of its state, are the same at every step."""
    run = subject.run(case)
    for leaf, p in enumerate(case.params):
        for t, ps in enumerate(run.params):
            same(_type(ps[leaf]), _type(p), f"what params[{leaf}] is after step {t}")
        known: dict[str, object] = {}
        for t, states in enumerate(run.state):
            own = {name: _type(value) for name, value in states[leaf].items()}
            if known:
                same(own, known, f"what the state of params[{leaf}] is after step {t}")
            known = own


def _type(value: object) -> object:
    return (value.dtype, tuple(value.shape), value.device) if isinstance(value, Tensor) else type(value)


@law(
    Tried(leaves=(1, 3), missing=True, steps=(1, 3), more={"nesting": strategies.trees(st.just(0)), "at": at}),
    of="pure",
)
def renaming(subject: PureSubject, case: Case) -> None:
    """Keys, their order and the nesting of the tree change nothing: run(tree of p) = tree of run(p)."""
    shape, spec = tree.flatten(case.more["nesting"])
    count = len(case.params)
    order = [(k + case.more["at"]) % count for k in range(count)]

    def nested(leaves: list[object]) -> object:
        first = tree.unflatten([leaves[order[k % count]] for k in range(len(shape))], spec)
        return {"z": [leaves[k] for k in reversed(order)], "a": first}

    opt = subject.optimizer(case)
    hparams = opt.hparams(**case.numbers)
    params, state = nested(list(case.params)), opt.init(nested(list(case.params)), hparams)
    for grads in case.grads:
        back = dict(reversed(nested(list(grads)).items()))  # type: ignore[attr-defined]
        params, state = opt(params, back, state, hparams)
    want = nested(subject.run(case).params[-1])  # type: ignore[arg-type]
    same(str(tree.flatten(params)[1]), str(tree.flatten(want)[1]), "the structure of params")
    for a, b in zip(tree.flatten(params)[0], tree.flatten(want)[0], strict=True):
        same(a, b, "a parameter of the nested tree")


@law(Tried(leaves=(2, 3), missing=True))
def leaf_independence(subject: Subject, case: Case) -> None:
    """A parameter's steps and state depend on no other parameter: run({p, q})[p] = run({p})[p], bit for bit."""
    run = subject.run(case)
    for leaf in range(len(case.params)):
        alone = subject.run(case.but(params=[case.params[leaf]], grads=[[g[leaf]] for g in case.grads]))
        same_runs(leaf_of(run, leaf), alone, f"params[{leaf}] among others")


@law(Tried(missing=True, steps=(1, 5)))
def missing_gradient(subject: Subject, case: Case) -> None:
    """A step without a gradient leaves p, its state and its step count as they are, to the bit."""
    run = subject.run(case)
    for leaf in range(len(case.params)):
        want = subject.run(case.only(leaf))
        same(run.params[-1][leaf], want.params[-1][0], f"params[{leaf}], steps without a gradient between")
        if len(want.state) > 1:
            own, other = run.state[-1][leaf], want.state[-1][0]
            for name in other:
                same(own.get(name), other[name], f"{name} of params[{leaf}], steps without a gradient between")


def alike(subject: Subject, got: Tensor, want: Tensor, run: Run, what: str) -> None:
    """Raise where what another place in a tensor may round otherwise is not the same.

    Of torch's functions some, such as `pow`, round an element by whether it is one of a whole vector of the processor.
    """
    if isinstance(subject, PureSubject) or issubclass(subject.cls, Adapter):
        same(got, want, what)
    else:
        size = torch.stack([scale.amax() if scale.numel() else scale.sum() for scale in scale_of(run)]).amax()
        near(got, want, rounding(got.dtype, len(run.params)) * size, what)


@law(Tried(layouts=("contiguous", "transposed", "strided")), claim="elementwise")
def permutation(subject: Subject, case: Case) -> None:
    """Elements in another order take the same steps: run(Πp, Πg) = Π run(p, g); of rules, bit for bit."""

    def turned(x: Tensor) -> Tensor:
        return x.flip(tuple(range(x.dim())))

    run, other = subject.run(case), subject.run(case.mapped(turned, turned))
    for t, ps in enumerate(run.params):
        for leaf, p in enumerate(ps):
            alike(subject, other.params[t][leaf], turned(p), run, f"params[{leaf}] reversed, after step {t}")


@law(Tried(leaves=(2, 3)), claim="elementwise")
def concatenation(subject: Subject, case: Case) -> None:
    """Parameters step as one as they do as each: run(p ⊕ q, g ⊕ h) = run(p, g) ⊕ run(q, h); of rules, bit for bit."""
    run = subject.run(case)
    flat = case.but(
        params=[torch.cat([p.flatten() for p in case.params])],
        grads=[[torch.cat([g.flatten() for g in step if g is not None])] for step in case.grads],
    )
    other = subject.run(flat)
    for t, ps in enumerate(run.params):
        alike(subject, other.params[t][0], torch.cat([p.flatten() for p in ps]), run, f"all as one, after step {t}")


@law(
    Tried(more={"at": at}, nonzero=("eps", "lr")),
    families=("sgd", "adam", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop"),
    claim="shows_nonfinite",
)
def nan_shows(subject: Subject, case: Case) -> None:
    """A NaN gradient is not hidden: from then on its element of p is NaN."""
    leaf, element, spoilt = _spoilt(case, torch.nan)
    end = subject.run(spoilt).params[-1][leaf].flatten()[element]
    same(end, torch.full_like(end, torch.nan), f"element {element} of params[{leaf}]")


@law(Tried(more={"at": at, "bad": st.sampled_from([torch.nan, torch.inf, -torch.inf])}), claim="elementwise")
def nan_containment(subject: Subject, case: Case) -> None:
    """A NaN or infinite gradient of one element reaches no other, bit for bit."""
    leaf, element, spoilt = _spoilt(case, case.more["bad"])
    run, other = subject.run(case), subject.run(spoilt)
    for i, (p, q) in enumerate(zip(run.params[-1], other.params[-1], strict=True)):
        keep = torch.ones(p.numel(), dtype=torch.bool)
        if i == leaf:
            keep[element] = False
        same(q.flatten()[keep], p.flatten()[keep], f"params[{i}] but for element {element} of params[{leaf}]")


def _spoilt(case: Case, value: float) -> tuple[int, int, Case]:
    """A parameter, an element of it, and the case with this value for the element's first gradient."""
    leaf = case.more["at"] % len(case.params)
    size = case.params[leaf].numel()
    if size == 0:
        raise SaysNothingError("the parameter is empty")
    element = case.more["at"] % size
    g = case.grads[0][leaf].clone().flatten()  # type: ignore[union-attr]
    g[element] = value
    first = [*case.grads[0][:leaf], g.view(case.params[leaf].shape), *case.grads[0][leaf + 1 :]]
    return leaf, element, case.but(grads=[first, *case.grads[1:]])


@law(Tried(leaves=(2, 2), more={"scale": st.sampled_from([0.5, 0.25, 0.75])}), uses=("param_groups",))
def own_numbers(subject: Subject, case: Case) -> None:
    """Numbers given by parameter are each parameter's own, and one number is the same given to each, bit for bit."""
    other = ranges.scaled(subject.spec, case.numbers, case.more["scale"])
    sets = [dict(case.numbers), other]
    alone = [subject.run(case.but(numbers=sets[leaf]).only(leaf)) for leaf in range(2)]
    if isinstance(subject, ClassSubject):
        if not subject.accepts(other, case.flags):
            raise SaysNothingError("it does not take the other numbers")
        run = subject.run(case, groups=sets)
        alike = subject.run(case, groups=[{}, {}])
    else:
        run = subject.run(case.but(numbers={name: _by_leaf(case.numbers[name], other[name]) for name in case.numbers}))
        alike = subject.run(case.but(numbers={name: _by_leaf(v, v) for name, v in case.numbers.items()}))
    for leaf in range(2):
        same(run.params[-1][leaf], alone[leaf].params[-1][0], f"params[{leaf}] with numbers of its own")
    same_params(alike, subject.run(case), "the same numbers given to each parameter")


def same_params(got: Run, want: Run, what: str) -> None:
    """Raise `BrokenLawError` unless the parameters of two runs have the same bits at the end."""
    for leaf, (p, q) in enumerate(zip(got.params[-1], want.params[-1], strict=True)):
        same(p, q, f"{what}, params[{leaf}]")


def _by_leaf(value: object, other: object) -> object:
    if isinstance(value, tuple):
        return tuple([a, b] for a, b in zip(value, other, strict=True))  # type: ignore[call-overload]
    return [value, other]


def tensors_of(make: Callable[[float], Tensor], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers made tensors of, but for those that are None."""
    return tree.map(lambda x: x if x is None else make(x), dict(numbers))  # type: ignore[no-any-return]


@law(Tried(), of="pure")
def tensor_numbers(subject: PureSubject, case: Case) -> None:
    """A number given as a 0-d float64 tensor is the number: the same bits, to rounding where it requires a gradient."""

    def tensors(wanted: bool) -> dict[str, Any]:
        return tensors_of(lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=wanted), case.numbers)

    want = subject.run(case)
    same_params(subject.run(case.but(numbers=tensors(False))), want, "numbers as tensors")
    got, scales = subject.run(case.but(numbers=tensors(True))), scale_of(want)
    for leaf, p in enumerate(want.params[-1]):
        allowed = rounding(p.dtype, len(case.grads)) * scales[leaf] * _condition(case)
        near(got.params[-1][leaf], p, allowed, f"params[{leaf}], numbers as tensors that require gradients")


def _condition(case: Case) -> float:
    """How much an error of 1 - β exceeds that of β, for betas to 0.999."""
    return 1e3 if any(isinstance(v, tuple) for v in case.numbers.values()) else 1.0


@law(Tried(leaves=(1, 2), steps=(1, 3)), of="pure", cost=4)
def vmap_is_loop(subject: PureSubject, case: Case) -> None:
    """vmap over runs, their numbers included, is a loop over them, to rounding."""

    def run(factor: Tensor, numbers: dict[str, object]) -> list[Tensor]:
        scaled = [[None if g is None else g * factor for g in step] for step in case.grads]
        return subject.final([p * factor for p in case.params], scaled, numbers, case.flags)

    factors = torch.tensor([1.0, -0.5], dtype=torch.float64)
    sets = [dict(case.numbers), ranges.scaled(subject.spec, case.numbers, 0.5)]
    numbers = tree.map(lambda *x: None if None in x else torch.tensor(x, dtype=torch.float64), *sets)
    there = tree.map(lambda x: None if x is None else 0, numbers)
    batched = torch.vmap(run, in_dims=(0, there))(factors, numbers)
    for i, chosen in enumerate(case.but(numbers=own) for own in sets):
        if subject.rule.check is not None and subject.rule.check(chosen.numbers, subject.flags(case.flags)):
            continue
        alone = subject.run(chosen.mapped(lambda p, i=i: p * factors[i], lambda g, i=i: g * factors[i]))
        for leaf, scale in enumerate(scale_of(alone)):
            allowed = rounding(torch.float64, len(case.grads)) * scale * _condition(case)
            near(batched[leaf][i], alone.params[-1][leaf], allowed, f"params[{leaf}] of run {i} of a batch")


# A run saved and loaded, copied, or moved to another dtype, or to a device that is there, and back.
MOVES = {"wider": Tensor.double, **({"to a device": Tensor.cuda} if torch.cuda.is_available() else {})}
PASSES = ("saved", "copied", *MOVES)


@law(
    Tried(
        steps=(3, 5),
        missing=True,
        dtypes=(torch.float64, torch.float32, torch.bfloat16),
        more={"at": at, "through": st.sampled_from(PASSES)},
    ),
    cost=2,
    uses=("state_dict", "load_state_dict"),
)
def resume(subject: Subject, case: Case) -> None:
    """A run saved, copied, or moved to another dtype or device and back, at any step, goes on to the same bits."""
    k, how = case.more["at"] % (len(case.grads) + 1), case.more["through"]
    if how == "wider" and case.params[0].dtype == torch.float64:
        how = "saved"
    want = subject.run(case)
    if isinstance(subject, PureSubject):
        got = _resumed_pure(subject, case, k, how)
    else:
        got = _resumed_class(subject, case, k, how)
    for leaf, p in enumerate(want.params[-1]):
        same(got[leaf], p, f"params[{leaf}] of a run {how} after step {k}")


def _resumed_pure(subject: PureSubject, case: Case, k: int, how: str) -> list[Tensor]:
    opt = subject.optimizer(case)
    hparams = opt.hparams(**case.numbers)
    params, state = list(case.params), opt.init(list(case.params), hparams)
    for t in range(len(case.grads) + 1):
        if t == k:
            if how in MOVES:
                away = tree.map(lambda x: x if x is None else MOVES[how](x), (params, state))
                params, state = tree.map(lambda x, old: x if x is None else x.to(old), away, (params, state))
            else:
                params, state = _reloaded((params, state), how)  # type: ignore[misc]
        if t < len(case.grads):
            params, state = opt(params, list(case.grads[t]), state, hparams)
    return params


def _resumed_class(subject: ClassSubject, case: Case, k: int, how: str) -> list[Tensor]:
    params = [torch.nn.Parameter(copied(p)) for p in case.params]
    opt = subject.make(params, case)
    for t in range(len(case.grads) + 1):
        if t == k:
            if how in MOVES:
                between = subject.make([torch.nn.Parameter(MOVES[how](p.detach())) for p in params], case)
                between.load_state_dict(opt.state_dict())
                saved = between.state_dict()
            else:
                saved = _reloaded(opt.state_dict(), how)  # type: ignore[assignment]
            params = [torch.nn.Parameter(copied(p)) for p in params]
            opt = subject.make(params, case)
            opt.load_state_dict(saved)
        if t < len(case.grads):
            subject.step(opt, params, [None if g is None else copied(g) for g in case.grads[t]])
    return [p.detach() for p in params]


def _reloaded(value: object, how: str) -> object:
    if how == "copied":
        return tree.map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)
    with io.BytesIO() as file:
        torch.save(value, file)
        file.seek(0)
        return torch.load(file, weights_only=True)


@law(Tried(more={"count": strategies.step_numbers()}, dtypes=(torch.float64, torch.float32)), of="pure")
def late_steps(subject: PureSubject, case: Case) -> None:
    """From any step number on, however large, finite gradients give finite steps, and the count goes up."""
    opt = subject.optimizer(case)
    hparams = opt.hparams(**case.numbers)
    params = list(case.params)
    state = opt.init(params, hparams)
    state["step"] = [torch.full((), float(case.more["count"]), dtype=torch.float64) for _ in params]
    for grads in case.grads:
        before = state["step"]
        params, state = opt(params, list(grads), state, hparams)
        for leaf, p in enumerate(params):
            if not bool(p.isfinite().all()):
                raise BrokenLawError(f"params[{leaf}] is {p.tolist()} after a step from step {case.more['count']} on")
            if case.more["count"] < 2**50:
                same(state["step"][leaf], before[leaf] + 1, f"the step count of params[{leaf}]")
