"""An update with sums over a parameter's tensor as C++: pass after pass over its elements, each as soon as it can be.

A parameter is looked at as N matrices of A rows and B columns. Every quantity belongs to the whole of it, to a row, to
a column, or to an element, and is worked out in the loop over those. A pass finishes all sums whose summands are known
by then; the last one writes. Sums are made in double, and taken in the elements' arithmetic.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcopt.backends import compute_dtype
from funcopt.expression import Equation, Expression
from funcopt.kernels import cpp
from funcopt.kernels.statements import Statements

__all__ = ["ALL", "Writer", "extent"]

ALL, ROW, COLUMN, MATRIX, WHOLE = (frozenset(axes) for axes in ("nab", "na", "nb", "n", ""))

# What a sum leaves of the axes of its summands.
REDUCED = {"total_all": "nab", "total_rows": "b", "total_columns": "a", "total_units": "b"}
SIZES = {f"size_{over}": REDUCED[f"total_{over}"] for over in ("all", "rows", "columns", "units")}

# How many numbers there are with these axes, and which is the one at hand.
LENGTH = {WHOLE: "1", MATRIX: "N", ROW: "N * A", COLUMN: "N * B", ALL: "size"}
INDEX = {WHOLE: "0", MATRIX: "n", ROW: "r", COLUMN: "n * B + b"}

# A pass takes so many elements of a vector as a row: a thread has several.
CHUNK = 4096

TAIL = """
}  // namespace

extern "C" void funcopt_step(const int64_t *table, int64_t tensors, const double *coefficients,
                             int64_t most_threads, double *) {
  int64_t total = 0;
  size_t alone = 0, together = 0;
  for (int64_t k = 0; k < tensors; ++k) {
    const int64_t *row = table + k * WIDTH;
    total += row[0];
    if (row[0] <= SMALL) alone = std::max(alone, needed(row, 1));
    else together = std::max(together, needed(row, most_threads));
  }
  std::vector<double> shared(together);
#ifdef _OPENMP
#pragma omp parallel num_threads(total < SMALL ? 1 : most_threads)
#endif
  {
#ifdef _OPENMP
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
#else
    const int64_t thread = 0, threads = 1;
#endif
    std::vector<double> own(alone);
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 4)
#endif
    for (int64_t k = 0; k < tensors; ++k) {
      const int64_t *row = table + k * WIDTH;
      if (row[0] <= SMALL) work(row, coefficients + row[1] * COUNT, own.data(), 0, 1);
    }
    for (int64_t k = 0; k < tensors; ++k) {
      const int64_t *row = table + k * WIDTH;
      if (row[0] > SMALL) work(row, coefficients + row[1] * COUNT, shared.data(), thread, threads);
    }
  }
}
"""


def extent(p: Tensor, slot: Tensor) -> frozenset[str]:
    """The axes along which a slot of a parameter varies."""
    if slot.shape == p.shape:
        return ALL
    return ROW if slot.shape == (*p.shape[:-1], 1) else COLUMN


class Writer:
    """Writes an equation with sums down."""

    def __init__(self, equation: Equation, dtypes: Sequence[torch.dtype], extents: Sequence[frozenset[str]]) -> None:
        self.equation, self.types = equation, [cpp.TYPES[dtype] for dtype in dtypes]
        self.compute = cpp.TYPES[compute_dtype(dtypes[0])]
        self.extents = dict(zip(equation.read, extents, strict=True))
        self._axes: dict[int, frozenset[str]] = {}
        self._depth: dict[int, int] = {}
        self._kept: list[Expression] = []  # so that no id is given twice
        self.sums: list[Expression] = []
        self._over_what: set[str] = set()  # the sums there are, or sizes of such
        for result in equation.results:
            self._find(result)
        self.sums.sort(key=lambda value: self._depth[id(value)])
        self.place = {id(value): k for k, value in enumerate(self.sums)}

    def view(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """How many matrices, rows and columns a parameter of a shape is looked at as."""
        over = self._over_what
        if over <= {"total_all"} and set(self.extents.values()) == {ALL}:
            return 1, -(-math.prod(shape) // CHUNK), CHUNK  # rows mean nothing: they are as long as is convenient
        if "total_units" in over:  # which are the rows then
            return 1, math.prod(shape[:1]), math.prod(shape[1:])
        *outer, rows, columns = (1,) * (2 - len(shape)) + tuple(shape)
        return math.prod(outer), rows, columns

    def _find(self, value: Any) -> None:
        """The axes of a quantity, and how many passes must be done before it is known."""
        if not isinstance(value, Expression) or id(value) in self._axes:
            return
        axes, depth = WHOLE, 0
        if value.operation == "name":
            axes = self.extents.get(value.parts[0], WHOLE)
        else:
            for part in value.parts:
                self._find(part)
                axes, depth = axes | self.axes(part), max(depth, self._depth.get(id(part), 0))
        if value.operation in SIZES:
            axes, depth = WHOLE, 0
            self._over_what.add(value.operation.replace("size", "total"))
        if value.operation in REDUCED:
            axes, depth = axes - frozenset(REDUCED[value.operation]), depth + 1
            self.sums.append(value)
            self._over_what.add(value.operation)
        self._axes[id(value)], self._depth[id(value)] = axes, depth
        self._kept.append(value)

    def axes(self, value: Any) -> frozenset[str]:
        """The axes along which a quantity varies."""
        self._find(value)
        return self._axes[id(value)] if isinstance(value, Expression) else WHOLE

    # ---- text -------------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The whole text."""
        names, width = self.equation.read, 2 + len(self.equation.read) + len(self.equation.written)
        pointers = [
            f"{t} *const {name}_ = reinterpret_cast<{t} *>(row[{2 + k}]);"
            for k, (name, t) in enumerate(zip(names, self.types, strict=True))
        ]
        pointers += [
            f"{self.types[of]} *const {names[of]}_new = reinterpret_cast<{self.types[of]} *>(row[{2 + k}]);"
            for k, of in enumerate(self.equation.written, len(names))
        ]
        shape = [f"const int64_t size = row[0], N = row[{width}], A = row[{width + 1}], B = row[{width + 2}];"]
        shape += ["(void)size; (void)N; (void)A; (void)B;"]
        scalars = [f"const double c{k} = c[{k}];  // {field}" for k, field in enumerate(self.equation.fields)]
        first = ["const int64_t first = N * A * thread / threads, last = N * A * (thread + 1) / threads;"]
        depths = sorted({self._depth[id(value)] for value in self.sums})
        passes = [line for depth in depths for line in self._pass(depth)]
        body = [*pointers, *shape, *scalars, *self._storage("threads"), *first, *passes, *self._last()]
        return "\n".join(
            [
                cpp.head(self.types).replace(
                    "#include <cmath>", "#include <algorithm>\n#include <cmath>\n#include <vector>"
                ),
                "inline size_t needed(const int64_t *row, int64_t threads) {",
                *(f"  {line}" for line in shape),
                f"  return {' + '.join(['0', *self._sizes()])};",
                "}",
                "",
                "inline void meet(int64_t threads) {",
                "  if (threads > 1) {",
                "#ifdef _OPENMP",
                "#pragma omp barrier",
                "#endif",
                "  }",
                "}",
                "",
                "inline void work(const int64_t *row, const double *c, double *scratch, int64_t thread,",
                "                 int64_t threads) {",
                *(f"  {line}" for line in body),
                "  meet(threads);",
                "}",
                TAIL.replace("WIDTH", str(width + 3))
                .replace("COUNT", str(len(self.equation.fields)))
                .replace("SMALL", "32768"),
            ]
        )

    def _sizes(self) -> list[str]:
        """How many doubles each sum takes, and its threads' parts."""
        out = []
        for value in self.sums:
            own = LENGTH[self.axes(value)]
            parts = self.axes(value.parts[0]) == ALL and self.axes(value) != ROW
            out.append(f"{own} * (1 + threads)" if parts else own)
        return out

    def _storage(self, threads: str) -> list[str]:
        out = ["double *at = scratch;"]
        for k, length in enumerate(self._sizes()):
            out += [f"double *const sum{k} = at;", f"at += {length};"]
        return [*out, "(void)at;"]

    def _pass(self, depth: int) -> list[str]:
        """What finishes the sums that are known after so many passes."""
        mine = [value for value in self.sums if self._depth[id(value)] == depth]
        full = [value for value in mine if self.axes(value.parts[0]) == ALL]
        small = [value for value in mine if self.axes(value.parts[0]) != ALL]
        out = self._elements(full) if full else []
        rest = [line for value in full for line in self._joined(value)]
        rest += [line for value in small for line in self._small(value)]
        return [*out, "meet(threads);", "if (thread == 0) {", *(f"  {line}" for line in rest), "}", "meet(threads);"]

    def _elements(self, sums: list[Expression]) -> list[str]:
        """The loop over all elements that makes these sums."""
        said = Levels(self)
        adds, before, starts, ends = [], [], [], []
        for value in sums:
            k, axes = self.place[id(value)], self.axes(value)
            operand = said.number(value.parts[0])
            if axes == COLUMN:
                starts.append(f"std::fill(sum{k} + N * B * (1 + thread), sum{k} + N * B * (2 + thread), 0.0);")
                before.append(f"double *const part{k} = sum{k} + N * B * (1 + thread) + n * B;")
                adds.append(f"part{k}[b] += {operand};")
            else:
                before.append(f"double part{k} = 0;")
                adds.append(f"part{k} += {operand};")
                if axes == WHOLE:
                    starts.append(f"sum{k}[1 + thread] = 0;")
                ends.append(f"sum{k}[r] = part{k};" if axes == ROW else f"sum{k}[1 + thread] += part{k};")
        summed = [f"part{self.place[id(value)]}" for value in sums if self.axes(value) != COLUMN]
        loop = self._loop(said, before, adds, ends, f" reduction(+ : {', '.join(summed)})" if summed else "")
        return ["{", *(f"  {line}" for line in [*starts, *loop]), "}"]

    def _loop(
        self, said: "Levels", before: list[str], body: list[str], after: list[str], clause: str = ""
    ) -> list[str]:
        """The loops over a thread's rows, and the elements of each."""
        return [
            *said.scalars,
            *said.whole,
            "for (int64_t r = first; r < last; ++r) {",
            "  const int64_t n = r / A, base = r * B, length = size - base < B ? size - base : B;",
            "  (void)n;",
            *(f"  {line}" for line in [*said.row, *before]),
            f"#pragma omp simd{clause}",
            "  for (int64_t b = 0; b < length; ++b) {",
            "    const int64_t i = base + b;",
            "    (void)i;",
            *(f"    {line}" for line in [*said.elements, *body]),
            "  }",
            *(f"  {line}" for line in after),
            "}",
        ]

    def _joined(self, value: Expression) -> list[str]:
        """What adds the threads' parts of a sum."""
        k, axes = self.place[id(value)], self.axes(value)
        if axes == ROW:
            return []
        length = LENGTH[axes]
        return [
            f"for (int64_t j = 0; j < {length}; ++j) {{",
            "  double sum = 0;",
            f"  for (int64_t t = 1; t <= threads; ++t) sum += sum{k}[t * ({length}) + j];",
            f"  sum{k}[j] = sum;",
            "}",
        ]

    def _small(self, value: Expression) -> list[str]:
        """The loop that makes a sum of what belongs to rows, columns or matrices."""
        k, of, into = self.place[id(value)], self.axes(value.parts[0]), self.axes(value)
        said = Levels(self)
        operand = said.number(value.parts[0])
        start = f"std::fill(sum{k}, sum{k} + {LENGTH[into]}, 0.0);"
        add = f"sum{k}[{INDEX[into]}] += {operand};"
        return ["{", f"  {start}", *(f"  {line}" for line in self._over(of, said, [add])), "}"]

    def _over(self, axes: frozenset[str], said: "Levels", body: list[str]) -> list[str]:
        """A loop over what has these axes, with what is worked out in it."""
        if axes == ROW:
            inner = ["const int64_t n = r / A;", "(void)n;", *said.row, *body]
            loop = ["for (int64_t r = 0; r < N * A; ++r) {", *(f"  {line}" for line in inner), "}"]
        elif axes == WHOLE:
            loop = body
        else:
            inner = [*said.elements, *body]
            if axes == COLUMN:
                inner = ["for (int64_t b = 0; b < B; ++b) {", *(f"  {line}" for line in inner), "}"]
            head = ["const int64_t r = n * A;", "(void)r;", *said.row]
            loop = ["for (int64_t n = 0; n < N; ++n) {", *(f"  {line}" for line in [*head, *inner]), "}"]
        return [*said.scalars, *said.whole, *loop]

    def _last(self) -> list[str]:
        """The pass that writes, and what writes the slots that belong to columns after it."""
        names, written, results = self.equation.read, self.equation.written, self.equation.results
        said, at_elements, at_rows, late = Levels(self), [], [], []
        for of, result in zip(written, results, strict=True):
            t, axes = self.types[of], self.extents[names[of]]
            if axes == COLUMN:
                own = Levels(self)
                store = f"{names[of]}_new[n * B + b] = stored<{t}, {self.compute}>({own.number(result)});"
                late += ["{", *(f"  {line}" for line in self._over(COLUMN, own, [store])), "}"]
                continue
            value = f"stored<{t}, {self.compute}>({said.number(result)})"
            if axes == ROW:
                at_rows.append(f"{names[of]}_new[r] = {value};")
            else:
                at_elements.append(f"{names[of]}_new[i] = {value};")
        loop = self._loop(said, [], at_elements, at_rows)
        ends = ["meet(threads);", "if (thread == 0) {", *(f"  {line}" for line in late), "}"] if late else []
        return ["{", *(f"  {line}" for line in loop), "}", *ends]


class Levels(Statements):
    """Statements in lists by the loop that they belong to: the whole, a row, an element."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(cpp.language(writer.compute))
        self.writer = writer
        self.whole: list[str] = []
        self.row: list[str] = []
        self._loaded: set[str] = set()

    def name(self, value: Expression) -> str:
        name = str(value.parts[0])
        if value.scalar:
            return name
        if name not in self._loaded:
            self._loaded.add(name)
            axes = self.writer.extents[name]
            line = f"const {self.writer.compute} {name} = number({name}_[{INDEX.get(axes, 'i')}]);"
            (self.row if axes == ROW else self.elements).append(line)
        return name

    def place(self, value: Expression) -> tuple[str, list[str]]:
        if value.scalar:
            return "k", self.scalars
        axes = self.writer.axes(value)
        if not axes:
            return "w", self.whole
        return ("r", self.row) if axes <= ROW else ("t", self.elements)

    def _stated(self, value: Expression) -> str:
        if value.operation in SIZES:
            axes = self.writer.axes(value.parts[0])
            length = "1"
            if summed := axes & frozenset(SIZES[value.operation]):
                length = LENGTH[axes] if "n" in summed else {"a": "A", "b": "B"}["".join(summed)]
            return f"{self.writer.compute}({length} > 0 ? {length} : 1)"
        if value.operation not in REDUCED:
            return super()._stated(value)
        k, axes = self.writer.place[id(value)], self.writer.axes(value)
        return f"{self.writer.compute}(sum{k}[{INDEX[axes]}])"
