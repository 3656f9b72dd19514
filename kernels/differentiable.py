"""The kernel under autograd and torch.func: it computes the value, the rule every derivative.

A custom op with a registered derivative is refused by torch.func's transforms; a `torch.autograd.Function` with a
static `setup_context`, `jvp` and `vmap` is not. Under torch.compile neither is needed: there the rule itself is traced.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from funcopt.backends import Result, Work, run_eager
from funcopt.kernels import launch

__all__ = ["step"]


def step(work: Work) -> Result:
    """Do the work by launches that autograd and torch.func can differentiate and batch; donation is ignored."""
    table = launch.scalars(work.coefficients, work.params[0].device)
    # What autograd keeps of the work is its structure: the tensors are arguments of their own.
    none: Any = [None] * len(work.params)
    zeros = [type(cs)(*[0.0] * len(cs)) for cs in work.coefficients[:1]]
    bare = replace(work, params=none, grads=none, slots=[none for _ in work.slots], coefficients=zeros, donate=False)
    out = list(_Launch.apply(bare, table, *work.params, *work.grads, *(s for slot in work.slots for s in slot)))
    params, *slots = (out[i : i + len(none)] for i in range(0, len(out), len(none)))
    return params, slots


class _Launch(torch.autograd.Function):
    """The kernel computes the value; the rule, run by torch, supplies every derivative, of any order.

    Takes the work for its structure, the coefficients as a (sets, fields) float64 tensor, and the params, the grads and
    the slots in use, one list behind the other; gives the new params and slots so.
    """

    @staticmethod
    def forward(work: Work, table: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _pack(launch.step(_refill(work, table, tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.work, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def rule(work: Work) -> Callable[..., tuple[Tensor, ...]]:
        return lambda table, *tensors: _pack(run_eager(_refill(work, table, tensors)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        needed = [i for i, wanted in enumerate(ctx.needs_input_grad[1:]) if wanted]
        tensors = list(ctx.saved_tensors)

        def of_needed(*some: Tensor) -> tuple[Tensor, ...]:
            filled = list(tensors)
            for i, value in zip(needed, some, strict=True):
                filled[i] = value
            return _Launch.rule(ctx.work)(*filled)

        _, pull = torch.func.vjp(of_needed, *(tensors[i] for i in needed))
        out: list[Tensor | None] = [None] * (1 + len(tensors))
        for i, value in zip(needed, pull(cotangents), strict=True):
            out[1 + i] = value
        return tuple(out)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        # Forward-mode AD does not nest, and this is called within it: reverse mode twice gives the same product.
        primals = ctx.saved_tensors
        out, pull = torch.func.vjp(_Launch.rule(ctx.work), *primals)
        filled = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(primals, tangents, strict=True))
        _, push = torch.func.vjp(pull, tuple(torch.zeros_like(t) for t in out))
        return push(filled)[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], work: Work, table: Tensor, *tensors: Tensor) -> Any:
        _, table_dim, *dims = in_dims
        if table_dim is not None:  # numbers that differ from one element of the batch to the next: the rule, by torch
            out = torch.vmap(_Launch.rule(work), (table_dim, *dims))(table, *tensors)
        else:
            batch = [
                t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape)
                for t, d in zip(tensors, dims, strict=True)
            ]
            out = _Launch.apply(work, table, *batch)
        return out, (0,) * len(out)


def _refill(work: Work, table: Tensor, tensors: tuple[Tensor, ...]) -> Work:
    """The work with these tensors in it, as `_Launch` takes them."""
    n, fields = len(work.params), type(work.coefficients[0])
    params, grads, *slots = (list(tensors[i : i + n]) for i in range(0, len(tensors), n))
    return replace(
        work, params=params, grads=grads, slots=slots, coefficients=[fields(*row.unbind()) for row in table.unbind()]
    )


def _pack(result: Result) -> tuple[Tensor, ...]:
    params, slots = result
    return (*params, *(s for slot in slots for s in slot))
