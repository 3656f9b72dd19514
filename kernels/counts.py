"""Many step counts, each a tensor of its own, read and advanced in one call: torch takes a microsecond for each."""

import ctypes
import functools
from array import array
from collections.abc import Callable

import torch
from torch import Tensor

from funcopt.backends import CompilationError
from funcopt.kernels import cpu

__all__ = ["Counts"]

SOURCE = """
#include <cstdint>

template <typename T> static void advance(const int64_t *addresses, int64_t counts, double by, double *values) {
  for (int64_t k = 0; k < counts; ++k) {
    T *count = reinterpret_cast<T *>(addresses[k]);
    values[k] = *count;
    if (by != 0) *count += T(by);
  }
}

extern "C" void float32(const int64_t *a, int64_t n, double by, double *values) { advance<float>(a, n, by, values); }
extern "C" void float64(const int64_t *a, int64_t n, double by, double *values) { advance<double>(a, n, by, values); }
"""


class Counts:
    """Step counts on the CPU: 0-d tensors of one dtype, float32 or float64, which stay where they are."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self._addresses = array("q", [t.data_ptr() for t in tensors])
        self._values = array("d", bytes(8 * len(tensors)))
        self._call = _compiled(str(tensors[0].dtype).removeprefix("torch."))

    def read(self) -> list[float]:
        """Their values."""
        if self._call is None:
            return [t.item() for t in self.tensors]
        self._run(self._addresses, 0.0)
        return self._values.tolist()

    def advance(self, active: list[int] | None = None) -> None:
        """Count one step more, all of them or those at these places."""
        if self._call is None:
            torch._foreach_add_(self.tensors if active is None else [self.tensors[i] for i in active], 1)
        else:
            self._run(self._addresses if active is None else array("q", [self._addresses[i] for i in active]), 1.0)

    def _run(self, addresses: "array[int]", by: float) -> None:
        self._call(addresses.buffer_info()[0], len(addresses), by, self._values.buffer_info()[0])  # type: ignore[misc]


@functools.cache
def _compiled(dtype: str) -> Callable[[int, int, float, int], None] | None:
    """The compiled call; None where there is no compiler."""
    try:
        call = getattr(cpu.library(SOURCE), dtype)
    except CompilationError:
        return None
    call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p], None
    return call  # type: ignore[no-any-return]
