"""TrainState against the loop that one writes with nn.Module and torch.optim."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn.functional import mse_loss

import funcopt
from funcopt.train_state import TrainState

pytree = torch.utils._pytree


class Net(nn.Module):
    """Modules in modules, BatchNorm, tied weights, buffers of other kinds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        # Without biases: behind them BatchNorm leaves no gradient but rounding, of which Adam makes whole steps.
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)) for _ in range(2))
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("largest", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.largest = torch.maximum(self.largest, x.detach().abs().max())  # another tensor in the buffer's place
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.last(x)


OPTIMIZERS = {
    "sgd": (funcopt.sgd(), {"lr": 0.1, "momentum": 0.9}, torch.optim.SGD),
    "adamw": (funcopt.adamw(), {"lr": 0.01, "weight_decay": 0.1}, torch.optim.AdamW),
}
OPT = funcopt.adamw()
HPARAMS = OPT.hparams(lr=0.01)


def batch(t, dtype=torch.float32):
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 4, generator=generator).to(dtype) + 1, torch.randn(8, 4, generator=generator).to(dtype)


def gradients(model, state, x, y):
    def loss(params, state, x, y):
        output, state = state.replace(params=params).apply(model, x)
        return mse_loss(output, y), state

    return grad(loss, has_aux=True)(state.params, state, x, y)


def train(model, state, steps, opt=OPT, hparams=HPARAMS, dtype=torch.float32, **options):
    for t in steps:
        grads, state = gradients(model, state, *batch(t, dtype))
        state = state.update(opt, grads, hparams, **options)
    return state


@pytest.fixture
def model():
    return Net()


@pytest.fixture
def state(model):
    """A state that has seen some training."""
    return train(model, TrainState.create(model, OPT, HPARAMS), range(3))


def leaves(tree):
    return pytree.tree_leaves(tree)


def snapshot(state):
    return [(t, t.clone(), t._version) for t in leaves(state)]


def assert_untouched(before):
    for t, value, version in before:
        assert torch.equal(t, value)
        assert t._version == version


def assert_same(got, want):
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    for a, b in zip(leaves(got), leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def assert_close(got, want):
    """Equal but for rounding in another order: batched matrix products, other fusions."""
    for a, b in zip(leaves(got), leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opt", "numbers", "theirs"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_training_is_that_of_a_module_and_torch_optim(opt, numbers, theirs):
    model = Net().double()
    hparams = opt.hparams(**numbers)
    state = train(model, TrainState.create(model, opt, hparams), range(20), opt, hparams, torch.float64)
    optimizer = theirs(model.parameters(), **numbers)
    for t in range(20):
        x, y = batch(t, torch.float64)
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
    assert state.step.item() == 20
    assert state.params.keys() == dict(model.named_parameters()).keys()
    assert state.buffers.keys() == dict(model.named_buffers()).keys()
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        # Rounding in another order, of 1e-16, which twenty steps magnify.
        torch.testing.assert_close({**state.params, **state.buffers}[name], t.detach(), rtol=1e-11, atol=1e-12)


def test_a_run_that_was_saved_goes_on_to_the_same_bits(model):
    want = train(model, TrainState.create(model, OPT, HPARAMS), range(10))
    state = train(model, TrainState.create(model, OPT, HPARAMS), range(5))
    other = Net()
    for _ in range(2):
        file = io.BytesIO()
        torch.save(state.state_dict(), file)
        file.seek(0)
        state = TrainState.create(other, OPT, HPARAMS).load_state_dict(torch.load(file, weights_only=True))
    assert state.step.item() == 5
    assert_same(train(other, state, range(5, 10)), want)


def test_nothing_that_is_given_changes(model):
    state = TrainState.create(model, OPT, HPARAMS)
    before, before_model = snapshot(state), snapshot(model.state_dict())
    grads, new = gradients(model, state, *batch(1))
    assert new.buffers["blocks.0.1.running_mean"].abs().sum() > 0
    assert new.buffers["calls"] == 1
    middle = snapshot((new, grads))
    newer = new.update(OPT, grads, HPARAMS)
    TrainState.stack([newer, new]).unbind()
    newer.load_state_dict(newer.to(torch.float64).state_dict())
    assert_untouched(before)
    assert_untouched(before_model)
    assert_untouched(middle)


def test_update_leaves_buffers_alone(model, state):
    grads, state = gradients(model, state, *batch(1))
    new = state.update(OPT, grads, HPARAMS)
    assert new.step.item() == state.step.item() + 1
    assert new.buffers is state.buffers
    assert not torch.equal(new.params["last.bias"], state.params["last.bias"])


def test_evaluation(model, state):
    x, _ = batch(1)
    y, new = state.apply(model.eval(), x)
    state.load_into(model)
    assert torch.equal(y, model(x))
    assert torch.equal(new.buffers["blocks.0.1.running_mean"], state.buffers["blocks.0.1.running_mean"])


def test_arguments_of_the_model():
    class Sum(nn.Module):
        def forward(self, self_, model, *, state=0):
            return {"sum": self_ + model + state}

    state = TrainState.create(Sum(), OPT)
    assert state.apply(Sum(), 1, model=2, state=3)[0] == {"sum": 6}


def test_a_step_that_may_write(model):
    want = train(model, TrainState.create(model, OPT, HPARAMS), range(4))
    assert_same(train(model, TrainState.create(model, OPT, HPARAMS), range(4), donate=True), want)


def test_frozen_parameters_are_buffers(model):
    model.blocks[0].requires_grad_(False)
    state = TrainState.create(model, OPT, HPARAMS)
    frozen = {"blocks.0.0.weight", "blocks.0.1.weight", "blocks.0.1.bias"}
    assert frozen <= state.buffers.keys()
    assert (
        state.params.keys()
        == state.opt_state["exp_avg"].keys()
        == {"first.weight", "last.bias"} | {name.replace("blocks.0", "blocks.1") for name in frozen}
    )
    new = train(model, state, range(2))
    assert all(new.buffers[name] is state.buffers[name] for name in frozen)
    assert not torch.equal(new.buffers["blocks.0.1.running_mean"], state.buffers["blocks.0.1.running_mean"])


def test_a_gradient_of_none(model, state):
    grads, state = gradients(model, state, *batch(1))
    new = state.update(OPT, {**grads, "last.bias": None}, HPARAMS)
    assert torch.equal(new.params["last.bias"], state.params["last.bias"])
    assert new.opt_state["step"]["last.bias"].item() == 3
    assert new.opt_state["step"]["first.weight"].item() == 4


def test_derivatives_with_respect_to_numbers(model):
    """Through two steps of a model with BatchNorm, against a central difference of step h.

    It is off by h² times a third derivative, and by rounding over h, of which 1e-6 of the derivative is far."""
    model = model.double()
    start = TrainState.create(model, OPT, HPARAMS)

    def after(lr):
        state = train(model, start, range(2), hparams=OPT.hparams(lr=lr), dtype=torch.float64)
        x, y = batch(5, torch.float64)
        return mse_loss(state.apply(model, x)[0], y)

    lr, h = torch.tensor(0.01, dtype=torch.float64), 1e-6
    torch.testing.assert_close(grad(after)(lr), (after(lr + h) - after(lr - h)) / (2 * h), rtol=1e-6, atol=0)


class Descent:
    """The least that an optimizer is; its state is no dict."""

    def hparams(self):
        return {"lr": 0.5}

    def init(self, params, hparams):
        return [{name: torch.zeros_like(p) for name, p in params.items()}]

    def __call__(self, params, grads, state, hparams):
        new = {name: p - hparams["lr"] * grads[name] for name, p in params.items()}
        return new, [grads]


def test_any_pure_optimizer(model):
    opt = Descent()
    state = TrainState.create(model, opt)
    grads, state = gradients(model, state, *batch(0))
    new = state.update(opt, grads, opt.hparams())
    assert torch.equal(new.params["last.bias"], state.params["last.bias"] - 0.5 * grads["last.bias"])
    assert new.to(torch.float64).opt_state[0]["last.bias"].dtype == torch.float64
    assert_same(state.load_state_dict(new.state_dict()), new)


# ---- small models ---------------------------------------------------------------------------------------------------

SMALL = {
    "nothing": nn.Identity(),
    "no buffers": nn.Linear(4, 4),
    "no parameters": nn.BatchNorm1d(4, affine=False),
    "all frozen": nn.Linear(4, 4).requires_grad_(False),
}


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL.keys())
def test_models_that_lack_something(small):
    state = TrainState.create(small, OPT, HPARAMS)
    x, _ = batch(0)
    y, new = state.apply(small, x)
    new = new.update(OPT, {name: torch.ones_like(p) for name, p in new.params.items()}, HPARAMS)
    assert new.step.item() == 1
    again = state.load_state_dict(new.state_dict())
    assert_same(again, new)
    again.load_into(small)
    stacked = TrainState.stack([new, new]).to(torch.float64)
    assert stacked.unbind()[1].step.item() == 1
    copied = copy.deepcopy(small)
    torch.testing.assert_close(state.apply(copied, x)[0], y)


# ---- transforms and the compiler ------------------------------------------------------------------------------------


def test_an_ensemble_is_a_loop(model):
    models = [Net() for _ in range(3)]
    x, y = (torch.stack(column) for column in zip(*map(batch, range(3)), strict=True))

    def step(state, x, y):
        grads, state = gradients(model, state, x, y)
        return state.update(OPT, grads, HPARAMS)

    stacked = TrainState.stack([TrainState.create(m, OPT, HPARAMS) for m in models])
    for _ in range(3):
        stacked = vmap(step)(stacked, x, y)
    assert stacked.buffers["blocks.0.1.num_batches_tracked"].tolist() == [3, 3, 3]
    for i, member in enumerate(stacked.unbind()):
        want = TrainState.create(models[i], OPT, HPARAMS)
        for _ in range(3):
            want = step(want, x[i], y[i])
        assert_close(member, want)


def test_one_part_of_a_state_batched(model, state):
    """As for models that are to see the data alone: vmap's in_dims are a TrainState too."""
    stacked = state.replace(params={name: torch.stack([p, 2 * p]) for name, p in state.params.items()})
    x, _ = batch(0)
    dims = TrainState(params=0, buffers=None, opt_state=None, step=None)
    got = vmap(lambda state, x: state.apply(model.eval(), x)[0], in_dims=(dims, None))(stacked, x)
    doubled = state.replace(params={name: 2 * p for name, p in state.params.items()})
    torch.testing.assert_close(got[1], doubled.apply(model, x)[0], rtol=1e-4, atol=1e-5)


def test_one_state_for_several_inputs_of_batch_norm(model, state):
    x = torch.randn(2, 8, 4)
    before = snapshot(state)
    with pytest.raises(RuntimeError) as error:
        vmap(lambda x: state.apply(model, x))(x)
    assert "TrainState.stack" in error.value.__notes__[0]
    y, new = vmap(lambda state, x: state.apply(model, x))(TrainState.stack([state, state]), x)
    want, wanted = state.apply(model, x[1])
    assert_close((y[1], new.unbind()[1]), (want, wanted))
    assert_untouched(before)


def test_compiled(model, state):
    """A whole step, one graph for all of them."""

    def step(state, x, y):
        grads, state = gradients(model, state, x, y)
        return state.update(OPT, grads, HPARAMS)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = state, state
    for t in range(3):
        before = snapshot(got)
        got, want = compiled(got, *batch(t)), step(want, *batch(t))
        assert_untouched(before)
        assert isinstance(got, TrainState)
        assert_close(got, want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_is_a_pytree_of_tensors(state):
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(state))
    assert_same(pytree.tree_map(torch.clone, state), state)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_leaves_with_path(state)]
    assert paths[0] == ".params['first.weight']"
    assert paths[-1] == ".step"
    assert_same(pytree.tree_map_with_path(lambda path, leaf: leaf, state), state)


# ---- stacks ---------------------------------------------------------------------------------------------------------


def test_stack_and_unbind(model, state):
    other = train(model, state, range(2))
    first, second = TrainState.stack([state, other]).unbind()
    assert_same(first, state)
    assert_same(second, other)
    assert_same(TrainState.stack([state]).unbind()[0], state)


@pytest.mark.parametrize(
    "made",
    [
        lambda s: copy.deepcopy(s),
        lambda s: pickle.loads(pickle.dumps(s)),
        lambda s: s.to(torch.float64),
        lambda s: s.load_state_dict(s.state_dict()),
        lambda s: TrainState.stack([s, s]),
        lambda s: TrainState.stack([s, s]).unbind()[0],
        lambda s: s.load_state_dict(pickle.loads(pickle.dumps(s.state_dict()))),
    ],
)
def test_parameters_go_on_sharing_their_step_count(made, state):
    """One count for all is one set of coefficients for all."""
    assert len({id(count) for count in made(state).opt_state["step"].values()}) == 1


# ---- devices and dtypes ---------------------------------------------------------------------------------------------

DTYPES = {
    "by position": (lambda s: s.to(torch.float64), torch.float64),
    "by name": (lambda s: s.to(dtype=torch.bfloat16), torch.bfloat16),
    "with a device": (lambda s: s.to("cpu", torch.float16), torch.float16),
    "with a torch.device": (lambda s: s.to(torch.device("cpu"), dtype=torch.float64), torch.float64),
    "a tensor's device": (lambda s: s.to(s.step.device, non_blocking=True), torch.float32),
    "nothing": (lambda s: s.to(), torch.float32),
}


@pytest.mark.parametrize(("call", "dtype"), DTYPES.values(), ids=DTYPES.keys())
def test_dtypes_are_those_of_a_module_that_is_cast(call, dtype, model, state):
    new = call(state)
    state.load_into(model)
    model.to(dtype)
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        got = {**new.params, **new.buffers}[name]
        assert got.dtype == t.dtype
        assert torch.equal(got, t)
    assert {slot.dtype for name in ("exp_avg", "exp_avg_sq") for slot in new.opt_state[name].values()} == {dtype}
    assert new.opt_state["step"]["last.bias"].dtype == torch.float32
    assert new.step.dtype == torch.int64
    train(model, new, [7], dtype=dtype)


def test_there_and_back(state):
    assert_same(state.to(torch.float64).to(torch.float32), state)


def test_counts_stay_on_the_cpu(state):
    new = state.to("meta")
    counts = [new.step, *new.opt_state["step"].values()]
    assert {t.device.type for t in counts} == {"cpu"}
    assert {t.device.type for t in leaves(new) if not any(t is c for c in counts)} == {"meta"}


def test_capturable_counts_are_beside_the_parameters():
    state = TrainState.create(nn.Linear(2, 2, device="meta"), OPT, HPARAMS, capturable=True, slot_dtype=torch.float64)
    assert {t.device.type for t in leaves(state)} == {"meta"}
    assert state.opt_state["exp_avg"]["weight"].dtype == torch.float64
    assert {t.device.type for t in leaves(state.to("meta", torch.float16))} == {"meta"}


# ---- into a dict, a model, a copy -----------------------------------------------------------------------------------


def test_state_dict_is_plain(state):
    state = state.replace(params={name: p.clone().requires_grad_() for name, p in state.params.items()})
    plain = state.state_dict()
    assert list(plain) == ["params", "buffers", "opt_state", "step"]
    assert type(plain["params"]) is type(plain["opt_state"]["exp_avg"]) is dict
    assert not any(t.requires_grad for t in leaves(plain))


def test_a_loaded_state_dict_is_left_alone(model, state):
    plain = state.state_dict()
    before = snapshot(plain)
    train(model, state.load_state_dict(plain), range(2), donate=True)
    assert_untouched(before)


def test_what_is_loaded_has_the_dtypes_of_the_state(state):
    new = state.to(torch.float64).load_state_dict(dict(reversed(state.state_dict().items())))
    assert_same(new, state.to(torch.float64))


def test_into_a_model(state):
    model = Net().double()
    kept = dict(model.named_parameters())
    state.load_into(model)
    assert model.first.weight is model.last.weight is kept["first.weight"]
    assert model.first.weight.requires_grad
    for name, t in model.named_parameters():
        assert torch.equal(t, state.params[name].double())
    assert torch.equal(model.largest, state.buffers["largest"].double())
    assert model.calls == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copied_and_pickled(copied, model, state):
    new = copied(state)
    assert_same(new, state)
    assert new.params["last.bias"].data_ptr() != state.params["last.bias"].data_ptr()
    assert_same(train(model, new, range(2)), train(model, state, range(2)))


def test_created_from_copies(model):
    state = TrainState.create(model, OPT)
    before = snapshot(state)
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            t.add_(1)
    assert_untouched(before)
    assert not any(t.requires_grad for t in leaves(state))


def test_immutable_and_printed(state):
    with pytest.raises(AttributeError):
        state.step = 3
    assert repr(state) == (
        "TrainState(step=tensor(3); params: 8 tensors, 68 elements; buffers: 8 tensors, 20 elements; "
        "opt_state: 24 tensors, 144 elements)"
    )


def test_replace_takes_fields_only(state):
    with pytest.raises(TypeError, match="param"):
        state.replace(param={})


# ---- errors ---------------------------------------------------------------------------------------------------------


def without(tree, *path):
    """A nested dict without the entry at the end of the path."""
    name, *rest = path
    return {n: without(v, *rest) if n == name else v for n, v in tree.items() if n != name or rest}


ERRORS = [
    (lambda s: TrainState.create(dict(s.params), OPT), TypeError, "model is a torch.nn.Module; got a dict"),
    (lambda s: TrainState.create(Net(), funcopt.adamw), TypeError, "such as funcopt.adamw(); got a function"),
    (lambda s: TrainState.create(Net(), torch.optim.SGD(Net().parameters())), TypeError, "got a SGD"),
    (lambda s: s.apply(nn.Linear(2, 2), 1), ValueError, "the state has no bias, weight; the model has no blocks.0.0"),
    (lambda s: s.load_into(Net().last), ValueError, "the state has no bias, weight; the model has no blocks.0.0"),
    (lambda s: s.update(OPT, {}, HPARAMS), ValueError, "grads['first.weight'] is missing"),
    (lambda s: s.to(torch.int32), TypeError, "to takes a floating-point dtype; got torch.int32"),
    (lambda s: s.to(torch.float64, torch.float32), TypeError, "to takes one dtype"),
    (lambda s: s.unbind(), ValueError, "a single state cannot be taken apart"),
    (lambda s: TrainState.stack([]), ValueError, "stack takes one state or more"),
    (
        lambda s: TrainState.stack([s, s.replace(buffers={})]),
        ValueError,
        "states[1].buffers['calls'] is missing: states[0] has it",
    ),
    (
        lambda s: TrainState.stack([s, s, s.replace(step=torch.zeros(2))]),
        ValueError,
        "states[2].step has shape (2,); states[0] has a tensor of shape () there",
    ),
    (lambda s: s.load_state_dict(s.step), ValueError, "state_dict is a Tensor, but the state has a dict there"),
    (
        lambda s: s.load_state_dict(without(s.state_dict(), "opt_state", "exp_avg", "last.bias")),
        ValueError,
        "state_dict['opt_state']['exp_avg']['last.bias'] is missing: the state has it",
    ),
    (
        lambda s: s.load_state_dict(s.state_dict() | {"ema": {}}),
        ValueError,
        "state_dict['ema'] has no counterpart in the state, whose entries there are ['params']",
    ),
    (
        lambda s: s.load_state_dict(s.state_dict() | {"step": None}),
        ValueError,
        "state_dict['step'] is a NoneType; the state has a tensor of shape () there",
    ),
    (
        lambda s: s.load_state_dict(TrainState.stack([s]).state_dict()),
        ValueError,
        "state_dict['params']['first.weight'] has shape (1, 4, 4); the state has a tensor of shape (4, 4) there",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message, state):
    with pytest.raises(kind, match=re.escape(message)):
        call(state)


def test_a_model_that_a_state_does_not_fit_is_left_alone(model, state):
    before = snapshot(model.state_dict())
    with pytest.raises(ValueError, match=r"the state's first.weight has shape \(1, 4, 4\); the model has a tensor"):
        TrainState.stack([state]).load_into(model)
    assert_untouched(before)


def test_numbers_in_the_state_keep_their_dtype():
    """A product of momenta, or a rate, in bfloat16 would be another."""
    model = nn.Linear(3, 2)
    for opt, names in ((funcopt.nadam(), ["mu_product"]), (funcopt.asgd(), ["eta", "mu"])):
        state = TrainState.create(model, opt)
        state = state.update(opt, {n: torch.ones_like(p) for n, p in state.params.items()}, opt.hparams())
        moved = state.to(torch.bfloat16)
        for name in names:
            assert all(torch.equal(moved.opt_state[name][n], v) for n, v in state.opt_state[name].items())
            assert all(v.dtype == torch.float64 for v in moved.opt_state[name].values())
        slots = [n for n in moved.opt_state if n not in ("step", *names)]
        assert slots
        assert all(t.dtype == torch.bfloat16 for n in slots for t in moved.opt_state[n].values())


def test_it_is_saved_whole(tmp_path):
    model, opt = nn.Linear(3, 2), funcopt.adamw()
    state = TrainState.create(model, opt)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert isinstance(loaded, TrainState)
    assert all(torch.equal(loaded.params[n], p) for n, p in state.params.items())


def test_a_state_that_grows_is_made_of_its_state_dict():
    model, opt = nn.Linear(3, 2), funcopt.lbfgs()
    state = TrainState.create(model, opt)
    loss = lambda params: sum(p.square().sum() for p in params.values())
    grown = state.update(opt, funcopt.value_and_grad(loss), opt.hparams())
    again = TrainState(**grown.state_dict())
    one, other = (s.update(opt, funcopt.value_and_grad(loss), opt.hparams()).params for s in (grown, again))
    assert all(torch.equal(one[n], other[n]) for n in one)
