"""Optimizers broken on purpose: correct ones with a piece of their text replaced, in ways that people do."""

import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funcopt.rules import RULES
from tests.testing import plain_optimizers

PLAIN = plain_optimizers.__name__
COUPLED = {"elementwise": True, "decoupled": False}
DECOUPLED = {"elementwise": True, "decoupled": True}

# Each original's module, and what its author claims of a class. A rule declares that itself.
ORIGINALS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (f"funcopt.rules.{name}", {}) for name in RULES},
    "lion": (PLAIN, {}),
    "plain_adagrad": (PLAIN, {}),
    "PlainSGD": (PLAIN, {"family": "sgd", **COUPLED}),
    "PlainAdam": (PLAIN, {"family": "adam", **COUPLED}),
    "PlainAdamW": (PLAIN, {"family": "adam", **DECOUPLED}),
}


def original(name: str) -> Any:
    """One of `ORIGINALS`: a rule's factory or a class."""
    return getattr(importlib.import_module(ORIGINALS[name][0]), name)


@dataclass(frozen=True)
class Mutant:
    """One of `ORIGINALS` with changes of its text: each old text, and the new one in its place."""

    of: str
    name: str
    changes: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.of}: {self.name}"

    def make(self, folder: Path) -> Any:
        """The rule's factory or the class, imported from a file of its own in a folder; raises what that raises."""
        name = re.sub(r"\W", "_", f"mutant of {self}")
        path = folder / f"{name}.py"
        path.write_text(self.source(), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, self.of)

    def source(self) -> str:
        """The original's file after the changes, which are made in its class, or anywhere in its rule's file."""
        found = original(self.of)
        whole = inspect.getsource(sys.modules[ORIGINALS[self.of][0]])
        part = text = inspect.getsource(found) if inspect.isclass(found) else whole
        for old, new in self.changes:
            text = replaced(text, old, new)
        return whole.replace(part, text)


def replaced(text: str, old: str, new: str) -> str:
    """A text with the one place of `old` as `new`; both are written as if the line they begin in had no indent."""
    places = []
    for indent in (" " * n for n in range(0, 28, 4)):
        before, after = (t.replace("\n", "\n" + indent) for t in (old, new))
        places += [(m, before, after) for m in re.finditer(rf"^{indent}(?! ).*?(?={re.escape(before)})", text, re.M)]
    assert len(places) == 1, f"{old!r} stands {len(places)} times, not once"
    [(place, before, after)] = places
    return text[: place.end()] + after + text[place.end() + len(before) :]


def mutants(of: str, *rows: tuple[str, ...]) -> list[Mutant]:
    """Mutants of one original: of each its name, then old text, new text, and so on in turn."""
    return [Mutant(of, name, tuple(zip(texts[::2], texts[1::2], strict=True))) for name, *texts in rows]


# ---- rules ----------------------------------------------------------------------------------------------------------

LR = '"lr": lr,'
DAMPENED = "where(t == 1, 1.0, where(momentum == 0, 1.0, 1 - dampening))"
BUFFER = "b = c.momentum * b + c.one_minus_dampening * g"
NESTEROV = "g = g + c.momentum * b"
DECAY = "c.weight_decay * p"
MAXIMIZE = "if maximize:"

SGD = mutants(
    "sgd",
    ("dampening on the first step", DAMPENED, "1 - dampening"),
    ("dampening ignored", DAMPENED, "1.0"),
    ("dampening on the buffer", BUFFER, "b = c.one_minus_dampening * c.momentum * b + g"),
    ("an average for momentum", BUFFER, "b = c.momentum * b + (1 - c.momentum) * g"),
    ("lr in the buffer", BUFFER, "b = c.momentum * b + c.one_minus_dampening * c.lr * g", "- c.lr * g", "- g"),
    ("momentum in place", BUFFER, "b = b.mul_(c.momentum).add_(c.one_minus_dampening * g)"),
    ("momentum lost every third step", '"momentum": momentum,', '"momentum": where(t % 3 == 0, 0.0, momentum),'),
    ("Nesterov with the old buffer", BUFFER, f"old = b\n{BUFFER}", NESTEROV, "g = g + c.momentum * old"),
    ("Nesterov without the gradient", NESTEROV, "g = c.momentum * b"),
    ("Nesterov ignored", NESTEROV, "g = b"),
    (
        "decay beside the momentum",
        "else:\n    g = g + c.weight_decay * p",
        "d = 0 if decoupled_weight_decay else c.weight_decay * p",
        "p - c.lr * g",
        "p - c.lr * (g + d)",
    ),
    ("decoupled decay without lr", "1 - lr * weight_decay", "1 - weight_decay"),
    ("decoupled decay in the gradient too", "else:\n    g = g + c", "if True:\n    g = g + c"),
    ("decay of the absolute value", DECAY, "c.weight_decay * where(p > 0, p, -p)"),
    ("decay of what is above 0", DECAY, "c.weight_decay * where(p > 0, p, 0 * p)"),
    ("maximize ignored", "g = -g", "g = g"),
    ("maximize writes to the gradient", "g = -g", "g = g.neg_()"),
    ("uphill", "p - c.lr * g", "p + c.lr * g"),
    ("lr twice", LR, '"lr": lr * lr,'),
    ("lr squared at first", LR, '"lr": where(t < 3, lr * lr, lr),'),
    ("no first step", LR, '"lr": where(t == 1, 0.0, lr),'),
    ("an lr that falls by itself", LR, '"lr": lr / (1 + 1e-4 * (t - 1)),'),
    ("a least lr", LR, '"lr": where(lr < 0.01, 0.01, lr),'),
    ("lr detached", LR, '"lr": getattr(lr, "detach", lambda: lr)(),'),
    ("the gradient detached", MAXIMIZE, f"g = g.detach()\n{MAXIMIZE}"),
    ("gradients without their sign", MAXIMIZE, f"g = where(g > 0, g, -g)\n{MAXIMIZE}"),
    ("elements clipped", MAXIMIZE, f"g = g.clamp(-1, 1)\n{MAXIMIZE}"),
    ("gradients divided by their norm", MAXIMIZE, f"g = g / (g.norm() + 1e-12)\n{MAXIMIZE}"),
    ("gradients without their mean", MAXIMIZE, f"g = g - g.sum() / max(g.numel(), 1)\n{MAXIMIZE}"),
    ("signs alone", "- c.lr * g", "- c.lr * g.sign()"),
    ("float32 arithmetic", "return p - c.lr * g", "return (p - c.lr * g).float()"),
    ("noise", "p - c.lr * g", "p - c.lr * (g + 1e-9 * g.new_empty(g.shape).normal_())"),
    ("rows alone with momentum", '("momentum", "weight_decay")', '("weight_decay",)'),
)

STEP = "(m / (sqrt(v_hat) * c.rsqrt_bias2 + c.eps))"
SQUARE = "c.one_minus_beta2 * g * g"
AMSGRAD = "v_max = maximum(v_max, v)\nslots, v_hat = (m, v, v_max), v_max"
CORRECTED = "lr / one_minus_power(beta1, t)"
ROOT = "sqrt(one_minus_power(beta2, t))"

ADAM = mutants(
    "adam",
    ("no bias correction", CORRECTED, "lr", ROOT, "1.0"),
    ("no correction of m", CORRECTED, "lr"),
    ("no correction of v", ROOT, "1.0"),
    ("correction of the next step", CORRECTED, "lr / one_minus_power(beta1, t + 1)"),
    ("correction of v without the root", ROOT, "one_minus_power(beta2, t)"),
    (
        "correction by growing weights",
        CORRECTED,
        "lr * (1 + 1 / expm1(-t * log(beta1)))",
        "import maximum,",
        "import expm1, log, maximum,",
    ),
    ("betas swapped", "beta1, beta2 = betas", "beta2, beta1 = betas"),
    ("m's weights swapped", "m + c.one_minus_beta1 * (g - m)", "g + c.one_minus_beta1 * (m - g)"),
    ("v's weights swapped", f"c.beta2 * v + {SQUARE}", "c.one_minus_beta2 * v + c.beta2 * g * g"),
    ("v of m", SQUARE, "c.one_minus_beta2 * m * m"),
    ("v around m", SQUARE, "c.one_minus_beta2 * (g - m) * (g - m)"),
    ("v of the whole tensor", SQUARE, "c.one_minus_beta2 * (g * g).sum() / max(g.numel(), 1)"),
    ("v along the last axis", SQUARE, "c.one_minus_beta2 * (g * g).sum(-1, keepdim=True)"),
    ("v of the step before", "v = c.beta2", "v_hat = v\nv = c.beta2", "slots, v_hat = (m, v), v", "slots = (m, v)"),
    ("m ignored", STEP, STEP.replace("m /", "g /")),
    ("m detached", STEP, STEP.replace("m /", "m.detach() /")),
    ("no root", STEP, "(m / (v_hat * c.rsqrt_bias2 + c.eps))"),
    ("a root without a slope at 0", STEP, STEP.replace("sqrt(v_hat)", "v_hat ** 0.5")),
    ("eps in the root", STEP, "(m / (sqrt(v_hat + c.eps * c.eps) * c.rsqrt_bias2))"),
    ("eps before the correction", STEP, "(m / ((sqrt(v_hat) + c.eps) * c.rsqrt_bias2))"),
    ("eps as a lower bound", STEP, "(m / maximum(sqrt(v_hat) * c.rsqrt_bias2, c.eps))"),
    ("no eps", STEP, "(m / (sqrt(v_hat) * c.rsqrt_bias2))"),
    ("a least v", STEP, "(m / (sqrt(maximum(v_hat, 1e-4)) * c.rsqrt_bias2 + c.eps))"),
    ("lr in m", '"one_minus_beta1": 1 - beta1', '"one_minus_beta1": (1 - beta1) * lr'),
    ("decay beside the step", "p, g + c.weight_decay * p,", "(1 - c.step_size * c.weight_decay) * p, g,"),
    (
        "decay of the wrong sign to maximize",
        f"{MAXIMIZE}\n    g = -g\nreturn adam_step(p, g + c.weight_decay * p,",
        f"g = g + c.weight_decay * p\n{MAXIMIZE}\n    g = -g\nreturn adam_step(p, g,",
    ),
    ("AMSGrad ignored", AMSGRAD, AMSGRAD.replace("), v_max", "), v")),
    ("AMSGrad by the least", AMSGRAD, AMSGRAD.replace("maximum(v_max, v)", "v_max + v - maximum(v_max, v)")),
    ("AMSGrad fed back", AMSGRAD, AMSGRAD.replace("(m, v, v_max)", "(m, v_max, v_max)")),
    (
        "AMSGrad after the correction",
        AMSGRAD,
        "corrected = c.rsqrt_bias2 * c.rsqrt_bias2\n"
        "v_max = maximum(v_max, v * corrected)\n"
        "slots, v_hat = (m, v, v_max), v_max / corrected",
    ),
    ("AMSGrad in place", AMSGRAD, AMSGRAD.replace("maximum(v_max, v)", "v_max.copy_(maximum(v_max, v))")),
    ("no step on a zero gradient", STEP, f"(g != 0) * {STEP}"),
    ("steps in proportion to p", STEP, f"sqrt(p * p) * {STEP}"),
    ("all for one NaN", MAXIMIZE, f"if not bool(g.isfinite().all()):\n    g = 0 * g.nan_to_num()\n{MAXIMIZE}"),
    ("a Python number of lr", '"step_size": lr', '"step_size": float(lr)'),
    ("one number for all elements", f"return p - c.step_size * {STEP}", f"return (p - c.step_size * {STEP}).mean()"),
)

CALL = "return adam_step(c.decay * p, g, m, v, v_max, c, amsgrad)"

ADAMW = mutants(
    "adamw",
    ("decay in the gradient", "c.decay * p, g,", "p, g + (1 - c.decay) * p,"),
    ("decay in the gradient as well", "c.decay * p, g,", "c.decay * p, g + (1 - c.decay) * p,"),
    ("decay without lr", "1 - lr * weight_decay", "1 - weight_decay"),
    ("decay by lr squared", "1 - lr * weight_decay", "1 - lr * lr * weight_decay"),
    ("decay upwards", "1 - lr * weight_decay", "1 + lr * weight_decay"),
    (
        "exponential decay",
        "1 - lr * weight_decay",
        "1 + expm1(-lr * weight_decay)",
        "import nonnegative",
        "import nonnegative\nfrom funcopt.ops import expm1",
    ),
    ("decay from the second step on", "1 - lr * weight_decay", "1 - (t > 1) * lr * weight_decay"),
    (
        "decay after the step",
        CALL,
        "p, slots = adam_step(p, g, m, v, v_max, c, amsgrad)\nreturn c.decay * p, slots",
    ),
    ("decay upwards to maximize", "c.decay * p", "(2 - c.decay if maximize else c.decay) * p"),
    (
        "maximize by the step alone",
        f"{MAXIMIZE}\n    g = -g\n{CALL}",
        f"{CALL.replace('return', 'new, slots =')}\nreturn (2 * c.decay * p - new if maximize else new), slots",
    ),
    ("no slots", CALL, f"{CALL}[0], ()"),
)

BLEND = "c.beta1 * m + c.one_minus_beta1 * g"
AVERAGE = "c.beta2 * m + c.one_minus_beta2 * g"

LION = mutants(
    "lion",
    ("the sign of the gradient", BLEND, "g"),
    (
        "the sign of the new average",
        f"p = c.decay * p - c.lr * sign({BLEND})\nreturn p, ({AVERAGE},)",
        f"m = {AVERAGE}\np = c.decay * p - c.lr * sign(m)\nreturn p, (m,)",
    ),
    ("m's weights swapped", AVERAGE, "c.one_minus_beta2 * m + c.beta2 * g"),
    ("a soft sign", f"sign({BLEND})", f"(10 * ({BLEND})).tanh()"),
    ("no sign at 0", f"sign({BLEND})", f"(2.0 * ({BLEND} >= 0) - 1)"),
    ("decay in the sign", f"c.decay * p - c.lr * sign({BLEND})", f"p - c.lr * sign((1 - c.decay) * p + {BLEND})"),
)

COEFFICIENTS = '{"lr": lr, "eps": eps, "weight_decay": weight_decay}'
TOTAL = "total = total + g * g"

PLAIN_ADAGRAD = mutants(
    "plain_adagrad",
    ("an average", TOTAL, "total = 0.9 * total + 0.1 * g * g"),
    ("the largest alone", TOTAL, "total = where(total > g * g, total, g * g)", "import sign,", "import where, sign,"),
    ("a sum of sizes", TOTAL, "total = total + sqrt(g * g)"),
    ("one sum for all elements", TOTAL, "total = total + (g * g).sum()"),
    ("the last sum", "(sqrt(total) + c.eps)", "(sqrt(total - g * g) + c.eps)"),
    ("eps in the root", "sqrt(total) + c.eps", "sqrt(total + c.eps)"),
    (
        "coefficients kept",
        "def adagrad_coefficients",
        "kept = {}\n\n\ndef adagrad_coefficients",
        f"return {COEFFICIENTS}",
        f"return kept.setdefault(t, {COEFFICIENTS})",
    ),
    ("decay without a derivative", "c.weight_decay * p", "c.weight_decay * p.detach()"),
    ("another value with a derivative", TOTAL, f"g = g * (1 + 1e-6) if g.requires_grad else g\n{TOTAL}"),
)

MU_PRODUCT = "mu_product = mu_product * mu\n"
MU_NEXT = "beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))"

NADAM = mutants(
    "nadam",
    ("no product of momenta", MU_PRODUCT, "mu_product = mu\n"),
    ("the product of the next step", MU_PRODUCT, "mu_product = mu_product * mu_next\n"),
    ("the same momentum twice", MU_NEXT, "mu"),
    ("a schedule that begins a step late", "0.96 ** (t * momentum_decay)", "0.96 ** ((t - 1) * momentum_decay)"),
    ("the product detached", MU_PRODUCT, 'mu_product = getattr(mu_product, "detach", lambda: mu_product)() * mu\n'),
    ("a product that begins with 0", "init=1.0, scalar=True", "init=0.0, scalar=True"),
    ("momentum of the step before", "m = m + c.one", "old = m\nm = m + c.one", "c.momentum * m", "c.momentum * old"),
    ("betas swapped", "beta1, beta2 = betas", "beta2, beta1 = betas"),
    ("decay beside the step as well", "else:\n    g = g + c", "if True:\n    g = g + c"),
)

UNRECTIFIED = "where(known, c.rectified * adapted, m)"

RADAM = mutants(
    "radam",
    ("no rectification", '"rectified": rectified * sqrt(bias2)', '"rectified": sqrt(bias2)'),
    ("rectified from 4 on", "known = length > 5", "known = length > 4"),
    ("no step while it is unknown", UNRECTIFIED, "where(known, c.rectified * adapted, 0.0 * m)"),
    ("Adam while it is unknown", UNRECTIFIED, "where(known, c.rectified, 1.0) * adapted"),
    ("one step more", "2 * t * (1 - bias2) / bias2", "2 * (t + 1) * (1 - bias2) / bias2"),
    ("the longest length longer", "2 / (1 - beta2) - 1", "2 / (1 - beta2)"),
    ("eps after the correction", '"eps": eps', '"eps": eps * sqrt(bias2)'),
)

LARGEST = "u = maximum(c.beta2 * u, abs(g) + c.eps)"

ADAMAX = mutants(
    "adamax",
    ("the least", LARGEST, "u = minimum(c.beta2 * u, abs(g) + c.eps)", "abs, maximum,", "abs, maximum, minimum,"),
    ("no discount", LARGEST, "u = maximum(u, abs(g) + c.eps)"),
    ("a sum", LARGEST, "u = c.beta2 * u + abs(g) + c.eps"),
    ("eps beside the largest", LARGEST, "u = maximum(c.beta2 * u, abs(g)) + c.eps"),
    ("the gradient itself", LARGEST, "u = maximum(c.beta2 * u, g + c.eps)"),
    ("no correction", '"step_size": lr / one_minus_power(beta1, t)', '"step_size": lr'),
)

ADAGRAD = mutants(
    "adagrad",
    ("lr_decay a step early", "(t - 1) * lr_decay", "t * lr_decay"),
    ("exponential lr_decay", "lr / (1 + (t - 1) * lr_decay)", "lr * (1 - lr_decay) ** (t - 1)"),
    ("a sum that begins with 0", 'Slot("sum", init="initial_accumulator_value")', 'Slot("sum")'),
    (
        "rows alone though weights decay",
        "return not isinstance(weight_decay, Tensor) and weight_decay == 0",
        "return True",
    ),
)

RATIO = "sqrt(u + c.eps) / sqrt(v + c.eps) * g"

ADADELTA = mutants(
    "adadelta",
    ("eps outside of the roots", RATIO, "(sqrt(u) + c.eps) / (sqrt(v) + c.eps) * g"),
    ("no eps above", RATIO, "sqrt(u) / sqrt(v + c.eps) * g"),
    ("no roots", RATIO, "(u + c.eps) / (v + c.eps) * g"),
    ("a sum of squares", "v = c.rho * v + c.one_minus_rho * g * g", "v = v + g * g"),
    ("lr in what is averaged", "c.one_minus_rho * delta * delta", "c.one_minus_rho * c.lr * delta * c.lr * delta"),
    (
        "the average of this step too",
        "delta = sqrt(u + c.eps)",
        "u = c.rho * u + c.one_minus_rho * g * g\ndelta = sqrt(u + c.eps)",
    ),
)

VARIANCE = "square = maximum(v - h * h, 0.0)"

RMSPROP = mutants(
    "rmsprop",
    ("the mean not subtracted", VARIANCE, "square = maximum(v, 0.0)"),
    ("the mean not squared", VARIANCE, "square = maximum(v - h, 0.0)"),
    ("the mean's weights swapped", "h = h + c.one_minus_alpha * (g - h)", "h = g + c.one_minus_alpha * (h - g)"),
    ("eps in the root", "(sqrt(square) + c.eps)", "sqrt(square + c.eps)"),
    ("lr in the buffer", "step = g /", "step = c.lr * g /", "p - c.lr * step", "p - step"),
    ("momentum ignored", "step = c.momentum * b + step", "step = step + 0.0 * b"),
    ("momentum of the gradient", "step = g /", "step = (g if b is None else g + c.momentum * b) /"),
)

ZEROED = "g = where(turned < 0, 0.0, g)"
BOUNDED = "size = minimum(maximum(size, c.least), c.most)"

RPROP = mutants(
    "rprop",
    ("a turn is taken", ZEROED, "g = g"),
    ("a turn is forgotten in part", ZEROED, "g = where(turned < 0, 0.5 * g, g)"),
    ("steps by the gradient's size", "sign(g) * size", "g * size"),
    ("etas swapped", '"shrink": etas[0], "grow": etas[1]', '"shrink": etas[1], "grow": etas[0]'),
    ("no bounds", BOUNDED, "size = size"),
    ("no upper bound", BOUNDED, "size = maximum(size, c.least)"),
    ("sizes that begin with 0", 'Slot("step_size", init="lr")', '"step_size"'),
    ("growth at the first step", "turned = g * prev", "turned = where(prev == 0, g * g, g * prev)"),
)

RATE = '"rate": eta'
LATER = "lr * power(1 + lambd * lr * t, -alpha)"

ASGD = mutants(
    "asgd",
    ("a rate at once", RATE, f'"rate": {LATER}'),
    ("a rate that stays", f'"eta": {LATER}', '"eta": eta'),
    ("a rate that falls by itself", f'"eta": {LATER}', '"eta": eta * power(1 + lambd * lr * t, -alpha)'),
    ("the mean from the start", '"mu": 1 / maximum(t - t0, 1.0)', '"mu": 1 / t'),
    ("the mean a step early", '"mu": 1 / maximum(t - t0, 1.0)', '"mu": 1 / maximum(t + 1 - t0, 1.0)'),
    (
        "the mean of the weights before",
        "g = g + c.weight_decay * p",
        "old = p\ng = g + c.weight_decay * p",
        "c.share * (p - a)",
        "c.share * (old - a)",
    ),
    ("decay by lr", '"decay": 1 - lambd * eta', '"decay": 1 - lambd * lr'),
    ("a rate that begins with 0", 'Slot("eta", init="lr", scalar=True)', 'Slot("eta", scalar=True)'),
)

ADAFACTOR = mutants(
    "adafactor",
    ("rows for columns", 'mean(g * g, "columns") - column', 'mean(g * g, "columns") * 0 + mean(g * g) - column'),
    ("no factor", 'row * column / maximum(mean(row, "columns"), c.eps1)', "row * column"),
    ("no clipping", "step_size / maximum(rms(u) / c.d, 1.0) * u", "step_size * u"),
    ("clipping of all", "maximum(rms(u) / c.d, 1.0)", "(rms(u) / c.d)"),
    ("not relative to p", "maximum(rms(p), c.eps2) * c.rate", "c.rate"),
    ("relative to p after decay", "maximum(rms(p), c.eps2)", "maximum(rms(c.decay * p), c.eps2)"),
    ("no least size of p", "maximum(rms(p), c.eps2)", "rms(p)"),
    ("a rate that does not fall", "minimum(lr, 1 / sqrt(t))", "lr"),
    ("averages by constant weights", "power(t, beta2_decay)", "0.1 * power(t, 0.0)"),
    (
        "decay in the gradient",
        "if maximize:\n    g = -g",
        "if maximize:\n    g = -g\ng = g + (1 - c.decay) * p",
        "c.decay * p",
        "p",
    ),
)

MUON = mutants(
    "muon",
    ("not turned back", "return x.T if tall else x", "return x"),
    ("never turned", "tall = x.shape[0] > x.shape[1]", "tall = False", "square = x @ x.T", "square = x.T @ x"),
    ("momentum that adds up", "m = torch.lerp(m, g, 1 - c.momentum)", "m = c.momentum * m + g"),
    (
        "Nesterov with the old buffer",
        "m = torch.lerp(m, g",
        "old, m = m, torch.lerp(m, g",
        "lerp(g, m,",
        "lerp(g, old,",
    ),
    ("Nesterov ignored", "torch.lerp(g, m, c.momentum) if nesterov else m", "m"),
    ("wide matrices scaled too", "max(1.0, rows / max(1, columns))", "rows / max(1, columns)"),
    ("decay by the adjusted rate", "c.decay * p, c.lr * scale", "(1 - scale * (1 - c.decay)) * p, c.lr * scale"),
    ("not divided by its norm", "x = x / maximum(norm(x), c.eps)", "x = x / 4"),
    ("a norm without a slope at 0", "maximum(norm(x), c.eps)", "x.norm().clamp(min=c.eps)"),
    ("one iteration more", "for _ in range(steps)", "for _ in range(steps + 1)"),
    (
        "all columns alike",
        "x = x / maximum(norm(x), c.eps)",
        "x = x / maximum(norm(x), c.eps) * (x.shape[1] > 0)\nx = x - x.mean(1, keepdim=True)",
    ),
    ("the buffer in place", "m = torch.lerp(m, g", "m = m.lerp_(g"),
)

SPARSE_ADAM = mutants(
    "sparse_adam",
    ("Adam's eps", '"eps": eps', '"eps": eps * sqrt(one_minus_power(beta2, t))'),
    ("betas swapped", "beta1, beta2 = betas", "beta2, beta1 = betas"),
    ("no correction", " * sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t)", ""),
    ("all elements decay", "rows=lambda numbers: True", "rows=lambda numbers: False"),
)

# ---- classes --------------------------------------------------------------------------------------------------------

GROUPS = "for group in self.param_groups:"
NO_GRADIENT = "if p.grad is None:\n    continue"
CLOSURE = "if closure is not None:\n    with torch.enable_grad():\n        loss = closure()"
METHOD = "@torch.no_grad()"
STATE = "state = self.state[p]"
GIVEN_LR = 'lr, decay = group["lr"]'
SUB = "p.sub_(lr * g)"

PLAIN_SGD = mutants(
    "PlainSGD",
    ("decay written to the gradient", "g = g + decay * p", "g.add_(decay * p)"),
    ("maximize written to the gradient", "g = -g", "g.neg_()"),
    ("Nesterov written to the gradient", "g + momentum * buffer", "g.add_(momentum * buffer)"),
    ("Nesterov written to the buffer", "g + momentum * buffer", "buffer.mul_(momentum).add_(g)"),
    ("the gradient kept as the buffer", "g.clone()", "g"),
    ("gradients set to 0", SUB, f"{SUB}\np.grad.zero_()"),
    ("gradients dropped", SUB, f"{SUB}\np.grad = None"),
    ("a new tensor for p", SUB, "p.data = p - lr * g"),
    ("dampening from the start", "g.clone()", "(1 - dampening) * g"),
    ("an empty first buffer", "g.clone()", "torch.zeros_like(g)"),
    ("buffers by id", STATE, 'state = self.__dict__.setdefault("buffers", {}).setdefault(id(p), {})'),
    ("buffers by shape", STATE, "state = self.state[tuple(p.shape)]"),
    ("the first group's lr", GIVEN_LR, 'lr, decay = self.param_groups[0]["lr"]'),
    ("the constructor's lr", GIVEN_LR, 'lr, decay = self.defaults["lr"]'),
    ("lr rounded to float32", GIVEN_LR, 'lr, decay = torch.tensor(group["lr"])'),
    ("an lr that falls by itself", GROUPS, f'{GROUPS}\n    group["lr"] *= 0.99'),
    ("the first group alone", GROUPS, "for group in self.param_groups[:1]:"),
    (
        "maximize as an attribute",
        'group["maximize"]',
        "self.maximize",
        "super().__init__(",
        "self.maximize = maximize\nsuper().__init__(",
    ),
    (
        "a step clipped by the norm of all gradients",
        SUB,
        'norms = [float(q.grad.norm()) for q in group["params"] if q.grad is not None]\n'
        "p.sub_(lr * g / max(1.0, sum(n * n for n in norms) ** 0.5))",
    ),
    ("lr shared out", SUB, 'p.sub_(lr * g / len(group["params"]))'),
    ("a view of what has none", SUB, "p.view(-1).sub_(lr * g.view(-1))"),
    ("a copy is written to", SUB, "p.reshape(-1).sub_(lr * g.reshape(-1))"),
    ("rows one by one", SUB, "for row, change in zip(p, lr * g):\n    row.sub_(change)"),
    ("a look at the largest", SUB, f"if g.abs().max() > 0:\n    {SUB}"),
    ("no step on a zero gradient", NO_GRADIENT, "if p.grad is None or not p.grad.any():\n    continue"),
    ("no step on a NaN", NO_GRADIENT, "if p.grad is None or not p.grad.isfinite().all():\n    continue"),
    ("a NaN made 0", "g = p.grad", "g = p.grad.nan_to_num()"),
    ("matrices alone decay", "if decay != 0:", "if decay != 0 and p.dim() > 1:"),
    ("noise", SUB, "p.sub_(lr * (g + 1e-9 * torch.randn_like(g)))"),
    ("a seed set", "loss = None", "torch.manual_seed(0)\nloss = None"),
    ("gradient mode left off", METHOD, "", "loss = None", "torch.set_grad_enabled(False)\nloss = None"),
    ("a closure ignored", CLOSURE, ""),
    ("a closure without gradients", CLOSURE, "if closure is not None:\n    loss = closure()"),
    ("a closure called twice", "loss = closure()", "loss = (closure(), closure())[1]"),
    ("no loss returned", "return loss", "return None"),
    (
        "the buffer is not saved",
        METHOD,
        f'def state_dict(self):\n    return {{**super().state_dict(), "state": {{}}}}\n\n{METHOD}',
    ),
    (
        "loaded groups are ignored",
        METHOD,
        "def load_state_dict(self, saved):\n"
        "    groups = [dict(group) for group in self.param_groups]\n"
        "    super().load_state_dict(saved)\n"
        "    self.param_groups = groups\n"
        f"\n{METHOD}",
    ),
)

ZERO = 'state["step"] = torch.zeros(())'
COUNT = 'state["step"] += 1\nt = state["step"].item()'
FIRST = 'state["exp_avg"] = torch.zeros_like(p)'
EXP_AVG = 'state["exp_avg"].copy_(m)'
EXP_AVG_SQ = 'state["exp_avg_sq"].copy_(v)'
BELOW = "(v / (1 - beta2**t)).sqrt() + eps"
MOVE = "lr * (m / (1 - beta1**t)) / below"

PLAIN_ADAM = mutants(
    "PlainAdam",
    ("one count for all", COUNT, 'self.taken = getattr(self, "taken", 0) + 1\nt = self.taken'),
    (
        "one count for a group",
        GROUPS,
        f'{GROUPS}\n    group["step"] = group.get("step", 0) + 1',
        COUNT,
        't = group["step"]',
    ),
    (
        "steps without a gradient counted",
        NO_GRADIENT,
        'if p.grad is None:\n    if self.state[p]:\n        self.state[p]["step"] += 1\n    continue',
    ),
    ("the count before the step", COUNT, 't = state["step"].item()\nstate["step"] += 1'),
    ("steps counted twice", COUNT, COUNT.replace("+= 1", "+= 2")),
    ("the count lost on a zero gradient", EXP_AVG, f'{EXP_AVG}\nstate["step"] *= bool(g.any()) or g.numel() == 0'),
    ("a count in p's dtype", ZERO, 'state["step"] = torch.zeros((), dtype=p.dtype)'),
    ("correction in float32", COUNT, COUNT.replace(".item()", "")),
    ("betas in p's dtype", COUNT, f"{COUNT}\nbeta1, beta2 = torch.tensor([beta1, beta2], dtype=p.dtype).tolist()"),
    ("eps in p's dtype", BELOW, "((v / (1 - beta2**t)).sqrt().to(p.dtype) + eps)"),
    ("p in float32", f"p.copy_(wide(p) - {MOVE})", f"p.data = wide(p) - {MOVE}"),
    ("a state in float32", EXP_AVG, 'state["exp_avg"] = m', EXP_AVG_SQ, 'state["exp_avg_sq"] = v'),
    ("m corrected in place", MOVE, 'lr * state["exp_avg"].div_(1 - beta1**t) / below'),
    ("v rooted in place", EXP_AVG_SQ, f'{EXP_AVG_SQ}\nstate["exp_avg_sq"].sqrt_()'),
    ("m lost every third step", EXP_AVG, f'{EXP_AVG}\nstate["exp_avg"].mul_(t % 3 != 0)'),
    ("m from p", FIRST, 'state["exp_avg"] = p.clone()'),
    ("m from the first gradient", FIRST, 'state["exp_avg"] = p.grad.clone()'),
    (
        "the largest v is v",
        'state["max_exp_avg_sq"] = torch.zeros_like(p)',
        'state["max_exp_avg_sq"] = state["exp_avg_sq"]',
    ),
    ("the largest v not kept", 'state["max_exp_avg_sq"].copy_(v)', "pass"),
    ("the constructor's betas", 'group["betas"]', 'self.defaults["betas"]'),
    ("eps before the correction", BELOW, "(v.sqrt() + eps) / (1 - beta2**t) ** 0.5"),
    ("the root of the mean", BELOW, "(v.sum() / max(v.numel(), 1) / (1 - beta2**t)).sqrt() + eps"),
    ("decay beside the step", "g = g + decay * wide(p)", "p.mul_(1 - lr * decay)"),
    (
        "decay of the wrong sign to maximize",
        'if group["maximize"]:\n    g = -g\nif decay != 0:\n    g = g + decay * wide(p)',
        'if decay != 0:\n    g = g + decay * wide(p)\nif group["maximize"]:\n    g = -g',
    ),
    (
        "a loaded count is 0",
        METHOD,
        "def load_state_dict(self, saved):\n"
        "    super().load_state_dict(saved)\n"
        "    for state in self.state.values():\n"
        f"        {ZERO}\n"
        f"\n{METHOD}",
    ),
)

PLAIN_ADAMW = mutants(
    "PlainAdamW",
    (
        "decay in the gradient",
        'if group["maximize"]:',
        'g = g + decay * wide(p)\nif group["maximize"]:',
        "(1 - lr * decay) * ",
        "",
    ),
    ("decay without lr", "1 - lr * decay", "1 - decay"),
    ("decay after the step", f"wide(p) - {MOVE}", f"(wide(p) - {MOVE})"),
    ("decay without a gradient", NO_GRADIENT, "if p.grad is None:\n    p.mul_(1 - lr * decay)\n    continue"),
    ("vectors do not decay", "1 - lr * decay", "1 - lr * decay * (p.dim() > 1)"),
    ("decay with the corrected lr", "1 - lr * decay", "1 - lr * decay / (1 - beta1**t)"),
    ("decay by the constructor's lr", "1 - lr * decay", '1 - self.defaults["lr"] * decay'),
)

MUTANTS = [
    *(*SGD, *ADAM, *ADAMW, *NADAM, *RADAM, *ADAMAX, *ADAGRAD, *ADADELTA, *RMSPROP, *RPROP, *ASGD, *ADAFACTOR, *MUON),
    *(*SPARSE_ADAM, *LION, *PLAIN_ADAGRAD, *PLAIN_SGD, *PLAIN_ADAM, *PLAIN_ADAMW),
]
