"""Time of energy and forces of published models, as they are and after eqk.convert, on the CPU.

    make bench-models                                 # all, each in an environment of its own
    python bench/frameworks.py nequip-l nequip-m          # in an environment that has NequIP
    python bench/frameworks.py nequip-l --training --memory
    python bench/frameworks.py uma-s --layer backbone.blocks.0.edge_wise
    python bench/frameworks.py equiformer-v2-31m --layer backbone.blocks.0.ga
    python bench/frameworks.py equiformer-v3-l6 --layer blocks.0.ga

Weights are random, of a fixed seed; SevenNet's are its own. The structure is silicon of 64 atoms, UMA's copper; the
graph is made once. After a check that the forces are equal, to 1e-5 of the largest or to thrice what the model as it is
differs from itself in float64, the two run in turn, and printed are medians and their ratio. The allocator is as you
set it:
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=1073741824 keeps memory for both.
--memory prints instead by how much three steps raise a process's peak of resident memory over what it had before them.
"""

import argparse
import copy
import multiprocessing
import resource
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import ase
import ase.build
import numpy as np
import torch
from ase.neighborlist import neighbor_list
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import eqk


def silicon(cells: int = 2) -> ase.Atoms:
    atoms = ase.build.bulk("Si", cubic=True) * ((cells,) * 3)
    atoms.rattle(0.05, seed=1)
    return atoms


def copper(cells: int = 2) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", cubic=True) * (2 * cells, cells, cells)
    atoms.rattle(0.05, seed=1)
    return atoms


class Framework:
    """How to build a model of a framework, give it a structure and read energy and forces.

    Where the model is training, these are differentiable with respect to its parameters.
    """

    structure = staticmethod(silicon)

    def build(self, dtype: torch.dtype, **options) -> nn.Module:
        raise NotImplementedError

    def inputs(self, atoms: ase.Atoms, model: nn.Module) -> dict:
        raise NotImplementedError

    def evaluate(self, model: nn.Module, inputs: dict) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class default_dtype:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_) -> None:
        torch.set_default_dtype(self.before)


class Nequix(Framework):
    SPECIES, CUTOFF = 89, 6.0

    def build(self, dtype, **options):
        from nequix.torch_impl.model import NequixTorch

        torch.manual_seed(0)
        # configs/nequix-mp-1.yml
        mp_1 = dict(
            n_species=self.SPECIES, hidden_irreps="128x0e + 64x1o + 32x2e + 32x3o", lmax=3, cutoff=self.CUTOFF,
            n_layers=4, radial_basis_size=8, radial_mlp_size=64, radial_mlp_layers=2, radial_polynomial_p=6.0,
            layer_norm=True, avg_n_neighbors=57.4, atom_energies=[0.0] * self.SPECIES,
        )  # fmt: skip
        with default_dtype(dtype):
            return NequixTorch(**{**mp_1, **options}).eval()

    def inputs(self, atoms, model):
        dtype = next(model.parameters()).dtype
        receivers, senders, shifts = neighbor_list("ijS", atoms, self.CUTOFF)
        return dict(
            species=torch.tensor(atoms.numbers - 1),
            positions=torch.tensor(atoms.positions, dtype=dtype),
            edge_attr=torch.tensor(shifts, dtype=dtype).reshape(-1, 3),
            edge_index=torch.tensor(np.stack([senders, receivers])),
            cell=torch.tensor(atoms.cell.array, dtype=dtype)[None],
            n_node=torch.tensor([len(atoms)]),
            n_edge=torch.tensor([len(senders)]),
            n_graph=torch.zeros(len(atoms), dtype=torch.long),
        )

    def evaluate(self, model, inputs):
        energies, forces, _ = model(**inputs)
        return energies.sum(), forces


class NequIP(Framework):
    CUTOFF = 6.0

    def common(self, dtype) -> dict:
        from nequip.utils.global_state import set_global_state

        # NequIP's default dtype, whatever the model's.
        torch.set_default_dtype(torch.float64)
        set_global_state()
        return dict(
            seed=0, model_dtype=str(dtype).removeprefix("torch."), r_max=self.CUTOFF, type_names=["Si", "O"],
            avg_num_neighbors=45.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
        )  # fmt: skip

    def build(self, dtype, preset=None, **options):
        common = self.common(dtype)
        from nequip.model import nequip_models

        if preset:
            return nequip_models.PresetNequIPGNNModel(preset=preset, **common, **options).eval()
        return nequip_models.NequIPGNNModel(**common, **options).eval()

    def inputs(self, atoms, model):
        from nequip.data.ase import from_ase
        from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

        data = ChemicalSpeciesToAtomTypeMapper(model.metadata["type_names"].split())(from_ase(atoms))
        return NeighborListTransform(r_max=float(model.metadata["r_max"]))(data)

    def evaluate(self, model, inputs):
        out = model(dict(inputs))
        return out["total_energy"].sum(), out["forces"]


class Allegro(NequIP):
    CUTOFF = 5.0

    def build(self, dtype, **options):
        common = self.common(dtype)
        from allegro.model import AllegroModel

        embed = dict(
            _target_="allegro.nn.TwoBodyBesselScalarEmbed", num_bessels=8, bessel_trainable=False,
            polynomial_cutoff_p=6,
        )  # fmt: skip
        usual = dict(l_max=2, parity=True, num_layers=2, num_scalar_features=128, num_tensor_features=64)
        return AllegroModel(radial_chemical_embed=embed, **common, **{**usual, **options}).eval()


class MACE(Framework):
    SPECIES, CUTOFF = 89, 6.0

    def build(self, dtype, block="RealAgnosticResidualInteractionBlock", first=None, **options):
        import mace.modules
        from e3nn import o3

        torch.manual_seed(0)
        classes = mace.modules.interaction_classes
        medium = dict(
            r_max=self.CUTOFF, num_bessel=10, num_polynomial_cutoff=5, max_ell=3, num_interactions=2,
            interaction_cls=classes[block], interaction_cls_first=classes[first or block],
            num_elements=self.SPECIES, atomic_numbers=list(range(1, 1 + self.SPECIES)),
            hidden_irreps="128x0e + 128x1o", MLP_irreps="16x0e", gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(self.SPECIES), avg_num_neighbors=45.0, correlation=3, radial_type="bessel",
            atomic_inter_scale=1.0, atomic_inter_shift=0.0,
        )  # fmt: skip
        options = {**medium, **options}
        for name in ("hidden_irreps", "MLP_irreps"):
            options[name] = o3.Irreps(options[name])
        with default_dtype(dtype):
            return mace.modules.ScaleShiftMACE(**options).eval()

    def inputs(self, atoms, model):
        from mace import data, tools

        table = tools.AtomicNumberTable(model.atomic_numbers.tolist())
        with default_dtype(next(model.parameters()).dtype):
            graph = data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=self.CUTOFF)
            loader = tools.torch_geometric.dataloader.DataLoader([graph], batch_size=1, shuffle=False, drop_last=False)
            return next(iter(loader)).to_dict()

    def evaluate(self, model, inputs):
        out = model(dict(inputs), training=model.training, compute_force=True)
        return out["energy"].sum(), out["forces"]


class SevenNet(Framework):
    """Pretrained, in float32."""

    CUTOFF = 5.0

    def build(self, dtype, checkpoint="7net-0"):
        import sevenn.util

        model = sevenn.util.load_checkpoint(checkpoint).build_model().eval()
        model.set_is_batch_data(False)
        return model

    def inputs(self, atoms, model):
        from sevenn.train.dataload import unlabeled_atoms_to_graph

        return unlabeled_atoms_to_graph(atoms, self.CUTOFF)

    def evaluate(self, model, inputs):
        from sevenn.atom_graph_data import AtomGraphData

        data = AtomGraphData.from_numpy_dict(dict(inputs)).to_dict()
        data["pos"].requires_grad_()
        out = model(data)
        return out["inferred_total_energy"], out["inferred_force"]


def stand_in_for_torch_scatter() -> None:
    """fairchem-core 1.10 wants torch_scatter and torch_sparse, which are not built for this torch, for their sums."""
    import torch_geometric.utils

    def scatter(src, index, dim=-1, out=None, dim_size=None, reduce="sum"):
        return torch_geometric.utils.scatter(src, index, dim, dim_size, reduce)

    def segment_coo(src, index, out=None, dim_size=None, reduce="sum"):
        return scatter(src, index, 0, None, dim_size, reduce)

    def segment_csr(src, indptr, out=None, reduce="sum"):
        return torch.segment_reduce(src, reduce, offsets=indptr, initial=0)

    made = {
        "torch_scatter": dict(scatter=scatter, segment_coo=segment_coo, segment_csr=segment_csr),
        "torch_sparse": dict(SparseTensor=type("SparseTensor", (), {})),
    }
    for name, contents in made.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        sys.modules.setdefault(name, module)


class EquiformerV2(Framework):
    """With forces that it predicts: no derivative of the energy. Two evaluations turn edges about them alike."""

    CUTOFF, NEIGHBORS = 12.0, 20

    def build(self, dtype, **options):
        stand_in_for_torch_scatter()
        from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
        from fairchem.core.models.equiformer_v2.heads.scalar import EqV2ScalarHead
        from fairchem.core.models.equiformer_v2.heads.vector import EqV2VectorHead

        torch.manual_seed(0)
        # eqV2_31M of OMat24
        small = dict(
            otf_graph=False, max_neighbors=self.NEIGHBORS, max_radius=self.CUTOFF, num_layers=8, sphere_channels=128,
            attn_hidden_channels=64, num_heads=8, attn_alpha_channels=64, attn_value_channels=16,
            ffn_hidden_channels=128, norm_type="layer_norm_sh", lmax_list=[4], mmax_list=[2], grid_resolution=18,
            attn_activation="silu", ffn_activation="silu", use_grid_mlp=True, use_sep_s2_act=True, alpha_drop=0.0,
            drop_path_rate=0.0, avg_num_nodes=64.0, avg_degree=20.0,
        )  # fmt: skip
        with default_dtype(dtype):
            backbone = EquiformerV2Backbone(**{**small, **options})
            heads = {"energy": EqV2ScalarHead(backbone), "forces": EqV2VectorHead(backbone)}
            return nn.ModuleDict({"backbone": backbone, **heads}).to(dtype).eval()

    def inputs(self, atoms, model):
        from torch_geometric.data import Batch, Data

        dtype = next(model.parameters()).dtype
        i, j, shifts, distances = neighbor_list("ijSd", atoms, self.CUTOFF)
        order = np.lexsort((distances, i))
        rank = np.arange(len(i)) - np.searchsorted(i[order], i[order])
        kept = order[rank < self.NEIGHBORS]
        data = Data(
            pos=torch.tensor(atoms.positions, dtype=dtype),
            atomic_numbers=torch.tensor(atoms.numbers),
            cell=torch.tensor(atoms.cell.array, dtype=dtype)[None],
            natoms=torch.tensor([len(atoms)]),
            edge_index=torch.tensor(np.stack([j[kept], i[kept]])),
            cell_offsets=torch.tensor(shifts[kept], dtype=dtype).reshape(-1, 3),
            neighbors=torch.tensor([len(kept)]),
        )
        return Batch.from_data_list([data])

    def evaluate(self, model, inputs):
        torch.manual_seed(0)
        with default_dtype(inputs["pos"].dtype):
            emb = model["backbone"](inputs)
            return model["energy"](inputs, emb)["energy"].sum(), model["forces"](inputs, emb)["forces"]


class Esen(EquiformerV2):
    """Of the size of eSEN-30M, in fairchem-core 1.10; Uma has the later one."""

    CUTOFF, NEIGHBORS = 6.0, 300
    structure = staticmethod(copper)

    def build(self, dtype, **options):
        stand_in_for_torch_scatter()
        from fairchem.core.models.esen.esen import MLP_EFS_Head, eSEN_Backbone

        torch.manual_seed(0)
        small = dict(
            lmax=3, mmax=2, cutoff=self.CUTOFF, num_distance_basis=64, direct_forces=False, num_layers=10,
            act_type="gate", mlp_type="spectral", use_envelope=True,
        )  # fmt: skip
        with default_dtype(dtype):
            backbone = eSEN_Backbone(**{**small, **options})
            return nn.ModuleDict({"backbone": backbone, "head": MLP_EFS_Head(backbone)}).to(dtype).eval()

    def inputs(self, atoms, model):
        data = super().inputs(atoms, model)
        data.nedges, data.batch_full, data.atomic_numbers_full = data.neighbors, data.batch, data.atomic_numbers
        return data

    def evaluate(self, model, inputs):
        torch.manual_seed(0)
        inputs = inputs.clone()  # the model makes its positions a leaf
        with default_dtype(inputs["pos"].dtype):
            out = model["head"](inputs, model["backbone"](inputs))
        return out["energy"].sum(), out["forces"]


class EquiformerV3(EquiformerV2):
    """That of MPtrj, whose forces are derivatives, or of OMat24, of degree 6. Its dropouts are off in training too."""

    CUTOFF, NEIGHBORS = 6.0, 300
    structure = staticmethod(copper)

    def build(self, dtype, **options):
        stand_in_for_torch_scatter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from equiformer_v3.experimental.models.equiformer_v3.equiformer_v3 import EquiformerV3_OC

        torch.manual_seed(0)
        small = dict(
            otf_graph=False, max_neighbors=self.NEIGHBORS, max_radius=self.CUTOFF, num_radial_basis=10,
            direct_prediction=False, num_layers=7, num_channels=128, attn_hidden_channels=32, num_heads=8,
            attn_alpha_channels=64, attn_value_channels=16, ffn_hidden_channels=512, norm_type="merge_layer_norm",
            lmax=4, mmax=2, attn_grid_resolution_list=[14, 8], ffn_grid_resolution_list=[14, 14], avg_num_nodes=1.0,
            attn_weights_drop=0.0, drop_path_rate=0.0,
        )  # fmt: skip
        with default_dtype(dtype):
            return EquiformerV3_OC(**{**small, **options}).to(dtype).eval()

    def evaluate(self, model, inputs):
        torch.manual_seed(0)
        inputs = inputs.clone()  # the model makes its positions a leaf
        with default_dtype(inputs["pos"].dtype):
            out = model(inputs)
        return out["energy"].sum(), out["forces"]


class Uma(Framework):
    """UMA-S's backbone and head without mixed experts; ``experts`` of them mix the layers of messages."""

    CUTOFF = 6.0
    structure = staticmethod(copper)

    def build(self, dtype, experts=0, **options):
        from fairchem.core.models.uma.escn_md import MLP_EFS_Head, eSCNMDBackbone
        from fairchem.core.models.uma.escn_moe import eSCNMDMoeBackbone

        torch.manual_seed(0)
        small = dict(
            max_num_elements=100, sphere_channels=128, lmax=2, mmax=2, otf_graph=False, cutoff=self.CUTOFF,
            edge_channels=128, num_distance_basis=64, direct_forces=False, regress_forces=True, num_layers=4,
            hidden_channels=128, norm_type="rms_norm_sh", act_type="gate", ff_type="spectral",
            chg_spin_emb_type="rand_emb", cs_emb_grad=True, dataset_mapping={"omat": "omat"}, always_use_pbc=False,
        )  # fmt: skip
        mixed = {"num_experts": experts, "use_composition_embedding": True} if experts else {}
        with default_dtype(dtype):
            backbone = (eSCNMDMoeBackbone if experts else eSCNMDBackbone)(**{**small, **mixed, **options})
            return nn.ModuleDict({"backbone": backbone, "head": MLP_EFS_Head(backbone)}).to(dtype).eval()

    def inputs(self, atoms, model):
        from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

        dtype = next(model.parameters()).dtype
        structures = atoms if isinstance(atoms, list) else [atoms]
        made = []
        for one in structures:
            one.info.update(charge=0, spin=0)
            data = AtomicData.from_ase(one, task_name="omat", r_edges=False, r_data_keys=["spin", "charge"])
            i, j, shifts = neighbor_list("ijS", one, self.CUTOFF)
            data.edge_index = torch.tensor(np.stack([j, i]))
            data.cell_offsets = torch.tensor(shifts, dtype=torch.float32).reshape(-1, 3)
            data.nedges = torch.tensor([len(i)])
            made.append(data)
        batch = atomicdata_list_to_batch(made)
        for name in ("pos", "cell", "cell_offsets"):
            batch[name] = batch[name].to(dtype)
        return batch

    def evaluate(self, model, inputs):
        data = inputs.clone()
        with default_dtype(data.pos.dtype):
            out = model["head"](data, model["backbone"](data))
            return out["energy"]["energy"].sum(), out["forces"]["forces"]


MODELS = {
    "equiformer-v2-31m": (EquiformerV2(), {}),
    "esen-30m": (Esen(), {}),
    "equiformer-v3-l4": (EquiformerV3(), {}),
    "equiformer-v3-l6": (
        EquiformerV3(),
        dict(lmax=6, num_radial_basis=64, attn_grid_resolution_list=[20, 8], ffn_grid_resolution_list=[20, 20]),
    ),
    "nequix-mp-1": (Nequix(), {}),
    "nequip-m": (NequIP(), {"preset": "M"}),
    "nequip-l": (NequIP(), {"preset": "L"}),
    "allegro-l2": (Allegro(), {}),
    "allegro-l3": (Allegro(), {"l_max": 3, "num_tensor_features": 32}),
    "mace-medium": (MACE(), {}),
    "mace-large": (MACE(), {"hidden_irreps": "128x0e + 128x1o + 128x2e"}),
    "sevennet-0": (SevenNet(), {}),
    "uma-s": (Uma(), {}),
    "esen-l4": (Uma(), {"lmax": 4, "num_layers": 2}),
    "esen-l6": (Uma(), {"lmax": 6, "num_layers": 1}),
    "sevennet-l3i5": (SevenNet(), {"checkpoint": "7net-l3i5"}),
}


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def step(framework: Framework, model: nn.Module, inputs: dict, training: bool) -> None:
    energy, forces = framework.evaluate(model, inputs)
    if training:
        loss = energy.square() + forces.square().sum()
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


def milliseconds(calls: Sequence[Callable], args) -> list[float]:
    """Of each call, which run in turn: medians."""
    times: list[list[float]] = [[] for _ in calls]
    for n in range(args.warmup + args.rounds):
        for column, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            if n >= args.warmup:
                column.append(time.perf_counter() - start)
    return [1e3 * statistics.median(column) for column in times]


def megabytes_of_a_step(name: str, convert: bool, args) -> float:
    """In a process of its own, whose peak so far is that of a smaller structure."""
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    framework, options = MODELS[name]
    model = framework.build(torch.float32, **options).train(args.training)
    if convert:
        eqk.convert(model)
    step(framework, model, framework.inputs(framework.structure(1), model), args.training)
    inputs = framework.inputs(framework.structure(args.cells), model)
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    for _ in range(3):
        step(framework, model, inputs, args.training)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6


def bench_memory(name: str, args) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        before, after = pool.map(partial(megabytes_of_a_step, name, args=args), (False, True))
    what = "training step" if args.training else "energy + forces"
    print(f"{name}: {what}: {before:.0f} MB as it is, {after:.0f} MB converted, {after / before:.2f} of it", flush=True)


def check_accuracy(
    framework: Framework, options: dict, atoms: ase.Atoms, model: nn.Module, forces: Sequence[Tensor]
) -> tuple[float, float]:
    """Errors of forces of the model as it is and converted, to those of float64.

    Raises ValueError where the second is more than thrice the first.
    """
    exact = framework.build(torch.float64, **options)
    with torch.no_grad():
        for own, other in zip(exact.parameters(), model.parameters(), strict=True):
            own.copy_(other)
    expected = framework.evaluate(exact, framework.inputs(atoms, exact))[1].detach()
    before, after = (relative_error(f, expected) for f in forces)
    if not after <= 3 * before:
        raise ValueError(f"forces differ from those of float64 by {after:.1e} of the largest instead of {before:.1e}")
    return before, after


def bench(name: str, args) -> None:
    framework, options = MODELS[name]
    models = [framework.build(torch.float32, **options).train(args.training) for _ in range(2)]
    report = eqk.convert(models[1])
    if args.report:
        print(report)
    atoms = framework.structure(args.cells)
    inputs = framework.inputs(atoms, models[0])
    forces = [framework.evaluate(model, inputs)[1].detach() for model in models]
    error = relative_error(forces[1], forces[0])
    if not error < 1e-5:
        before, after = check_accuracy(framework, options, atoms, models[0], forces)
        print(f"{name}: forces within {before:.1e} of float64's as it is, {after:.1e} converted")
    before, after = milliseconds([partial(step, framework, m, inputs, args.training) for m in models], args)
    what = "training step" if args.training else "energy + forces"
    print(
        f"{name}: {what}, {torch.get_num_threads()} threads: {before:.1f} ms as it is, {after:.1f} ms converted, "
        f"{before / after:.2f} times as fast; forces within {error:.1e}",
        flush=True,
    )


def call_of(
    framework: Framework, model: nn.Module, inputs: dict, layer: str
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A function that calls ``layer`` as the model does, and what its gradients are taken to."""
    made = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args, kwargs: made.append((args, kwargs)), with_kwargs=True
    )
    framework.evaluate(model, inputs)
    hook.remove()

    leaves = []

    def leaf(value):
        if hasattr(value, "embedding"):  # fairchem's SO3_Embedding
            value = copy.copy(value)
            value.embedding = leaf(value.embedding)
        elif isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach().clone().requires_grad_()
            leaves.append(value)
        return value

    args, kwargs = tree_map(leaf, made[0])

    def call():
        result = model.get_submodule(layer)(*args, **kwargs)
        return getattr(result, "embedding", result)

    return call, leaves


def bench_layer(name: str, args) -> None:
    framework, options = MODELS[name]
    models = [framework.build(torch.float32, **options) for _ in range(2)]
    eqk.convert(models[1])
    inputs = framework.inputs(framework.structure(args.cells), models[0])
    layers = [call_of(framework, model.requires_grad_(False), inputs, args.layer) for model in models]
    outputs = [call().detach() for call, _ in layers]
    error = relative_error(outputs[1], outputs[0])
    if not error < 1e-5:
        raise SystemExit(f"{name}: {args.layer}: results differ by {error:.1e} of the largest")
    g = torch.randn_like(outputs[0])

    def gradients(call, leaves):
        torch.autograd.grad(call(), leaves, g, allow_unused=True)

    before, after = milliseconds([partial(gradients, *layer) for layer in layers], args)
    print(
        f"{name}: {args.layer}, forward + backward, {torch.get_num_threads()} threads: {before:.1f} ms as it is, "
        f"{after:.1f} ms converted, {before / after:.2f} times as fast; results within {error:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--cells", type=int, default=2, help="of 8 atoms, in each direction")
    parser.add_argument("--training", action="store_true", help="add the gradient of a loss on energy and forces")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time (on Linux)")
    parser.add_argument("--layer", help="time this submodule alone, with gradients to its inputs")
    parser.add_argument("--report", action="store_true", help="print what was converted")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    for name in args.models:
        (bench_memory if args.memory else bench_layer if args.layer else bench)(name, args)


if __name__ == "__main__":
    main()
