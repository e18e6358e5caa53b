"""The benchmark of Xie et al. 2025, "The Price of Freedom" (arXiv:2506.13523): time of products for what they express.

    python bench/price_of_freedom.py                             # L to 4; build/price_of_freedom.csv and .png
    python bench/price_of_freedom.py --cases all --rounds 3      # L to 10, 30 minutes
    python bench/price_of_freedom.py --cases mimo-even-4 siso-3 --products eqk-gaunt eqk-cg --out build/p.csv
    python bench/price_of_freedom.py --plot build/*.csv          # table and PNG of what has been timed already
    python bench/price_of_freedom.py --crossover                 # the table of eqk.best_product

Cases: siso-L, L x L -> L; simo-KIND-L, L x L -> 0 to 2 L; mimo-KIND-L, 0 to L x 0 to L -> 0 to 2 L. KIND: even, the
paths (l1, l2, l3) of an even sum, which are those of the paper; all, those of an odd sum too, which products of signals
have from the Poisson bracket. siso of an odd L is that of the bracket alone: L x L -> L has no even path, and the
paper times nothing there.

Products, on x, y [--rows, components, --channels] in float32:

    cg-dense    of each two degrees one outer product and one matrix product with the symbols of all their paths,
                times a weight for each path: e3nn's TensorProduct, in eager mode
    cg-sparse   torch.sparse.mm of a CSR matrix of the symbols' nonzeros with all outer products, times the weights
    grid        dense matrices to the smallest grid that is exact (Gauss and Legendre) and back, with gradients as well
                where there are brackets
    grid-e3nn   e3nn's ToS2Grid and FromS2Grid on their smallest grid that is exact
    fourier     as Luo et al. 2024 (arXiv:2401.10216): components to 2D Fourier series on a torus, their convolution by
                FFT, and back, by dense matrices
    eqk-cg      eqk.tensor_product with a weight for each path
    eqk-gaunt   eqk.gaunt_product
    eqk-vector  eqk.vector_gaunt_product, the cross product of signals valued in vectors: of each irrep up to three
                copies, which layers around it may combine
    eqk-matrix  eqk.matrix_product

Each product is first checked on 64 rows in float32: value and gradients against the paths one by one in float64.
Expressivity and interactability are computed by eqk.analysis from the product itself in float64, those of products with
weights of paths from the plan that they are checked against. Linear layers around a product are not timed, as in the
paper; weights of paths are, since they are inside. Phases, --malloc and how times are taken: as in
bench/tensor_product.py. What is not timed is in the column "note", with the reason.
"""

import argparse
import csv
import functools
import itertools
import resource
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tensor_product import PHASES, add_arguments, clock_of, interleaved, keep_memory, phase_function
from torch import Tensor

import eqk
from eqk import analysis, gaunt_grid, reference
from eqk.best_product import DEGREES as CROSSOVER_DEGREES
from eqk.best_product import KINDS
from eqk.best_product import PHASES as NAMES_OF_PHASES
from eqk.gaunt_plan import gaunt_coefficient
from eqk.irreps import MAX_DEGREE
from eqk.matrix_product import matrix_coefficient
from eqk.reference.gaunt_fourier import fourier_coefficients, fourier_projections
from eqk.testing import TOLERANCES, relative_error
from eqk.vector_gaunt_product import TensorHarmonics, generalized_gaunt_coefficient

WEIGHTED = ("cg-dense", "cg-sparse", "eqk-cg")
CASES = [
    *(f"siso-{l}" for l in range(1, 11)),
    *(f"{setting}-{kind}-{l}" for setting in ("simo", "mimo") for kind in ("even", "all") for l in range(1, 11)),
]
STANDARD = [name for name in CASES if int(name.split("-")[-1]) <= 4]
COLUMNS = (
    "setting", "kind", "lmax", "product", "phase", "rows", "channels", "threads",
    "expressivity", "coupled", "allowed", "ms", "us_per_expressivity", "note",
)  # fmt: skip
CHECKED_ROWS = 64

# Of the table of eqk.best_product.
CROSSOVER_CHANNELS = (1, 8, 128)
CROSSOVER_SIGNALS = 16384  # rows times channels


@dataclass(frozen=True)
class Setting:
    name: str
    kind: str
    degrees: tuple[range, range, range]

    @property
    def lmaxes(self) -> tuple[int, int, int]:
        return tuple(d[-1] for d in self.degrees)

    @property
    def dims(self) -> tuple[int, int, int]:
        return tuple(sum(2 * l + 1 for l in d) for d in self.degrees)

    @functools.cached_property
    def paths(self) -> list[tuple[int, int, int]]:
        parities = {"even": (0,), "odd": (1,), "all": (0, 1)}[self.kind]
        return [
            path for path in itertools.product(*self.degrees) if sum(path) % 2 in parities and gaunt_coefficient(*path)
        ]

    def columns(self, operand: int, l: int) -> slice:
        first = self.degrees[operand][0] ** 2
        return slice(l * l - first, (l + 1) ** 2 - first)

    def plan(self, channels: int, weighted: bool, coefficient: Callable = gaunt_coefficient) -> eqk.Plan:
        """With irreps for rotations alone, so that a product is counted among all triples of SO(3)."""
        irreps = ["+".join(f"{channels}x{l}e" for l in d) for d in self.degrees]
        first = [d[0] for d in self.degrees]
        paths = [
            (*(l - f for l, f in zip(path, first, strict=True)), "uuu", weighted, coefficient(*path))
            for path in self.paths
        ]
        return eqk.Plan(*irreps, paths, "ir_mul", "ir_mul", "ir_mul", weights="shared")

    def signals(self, channels: int = 1) -> eqk.GauntPlan:
        return eqk.GauntPlan.normalized(*self.lmaxes, channels, channels, self.kind)


def setting_of(name: str) -> Setting:
    setting, *kind, l = name.split("-")
    l = int(l)
    one, upto, twice = range(l, l + 1), range(l + 1), range(2 * l + 1)
    if setting == "siso":
        return Setting(setting, "odd" if l % 2 else "even", (one, one, one))
    return Setting(setting, kind[0], (one, one, twice) if setting == "simo" else (upto, upto, twice))


def apply(matrix: Tensor, t: Tensor) -> Tensor:
    """[out, in], [rows, in, channels] -> [rows, out, channels]"""
    return (t[..., 0] @ matrix.T)[..., None] if t.shape[-1] == 1 else matrix @ t


def symbols(setting: Setting, dtype: torch.dtype):
    """For each two degrees: their paths as (number, l3), and [sum of 2 l3 + 1, 2 l1 + 1, 2 l2 + 1], symbols times
    coefficients."""
    for l1, l2 in itertools.product(*setting.degrees[:2]):
        found = [(n, path[2]) for n, path in enumerate(setting.paths) if path[:2] == (l1, l2)]
        if found:
            parts = [
                gaunt_coefficient(l1, l2, l3) * eqk.wigner_3j(l1, l2, l3, dtype=torch.float64).movedim(2, 0)
                for _, l3 in found
            ]
            yield l1, l2, found, torch.cat(parts).to(dtype)


def cg_dense(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    tables = [
        (setting.columns(0, l1), setting.columns(1, l2), found, table.flatten(1))
        for l1, l2, found, table in symbols(setting, dtype)
    ]

    def f(x, y, w):
        parts: dict[int, Tensor] = {}
        for first, second, found, table in tables:
            z = apply(table, (x[:, first, None] * y[:, None, second]).flatten(1, 2))
            for (path, l3), part in zip(found, z.split([2 * l3 + 1 for _, l3 in found], 1), strict=True):
                part = part * w[path]
                parts[l3] = part if l3 not in parts else parts[l3] + part
        empty = {l: x.new_zeros(x.shape[0], 2 * l + 1, channels) for l in setting.degrees[2] if l not in parts}
        return torch.cat([(parts | empty)[l] for l in setting.degrees[2]], 1)

    return f


def cg_sparse(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    dim2, indices, values, paths, out = setting.dims[1], [], [], [], []
    for l1, l2, found, table in symbols(setting, dtype):
        row, i, j = table.nonzero().T
        first, second = setting.columns(0, l1).start, setting.columns(1, l2).start
        indices.append(torch.stack([row + len(paths), (i + first) * dim2 + j + second]))
        values.append(table[row, i, j])
        for path, l3 in found:
            columns = setting.columns(2, l3)
            paths += [path] * (2 * l3 + 1)
            out += range(columns.start, columns.stop)
    size = len(paths), setting.dims[0] * dim2
    warnings.filterwarnings("ignore", "Sparse")  # CSR is in beta state; invariants are not checked
    matrix = torch.sparse_coo_tensor(torch.cat(indices, 1), torch.cat(values), size).to_sparse_csr()
    paths, out = torch.tensor(paths), torch.tensor(out)

    def f(x, y, w):
        x, y = x.movedim(1, 0).contiguous(), y.movedim(1, 0).contiguous()
        z = torch.sparse.mm(matrix, (x[:, None] * y).flatten(0, 1).flatten(1)).unflatten(1, x.shape[1:])
        z = x.new_zeros(setting.dims[2], *x.shape[1:]).index_add(0, out, z * w[paths, None])
        return z.movedim(0, 1)

    return f


def grid(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    plan = setting.signals()
    first = [d[0] ** 2 for d in setting.degrees]
    of_x, of_y, of_z = gaunt_grid._grids(str(plan), dtype, torch.device("cpu"))
    names = ("values",) * bool(plan.even) + ("north", "east") * bool(plan.odd)
    to_x, to_y = ([getattr(g, n)[:, f:].contiguous() for n in names] for g, f in ((of_x, first[0]), (of_y, first[1])))
    back = of_z.analysis[first[2] :].contiguous()

    def f(x, y):
        f, g = [apply(m, x) for m in to_x], [apply(m, y) for m in to_y]
        h = plan.even * f[0] * g[0] if plan.even else 0
        if plan.odd:
            h = h + plan.odd * (f[-1] * g[-2] - f[-2] * g[-1])
        return apply(back, h)

    return f


def grid_e3nn(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    from e3nn.o3 import FromS2Grid, ToS2Grid

    if setting.kind != "even":
        raise ValueError("no bracket")
    points = sum(setting.lmaxes) + 1
    resolution = points + points % 2, points + 1 - points % 2
    # In float32 its tables are wrong by 20 % at degree 20, and its weights are of the default dtype in any case.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    to = [ToS2Grid(lmax, resolution, normalization="integral").to(dtype) for lmax in setting.lmaxes[:2]]
    back = FromS2Grid(resolution, setting.lmaxes[2], normalization="integral").to(dtype)
    torch.set_default_dtype(default)
    padding = [d[0] ** 2 for d in setting.degrees]

    def f(x, y):
        x, y = (torch.nn.functional.pad(t.mT, (n, 0)) for t, n in zip((x, y), padding, strict=False))
        return back(to[0](x) * to[1](y)).mT[:, padding[2] :]

    return f


def fourier(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    if setting.kind != "even":
        raise ValueError("no bracket")

    (l1, l2, l3), first = setting.lmaxes, [d[0] ** 2 for d in setting.degrees]
    size = 2 * (l1 + l2) + 1
    back = fourier_projections(l3, l1 + l2)[..., first[2] :].flatten(0, 1)
    tables = [fourier_coefficients(l)[..., n:].flatten(0, 1).T for l, n in ((l1, first[0]), (l2, first[1]))]
    (*tables, back) = (torch.view_as_real(t).movedim(-1, 0).to(dtype).contiguous() for t in (*tables, back))

    def f(x, y):
        rows, width = x.shape[0], x.shape[2]
        spectra = []
        for t, table, lmax in ((x, tables[0], l1), (y, tables[1], l2)):
            t = t.mT.flatten(0, 1)
            coefficients = torch.complex(t @ table[0], t @ table[1]).unflatten(1, (2 * lmax + 1, 2 * lmax + 1))
            spectra.append(torch.fft.fft2(coefficients, s=(size, size)))
        product = torch.fft.ifft2(spectra[0] * spectra[1]).flatten(1)
        return (product.real @ back[0] - product.imag @ back[1]).unflatten(0, (rows, width)).mT

    return f


def eqk_cg(setting: Setting, channels: int, dtype: torch.dtype, weighted: bool = True) -> Callable:
    plan = setting.plan(channels, weighted)

    def f(x, y, w=None):
        w = None if w is None else w.flatten()
        return eqk.tensor_product(x.flatten(1), y.flatten(1), w, plan).unflatten(1, (-1, channels))

    return f


def eqk_gaunt(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    first, lmax = [d[0] ** 2 for d in setting.degrees], setting.lmaxes[2]

    def f(x, y):
        x, y = (torch.nn.functional.pad(t, (0, 0, n, 0)) if n else t for t, n in zip((x, y), first, strict=False))
        return eqk.gaunt_product(x, y, lmax, kind=setting.kind)[:, first[2] :]

    return f


def eqk_matrix(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    if setting.kind == "even" and setting.name != "siso":
        raise ValueError("odd paths cannot be left out")
    first, lmax = [d[0] ** 2 for d in setting.degrees], setting.lmaxes[2]

    def f(x, y):
        x, y = (torch.nn.functional.pad(t, (0, 0, n, 0)) if n else t for t, n in zip((x, y), first, strict=False))
        return eqk.matrix_product(x, y, lmax, normalization="none")[:, first[2] :]

    return f


def vector_harmonics(setting: Setting) -> list[TensorHarmonics]:
    """Signals valued in vectors: for each degree j all harmonics of it."""
    return [
        TensorHarmonics(1, tuple((j, l) for j in d for l in range(abs(j - 1), min(j + 1, MAX_DEGREE) + 1) if j or l))
        for d in setting.degrees
    ]


def eqk_vector(setting: Setting, channels: int, dtype: torch.dtype) -> Callable:
    if setting.kind == "even" and setting.name != "siso":
        raise ValueError("odd paths cannot be left out")
    harmonics = vector_harmonics(setting)
    return lambda x, y: eqk.vector_gaunt_product(x, y, *harmonics)


PRODUCTS = {
    "cg-dense": cg_dense,
    "cg-sparse": cg_sparse,
    "grid": grid,
    "grid-e3nn": grid_e3nn,
    "fourier": fourier,
    "eqk-cg": eqk_cg,
    "eqk-gaunt": eqk_gaunt,
    "eqk-vector": eqk_vector,
    "eqk-matrix": eqk_matrix,
}


def plan_of(product: str, setting: Setting, channels: int) -> eqk.Plan:
    """The paths that the product is checked against."""
    if product == "eqk-matrix":
        t = (setting.lmaxes[0] + setting.lmaxes[1] + 1) // 2
        return setting.plan(channels, False, lambda *path: matrix_coefficient(*path, t))
    if product == "eqk-vector":
        terms = [h.terms for h in vector_harmonics(setting)]
        irreps = ["+".join(f"{channels}x{j}e" for j, _ in t) for t in terms]
        paths = []
        for numbered in itertools.product(*map(enumerate, terms)):
            numbers, pairs = zip(*numbered, strict=True)
            degrees, of_components = zip(*pairs, strict=True)
            if gaunt_coefficient(*degrees) and gaunt_coefficient(*of_components):
                coefficient = generalized_gaunt_coefficient((1, 1, 1), of_components, degrees)
                paths.append((*numbers, "uuu", False, coefficient))
        return eqk.Plan(*irreps, paths, "ir_mul", "ir_mul", "ir_mul")
    return setting.plan(channels, product in WEIGHTED)


def operands_of(plan: eqk.Plan, rows: int, dtype: torch.dtype = torch.float32):
    """x, y, the weights of paths where there are any, and the cotangent, all [..., channels]."""
    generator = torch.Generator().manual_seed(0)
    channels = plan.irreps_in1[0].mul
    shapes = [(rows, i.dim // channels, channels) for i in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)]
    if plan.weight_numel:
        shapes.insert(2, (plan.weight_numel // channels, channels))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def check(name: str, product: str, setting: Setting, channels: int, f: Callable) -> None:
    """Value and gradients in float32 against the paths one by one in float64."""
    plan = plan_of(product, setting, channels)
    *operands, g = operands_of(plan, CHECKED_ROWS)

    def truth(x, y, w=None):
        w = None if w is None else w.flatten()
        return reference.tensor_product(x.flatten(1), y.flatten(1), w, plan).unflatten(1, (-1, channels))

    for phase in PHASES[:2]:
        got = phase_function(phase, f, operands, g, None)()
        expected = phase_function(phase, truth, [t.double() for t in operands], g.double(), None)()
        worst = max(relative_error(a, b) for a, b in zip(got, expected, strict=True))
        if worst > 2 * TOLERANCES[torch.float32][1]:
            sys.exit(f"{name}: {phase} of {product} differs from the Clebsch-Gordan paths by {worst:.1e}")


@functools.cache
def _expressed(setting: Setting, product: str) -> tuple[int, int, int]:
    plan = plan_of(product, setting, 1)
    of_product: Sequence = (plan,)
    if product not in WEIGHTED:
        f = PRODUCTS[product](setting, 1, torch.float64)
        irreps = plan.irreps_in1, plan.irreps_in2, plan.irreps_out
        of_product = (lambda x, y: f(x[..., None], y[..., None])[..., 0], *irreps)
    coupled = analysis.interactability(*of_product)
    return analysis.expressivity(*of_product), sum(value > 0 for value in coupled.values()), len(coupled)


def expressed(setting: Setting, product: str) -> tuple[int, int, int]:
    """Expressivity, and how many triples of degrees interact, of how many that rotations allow."""
    return _expressed(setting, WEIGHTED[0] if product in WEIGHTED else product)  # one plan for all with weights


def bench(name: str, args, threads: int) -> list[dict]:
    setting = setting_of(name)
    functions, counts, notes = {}, {}, {}
    for product in args.products:
        try:
            functions[product] = PRODUCTS[product](setting, args.channels, torch.float32)
        except (ImportError, ValueError) as error:
            notes[product] = str(error)
            continue
        check(name, product, setting, args.channels, functions[product])
        counts[product] = expressed(setting, product)
    results, clock = [], clock_of("cpu", threads)
    for phase in args.phases:
        runs = {}
        for product, f in functions.items():
            *operands, g = operands_of(plan_of(product, setting, args.channels), args.rows)
            run = phase_function(phase, f, operands, g, [*map(torch.ones_like, (*operands, g))])
            start = clock()
            try:
                run()
            except (RuntimeError, MemoryError) as error:
                notes[product, phase] = str(error).splitlines()[0]
                continue
            taken = clock() - start
            if taken > args.most_seconds:
                notes[product, phase] = f"one call took {taken:.1f} s"
            else:
                runs[product] = run
        times = interleaved(name, phase, runs, args, clock)
        for product in args.products:
            expressivity, coupled, allowed = counts.get(product, ("", "", ""))
            ms = 1e3 * times[product] if product in times else ""
            note = notes.get(product) or notes.get((product, phase), "" if product in times else "failed when timed")
            values = (setting.name, setting.kind, setting.lmaxes[0], product, phase, args.rows, args.channels, threads)
            per = 1e3 * ms / expressivity if ms != "" else ""
            results.append(dict(zip(COLUMNS, (*values, expressivity, coupled, allowed, ms, per, note), strict=True)))
            if note:
                print(f"{name}: {product} {phase}: {note}", file=sys.stderr)
    return results


def print_results(results: list[dict]) -> None:
    """Milliseconds of all phases, and in brackets the expressivity."""
    from tabulate import tabulate

    phases = list(dict.fromkeys(r["phase"] for r in results))

    cells: dict[tuple, dict[str, list[str]]] = {}
    products = list(dict.fromkeys(r["product"] for r in results))
    for r in results:
        row = cells.setdefault((r["setting"], r["kind"], r["lmax"]), {})
        row.setdefault(r["product"], []).append(f"{r['ms']:.2f}" if r["ms"] != "" else "-")
        if len(row[r["product"]]) == len(phases) and r["expressivity"] != "":
            row[r["product"]].append(f"({r['expressivity']})")
    settings = list(dict.fromkeys(key[0] for key in cells))
    order = sorted(cells, key=lambda key: (settings.index(key[0]), key[1] == "all", key[2]))
    table = [[*key, *(" ".join(cells[key].get(p, "-")) for p in products)] for key in order]
    headers = ["setting", "paths", "L", *products]
    print(f"ms: {', '.join(phases)} (expressivity)\n")
    print(tabulate(table, headers=headers, tablefmt="github", disable_numparse=True))


def plot(results: list[dict], path: Path) -> None:
    """Of each setting and phase, time and time per unit of expressivity against L."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    phases = list(dict.fromkeys(r["phase"] for r in results))
    settings = list(dict.fromkeys(r["setting"] for r in results))
    products = list(dict.fromkeys(r["product"] for r in results))
    rows = [(phase, column) for phase in phases for column in ("ms", "us_per_expressivity")]
    size = 4.2 * len(settings), 3.2 * len(rows)
    figure, axes = plt.subplots(len(rows), len(settings), figsize=size, squeeze=False, layout="constrained")
    titles = {"siso": "l x l -> l", "simo": "l x l -> 0 to 2 l", "mimo": "0 to L x 0 to L -> 0 to 2 L"}
    for (row, (phase, column)), (n, setting) in itertools.product(enumerate(rows), enumerate(settings)):
        axis = axes[row][n]
        for (p, product), whole in itertools.product(enumerate(products), (False, True)):
            points = [
                (r["lmax"], r[column])
                for r in results
                if (r["setting"], r["phase"], r["product"], r["kind"] == "all") == (setting, phase, product, whole)
                and r[column] != ""
            ]
            if points:
                axis.plot(*zip(*points, strict=True), f"C{p}.{'--' if whole else '-'}", label=product)
        axis.set(yscale="log", xlabel="l" if setting != "mimo" else "L", title=f"{setting.upper()}, {titles[setting]}")
        what = "ms" if column == "ms" else "us per unit of expressivity"
        axis.set_ylabel(f"{phase}: {what}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(products))
    r = results[0]
    sizes = f"rows: {r['rows']}, channels: {r['channels']}, threads: {r['threads']}"
    figure.suptitle(f"{sizes}. Broken lines: paths of an odd sum of degrees too")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def crossover(args) -> None:
    """Prints the table of python/eqk/best_product.py."""
    threads, table = torch.get_num_threads(), {}
    for channels, kind, lmaxes in itertools.product(CROSSOVER_CHANNELS, KINDS, CROSSOVER_DEGREES):
        setting = Setting("signals", kind, tuple(range(lmax + 1) for lmax in lmaxes))
        x, y, g = operands_of(setting.plan(channels, False), CROSSOVER_SIGNALS // channels)
        cg = eqk_cg(setting, channels, torch.float32, weighted=False)
        functions = {"cg": cg, "gaunt": eqk_gaunt(setting, channels, torch.float32)}
        for phase, name in zip(PHASES[:2], NAMES_OF_PHASES, strict=True):
            runs = {name: phase_function(phase, f, (x, y), g, None) for name, f in functions.items()}
            times = interleaved(str(lmaxes), phase, runs, args, clock_of("cpu", threads))
            table.setdefault((kind, channels, name), []).append(times["cg"] / times["gaunt"])
        print(f"{lmaxes}, {kind}, {channels} channels", file=sys.stderr)
    print("MEASURED = {")
    for (kind, channels, name), ratios in table.items():
        print(f'    ("cpu", "{kind}", {channels}, "{name}"):\n        ({", ".join(f"{r:.2f}"[:4] for r in ratios)}),')
    print("}")


def limit_memory() -> None:
    """What is too large fails to be allocated, and is said so, before the system runs out of memory."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = available * 1024 * 9 // 10
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, STANDARD, [*CASES, "all"])
    parser.set_defaults(phases=["forward", "backward"], threads=[1])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--products", nargs="+", default=list(PRODUCTS), choices=PRODUCTS)
    parser.add_argument("--most-seconds", type=float, default=5, help="what takes longer for one call is not timed")
    parser.add_argument(
        "--out", type=Path, default=Path("build/price_of_freedom.csv"), help="CSV; the PNG is beside it"
    )
    parser.add_argument("--plot", type=Path, nargs="+", metavar="CSV", help="print and draw these instead, to --out")
    parser.add_argument("--crossover", action="store_true", help="print the table of eqk.best_product instead")
    args = parser.parse_args(argv)
    args.device, args.calls = "cpu", 1
    if "all" in args.cases:
        args.cases = CASES
    return args


def read(path: Path) -> list[dict]:
    """The results that a run wrote."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for column in ("lmax", "rows", "channels", "threads", "expressivity"):
            row[column] = int(row[column]) if row[column] else ""
        for column in ("ms", "us_per_expressivity"):
            row[column] = float(row[column]) if row[column] else ""
    return rows


def main() -> None:
    args = arguments()
    if args.plot:
        results = [row for path in args.plot for row in read(path)]
        print_results(results)
        plot(results, args.out.with_suffix(".png"))
        return
    keep_memory(args.malloc)
    limit_memory()
    if args.crossover:
        torch.set_num_threads(args.threads[0])
        crossover(args)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for threads in args.threads:
            torch.set_num_threads(threads)
            for name in args.cases:
                rows = bench(name, args, threads)
                writer.writerows(rows)
                file.flush()
                results += rows
    print_results(results)
    plot(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
