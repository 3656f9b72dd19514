"""What Python would do tensor by tensor before and after a kernel, in one compiled call.

Torch takes a fraction of a microsecond for each answer about a tensor, and a step of small tensors is made of such
answers. Without a compiler, Python asks for them all the same.
"""

import ctypes
import functools
import sys
from array import array
from collections.abc import Callable
from operator import is_

import torch
from torch import Tensor

from funcopt.backends import CompilationError
from funcopt.kernels import cpu

__all__ = ["Counts", "Seen"]

SOURCE = """
#include <cstdint>

// ---- step counts

template <typename T> static int32_t advance(const int64_t *addresses, int64_t counts, double by, double *values) {
  int32_t alike = 1;
  for (int64_t k = 0; k < counts; ++k) {
    T *count = reinterpret_cast<T *>(addresses[k]);
    values[k] = *count;
    alike &= values[k] == values[0];
    if (by != 0) *count += T(by);
  }
  return alike;
}

template <typename T>
static void write(const int64_t *addresses, int64_t counts, const double *values, const int64_t *rows) {
  for (int64_t k = 0; k < counts; ++k) *reinterpret_cast<T *>(addresses[k]) = T(values[rows[k]]);
}

extern "C" void write_float32(const int64_t *a, int64_t n, const double *v, const int64_t *r) {
  write<float>(a, n, v, r);
}

extern "C" void write_float64(const int64_t *a, int64_t n, const double *v, const int64_t *r) {
  write<double>(a, n, v, r);
}

extern "C" int32_t float32(const int64_t *a, int64_t n, double by, double *v) { return advance<float>(a, n, by, v); }
extern "C" int32_t float64(const int64_t *a, int64_t n, double by, double *v) { return advance<double>(a, n, by, v); }

// ---- tensors: what Python and torch are asked, by their stable interfaces

struct Interface {
  int64_t tensor;  // where, in a Python tensor, its tensor is
  char *(*item)(void *list, intptr_t place);
  int32_t (*layout)(void *tensor, int32_t *);
  int32_t (*dtype)(void *tensor, int32_t *);
  int32_t (*address)(void *tensor, int64_t *);
  int32_t (*dimensions)(void *tensor, int64_t *);
  int32_t (*sizes)(void *tensor, int64_t **);
  int32_t (*strides)(void *tensor, int64_t **);
};

// Whether each tensor of a list is dense, of its dtype and its layout, and, if `before` is given, the very one that it
// was, where it was; else the addresses are written down.
extern "C" int32_t look(
    const Interface *ask, void *now, void *before, int64_t count, const int32_t *dtypes, const int64_t *layouts,
    int64_t *addresses) {
  for (int64_t k = 0; k < count; ++k) {
    char *object = ask->item(now, k);
    if (object == nullptr || (before != nullptr && object != ask->item(before, k))) return 0;
    void *tensor = object + ask->tensor;
    int32_t kind;
    if (ask->layout(tensor, &kind) || kind != 0 || ask->dtype(tensor, &kind) || kind != dtypes[k]) return 0;
    int64_t dimensions, address, *sizes, *strides;
    if (ask->dimensions(tensor, &dimensions) || dimensions != *layouts++) return 0;
    if (ask->sizes(tensor, &sizes) || ask->strides(tensor, &strides)) return 0;
    for (int64_t d = 0; d < dimensions; ++d)
      if (sizes[d] != layouts[d] || (strides[d] != layouts[dimensions + d] && sizes[d] != 1)) return 0;
    layouts += 2 * dimensions;
    if (ask->address(tensor, &address) || (before != nullptr && address != addresses[k])) return 0;
    addresses[k] = address;
  }
  return 1;
}
"""


# ---- step counts ----------------------------------------------------------------------------------------------------


class Counts:
    """Step counts, or other scalars, on the CPU: 0-d tensors of float32 or float64, which stay where they are."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self._addresses = array("q", [t.data_ptr() for t in tensors])
        self._values = array("d", bytes(8 * len(tensors)))
        self._call, self._write = _counting(str(tensors[0].dtype).removeprefix("torch."))

    def read(self) -> list[float]:
        """Their values; one for all where they are the same."""
        if self._call is None:
            return [t.item() for t in self.tensors]
        alike = self._run(self._addresses, 0.0)
        return [self._values[0]] if alike else self._values.tolist()

    def advance(self, active: list[int] | None = None) -> None:
        """Count one step more, all of them or those at these places."""
        if self._call is None:
            torch._foreach_add_(self.tensors if active is None else [self.tensors[i] for i in active], 1)
        else:
            self._run(self._addresses if active is None else array("q", [self._addresses[i] for i in active]), 1.0)

    def write(self, values: list[float], rows: list[int], active: list[int] | None = None) -> None:
        """Give each the value of its row, all of them or those at these places."""
        places = range(len(self.tensors)) if active is None else active
        if self._write is None:
            for i in places:
                self.tensors[i].fill_(values[rows[i]])
            return
        addresses = self._addresses if active is None else array("q", [self._addresses[i] for i in active])
        own = array("q", rows if active is None else [rows[i] for i in active])
        numbers = array("d", values)
        self._write(addresses.buffer_info()[0], len(addresses), numbers.buffer_info()[0], own.buffer_info()[0])

    def _run(self, addresses: "array[int]", by: float) -> int:
        assert self._call is not None
        return self._call(addresses.buffer_info()[0], len(addresses), by, self._values.buffer_info()[0])


@functools.cache
def _counting(dtype: str) -> tuple[Callable[..., int] | None, Callable[..., None] | None]:
    """The compiled calls that read and advance, and that write; None where there is no compiler."""
    try:
        library = cpu.library(SOURCE)
    except CompilationError:
        return None, None
    read, write = getattr(library, dtype), getattr(library, f"write_{dtype}")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    read.argtypes, read.restype = [pointer, integer, ctypes.c_double, pointer], ctypes.c_int32
    write.argtypes, write.restype = [pointer, integer, pointer, pointer], None
    return read, write


# ---- tensors --------------------------------------------------------------------------------------------------------


class Seen:
    """Tensors that are looked at before each step; `addresses` are where they were seen last."""

    def __init__(self, tensors: list[Tensor], like: list[Tensor]) -> None:
        """Look at tensors that lie, each, as another one does."""
        self._dtypes = [t.dtype for t in tensors]
        self._numels = [t.numel() for t in like]
        self._contiguous = [t.is_contiguous() for t in like]
        self._strides = {i: t.stride() for i, t in enumerate(like) if not t.is_contiguous()}
        self.addresses = array("q", map(Tensor.data_ptr, tensors))
        self._looking = _looking()
        if self._looking is not None:
            layouts = array("q", [n for t in like for n in (t.dim(), *t.shape, *t.stride())])
            self._arrays = [array("i", map(_number, self._dtypes)), layouts]

    def same(self, tensors: list[Tensor], before: list[Tensor]) -> bool:
        """Whether these are the very tensors that there were, where they were and as they were."""
        return len(tensors) == len(before) and (
            self._look(tensors, before, self.addresses)
            or (
                all(map(is_, tensors, before))
                and array("q", map(Tensor.data_ptr, tensors)) == self.addresses
                and self._alike(tensors)
            )
        )

    def take(self, tensors: list[Tensor]) -> bool:
        """Whether these, as many as before, are of the same dtypes and lie alike; `addresses` are then theirs.

        Args:
            tensors: plain ones; none stands for the negative of what is in its memory.
        """
        addresses = array("q", bytes(8 * len(tensors)))
        if not self._look(tensors, None, addresses):
            if not self._alike(tensors):
                return False
            addresses = array("q", map(Tensor.data_ptr, tensors))
        self.addresses = addresses
        return True

    def _look(self, now: list[Tensor], before: list[Tensor] | None, addresses: "array[int]") -> bool:
        if self._looking is None:
            return False
        call, interface = self._looking
        arrays = [numbers.buffer_info()[0] for numbers in (*self._arrays, addresses)]
        return bool(call(interface, id(now), None if before is None else id(before), len(now), *arrays))

    def _alike(self, tensors: list[Tensor]) -> bool:
        return (
            list(map(_dtype, tensors)) == self._dtypes
            and list(map(Tensor.numel, tensors)) == self._numels
            and list(map(Tensor.is_contiguous, tensors)) == self._contiguous
            and all(tensors[i].stride() == strides for i, strides in self._strides.items())
        )


_dtype = Tensor.dtype.__get__  # type: ignore[attr-defined]


@functools.cache
def _number(dtype: torch.dtype) -> int:
    """The number that torch's interface for C has for a dtype."""
    return getattr(ctypes.CDLL(torch._C.__file__), f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()


class _Interface(ctypes.Structure):
    _fields_ = [("tensor", ctypes.c_int64), *((name, ctypes.c_void_p) for name in (
        "item", "layout", "dtype", "address", "dimensions", "sizes", "strides"
    ))]  # fmt: skip


@functools.cache
def _looking() -> tuple[Callable[..., int], int] | None:
    """The compiled call and the address of its interface; None where there is no compiler, or no such interface."""
    of = torch.empty(2, 2, device="cpu")
    tensors = (of, of[1:], torch.empty(0, device="cpu"), torch.nn.Parameter(of))
    places = set.intersection(*map(_places, tensors))
    if sys.implementation.name != "cpython" or len(places) != 1:
        return None
    try:
        call = ctypes.PyDLL(cpu.library(SOURCE)._name).look
        theirs = ctypes.CDLL(torch._C.__file__)
        names = ("layout", "dtype", "data_ptr", "dim", "sizes", "strides")
        functions = [ctypes.pythonapi.PyList_GetItem, *(getattr(theirs, f"aoti_torch_get_{name}") for name in names)]
        _number(torch.float32)
    except (AttributeError, CompilationError, OSError):
        return None
    call.restype, call.argtypes = ctypes.c_int32, [*[ctypes.c_void_p] * 3, ctypes.c_int64, *[ctypes.c_void_p] * 3]
    interface = _Interface(places.pop(), *(ctypes.cast(f, ctypes.c_void_p).value for f in functions))
    call.interface = interface  # kept alive
    return call, ctypes.addressof(interface)


def _places(t: Tensor) -> set[int]:
    """Where, in a Python tensor, the address of its tensor stands: a C++ tensor is that, and no more."""
    words = (ctypes.c_int64 * (Tensor.__basicsize__ // 8)).from_address(id(t))
    return {8 * place for place, word in enumerate(words) if word == t._cdata}
