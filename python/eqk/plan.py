"""The description of a tensor product that every backend reads."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from eqk._symbols import generated_buffers, reads_symbol, relative_sign, relative_signs
from eqk.irreps import MAX_DEGREE, Irreps, IrrepsLike, irreps_argument

LAYOUTS = ("mul_ir", "ir_mul")
WEIGHTS = ("none", "shared", "per_sample")
# Of a plan's string, and of any product of multiplicities: csrc/core/plan.h.
MAX_LENGTH, MAX_SIZE = 2**20, 2**40
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"  # what the ops' parsers read as one
_FIELDS = "(i_in1, i_in2, i_out, mode, has_weight[, coefficient])"
MODES = ("uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw")


class Instruction(NamedTuple):
    """One path: ``x[i_in1] (x) y[i_in2] -> out[i_out]``, times ``coefficient``."""

    i_in1: int
    i_in2: int
    i_out: int
    connection_mode: str
    has_weight: bool
    coefficient: float = 1.0


def path_shape(mode: str, mul1: int, mul2: int, mul_out: int) -> tuple[int, ...]:
    """Shape of the weights of one path, row-major, as in e3nn."""
    pairs = mul1 * (mul2 - 1) // 2
    return {
        "uvw": (mul1, mul2, mul_out),
        "uvu": (mul1, mul2),
        "uvv": (mul1, mul2),
        "uuw": (mul1, mul_out),
        "uuu": (mul1,),
        "uvuv": (mul1, mul2),
        "uvu<v": (pairs,),
        "u<vw": (pairs, mul_out),
    }[mode]


def _fan_in(mode: str, mul1: int, mul2: int) -> int:
    """Number of terms that one output channel of a path sums."""
    pairs = mul1 * (mul2 - 1) // 2
    return {"uvw": mul1 * mul2, "uvu": mul2, "uvv": mul1, "uuw": mul1, "u<vw": pairs}.get(mode, 1)


def _e3nn_sign(degrees: tuple[int, int, int]) -> int:
    """Sign of the loaded e3nn's Wigner 3j symbol relative to eqk's."""
    e3nn_o3 = sys.modules.get("e3nn.o3")
    if e3nn_o3 is None:
        return 1
    theirs = e3nn_o3.wigner_3j(*degrees, dtype=torch.float64, device="cpu")
    return relative_sign(theirs, degrees, f"tp: e3nn.o3.wigner_3j{degrees}")


@dataclass(frozen=True)
class Plan:
    """A sparse Clebsch-Gordan tensor product out = T(x, y, w), hashable, complete in its string.

    For an instruction (i, j, o) of mode ``uvu``, say,

        out_o[u, k] += coefficient * sum_v sum_ab w[u, v] C[a, b, k] x_i[u, a] y_j[v, b]

    with C the real Wigner 3j symbols of e3nn (unit Frobenius norm, :func:`eqk.wigner_3j`). The other modes differ in
    the channel indices alone; their weights have the shape of :func:`path_shape` and follow one another in the order of
    the instructions, as in e3nn.

    Args:
        irreps_in1, irreps_in2, irreps_out: the columns of x, y and out, in e3nn's notation.
        instructions: tuples ``(i_in1, i_in2, i_out, mode, has_weight[, coefficient])``. The coefficient multiplies the
            path as it is; :meth:`normalized` computes e3nn's coefficients.
        layout_in1, layout_in2, layout_out: ``"mul_ir"`` (e3nn's; components adjacent) or ``"ir_mul"`` (channels
            adjacent), each operand its own.
        weights: ``"none"``, ``"shared"`` (one vector for all rows) or ``"per_sample"`` (one row for each row of x).

    Raises:
        ValueError: naming the instruction or argument that is out of range, breaks the selection rules, or does not
            fit its mode.
    """

    irreps_in1: Irreps
    irreps_in2: Irreps
    irreps_out: Irreps
    instructions: tuple[Instruction, ...]
    layout_in1: str = "mul_ir"
    layout_in2: str = "mul_ir"
    layout_out: str = "mul_ir"
    weights: str = "per_sample"
    _string: str = field(init=False, repr=False, compare=False, hash=False, default="")

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        for name in ("irreps_in1", "irreps_in2", "irreps_out"):
            irreps = irreps_argument(name, getattr(self, name))
            for mul, ir in irreps:
                if ir.l > MAX_DEGREE:
                    raise ValueError(f"{name}: expected degrees up to {MAX_DEGREE}, got {ir}")
                if mul > 2**31:
                    raise ValueError(f"{name}: expected multiplicities up to 2^31, got {mul}x{ir}")
            if irreps.dim > MAX_SIZE:
                raise ValueError(f"{name}: expected a dimension up to 2^40, got {irreps.dim}")
            put(name, irreps)
        for name in ("layout_in1", "layout_in2", "layout_out"):
            if getattr(self, name) not in LAYOUTS:
                raise ValueError(f"{name}: expected one of {', '.join(LAYOUTS)}, got {getattr(self, name)!r}")
        if not isinstance(self.instructions, Iterable):
            raise ValueError(f"instructions: expected tuples {_FIELDS}, got {self.instructions!r}")
        put("instructions", tuple(self._checked(n, ins) for n, ins in enumerate(self.instructions)))
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if not any(ins.has_weight for ins in self.instructions):
            put("weights", "none")
        elif self.weights == "none":
            raise ValueError("weights: expected 'shared' or 'per_sample', since an instruction is weighted, got 'none'")
        weights = self._count_weights()
        if weights > MAX_SIZE:
            raise ValueError(f"instructions: expected at most 2^40 weights, got {weights}")
        put("_string", self._format())
        if len(self._string) > MAX_LENGTH:
            raise ValueError(f"instructions: expected a string of at most 2^20 characters, got {len(self._string)}")

    def _checked(self, number: int, instruction: Sequence) -> Instruction:
        def require(ok: bool, expected: str) -> None:
            if not ok:
                got = tuple(instruction) if isinstance(instruction, Sequence) else instruction
                raise ValueError(f"instruction {number}: expected {expected}, got {got!r}")

        require(isinstance(instruction, Sequence) and len(instruction) in (5, 6), _FIELDS)
        ins = Instruction(*instruction)
        operands = (self.irreps_in1, self.irreps_in2, self.irreps_out)
        for index, irreps, name in zip(ins, operands, ("i_in1", "i_in2", "i_out"), strict=False):
            require(isinstance(index, int) and 0 <= index < len(irreps), f"{name} below {len(irreps)}")
        require(ins.connection_mode in MODES, f"a mode of {', '.join(MODES)}")
        require(isinstance(ins.coefficient, (int, float)) and math.isfinite(ins.coefficient), "a finite coefficient")
        (m1, ir1), (m2, ir2), (mo, iro) = (irreps[i] for irreps, i in zip(operands, ins[:3], strict=True))
        require(iro in ir1 * ir2, f"{iro} to be in {ir1} x {ir2} (selection rules)")
        if ins.connection_mode in ("uuw", "uuu", "uvu<v", "u<vw"):
            require(m1 == m2, f"equal multiplicities in both inputs for mode {ins.connection_mode}")
        pairs = m1 * (m2 - 1) // 2
        expected = {"uvu": m1, "uvv": m2, "uuu": m1, "uvuv": m1 * m2, "uvu<v": pairs}.get(ins.connection_mode, mo)
        require(mo == expected, f"output multiplicity {expected} for mode {ins.connection_mode}")
        if not ins.has_weight:
            require(ins.connection_mode not in ("uvw", "u<vw"), f"a weight in mode {ins.connection_mode}")
            require(ins.connection_mode != "uuw" or mo == 1, "output multiplicity 1 for mode uuw without weight")
        largest = max(m1 * m2, math.prod(path_shape(ins.connection_mode, m1, m2, mo)))
        require(largest <= MAX_SIZE, "products of multiplicities up to 2^40")
        return ins._replace(has_weight=bool(ins.has_weight), coefficient=float(ins.coefficient))

    @classmethod
    def normalized(
        cls,
        irreps_in1: IrrepsLike,
        irreps_in2: IrrepsLike,
        irreps_out: IrrepsLike,
        instructions: Iterable[Sequence],
        in1_var: Sequence[float] | None = None,
        in2_var: Sequence[float] | None = None,
        out_var: Sequence[float] | None = None,
        irrep_normalization: str = "component",
        path_normalization: str = "element",
        **kwargs,
    ) -> Plan:
        """A plan with e3nn's coefficients: sqrt(d * out_var * path_weight / fan).

        ``instructions`` are e3nn's ``(i_in1, i_in2, i_out, mode, has_weight[, path_weight])``. d = dim(l_out) for
        ``"component"``, dim(l1) dim(l2) for ``"norm"``, 1 for ``"none"``. fan, over the instructions with the same
        output: the sum of in1_var in2_var terms (``"element"``), that product times their number (``"path"``), or 1
        (``"none"``). (e3nn 0.6, ``o3.TensorProduct``.)
        """
        names = ("irreps_in1", "irreps_in2", "irreps_out")
        in1, in2, out = map(irreps_argument, names, (irreps_in1, irreps_in2, irreps_out))
        if not isinstance(instructions, Iterable):
            raise ValueError(f"instructions: expected tuples {_FIELDS}, got {instructions!r}")
        instructions = list(instructions)
        if irrep_normalization not in ("component", "norm", "none"):
            raise ValueError(f"irrep_normalization: expected component, norm or none, got {irrep_normalization!r}")
        if path_normalization not in ("element", "path", "none"):
            raise ValueError(f"path_normalization: expected element, path or none, got {path_normalization!r}")
        variances = []
        for name, var, irreps in (("in1_var", in1_var, in1), ("in2_var", in2_var, in2), ("out_var", out_var, out)):
            try:
                values = [1.0] * len(irreps) if var is None else [float(v) for v in var]
            except (TypeError, ValueError) as error:
                expected = f"{name}: expected {len(irreps)} numbers, one for each irrep"
                raise ValueError(f"{expected}, got {var!r}") from error
            if len(values) != len(irreps):
                raise ValueError(f"{name}: expected {len(irreps)} values, one for each irrep, got {len(values)}")
            variances.append(values)
        var1, var2, varo = variances
        # A plan of the same paths checks every index and mode before they are used below.
        bare = [ins[:5] if isinstance(ins, Sequence) and len(ins) == 6 else ins for ins in instructions]
        paths = cls(in1, in2, out, bare, **kwargs).instructions
        weights = []
        for n, ins in enumerate(instructions):
            try:
                weights.append(float(ins[5]) if len(ins) == 6 else 1.0)
            except (TypeError, ValueError) as error:
                raise ValueError(f"instruction {n}: expected a number as path_weight, got {ins[5]!r}") from error

        def fan(ins: Instruction) -> float:
            terms = _fan_in(ins.connection_mode, in1[ins.i_in1].mul, in2[ins.i_in2].mul)
            return var1[ins.i_in1] * var2[ins.i_in2] * terms

        normalized = []
        for ins, path_weight in zip(paths, weights, strict=True):
            ir1, ir2, iro = in1[ins.i_in1].ir, in2[ins.i_in2].ir, out[ins.i_out].ir
            alpha = {"component": iro.dim, "norm": ir1.dim * ir2.dim, "none": 1}[irrep_normalization]
            same = [other for other in paths if other.i_out == ins.i_out]
            total = {"element": sum(map(fan, same)), "path": fan(ins) * len(same), "none": 1}[path_normalization]
            alpha *= varo[ins.i_out] * path_weight / (total if total > 0 else 1)
            if alpha < 0:
                raise ValueError(f"expected variances and path weights >= 0, got {alpha} for {tuple(ins)}")
            normalized.append(ins._replace(coefficient=math.sqrt(alpha)))
        return cls(in1, in2, out, tuple(normalized), **kwargs)

    @classmethod
    def from_couplings(
        cls,
        in1: Sequence[tuple[int, int]],
        in2: Sequence[tuple[int, int]],
        out: Sequence[tuple[int, int]],
        couplings: Iterable[tuple[int, int, int, str, Tensor]],
    ) -> Plan:
        """A plan of bilinear maps given by their coefficients, of any group: equivariant if the tables are.

        For a coupling (i, j, o) of mode ``uvu``, say,

            out_o[k, u] += sum_v sum_ab table[a, b, k] x_i[a, u] y_j[b, v]

        To eqk a component of a representation is a scalar, and each nonzero coefficient a path: as many as there are,
        no work for zeros, every kernel and derivative as of any plan. The columns of an operand are those of its
        representations one after another, each [component, channel] (``"ir_mul"`` in e3nn's words).

        The maps have no weights: weights of channels multiply their results or operands, which are linear too. In a
        convolution with weights of edges that is y.

        Args:
            in1, in2, out: (channels, dimension) of the representations that x, y and out are made of.
            couplings: (i_in1, i_in2, i_out, mode, table), with a mode that can be without weights and a table [dim1,
                dim2, dim_out] of that path's dimensions, whose nonzeros count.

        Raises:
            ValueError: naming the argument or coupling that does not fit.
        """
        operands, first = [], []
        for name, representations in (("in1", in1), ("in2", in2), ("out", out)):
            columns, irreps = [], []
            for pair in representations:
                fits = isinstance(pair, Sequence) and len(pair) == 2
                if not fits or not all(isinstance(n, int) and n >= 0 for n in pair):
                    raise ValueError(f"{name}: expected pairs (channels, dimension) of integers >= 0, got {pair!r}")
                columns.append(range(len(irreps), len(irreps) + pair[1]))
                irreps += [(pair[0], (0, 1))] * pair[1]
            operands.append(Irreps(irreps))
            first.append(columns)
        instructions = []
        for n, coupling in enumerate(couplings):
            if not isinstance(coupling, Sequence) or len(coupling) != 5:
                raise ValueError(f"coupling {n}: expected (i_in1, i_in2, i_out, mode, table), got {coupling!r}")
            *indices, mode, table = coupling
            for name, index, columns in zip(("i_in1", "i_in2", "i_out"), indices, first, strict=True):
                if not isinstance(index, int) or not 0 <= index < len(columns):
                    raise ValueError(f"coupling {n}: expected {name} below {len(columns)}, got {index!r}")
            a, b, o = (columns[index] for columns, index in zip(first, indices, strict=True))
            table = torch.as_tensor(table)
            if table.shape != (len(a), len(b), len(o)) or table.is_complex():
                expected = f"a real table of shape [{len(a)}, {len(b)}, {len(o)}]"
                raise ValueError(f"coupling {n}: expected {expected}, got {list(table.shape)} of {table.dtype}")
            places = table.nonzero(as_tuple=True)
            for i, j, k, value in zip(*(t.tolist() for t in (*places, table[places])), strict=True):
                instructions.append((a[i], b[j], o[k], mode, False, value))
        return cls(*operands, tuple(instructions))

    @classmethod
    def from_e3nn(cls, tp, **kwargs) -> Plan:
        """The plan of an ``e3nn.o3.TensorProduct`` (or eqk's), whose normalisation is taken as it stands.

        e3nn 0.4 has the opposite sign in some Wigner 3j symbols, such as (1, 2, 2): the coefficients then carry it. A
        module keeps the symbols of the e3nn that it, or the checkpoint loaded last, was made with, as buffers of its
        generated code: those count. Where it has none, the loaded e3nn's do. Raises ValueError, naming the symbol, if
        one differs from eqk's by more than its sign and the rounding of its dtype.
        """
        if isinstance(getattr(tp, "plan", None), Plan):
            return dataclasses.replace(tp.plan, **kwargs)
        if not isinstance(tp, torch.nn.Module) or not hasattr(tp, "irreps_in1") or not hasattr(tp, "instructions"):
            raise TypeError(f"tp: expected an e3nn.o3.TensorProduct or eqk.o3.TensorProduct, got {tp!r}")
        try:
            signs = relative_signs(generated_buffers(tp))
        except ValueError as error:
            raise ValueError(f"tp: {error}") from error
        specialized = getattr(tp, "_specialized_code", True)
        instructions = []
        for ins in tp.instructions:
            i, j, o, mode, weighted = ins.i_in1, ins.i_in2, ins.i_out, ins.connection_mode, ins.has_weight
            degrees = (tp.irreps_in1[i].ir.l, tp.irreps_in2[j].ir.l, tp.irreps_out[o].ir.l)
            sign = 1
            if reads_symbol(mode, weighted, degrees, specialized):
                sign = signs[degrees] if degrees in signs else _e3nn_sign(degrees)
            instructions.append((i, j, o, mode, weighted, float(ins.path_weight) * sign))
        weights = "shared" if tp.shared_weights else "per_sample"
        return cls(tp.irreps_in1, tp.irreps_in2, tp.irreps_out, tuple(instructions), **{"weights": weights, **kwargs})

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Plan:
        """The plan whose ``str`` is ``text``. Raises ValueError on malformed text."""
        match = _PLAN.fullmatch(text)
        # The op's parser knows no white space but the space, and no digits but ASCII's.
        if not match or len(text) > MAX_LENGTH or not (text.isascii() and text.isprintable()):
            raise ValueError(f"expected a plan 'IN1 * IN2 -> OUT [LAYOUTS] WEIGHTS {{PATHS}}', got {text[:200]!r}")
        for name, part in zip(("irreps_in1", "irreps_in2", "irreps_out"), match.groups(), strict=False):
            if not _IRREPS.fullmatch(part):
                raise ValueError(f"{name}: expected irreps such as '16x0e+8x1o', or '-' for none, got {part.strip()!r}")
        irreps = [() if part.strip() == "-" else Irreps(part.replace(" ", "")) for part in match.group(1, 2, 3)]
        instructions = []
        for part in match[8].split(";") if match[8].strip() else ():
            fields = _INSTRUCTION.fullmatch(part)
            if not fields:
                raise ValueError(
                    f"instruction {len(instructions)}: expected 'I1 I2 IO MODE w|- COEFFICIENT', got {part.strip()!r}"
                )
            i, j, o, mode, weight, coefficient = fields.groups()
            instructions.append((int(i), int(j), int(o), mode, weight == "w", float(coefficient)))
        plan = cls(*irreps, tuple(instructions), *match.group(4, 5, 6), weights=match[7])
        if plan.weights != match[7]:
            raise ValueError(f"weights: expected 'none', since no instruction is weighted, got {match[7]!r}")
        return plan

    def _format(self) -> str:
        irreps = [i._text() if i else "-" for i in (self.irreps_in1, self.irreps_in2, self.irreps_out)]
        paths = "; ".join(
            f"{i} {j} {o} {mode} {'w' if weighted else '-'} {coefficient!r}"
            for i, j, o, mode, weighted, coefficient in self.instructions
        )
        layouts = f"{self.layout_in1},{self.layout_in2},{self.layout_out}"
        return f"{irreps[0]} * {irreps[1]} -> {irreps[2]} [{layouts}] {self.weights} {{{paths}}}"

    def __str__(self) -> str:
        return self._string

    @property
    def path_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the weights of each instruction, weighted or not."""
        return tuple(
            path_shape(
                ins.connection_mode,
                self.irreps_in1[ins.i_in1].mul,
                self.irreps_in2[ins.i_in2].mul,
                self.irreps_out[ins.i_out].mul,
            )
            for ins in self.instructions
        )

    def _count_weights(self) -> int:
        pairs = zip(self.instructions, self.path_shapes, strict=True)
        return sum(math.prod(shape) for ins, shape in pairs if ins.has_weight)

    @functools.cached_property
    def weight_numel(self) -> int:
        return self._count_weights()


# The grammar of csrc/core/plan.h: spaces are free, no other blank is.
_PLAN = re.compile(
    r"([^*>{}\[\]]*)\*([^*>{}\[\]]*)->([^*>{}\[\]]*)\[ *(\w+) *, *(\w+) *, *(\w+) *\] *(\w+) *\{([^{}]*)\} *", re.ASCII
)
_IRREPS = re.compile(r" *- *| *\d+ *x *\d+ *[eo] *(\+ *\d+ *x *\d+ *[eo] *)*", re.ASCII)
_INSTRUCTION = re.compile(
    rf" *(\d+) +(\d+) +(\d+) *([^\d ;,\]}}{{][^ ;,\]}}{{]*) +(w|-) *({NUMBER}|nan) *",
    re.ASCII,
)
