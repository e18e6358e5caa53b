"""MACE (mace-torch 0.3.16, which needs e3nn 0.4.4)."""

import inspect

import mace  # before e3nn: e3nn 0.4.4 cannot be imported by itself with torch 2.6 and newer
import model_checks
import pytest
import torch
from frameworks import MACE
from mace.modules import interaction_classes
from torch.autograd import forward_ad

SMALL = {
    "hidden_irreps": "16x0e + 16x1o", "max_ell": 2, "num_elements": 4, "atomic_numbers": [1, 6, 8, 14],
    "atomic_energies": [0.0] * 4, "correlation": 2,
}  # fmt: skip
BLOCKS = sorted(name for name, cls in interaction_classes.items() if not inspect.isabstract(cls))


def test_version():
    assert mace.__version__ == "0.3.16"


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_and_forces(block, dtype):
    options = {**SMALL, "block": block}
    model, twin, report = model_checks.pair(MACE(), dtype, options)
    layers = ["interactions.0", "interactions.1", *(f"products.{n}.symmetric_contractions" for n in range(2))]
    assert model_checks.fused(report) == layers
    model_checks.assert_equal_forces(MACE(), model, twin, dtype)


@pytest.mark.parametrize("block", BLOCKS)
def test_training(block):
    model_checks.check_training(MACE(), {**SMALL, "block": block})


def test_medium():
    model, twin, _ = model_checks.pair(MACE(), torch.float32, {})
    model_checks.assert_equal_forces(MACE(), model, twin, torch.float32)


def test_species():
    """Species of which there are atoms, in any number; a y that is differentiated is used as it is."""
    from ase.build import bulk

    model, twin, _ = model_checks.pair(MACE(), torch.float64, SMALL)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    for numbers in ([1, 6, 8, 14] * 2, [1] * 8, [14] * 7 + [6]):
        atoms.numbers[:] = numbers
        model_checks.assert_equal_forces(MACE(), model, twin, torch.float64, atoms)
    old, new = (m.interactions[0].skip_tp for m in (model, twin))
    assert type(new).__name__ == "SpeciesProduct"
    x = torch.randn(3, old.irreps_in1.dim, dtype=torch.float64)
    y = torch.eye(4, dtype=torch.float64)[[1, 1, 3]]
    gradients = [torch.func.jacrev(lambda x, y, m=m: m(x, y).square().sum(), (0, 1))(x, y) for m in (old, new)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    maps = [torch.func.vmap(m)(x[None], y[None]) for m in (old, new)]
    torch.testing.assert_close(*maps)
    along = torch.randn_like(y)
    tangents = []
    with forward_ad.dual_level():
        for m in (old, new):
            tangents.append(forward_ad.unpack_dual(m(x, forward_ad.make_dual(y, along))).tangent)
    torch.testing.assert_close(*tangents)


def test_state():
    model_checks.check_state(MACE(), SMALL)


def test_copies():
    model_checks.check_copies(MACE(), SMALL)


def test_no_edges():
    model_checks.check_no_edges(MACE(), SMALL)


def test_left():
    model_checks.check_left(MACE(), SMALL, "interactions.1.conv_tp")


def test_scripted(tmp_path):
    """As mace_create_lammps_model does: converted, then compiled by e3nn, saved, loaded."""
    from e3nn.util import jit

    model, twin, _ = model_checks.pair(MACE(), torch.float64, SMALL)
    jit.compile(twin).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    inputs = MACE().inputs(model_checks.silicon(1), model)
    expected = model(dict(inputs))["forces"]
    got = loaded({k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)})["forces"]
    assert model_checks.relative_error(got, expected) < 1e-10


def test_compiled():
    """torch.compile of energy and forces in one graph, prepared as MACE does."""
    from mace.tools.compile import prepare

    import eqk

    model = MACE().build(torch.float64, **SMALL)
    twin = prepare(lambda: eqk.convert(MACE().build(torch.float64, **SMALL)).model)()
    inputs = MACE().inputs(model_checks.silicon(1), model)
    expected = MACE().evaluate(model, inputs)[1]
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    got = compiled(dict(inputs), training=True)["forces"]
    assert model_checks.relative_error(got, expected) < 1e-10


def test_ghosts():
    """A domain of a parallel run: rows of atoms that belong to others, whose sums are cut off."""
    model, twin, _ = model_checks.pair(MACE(), torch.float64, SMALL)
    old, new = (m.interactions[1] for m in (model, twin))
    edges = torch.tensor([[0, 1, 4, 3, 4], [1, 0, 2, 2, 0]])
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(5, old.node_feats_irreps.dim, generator=generator, dtype=torch.float64)
    attrs = torch.eye(4, dtype=torch.float64)[[3, 1, 3, 0, 3]]
    edge_attrs = torch.randn(5, old.edge_attrs_irreps.dim, generator=generator, dtype=torch.float64)
    edge_feats = torch.randn(5, old.edge_feats_irreps.dim, generator=generator, dtype=torch.float64)

    class Exchange:
        def forward_exchange(self, x, out, _):
            out.copy_(x)

    results = []
    for block in (old, new):
        message, sc = block(
            attrs,
            feats,
            edge_attrs,
            edge_feats,
            edges,
            lammps_class=Exchange(),
            lammps_natoms=(3, 2),
            first_layer=False,
        )
        results.append((message, sc))
    assert results[0][0].shape[0] == 3
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
