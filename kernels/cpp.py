"""An update equation as C++: one pass over the elements of many tensors, compiled and called by `funcopt.kernels.cpu`.

Arithmetic is that of torch on the same tensors, operation by operation, each rounded as IEEE has it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from funcopt.backends import compute_dtype
from funcopt.expression import Equation
from funcopt.kernels.statements import ARITHMETIC, Language, Statements

__all__ = ["ENTRY", "TYPES", "head", "language", "measuring", "source"]

ENTRY = "funcopt_step"

TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "bfloat16",
    torch.float16: "_Float16",
}

OPERATIONS = {
    **ARITHMETIC,
    "not": "!{}",
    "sqrt": "std::sqrt({})",
    "abs": "std::fabs({})",
    "sign": "sign({})",
    "maximum": "maximum({}, {})",
    "minimum": "minimum({}, {})",
    "where": "{} ? {} : {}",
}

# A thread that sums reads in so many places at once: memory is faster then than with one read after the other.
PARTS = 4

HALF = """
inline float number(_Float16 x) { return x; }
template <> inline _Float16 stored<_Float16, double>(double x) { return static_cast<_Float16>(static_cast<float>(x)); }
"""

HEAD = """
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

struct bfloat16 {
  uint16_t bits;
};

inline double number(double x) { return x; }
inline float number(float x) { return x; }
inline float number(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

template <typename T, typename N> inline T stored(N x) { return static_cast<T>(x); }
template <> inline bfloat16 stored<bfloat16, float>(float x) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7FC0 : rounded)};
}

template <> inline bfloat16 stored<bfloat16, double>(double x) { return stored<bfloat16>(static_cast<float>(x)); }
HALF
template <typename N> inline N maximum(N x, N y) { return (x > y) | (x != x) ? x : y; }
template <typename N> inline N minimum(N x, N y) { return (x < y) | (x != x) ? x : y; }
template <typename N> inline N sign(N x) { return x > 0 ? N(1) : x < 0 ? N(-1) : x == 0 ? N(0) : x; }
"""

# `table` has a row for each tensor: its number of elements, the row of its coefficients, then the addresses of p, g and
# the slots in use, and of where the new p and slots go. Each thread takes an equal run of all elements, and has its own
# row of `sums`.
TAIL = """
}  // namespace

extern "C" void funcopt_step(const int64_t *table, int64_t tensors, const double *coefficients,
                             int64_t most_threads, double *sums) {
  int64_t total = 0;
  for (int64_t k = 0; k < tensors; ++k) total += table[k * WIDTH];
#ifdef _OPENMP
#pragma omp parallel num_threads(total < 32768 ? 1 : most_threads)
#endif
  {
#ifdef _OPENMP
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
#else
    const int64_t thread = 0, threads = 1;
#endif
    // Whole cache lines to a thread, of a tensor that begins with one.
    const int64_t share = (total / threads + 63) / 64 * 64;
    const int64_t first = share * thread, last = thread + 1 == threads ? total : share * (thread + 1);
    int64_t before = 0;
    for (int64_t k = 0; k < tensors && before < last; ++k) {
      const int64_t *row = table + k * WIDTH;
      const int64_t size = row[0], begin = first > before ? first - before : 0;
      const int64_t end = last - before < size ? last - before : size;
      if (begin < end) work(row + 2, coefficients + row[1] * COUNT, begin, end, sums + thread * SUMS);
      before += size;
    }
  }
}
"""


def language(compute: str) -> Language:
    """How C++ says things, in this type of arithmetic."""
    infinity = "std::numeric_limits<double>::infinity()"
    return Language(
        operations=OPERATIONS,
        scalar_operations=OPERATIONS,
        statement="const {kind} {name} = {value};",
        kinds=("bool", "double", compute),
        literal="{}",
        literals={"nan": "std::numeric_limits<double>::quiet_NaN()", "inf": infinity, "-inf": f"-{infinity}"},
        scalar="double({})",
        number=f"{compute}({{}})",
    )


def source(equation: Equation, dtypes: Sequence[torch.dtype], zero_grad: bool = False) -> str:
    """The text of a kernel.

    Args:
        equation: the update, written down.
        dtypes: of p, g and the slots in use.
        zero_grad: write zeros to the gradients.
    """
    compute, types = TYPES[compute_dtype(dtypes[0])], [TYPES[dtype] for dtype in dtypes]
    statements = Statements(language(compute))
    results = [statements.number(result) for result in equation.results]
    names, written = equation.read, equation.written
    inputs = [
        f"{t} *const {name}_ = reinterpret_cast<{t} *>(row[{k}]);"
        for k, (name, t) in enumerate(zip(names, types, strict=True))
    ]
    outputs = [
        f"{types[of]} *const {names[of]}_new = reinterpret_cast<{types[of]} *>(row[{k}]);"
        for k, of in enumerate(written, len(names))
    ]
    scalars = [f"const double c{k} = c[{k}];  // {field}" for k, field in enumerate(equation.fields)]
    loads = [f"const {compute} {name} = number({name}_[i]);" for name in names]
    stores = [
        f"{names[of]}_new[i] = stored<{types[of]}, {compute}>({result});"
        for of, result in zip(written, results, strict=True)
    ]
    if zero_grad:
        stores.append(f"g_[i] = {types[1]}{{}};")
    return "\n".join(
        [
            head(types),
            "inline void work(const int64_t *row, const double *c, int64_t begin, int64_t end, double *) {",
            *(f"  {line}" for line in [*inputs, *outputs, *scalars, *statements.scalars]),
            "#pragma omp simd",
            "  for (int64_t i = begin; i < end; ++i) {",
            *(f"    {line}" for line in [*loads, *statements.elements, *stores]),
            "  }",
            "}",
            _tail(2 + len(names) + len(written), len(equation.fields), 0),
        ]
    )


def measuring(measures: Sequence[tuple[Any, Any]], fields: int, dtypes: Sequence[torch.dtype], width: int) -> str:
    """The text of a kernel that sums measures of gradients, in float64.

    Args:
        measures: what becomes of a gradient g first, and what is summed of that, x.
        fields: the number of coefficients.
        dtypes: of p, g and the slots in use.
        width: the length of a table's row.
    """
    compute, types = TYPES[compute_dtype(dtypes[0])], [TYPES[dtype] for dtype in dtypes]
    names = ["p", "g", *(f"s{k}" for k in range(len(dtypes) - 2))]
    blocks, given = [], set()
    for before, summand in measures:
        first, then = Statements(language(compute)), Statements(language("double"), "x")
        x, value = first.number(before), then.number(summand)
        given |= first.given
        blocks.append(
            ([*first.scalars, *first.elements, f"const double x = {x};", *then.scalars, *then.elements], value)
        )

    def adding(place: str, part: int) -> list[str]:
        """What adds the measures of one element to the sums of a part."""
        lines = [f"const {compute} {name} = number({name}_[{place}]);" for name in names if name in given]
        for k, (inner, value) in enumerate(blocks):
            lines += ["{", *(f"  {line}" for line in inner), f"  sum{k}_{part} += {value};", "}"]
        return ["{", *(f"  {line}" for line in lines), "}"]

    sums = [[f"sum{k}_{part}" for part in range(PARTS)] for k in range(len(measures))]
    totals = [name for own in sums for name in own]
    body = [
        *(
            f"const {t} *const {name}_ = reinterpret_cast<const {t} *>(row[{k}]);"
            for k, (name, t) in enumerate(zip(names, types, strict=True))
            if name in given
        ),
        *(f"const double c{k} = c[{k}];" for k in range(fields)),
        *(f"double {name} = 0;" for name in totals),
        f"const int64_t part = (end - begin) / {PARTS};",
        f"#pragma omp simd reduction(+ : {', '.join(totals)})",
        "for (int64_t i = begin; i < begin + part; ++i) {",
        *(f"  {line}" for part in range(PARTS) for line in adding(f"i + {part} * part", part)),
        "}",
        f"for (int64_t i = begin + {PARTS} * part; i < end; ++i)",
        *(f"  {line}" for line in adding("i", 0)),
        *(f"sums[{k}] += {' + '.join(own)};" for k, own in enumerate(sums)),
    ]
    return "\n".join(
        [
            head(types),
            "inline void work(const int64_t *row, const double *c, int64_t begin, int64_t end, double *sums) {",
            *(f"  {line}" for line in body),
            "}",
            _tail(width, fields, len(measures)),
        ]
    )


def head(types: Sequence[str]) -> str:
    """The beginning of a text for tensors of these types."""
    return HEAD.replace("HALF", HALF if "_Float16" in types else "")


def _tail(width: int, fields: int, sums: int) -> str:
    return TAIL.replace("WIDTH", str(width)).replace("COUNT", str(fields)).replace("SUMS", str(sums))
