"""Modules whose buffers are statistics of the data that they have seen."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from funcopt import observed

__all__ = ["RunningMeanStd"]


class RunningMeanStd(nn.Module):
    """Normalise by the mean and the standard deviation of all data seen so far: observations, returns, values.

        y = (x - mean) / √(var + eps),   clamped to [-clip, clip]

    In training each call counts its batch in first. Batch B of n_B samples joins the n_A before it by the formula of
    Chan, Golub & LeVeque (1983, equations 1.5), which is stable wherever the data lie: with δ = mean_B - mean_A and
    w = n_B / (n_A + n_B),

        mean = mean_A + w δ
        var  = (1 - w) var_A + w var_B + w (1 - w) δ²

    so mean and var are those of all samples at once, in whatever batches they came. `var` is the mean squared
    deviation, without the correction n / (n - 1). Before any data mean is 0 and var is 1; after a single sample var is
    0, and `clip` is what bounds the next one.

    A batch that would make the statistics inf or NaN is left out, as if it had not been seen; what is normalised shows
    its NaN. To autograd the statistics are constants.

    The buffers are written in place, as BatchNorm's are. A transform of torch.func may not allow that: vmap, where the
    data are batched and the buffers are not. New buffers then take their place, and torch.func.functional_call puts
    them into the dict that it was given: give it one, `{**params, **buffers}`, and not two, or call
    `funcopt.TrainState.apply`, which leaves the given ones as they were.

    Under DistributedDataParallel each process counts its own batches, and rank 0's buffers overwrite those of the
    others before each forward pass: the statistics are those of rank 0's data. With sync=True they are those of all.

    Args:
        shape: the shape of a sample; the data's dimensions before it count samples. () for single numbers.
        eps: added to the variance; at least 0.
        clip: the largest absolute value of what is normalised, above 0; None for no bound.
        sync: count in the batches of all processes of torch.distributed, by two all_reduces. Every process has to make
            every call then, with an empty batch where it has no data. Not inside torch.vmap.
        process_group: the processes that sync is about; all of them if left out.
        device: where the buffers are.
        dtype: of mean and var, torch.float64 or, for devices without it, torch.float32. `module.half()` and
            `module.bfloat16()` leave it as it is: numbers so short stop to take data in after some hundred samples.

    Attributes:
        mean: of each element, of the given shape.
        var: of each element, of the given shape.
        count: the number of samples, int64 of shape (): float32 would stop at 2²⁴, and casts of the module spare it.

    Shapes and dtypes: (*, *shape) → (*, *shape), in x's dtype, or the default dtype where x has integers. Arithmetic is
    float64, float32 on devices without it.

    Reference: https://doi.org/10.1080/00031305.1983.10483115
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(
        self,
        shape: int | Sequence[int] = (),
        *,
        eps: float = 1e-8,
        clip: float | None = None,
        sync: bool = False,
        process_group: Any = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Raises ValueError for a number out of its range, or another dtype."""
        super().__init__()
        if not eps >= 0:
            raise ValueError(f"eps takes a number of at least 0; got {eps}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip takes a number above 0, or None; got {clip}")
        if dtype not in (torch.float64, torch.float32):
            raise ValueError(f"dtype takes torch.float64 or torch.float32; got {dtype}")
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps, self.clip, self.sync, self.process_group = eps, clip, sync, process_group
        self.register_buffer("mean", torch.zeros(self.shape, device=device, dtype=dtype))
        self.register_buffer("var", torch.ones(self.shape, device=device, dtype=dtype))
        self.register_buffer("count", torch.zeros((), device=device, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """What `normalize` gives, in training after `update`."""
        if self.training:
            self.update(x)
        return self.normalize(x)

    def update(self, x: Tensor) -> None:
        """Count a batch in, in evaluation mode too.

        Raises:
            TypeError: no tensor, or complex numbers.
            ValueError: a shape that does not end in that of a sample.
        """
        x = self._arithmetic(x).detach()
        n, mean, var = self._moments(x.reshape(math.prod(x.shape[: x.dim() - len(self.shape)]), *self.shape))
        count = self.count + n.to(self.count.dtype)
        w = n / count.to(n.dtype)
        old_mean, old_var = self.mean.to(n.dtype), self.var.to(n.dtype)
        delta = mean - old_mean
        stored = torch.promote_types(self.mean.dtype, torch.float32)
        mean = (old_mean + w * delta).to(stored)
        # In this order 0 times δ² is 0, however large δ is.
        var = ((1 - w) * old_var + w * var + w * (1 - w) * delta * delta).to(stored)
        finite = mean.isfinite().all() & var.isfinite().all()
        self._set(
            mean=torch.where(finite, mean, self.mean.to(stored)),
            var=torch.where(finite, var, self.var.to(stored)),
            count=torch.where(finite, count, self.count),
        )

    def normalize(self, x: Tensor) -> Tensor:
        """x in units of the standard deviation from the mean, within ±clip; the statistics stay as they are."""
        y = (self._arithmetic(x) - self.mean) / (self.var + self.eps).sqrt()
        y = y if self.clip is None else y.clamp(-self.clip, self.clip)
        return y.to(_dtype_of_result(x))

    def denormalize(self, y: Tensor) -> Tensor:
        """The x of which `normalize` makes y, where nothing was clipped."""
        x = self._arithmetic(y) * (self.var + self.eps).sqrt() + self.mean
        return x.to(_dtype_of_result(y))

    def extra_repr(self) -> str:
        return f"{self.shape}, eps={self.eps}, clip={self.clip}, sync={self.sync}"

    def _arithmetic(self, x: Tensor) -> Tensor:
        """The data as arithmetic takes them."""
        if not isinstance(x, Tensor) or x.is_complex():
            got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(f"RunningMeanStd takes a tensor of real numbers; got {got}")
        if x.shape[x.dim() - len(self.shape) :] != self.shape:
            raise ValueError(
                f"RunningMeanStd({self.shape}) takes a tensor whose shape ends in {self.shape}; got {tuple(x.shape)}"
            )
        return x.to(torch.float32 if x.device.type == "mps" else torch.float64)

    def _moments(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The number of samples (n, *shape), their mean and variance, in two passes; NaN of no samples."""
        synced = self.sync and dist.is_available() and dist.is_initialized()
        sums = torch.cat([samples.new_full((1,), samples.shape[0]), samples.sum(0).flatten()])
        if synced:
            dist.all_reduce(sums, group=self.process_group)
        n = sums[0]
        mean = (sums[1:] / n).reshape(self.shape)
        squares = (samples - mean).square().sum(0)
        if synced:
            dist.all_reduce(squares, group=self.process_group)
        return n, mean, squares / n

    def _set(self, **new: Tensor) -> None:
        """Give the buffers new values: in place, where their dtypes and the transforms at work allow it."""
        old = {name: getattr(self, name) for name in new}
        if all(t.dtype == old[name].dtype and observed.writable(old[name], t) for name, t in new.items()):
            for name, t in new.items():
                old[name].copy_(t)
        else:
            for name, t in new.items():
                setattr(self, name, observed.constant(t))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningMeanStd":
        """What `to`, `half` and their like do to each buffer: one in half precision would be of no use."""

        def applied(t: Tensor) -> Tensor:
            new = fn(t)
            return t.to(new.device) if new.is_floating_point() and new.itemsize < 4 else new

        super()._apply(applied, recurse)  # type: ignore[no-untyped-call]
        return self


def _dtype_of_result(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
