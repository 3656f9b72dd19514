"""Learning rates by the size of the batch: a scheduler for optimizers of torch.optim's interface."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from funcopt import schedules
from funcopt.scheduling import list_of, within

__all__ = ["BatchSizeLRScheduler"]


class BatchSizeLRScheduler(LRScheduler):
    """Sets the learning rates for a batch by its size: lr = base_lr · (batch_size / base_batch_size)^power.

    Call `step(batch_size)` before the optimizer's step on a batch of that size. The factor is that of
    `funcopt.schedules.batch_size`, which says what power suits which optimizer.

        >>> scheduler = BatchSizeLRScheduler(optimizer, base_lrs=[0.001, 0.002, 0.003])
        >>> scheduler.step(batch_size=128)
        >>> scheduler.get_last_lr()
        [0.0014142135623730952, 0.0028284271247461905, 0.004242640687119286]

    Whatever else has set the rates is overwritten. A rate that is a tensor is filled in place. A group that is added
    later has its own rate for base_lr, and keeps it until the next `step`.

    Args:
        optimizer: any with torch.optim's interface.
        base_lrs: the rates ≥ 0 for batches of `base_batch_size`: a number for all groups, or a list with one for each.
            If None they are those that the groups have, or had before another scheduler (`initial_lr`).
        base_batch_size: > 0; also the batch size until the first `step`.
        power: exponent ≥ 0.

    Raises:
        TypeError: not an optimizer, or not a number.
        ValueError: a number out of its range, or a list of another length than the groups'.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lrs: float | Sequence[float] | None = None,
        base_batch_size: float = 64,
        power: float = 0.5,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}; one of torch.optim's interface is needed")
        groups = optimizer.param_groups
        self.base_batch_size = self.batch_size = _number(_positive("base_batch_size", base_batch_size))
        self.power = _number(_nonnegative("power", power))
        if base_lrs is not None:
            several = base_lrs if isinstance(base_lrs, list | tuple) else [base_lrs] * len(groups)
            checked = list_of(_nonnegative)("base_lrs", several)
            if len(checked) != len(groups):
                raise ValueError(f"base_lrs has {len(checked)} numbers, and the optimizer {len(groups)} groups")
            for group, lr in zip(groups, checked, strict=True):
                group["initial_lr"] = _number(lr)
        super().__init__(optimizer)

    def step(self, batch_size: float | None = None) -> None:  # type: ignore[override]
        """Set the learning rates for a batch.

        Args:
            batch_size: its size > 0, a number or a 0-d tensor; as before, if None.

        Raises:
            TypeError, ValueError: it is not a number, or not above 0; nothing has changed then.
        """
        if batch_size is not None:
            self.batch_size = _number(_positive("batch_size", batch_size))
        self._step_count += 1
        self.last_epoch += 1
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        rates = (group["lr"] for group in self.optimizer.param_groups)
        self._last_lr = [lr.clone() if isinstance(lr, Tensor) else lr for lr in rates]

    def get_lr(self) -> list[float | Tensor]:
        """The groups' learning rates at the batch size of the last step."""
        later = self.optimizer.param_groups[len(self.base_lrs) :]
        self.base_lrs = [
            *map(float, self.base_lrs),
            *(group.setdefault("initial_lr", float(group["lr"])) for group in later),
        ]
        factor = schedules.batch_size(self.base_batch_size, self.power)(self.batch_size)
        return [lr * factor for lr in self.base_lrs]


_nonnegative, _positive = within(0), within(0, above=True)


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value
