"""What the pure optimizer refuses before anything is changed: errors name what was given, and the leaf by its path."""

import copy

import pytest
import torch

import funcopt
from tests.rules_table import fitted
from tests.test_pure import Layer, same, tensors_of

# ---- hparams and flags ----------------------------------------------------------------------------------------------

HPARAM_ERRORS = [
    ({"lrr": 1}, TypeError, r"no hyperparameter 'lrr'; did you mean 'lr'\? allowed: lr, betas, eps, weight_decay"),
    ({"lr": -1}, ValueError, r"Invalid learning rate: -1 .*lr takes numbers in \[0, inf\)"),
    ({"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
    ({"lr": {"a": 0.1, "b": -2.0}}, ValueError, "Invalid learning rate: -2.0"),
    ({"lr": torch.tensor([0.1, -0.5])}, ValueError, "Invalid learning rate: -0.5"),
    ({"lr": "0.1"}, TypeError, "lr takes a float, a floating-point tensor or a schedule; got str: '0.1'"),
    ({"lr": True}, TypeError, "got bool"),
    ({"lr": None}, TypeError, "got NoneType"),
    ({"lr": torch.tensor(1)}, TypeError, "torch.int64"),
    ({"betas": 0.9}, ValueError, "betas takes a tuple of 2 values"),
    ({"betas": (0.9,)}, ValueError, "betas takes a tuple of 2 values"),
    (
        {"betas": (0.9, 1.0)},
        ValueError,
        r"Invalid beta parameter at index 1: 1.0 \(betas\[1\] takes numbers in \[0, 1\)",
    ),
    ({"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
]


@pytest.mark.parametrize(("numbers", "kind", "message"), HPARAM_ERRORS, ids=str)
def test_a_wrong_hparam_is_named(numbers, kind, message):
    with pytest.raises(kind, match=message):
        funcopt.adamw().hparams(**numbers)


def test_numbers_that_do_not_go_together():
    with pytest.raises(
        ValueError, match=r"Nesterov momentum requires a momentum and zero dampening; got momentum=0\.0"
    ):
        funcopt.sgd(nesterov=True).hparams()
    assert funcopt.sgd(nesterov=True).hparams(momentum=0.9)["momentum"] == 0.9


def test_a_wrong_flag_is_named():
    with pytest.raises(TypeError, match=r"no flag 'amsgrd'; did you mean 'amsgrad'\? allowed: amsgrad, maximize, back"):
        funcopt.adamw(amsgrd=True)
    with pytest.raises(TypeError, match=r"lr is a number: pass it to opt\.hparams\(lr=…\)"):
        funcopt.adamw(lr=0.1)
    with pytest.raises(TypeError, match="amsgrad takes True or False; got 1"):
        funcopt.adamw(amsgrad=1)
    with pytest.raises(ValueError, match="backend='trito' is unknown; did you mean 'triton'"):
        funcopt.adamw(backend="trito")


CHOICE_ERRORS = [
    ({"ns_steps": 100}, r"Number of steps must be less than 100 .*got 100 \(allowed: range\(0, 100\)\)"),
    ({"ns_steps": True}, "got True"),
    ({"adjust_lr_fn": "orignal"}, r"orignal is not supported \(allowed: None, 'original', 'match_rms_adamw'\)"),
    (
        {"ns_dtype": torch.float16},
        r"ns_dtype torch.float16 is not supported \(allowed: torch.bfloat16, torch.float32, ",
    ),
]


@pytest.mark.parametrize(("flags", "message"), CHOICE_ERRORS, ids=str)
def test_a_choice_that_there_is_not(flags, message):
    with pytest.raises(ValueError, match=message):
        funcopt.muon(**flags)


def test_none_is_a_number_where_that_is_the_default():
    assert funcopt.adafactor().hparams(eps=(None, 0.1))["eps"] == (None, 0.1)
    with pytest.raises(TypeError, match=r"eps\[1\] takes a float, .*; got NoneType"):
        funcopt.adafactor().hparams(eps=(None, None))


NUMBERS_TOGETHER = [
    (
        funcopt.rprop(),
        {"etas": (0.5, 1.0)},
        r"Invalid eta values: 0\.5, 1\.0 \(etas\[1\] takes numbers in \(1, inf\)\)",
    ),
    (funcopt.rprop(), {"etas": (0.0, 1.2)}, r"Invalid eta values: 0\.0, 1\.2"),
    (
        funcopt.muon(),
        {"momentum": -0.1},
        r"momentum should be >= 0 but is: -0\.1 \(momentum takes numbers in \[0, inf\)",
    ),
    (funcopt.adafactor(), {"beta2_decay": 0.1}, r"beta2_decay should be <= 0 but is: 0\.1"),
    (funcopt.sparse_adam(), {"lr": 0.0}, r"Invalid learning rate: 0\.0 \(lr takes numbers in \(0, inf\)\)"),
]


@pytest.mark.parametrize(("opt", "numbers", "message"), NUMBERS_TOGETHER, ids=str)
def test_a_number_out_of_range_is_said_in_the_words_of_its_rule(opt, numbers, message):
    with pytest.raises(ValueError, match=message):
        opt.hparams(**numbers)


def test_numbers_that_go_together_may_be_schedules():
    schedule = lambda t: 0.9
    assert funcopt.sgd(nesterov=True).hparams(momentum=schedule, dampening=schedule)["momentum"] is schedule
    assert funcopt.rprop().hparams(etas=(0.5, schedule))["etas"] == (0.5, schedule)


# ---- mismatches are named by their path -----------------------------------------------------------------------------

PARAMS = {"layers": [Layer(torch.zeros(2, 3), torch.zeros(3))], "scale": torch.zeros(())}


def grads(**changes):
    layer = Layer(torch.zeros(2, 3), torch.zeros(3))._replace(**{k: v for k, v in changes.items() if k != "scale"})
    return {"layers": [layer], "scale": changes.get("scale", torch.zeros(()))}


GRAD_ERRORS = [
    (grads(weight=torch.zeros(3, 2)), ValueError, r"grads\['layers'\]\[0\]\.weight has shape \(3, 2\).* \(2, 3\)"),
    (grads(bias=torch.zeros(3).double()), ValueError, r"grads\['layers'\]\[0\]\.bias is torch.float64, but params"),
    (grads(scale=1.0), TypeError, r"grads\['scale'\] is a float; a dense floating-point tensor is needed"),
    (grads(bias=torch.zeros(3).to_sparse()), TypeError, r"grads\['layers'\]\[0\]\.bias is sparse; adamw does not supp"),
    (grads(scale=[torch.zeros(())]), ValueError, r"grads\['scale'\] is a list, but params has a single leaf there"),
    (grads(bias=torch.zeros(3, device="meta")), ValueError, r"grads\['layers'\]\[0\]\.bias .*on meta"),
    ({"layers": grads()["layers"]}, ValueError, r"grads\['scale'\] is missing"),
    (grads() | {"extra": 1}, ValueError, r"grads\['extra'\] has no counterpart in params"),
    (torch.zeros(3), ValueError, r"grads is a Tensor, but params has a dict there with the entries \['layers'\]"),
]


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("wrong", "kind", "message"), GRAD_ERRORS, ids=[message for *_, message in GRAD_ERRORS])
def test_a_gradient_that_does_not_fit(wrong, kind, message, donate):
    opt = funcopt.adamw()
    params = copy.deepcopy(PARAMS)
    state = opt.init(params)
    before = copy.deepcopy((params, state))
    with pytest.raises(kind, match=message):
        opt(params, wrong, state, opt.hparams(), donate=donate)
    assert same((params, state), before)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


STATE_ERRORS = [
    (lambda s: without(s, "exp_avg"), r"state has no 'exp_avg', which .*adamw.* needs"),
    (lambda s: without(s, "step"), r"state has no 'step'"),
    (lambda s: s | {"exp_avgs": s["exp_avg"]}, r"state\['exp_avgs'\] is not a slot of adamw; did you mean 'exp_avg'"),
    (
        lambda s: s | {"exp_avg": grads(bias=torch.zeros(4))},
        r"state\['exp_avg'\]\['layers'\]\[0\]\.bias has shape \(4,",
    ),
    (lambda s: s | {"step": grads()}, r"state\['step'\]\['layers'\]\[0\]\.weight must be a 0-d tensor"),
    (lambda s: s | {"exp_avg": {"layers": s["exp_avg"]["layers"]}}, r"state\['exp_avg'\]\['scale'\] is missing"),
]


@pytest.mark.parametrize(("change", "message"), STATE_ERRORS, ids=[message for _, message in STATE_ERRORS])
def test_a_state_that_does_not_fit(change, message):
    opt = funcopt.adamw()
    with pytest.raises(ValueError, match=message):
        opt(PARAMS, grads(), change(opt.init(PARAMS)), opt.hparams())


def test_state_of_other_flags_or_numbers():
    opt, state = funcopt.adamw(amsgrad=True), funcopt.adamw().init(PARAMS)
    with pytest.raises(ValueError, match=r"state has no 'max_exp_avg_sq', which .*amsgrad=True"):
        opt(PARAMS, grads(), state, opt.hparams())
    opt, state = funcopt.adamw(), funcopt.adamw(amsgrad=True).init(PARAMS)
    with pytest.raises(ValueError, match=r"state has 'max_exp_avg_sq', which is of no use with amsgrad=False"):
        opt(PARAMS, grads(), state, opt.hparams())
    opt, state = funcopt.sgd(), funcopt.sgd().init(PARAMS)
    with pytest.raises(ValueError, match=r"state has no 'momentum_buffer', which .*opt\.init\(params, hparams\) makes"):
        opt(PARAMS, grads(), state, opt.hparams(momentum=0.9))


HPARAM_TREE_ERRORS = [
    ({"lr": {"layers": 0.1}}, ValueError, r"hparams\['lr'\]\['scale'\] is missing"),
    ({"lr": {"layers": 0.1, "scal": 0.1}}, ValueError, r"hparams\['lr'\]\['scal'\] has no counterpart"),
    ({"lr": torch.zeros(2)}, ValueError, r"\['lr'\] has shape \(2,\), .*\(2, 3\) of params\['layers'\]\[0\]\.weight"),
]


@pytest.mark.parametrize(("numbers", "kind", "message"), HPARAM_TREE_ERRORS, ids=str)
def test_hparams_that_do_not_fit_the_params(numbers, kind, message):
    opt = funcopt.adamw()
    with pytest.raises(kind, match=message):
        opt(PARAMS, grads(), opt.init(PARAMS), opt.hparams(**numbers))


def test_hparams_incomplete_or_with_a_stranger():
    opt = funcopt.adamw()
    state, hparams = opt.init(PARAMS), opt.hparams()
    with pytest.raises(ValueError, match=r"hparams\['eps'\] is missing; opt\.hparams\(\.\.\.\) makes a complete set"):
        opt(PARAMS, grads(), state, without(hparams, "eps"))
    with pytest.raises(ValueError, match=r"hparams\['momentm'\] is unknown"):
        opt(PARAMS, grads(), state, hparams | {"momentm": 0.9})


def test_params_must_be_floating_tensors():
    opt = funcopt.adamw()
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype torch.int64"):
        opt.init({"n": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(TypeError, match=r"params\['n'\]\[0\] is a float; params holds tensors only"):
        opt.init({"n": [1.0]})


# ---- what a rule takes ----------------------------------------------------------------------------------------------


def test_parameters_of_other_dimensions_where_a_rule_takes_matrices():
    opt, params = funcopt.muon(), {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
    message = r"params\['b'\] cannot be updated by muon: .*2D parameters .*\(3,\)"
    with pytest.raises(ValueError, match=message):
        opt.init(params)
    state = {"step": dict.fromkeys(params, torch.zeros(())), "momentum_buffer": copy.deepcopy(params)}
    with pytest.raises(ValueError, match=message):
        opt(params, params, state, opt.hparams())


def test_complex_parameters(factory):
    """They are taken, or refused by name."""
    opt, p = factory(), torch.zeros(fitted(factory, (3,)), dtype=torch.complex64)
    if factory.rule.complex:
        new, state = opt(p, p + 1j, opt.init(p), opt.hparams())
        assert {t.dtype for t in tensors_of([new, state]) if t.dim()} == {torch.complex64}
    else:
        with pytest.raises(ValueError, match=f"params cannot be updated by {factory.__name__}: .* complex"):
            opt.init(p)


def test_sparse_gradients(factory):
    """They are taken, or refused by name, with what to do."""
    opt, p = factory(), torch.zeros(fitted(factory, (3, 2)))
    g, state = torch.ones_like(p).to_sparse(), opt.init(p)
    if factory.rule.rows is not None:
        assert not torch.equal(opt(p, g, state, opt.hparams())[0], p)
    else:
        message = rf"grads is sparse; {factory.__name__} does not support sparse gradients, make it dense by to_dense"
        with pytest.raises(TypeError, match=message):
            opt(p, g, state, opt.hparams())


SLOT_ERRORS = [
    (funcopt.adafactor(), "row_var", (4, 3), r"state\['row_var'\] has shape \(4, 3\).* shape of \(4, 1\) is needed"),
    (funcopt.adafactor(), "col_var", (4, 1), r"state\['col_var'\] has shape \(4, 1\).* shape of \(1, 3\) is needed"),
    (funcopt.nadam(), "mu_product", (1,), r"state\['mu_product'\] must be a 0-d tensor"),
]


@pytest.mark.parametrize(("opt", "slot", "shape", "message"), SLOT_ERRORS, ids=[slot for _, slot, *_ in SLOT_ERRORS])
def test_slots_of_a_shape_of_their_own(opt, slot, shape, message):
    p = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=message):
        opt(p, p, opt.init(p) | {slot: torch.zeros(shape)}, opt.hparams())
