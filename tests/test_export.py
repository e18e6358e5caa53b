"""Models compiled and exported: energies and forces without Python, by eqk's shared library alone."""

import inspect
import itertools
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import eqk
from eqk import o3, testing
from eqk.so2_edge_message import Plan as MessagePlan
from eqk.so2_edge_message import _plan as message_plan

HERE = Path(__file__).parent
LIBRARY = next((Path(eqk.__file__).parent / "lib").glob("libeqk_cpu.*"))
CUTOFF = 5.0


def structure(nodes, edges, generator, dtype):
    """Positions, species and edges between different nodes: points of a lattice, moved a little, all within the cutoff."""
    n = torch.arange(nodes)
    lattice = 1.1 * torch.stack([n % 3, n // 3 % 3, n // 9], 1)
    positions = lattice + 0.2 * torch.rand(nodes, 3, generator=generator, dtype=torch.float64)
    species = torch.randint(2, (nodes,), generator=generator)
    src = torch.randint(nodes, (edges,), generator=generator)
    dst = (src + torch.randint(1, nodes, (edges,), generator=generator)) % nodes
    return positions.to(dtype), species, src, dst


class Forces(nn.Module):
    """Energy and forces of what has ``energy``; none of its parameters is to be trained."""

    def forward(self, positions, species, src, dst):
        positions = positions.detach().requires_grad_()
        energy = self.energy(positions, species, src, dst)
        (gradient,) = torch.autograd.grad(energy, positions)
        return energy.detach(), -gradient


def parameter(generator, *shape):
    return nn.Parameter(torch.randn(*shape, generator=generator) / math.sqrt(shape[-1]), requires_grad=False)


class Layer(nn.Module):
    """NequIP's: linear, convolution weighted by a network of the distance, linear and self-connection, gate."""

    def __init__(self, irreps_in, irreps_sh, scalars, gated, hidden):
        super().__init__()
        gate_in = scalars + o3.Irreps([(gated.num_irreps, (0, 1))]) + gated
        targets = {ir for _, ir in gate_in}
        middle, paths = [], []
        for i, (mul, a) in enumerate(irreps_in):
            for j, (_, b) in enumerate(irreps_sh):
                for c in (c for c in a * b if c in targets):
                    paths.append((i, j, len(middle), "uvu", True))
                    middle.append((mul, c))
        plan = eqk.Plan.normalized(irreps_in, irreps_sh, middle, paths)
        self.plan = str(plan)
        self.up = o3.Linear(irreps_in, irreps_in)
        self.down = o3.Linear(middle, gate_in)
        self.own = o3.FullyConnectedTensorProduct(irreps_in, "2x0e", gate_in)
        self.radial = nn.Sequential(nn.Linear(8, hidden, bias=False), nn.SiLU())
        self.last = nn.Parameter(torch.randn(hidden, plan.weight_numel) / math.sqrt(hidden))
        self.sizes = (scalars.dim, gated.num_irreps, gated.dim)
        self.gate = o3.ElementwiseTensorProduct(gated, f"{gated.num_irreps}x0e")

    def forward(self, x, one_hot, sh, basis, src, dst):
        summed = eqk.tensor_product_conv_radial(
            self.up(x), sh, self.radial(basis), self.last, src, dst, x.shape[0], self.plan
        )
        s, g, t = (self.down(summed) / 4 + self.own(x, one_hot)).split(self.sizes, dim=-1)
        return torch.cat([nn.functional.silu(s), self.gate(t, g.sigmoid())], -1)


class Potential(Forces):
    """Of NequIP's size: 128x0e + 64x1o + 32x2e."""

    def __init__(self, layers=2, channels=128, degree=2):
        super().__init__()
        scalars = o3.Irreps([(channels, (0, 1))])
        gated = o3.Irreps([(channels >> l, (l, (-1) ** l)) for l in range(1, degree + 1)])
        irreps_sh = o3.Irreps([(1, (l, (-1) ** l)) for l in range(degree + 1)])
        self.irreps_sh, irreps = str(irreps_sh), scalars
        self.embedding = o3.Linear("2x0e", scalars)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(Layer(irreps, irreps_sh, scalars, gated, 64))
            irreps = scalars + gated
        self.readout = o3.Linear(irreps, "1x0e")
        self.requires_grad_(False)

    def energy(self, positions, species, src, dst):
        vec = positions.index_select(0, dst) - positions.index_select(0, src)
        u = vec.norm(dim=1, keepdim=True) / CUTOFF
        n = torch.arange(1, 9, dtype=u.dtype)
        basis = torch.sin(n * math.pi * u) / u * (1 - u * u) ** 3
        sh = eqk.spherical_harmonics(self.irreps_sh, vec, normalize=True, normalization="component")
        one_hot = nn.functional.one_hot(species, 2).to(positions.dtype)
        x = self.embedding(one_hot)
        for layer in self.layers:
            x = layer(x, one_hot, sh, basis, src, dst)
        return self.readout(x).sum()


class Ops(Forces):
    """Each of the other ops in an energy."""

    def __init__(self, generator):
        super().__init__()
        c, l, matrices = 4, 2, {}
        self.sh = "0e + 1o + 2e"
        paths = [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 2, 1, "uvu", True)]
        plan = eqk.Plan.normalized(f"{c}x0e + {c}x1o", self.sh, f"{c}x0e + {c}x1o", paths)
        contraction = eqk.SymmetricContractionPlan.complete("0e + 1o", "0e + 1o", 2)
        self.plan, self.contraction = str(plan), str(contraction)
        self.embedding = parameter(generator, 2, 4 * c)
        self.w = parameter(generator, 1, plan.weight_numel)
        self.of_species = parameter(generator, 2, len(contraction.paths), c)
        self.logits = parameter(generator, 1, (l + 1) * 2 * c)
        for name, ins, extra in (("conv", c, 0), ("first", 2 * c, l * c), ("second", c, 0)):
            orders = [parameter(generator, 2 * (l + 1 - m) * c, (l + 1 - m) * ins) for m in (1, 2)]
            matrices[name] = nn.ParameterList([parameter(generator, (l + 1) * c + extra, (l + 1) * ins), *orders])
        self.layers = nn.ModuleDict(matrices)

    def so2(self, name):
        zero, *orders = self.layers[name]
        return [zero, None, *orders]

    def energy(self, positions, species, src, dst):
        nodes, edge_index = positions.shape[0], torch.stack([src, dst])
        vec = positions.index_select(0, dst) - positions.index_select(0, src)
        sh = eqk.spherical_harmonics(self.sh, vec, normalize=False, normalization="component")
        decay = torch.exp(-vec.square().sum(1, keepdim=True) / 8)
        x = self.embedding.index_select(0, species)
        x = x + eqk.tensor_product_conv(x, sh, decay * self.w, src, dst, nodes, self.plan) / 8
        around = sh.new_zeros(nodes, sh.shape[1]).index_add(0, dst, decay * sh / 8)
        x = x + eqk.tensor_product(x, around, self.w.expand(nodes, -1), self.plan)
        x = torch.cat([x[:, :4, None], x[:, 4:].unflatten(1, (4, 3))], 2)
        x = eqk.symmetric_contraction(x, self.of_species, species, self.contraction)
        f = torch.cat([x[:, None, :4], x[:, 4:].unflatten(1, (4, 3)).mT], 1) / 4
        f = eqk.gaunt_product(f, f, 2)
        f = eqk.s2_activation(f, "silu", res=(8, 8))
        q = eqk.edge_frame(vec)
        d = eqk.wigner(q, 2)
        z = self.conv(eqk.rotate(f, d, 2, 2, src[None]))
        f = f + eqk.rotate_back(z, d, 2, 2, dst, nodes)
        attention = self.attention(f, q, edge_index)
        f = f + eqk.so2_edge_message(
            f, q, edge_index, self.so2("first"), self.so2("second"), 2, 2, w=decay[:, 0] * attention[:, 0]
        )
        return f.square().sum() + f[:, 0].sum()

    def conv(self, z):
        return eqk.so2_conv(z, self.so2("conv"), 2, 2)[0]

    def attention(self, f, q, edge_index):
        return eqk.segment_softmax(eqk.so2_edge_scalars(f, q, edge_index, self.logits, 2), edge_index[1], f.shape[0])


IN_PROGRAM = {
    "potential": {
        "spherical_harmonics", "spherical_harmonics_backward", "tensor_product", "tensor_product_backward",
        "tensor_product_conv_radial", "tensor_product_conv_radial_backward",
    },
    "ops": {
        "spherical_harmonics", "spherical_harmonics_backward", "tensor_product", "tensor_product_backward",
        "tensor_product_conv", "tensor_product_conv_backward", "symmetric_contraction",
        "symmetric_contraction_derivative", "gaunt_product", "gaunt_product_backward", "s2_activation",
        "s2_activation_product", "wigner", "wigner_backward", "rotate", "so2_edge_message", "so2_edge_message_backward",
    },
}  # fmt: skip
NODES, EDGES = (torch.export.Dim(name, min=2) for name in ("nodes", "edges"))
SHAPES = ({0: NODES}, {0: NODES}, {0: EDGES}, {0: EDGES})


class Exported:
    """A model, its program, and its package with eager results beside it, for numbers of nodes and edges."""

    def __init__(self, name, folder):
        _, generator = testing.generators(f"exported {name}")
        torch.manual_seed(generator.initial_seed())
        dtype = torch.float64
        self.model = (Potential() if name == "potential" else Ops(generator)).to(dtype)
        self.name, self.folder = name, folder
        # As many edges as nodes: that sizes are equal in the example is to mean nothing.
        self.program = eqk.export(self.model, structure(11, 11, generator, dtype), SHAPES)
        self.package = torch._inductor.aoti_compile_and_package(
            self.program,
            package_path=str(folder / "model.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # less to wait for
        )
        self.inputs = [structure(*sizes, generator, dtype) for sizes in ((31, 400), (9, 7), (12, 80))]
        self.files = []
        for n, inputs in enumerate(self.inputs):
            torch.save(inputs, folder / f"inputs{n}.pt")
            self.files += [str(folder / f"inputs{n}.pt"), str(folder / f"outputs{n}.pt")]

    def check(self):
        """What a process has written."""
        for n, inputs in enumerate(self.inputs):
            outputs = self.folder / f"outputs{n}.pt"
            for got, want in zip(torch.load(outputs), self.model(*inputs), strict=True):
                assert got.shape == want.shape
                assert got.dtype == want.dtype
                assert want.dim() == 0 or want.abs().max() > 1e-6
                # An energy is a sum of terms of order 1, whose rounding is what counts.
                scale = want.abs().max() if want.dim() else max(1.0, want.abs())
                assert (got - want).abs().max() <= 1e-12 * scale
            outputs.unlink()


@pytest.fixture(scope="module", params=IN_PROGRAM)
def exported(request, tmp_path_factory):
    return Exported(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The shared library, away from eqk's Python."""
    return shutil.copy(LIBRARY, tmp_path_factory.mktemp("library"))


def cpp(folder):
    """tests/cpp, built by CMake against the torch that is installed."""
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    if torch.version.cuda is not None:
        prefix = f"-DLOAD_TORCH_DIR={Path(torch.__file__).parent}"
    for command in (["-S", str(HERE / "cpp"), "-B", str(folder), "-G", "Ninja", prefix], ["--build", str(folder)]):
        result = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return str(folder / "load")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return cpp(tmp_path_factory.mktemp("cpp"))


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


WITHOUT_EQK = """
import sys, torch
sys.modules["eqk"] = None  # an import of it raises
library, package, *files = sys.argv[1:]
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
for inputs, outputs in zip(files[::2], files[1::2]):
    torch.save(tuple(model(*torch.load(inputs))), outputs)
"""


def test_program(exported, tmp_path):
    """Each op is in it, as a kernel of the library; saved and loaded, it is the model."""
    torch.export.save(exported.program, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2")
    names = [n.target.name() for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert {name.removeprefix("eqk::") for name in names if "eqk" in name} == IN_PROGRAM[exported.name]
    for inputs in exported.inputs:
        for got, want in zip(program.module()(*inputs), exported.model(*inputs), strict=True):
            torch.testing.assert_close(got, want)


def test_package_in_python_without_eqk(exported, library):
    run(sys.executable, "-c", WITHOUT_EQK, library, exported.package, *exported.files)
    exported.check()


def test_package_in_cpp(exported, library, program):
    run(program, library, exported.package, *exported.files)
    exported.check()


def test_compile_with_20_numbers_of_edges(generator):
    """One compilation serves 20 numbers of edges and nodes."""
    model = Potential(layers=1).double()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def energy_and_gradient(positions, *rest):
        gradient, energy = torch.func.grad_and_value(model.energy)(positions, *rest)
        return energy, gradient

    compiled = torch.compile(energy_and_gradient, backend=counter, fullgraph=True)
    sizes = [(5 + n, 14 + 17 * n) for n in range(20)]
    for nodes, edges in sizes:
        inputs = structure(nodes, edges, generator, torch.float64)
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 0)
        (energy, gradient), (want_energy, want_forces) = compiled(*inputs), model(*inputs)
        assert (energy - want_energy).abs() <= 1e-12 * max(1.0, want_energy.abs())
        assert (gradient + want_forces).abs().max() <= 1e-12 * want_forces.abs().max()
    assert counter.frame_count == 1


class Scripted(nn.Module):
    """Ops and modules of eqk, as TorchScript compiles them."""

    def __init__(self):
        super().__init__()
        self.plan = str(
            eqk.Plan.normalized("8x0e", "0e + 1o", "8x0e + 8x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
        )
        self.harmonics = o3.SphericalHarmonics("0e + 1o", normalize=True)
        self.product = o3.FullyConnectedTensorProduct("8x0e + 8x1o", "0e", "8x0e + 8x1o")

    def forward(self, x, vec, w, src, dst):
        x = torch.ops.eqk.tensor_product_conv(x, self.harmonics(vec), w, src, dst, x.shape[0], self.plan)
        return self.product(x, torch.ones_like(x[:, :1]))


def test_torchscript_in_python_and_cpp(library, program, tmp_path, generator):
    """Values, by the library of the kernels alone."""
    model = Scripted().double().requires_grad_(False)
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    src, dst = structure(7, 20, generator, torch.float64)[2:]
    x, vec, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((7, 8), (20, 3), (20, 16)))
    inputs = x, vec, w, src, dst
    want = model(*inputs)
    assert want.abs().max() > 1e-2
    assert torch.equal(torch.jit.load(str(tmp_path / "model.pt"))(*inputs), want)
    torch.save(inputs, tmp_path / "inputs.pt")
    run(program, library, str(tmp_path / "model.pt"), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt"))
    (got,) = torch.load(tmp_path / "outputs.pt")
    assert torch.equal(got, want)


# The library of derivatives for C++ (csrc/autograd), beside Python's own, which other tests compare with finite differences.


@pytest.fixture(scope="module")
def autograd_library():
    found = next(LIBRARY.parent.glob("libeqk_autograd.*"), None)
    assert found is not None, "eqk was installed without libeqk_autograd: install it with EQK_AUTOGRAD=1"
    return str(found)


def derivatives(op, args, most):
    """The result, and gradients to all floating operands, of order 1 to most, each of a sum of those before it.

    Fewer where they end, as those of a polynomial do.
    """
    args = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    operands = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    made = getattr(torch.ops.eqk, op)(*args)
    values = [made] if isinstance(made, torch.Tensor) else [made[0]]
    results = [values[0].detach()]
    for _ in range(most):
        ramps = [torch.arange(1, v.numel() + 1, dtype=v.dtype).reshape(v.shape) for v in values]
        total = sum((torch.cos(ramp) * v).sum() for ramp, v in zip(ramps, values, strict=True))
        made = torch.autograd.grad(total, operands, create_graph=True, materialize_grads=True)
        results += [v.detach() for v in made]
        values = [v for v in made if v.requires_grad]
        if not values:
            break
    return results


# Run without eqk's Python: what follows the function's source, and the arguments of the process.
CHILD = f"""
import sys, torch
sys.modules["eqk"] = None  # an import of it raises
torch.ops.load_library(sys.argv[1])
{inspect.getsource(derivatives)}
"""


def without_eqk(code, *args):
    """Its output; what it raises in it."""
    command = [sys.executable, "-c", CHILD + code, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def operations(generator):
    """By name: an op, small operands, and the order of derivatives to go to."""
    nodes, edges = 4, 7
    src, dst = torch.randint(nodes, (2, edges), generator=generator)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]
    weighted = eqk.Plan.normalized("3x0e + 2x1o", "0e + 1o", "3x0e + 3x1o", paths)
    # A path without a weight: affine in weights.
    plan = eqk.Plan.normalized("3x0e + 2x1o", "0e + 1o", "3x0e + 3x1o + 2x0e", [*paths, (1, 1, 2, "uvu", False)])
    x, y, w = randn(nodes, 9), randn(edges, 4), randn(edges, plan.weight_numel)
    graph = src, dst, nodes
    contraction = eqk.SymmetricContractionPlan.complete("0e + 1o", "0e + 1o", 3)
    gaunt = eqk.GauntPlan.normalized(2, 1, 2, 3, 3, "all", "component", rank=1)
    gaunt_x, gaunt_y, a, c = (
        randn(edges, n) for n in (*gaunt.dims[:2], gaunt.weight_numels[0], gaunt.weight_numels[2])
    )
    species, index = torch.tensor([0, 1, 1, 0]), torch.stack([src, dst])
    rotated = randn(nodes, 9, 2), eqk.wigner(randn(edges, 4), 2, 1), randn(edges, 3, 4), None
    signals = randn(edges, 27), randn(edges, 27)
    by_grid = {f: str(eqk.S2ActivationPlan.normalized(2, 2, 3, f, (8, 9))) for f in ("silu", "square", "identity")}
    cases = {
        "tensor_product": ("tensor_product", [randn(edges, 9), y, w, str(plan)], 3),
        "without weights": ("tensor_product", [randn(edges, 9), y, None, str(unweighted(plan))], 3),
        "conv": ("tensor_product_conv", [x, y, w, *graph, str(plan), None, None], 3),
        "radial": (
            "tensor_product_conv_radial",
            [x, y, randn(edges, 5), randn(5, weighted.weight_numel), *graph, str(weighted), None, None],
            3,
        ),
        "gaunt": ("gaunt_product", [gaunt_x, gaunt_y, a, None, c, str(gaunt)], 3),
        "symmetric": (
            "symmetric_contraction",
            [randn(nodes, 3, 4), randn(2, len(contraction.paths), 3), species, str(contraction)],
            4,
        ),
        "rotate": ("rotate", [*rotated, index, 0, 0, 0, 2, 1, True, 3], 3),
        "wigner": ("wigner", [randn(edges, 4), 3, 2], 3),
        "product": ("s2_activation_product", [*signals, *[None] * 3, by_grid["identity"], "0x>z"], 3),
        **{f: ("s2_activation", [signals[0], by_grid[f]], 3) for f in ("silu", "square")},
        **{
            p: ("spherical_harmonics", [randn(edges, 3), p], 3)
            for p in ("0,1,3,2 component", "2,1 norm", "0,4 integral")
        },
    }
    for activation, recompute in itertools.product(("gate", "s2", "swiglu_s2"), (False, True, "second")):
        text = message_plan(2, 1, 4, 3, 2, activation, False, recompute, (6, 6), ("gausslegendre", "component", False))
        parsed = MessagePlan.parse(text)
        layers = [randn(layer.numel()) for layer in parsed.convolutions]
        radial = randn(edges, 5), randn(5, parsed.weights[1]), randn(edges, 1)
        operands = [randn(nodes, 9, 2), randn(edges, 4), *radial, *layers, index, text, False]
        cases[f"message {activation} {recompute}"] = ("so2_edge_message", operands, 1)
    return cases


def unweighted(plan):
    instructions = [(i.i_in1, i.i_in2, i.i_out, i.connection_mode, False) for i in plan.instructions]
    return eqk.Plan.normalized(plan.irreps_in1, plan.irreps_in2, plan.irreps_out, instructions)


def test_derivatives_without_python(autograd_library, tmp_path, generator):
    """Of every op that has them, to third order at least but for the message, against Python's formulas."""
    cases = operations(generator)
    torch.save(cases, tmp_path / "cases.pt")
    code = """
cases = torch.load(sys.argv[2])
torch.save({name: derivatives(*case) for name, case in cases.items()}, sys.argv[3])
"""
    without_eqk(code, autograd_library, tmp_path / "cases.pt", tmp_path / "got.pt")
    got = torch.load(tmp_path / "got.pt")
    for name, case in cases.items():
        want = derivatives(*case)
        assert want[-1].numel() > 0
        # Where Python's end, zeros may follow.
        want += [torch.zeros_like(g) for g in got[name][len(want) :]]
        for n, (g, w) in enumerate(zip(got[name], want, strict=True)):
            assert (g - w).abs().max() <= 1e-12 * max(1.0, w.abs().max()), (name, n)
        assert any(w.abs().max() > 1e-3 for w in want[1:]), name


def test_a_derivative_that_is_not_there_is_an_error(autograd_library, tmp_path, generator):
    """By the name of the op, and neither zero nor missing."""
    cases = operations(generator)
    op, operands, _ = cases["message gate False"]
    torch.save(
        {
            "message": (op, operands, 2),
            "plan": (op, [*operands[:-2], "20,20,1,1,1,gate,0,", False], 1),
            "messages": ("tensor_product_conv_by_messages", cases["conv"][1], 1),
        },
        tmp_path / "cases.pt",
    )
    code = """
for case in torch.load(sys.argv[2]).values():
    try:
        derivatives(*case)
        print("no error")
    except Exception as error:
        print(error)
rows = torch.eye(3, requires_grad=True)
try:
    torch.ops.eqk.one_hot_index(rows)
except RuntimeError as error:
    print(error)
print(torch.ops.eqk.one_hot_index(rows.detach()).tolist())
"""
    output = without_eqk(code, autograd_library, tmp_path / "cases.pt")
    assert "no error" not in output
    assert "derivative for eqk::so2_edge_message_backward is not implemented" in output
    assert "plan: expected 'LMAX,MMAX" in output
    assert "tensor_product_conv_by_messages" in output
    assert "eqk::one_hot_index: rows: expected a tensor of which nobody asks for derivatives" in output
    assert "[0, 1, 2]" in output


@pytest.mark.parametrize("order", ["library, eqk", "eqk, library"])
def test_the_library_beside_python(autograd_library, order):
    """Python's derivatives are the ones that stay: the others have no forward mode."""
    steps = {"library": f"torch.ops.load_library({autograd_library!r})", "eqk": "import eqk"}
    lines = [
        "import torch",
        *[steps[step] for step in order.split(", ")],
        "f = lambda x: torch.ops.eqk.spherical_harmonics(x, '1 norm')",
        "x = torch.eye(3)",
        "assert torch.equal(torch.func.jvp(f, (x,), (x,))[1], f(x))",
    ]
    run(sys.executable, "-c", "\n".join(lines))


class CompiledOps(Ops):
    """Without so2_conv and so2_edge_scalars, which are ops of Python's."""

    def conv(self, z):
        return z

    def attention(self, f, q, edge_index):
        return torch.ones_like(q)


class Energy(nn.Module):
    """``energy`` of a model, for torch.jit.trace."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model.energy(*inputs)


@pytest.mark.parametrize("name, order", [("potential", 2), ("ops", 1)])
def test_forces_in_cpp(autograd_library, program, tmp_path, generator, name, order):
    """A TorchScript energy's gradient and the gradient of that, by torch::autograd::grad."""
    torch.manual_seed(generator.initial_seed())
    model = (Potential() if name == "potential" else CompiledOps(generator)).double()
    positions, *rest = structure(9, 40, generator, torch.float64)
    path = tmp_path / f"model.energy{'2' if order == 2 else ''}.pt"
    torch.jit.trace(Energy(model), (positions, *rest), check_trace=False).save(str(path))
    torch.save((positions, *rest), tmp_path / "inputs.pt")
    run(program, autograd_library, str(path), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt"))

    positions.requires_grad_()
    energy = model.energy(positions, *rest)
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=order == 2)
    want = [energy.detach(), -gradient.detach()]
    if order == 2:
        want += torch.autograd.grad(gradient.square().sum(), positions)
    for got, w in zip(torch.load(tmp_path / "outputs.pt"), want, strict=True):
        assert w.abs().max() > 1e-6
        assert (got - w).abs().max() <= 1e-12 * max(1.0, w.abs().max())


class ScriptedForces(Scripted):
    """Which differentiates within, as models do for pair styles that know nothing of gradients."""

    def forward(self, x, vec, w, src, dst):
        vec = vec.detach().requires_grad_()
        x = torch.ops.eqk.tensor_product_conv(x, self.harmonics(vec), w, src, dst, x.shape[0], self.plan)
        energy = self.product(x, torch.ones_like(x[:, :1])).square().sum()
        gradient = torch.autograd.grad([energy], [vec])[0]
        assert gradient is not None
        return energy.detach(), -gradient


def test_forces_inside_of_a_script_in_cpp(autograd_library, program, tmp_path, generator):
    model = ScriptedForces().double().requires_grad_(False)
    torch.jit.freeze(torch.jit.script(model.eval())).save(str(tmp_path / "model.pt"))
    src, dst = structure(7, 20, generator, torch.float64)[2:]
    x, vec, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((7, 8), (20, 3), (20, 16)))
    torch.save((x, vec, w, src, dst), tmp_path / "inputs.pt")
    run(
        program, autograd_library, str(tmp_path / "model.pt"), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")
    )
    for got, want in zip(torch.load(tmp_path / "outputs.pt"), model(x, vec, w, src, dst), strict=True):
        assert want.abs().max() > 1e-3
        assert (got - want).abs().max() <= 1e-12 * max(1.0, want.abs().max())


def test_cpp_says_what_is_wrong(program, library, tmp_path):
    """Not a crash: the program of the tests is what users copy."""
    result = subprocess.run([program, "none.so", "a", "b", "c"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "none.so" in result.stderr


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.plan = str(eqk.Plan.normalized("4x0e", "1o", "4x1o", [(0, 0, 0, "uvu", True)]))

    def forward(self, x, y, w):
        return torch.ops.eqk.tensor_product(x, y, w, self.plan)


OPERANDS = torch.ones(5, 4), torch.ones(5, 3), torch.ones(5, 4)


@pytest.mark.parametrize("strict", [False, True])
def test_onnx_is_refused(strict, monkeypatch):
    """torch.onnx needs onnxscript, which no test has; it exports with this flag set, in both modes, and shows the error."""
    monkeypatch.setattr("torch.onnx._internal.exporter._flags._is_onnx_exporting", True)
    with pytest.raises(RuntimeError, match=r"eqk::tensor_product has no form in ONNX.*AOTInductor"):
        torch.export.export(Product(), OPERANDS, strict=strict)
    monkeypatch.undo()
    torch.export.export(Product(), OPERANDS, strict=strict)


def test_onnx_of_torchscript_is_refused(tmp_path):
    """The old exporter, which torch is giving up: the words are torch's, the op is named."""
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="eqk::tensor_product"):
        torch.onnx.export(Product(), OPERANDS, str(tmp_path / "product.onnx"), dynamo=False)


class Fixed(nn.Module):
    def forward(self, x, y):
        return x * int(x.shape[0]) + y.sum()


class Trained(nn.Module):
    """A gradient of forces."""

    def __init__(self):
        super().__init__()
        self.first = [torch.ones(3, 4), None, torch.ones(2, 2)]  # a gate among its outputs
        self.second = [torch.ones(2, 2), None, torch.ones(2, 1)]

    def forward(self, x, q, index):
        x = x.detach().requires_grad_()
        out = eqk.so2_edge_message(x, q, index, self.first, self.second, 1, 1)
        (force,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(force.square().sum(), x)[0]


def test_export_refuses():
    rows = torch.export.Dim("rows", min=2)
    x, y = torch.ones(4, 3), torch.ones(4, 3)
    with pytest.raises(TypeError, match=r"eqk.export: args\[1\]: expected a tensor, got int"):
        eqk.export(Fixed(), (x, 3), ({0: rows}, None))
    with pytest.raises(RuntimeError, match=r"eqk.export: args\[1\]: expected a tensor on the CPU, got meta"):
        eqk.export(Fixed(), (x, y.to("meta")), ({0: rows}, None))
    with pytest.raises(ValueError, match="eqk.export: dynamic_shapes: expected 2, as many as args, got 1"):
        eqk.export(Fixed(), (x, y), ({0: rows},))
    with pytest.raises(ValueError, match=r"eqk.export: args\[0\]: expected at least 2 in dimension 0.* got 1"):
        eqk.export(Fixed(), (x[:1], y), ({0: rows}, None))
    with pytest.raises(
        RuntimeError, match=r"eqk.export: args\[0\]: dimension 0 is to vary, and the model fixes it at 4"
    ):
        eqk.export(Fixed(), (x, y), ({0: rows}, None))
    eqk.export(Fixed(), (x, y), (None, {0: rows}))  # sizes that are equal in the example are not tied
    index = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="eqk::so2_edge_message_double_backward has no kernel in eqk's shared"):
        eqk.export(Trained(), (torch.ones(3, 4, 1), torch.ones(5, 4), index), (None, None, None))
