"""The optimizers of torch.optim by their names there: the same arguments, numbers, state and state_dicts.

A state_dict of either library loads into the other's class of the same name, in the middle of training. All take
`backend`, see `funcopt.backends`; `foreach` and `fused` choose among implementations that are not needed here: they are
accepted, refused together as there, and change nothing, but that `fused` keeps step counts on the parameters' device.

All constructors raise ValueError for a number out of its range or a backend that cannot run here, with the reason, and
TypeError for what is no number. All take parameters, (name, parameter) pairs, or dicts of groups, which may have
numbers and flags of their own.

`Optimizer`, `lr_scheduler` and `swa_utils` are torch.optim's own, here for scripts that take them from there.
"""

from torch.optim import Optimizer, lr_scheduler, swa_utils

from funcopt.batch_size import BatchSizeLRScheduler
from funcopt.classes import from_pure
from funcopt.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam, SparseAdam
from funcopt.optim.lbfgs import LBFGS
from funcopt.optim.matrix import Adafactor, Muon
from funcopt.optim.scaled import Adadelta, Adagrad, RMSprop, Rprop
from funcopt.optim.sgd import ASGD, SGD

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "BatchSizeLRScheduler",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "from_pure",
    "lr_scheduler",
    "swa_utils",
]

# By these names they are pickled and printed, wherever they stand.
for _class in (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Adamax,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
):
    _class.__module__ = __name__
