"""The op table as Triton runs it: the names of `funcopt.ops` that an `update` may call.

They are jitted functions, not `tl` functions under another name, so that Triton's interpreter can run them too.
"""

import triton
import triton.language as tl


@triton.jit
def sqrt(x):
    """Correctly rounded, as torch's is."""
    if x.dtype == tl.float64:
        root = tl.sqrt(x)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)
