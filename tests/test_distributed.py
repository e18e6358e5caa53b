"""eqk's ops on several processes: DDP, FSDP2, domains with ghost atoms, fork and spawn, against one process."""

import itertools
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

# Before there is a process group: see examples/ddp_train.py.
import torch.distributed.nn.functional
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

import eqk
from eqk import o3, testing
from eqk.testing import relative_error

SECONDS = 120  # for all that a process is waited for; they need some seconds
CUTOFF = 1.3
SPECIES = 2
FEATURES = "4x0e + 4x1o"
HARMONICS = "0e + 1o + 2e"
MIDDLE = "4x0e + 4x1o + 4x1o + 4x0e + 4x1o"
PATHS = [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (1, 2, 4)]


class Layer(nn.Module):
    """Convolution with its radial network, a product with internal weights, a product of signals with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = str(eqk.Plan.normalized(FEATURES, HARMONICS, MIDDLE, [(*p, "uvu", True) for p in PATHS]))
        numel = eqk.Plan.parse(self.plan).weight_numel
        self.hidden = nn.Linear(4, 6)
        self.last = nn.Parameter(torch.randn(6, numel) / 6**0.5)
        self.down = o3.Linear(MIDDLE, FEATURES)
        self.own = o3.FullyConnectedTensorProduct(FEATURES, f"{SPECIES}x0e", FEATURES)
        self.gaunt = eqk.nn.GauntTensorProduct(FEATURES, FEATURES, FEATURES, rank=2)

    def forward(self, x, one_hot, sh, radial, src, dst, num_dst: int) -> Tensor:
        h = nn.functional.silu(self.hidden(radial))
        summed = eqk.tensor_product_conv_radial(x, sh, h, self.last, src, dst, num_dst, self.plan)
        x = 0.5 * self.down(summed) + self.own(x[:num_dst], one_hot[:num_dst])
        return x + 0.1 * self.gaunt(x, x)


class Potential(nn.Module):
    """Energies of the first ``num_dst`` atoms. ``extend``: of their features, those of all atoms, before each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.harmonics = o3.SphericalHarmonics(HARMONICS, normalize=True, normalization="component")
        self.embedding = o3.Linear(f"{SPECIES}x0e", FEATURES)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.readout = o3.Linear(FEATURES, "1x0e")

    def forward(self, vectors, species, src, dst, num_dst: int, extend=None) -> Tensor:
        r = vectors.norm(dim=1, keepdim=True) / CUTOFF
        n = torch.arange(4, dtype=r.dtype)
        radial = torch.cos(n * r) * (1 - r**2) ** 3
        sh = self.harmonics(vectors) * (1 - r**2) ** 3  # as small as weights, which need not be zero at the cutoff
        one_hot = nn.functional.one_hot(species, SPECIES).to(r.dtype)
        x = self.embedding(one_hot)
        for k, layer in enumerate(self.layers):
            x = layer(extend(x) if k and extend else x, one_hot, sh, radial, src, dst, num_dst)
        return self.readout(x).squeeze(1)


def potential(seed: int) -> Potential:
    """The same one in each process."""
    torch.manual_seed(seed)
    return Potential().double()


def pairs(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """src, dst of all pairs within the cutoff but those of an atom and itself."""
    distance = (targets[:, None] - sources).norm(dim=2)
    dst, src = ((distance < CUTOFF) & (distance > 0)).nonzero(as_tuple=True)
    return src, dst


# Training on energies and forces.


class Batch(NamedTuple):
    positions: Tensor
    species: Tensor
    src: Tensor
    dst: Tensor
    molecule: Tensor
    energies: Tensor
    forces: Tensor


def molecules(seed: int) -> list[Batch]:
    """Seven of different sizes, which neither two nor four ranks share evenly."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for atoms in (3, 6, 4, 5, 7, 4, 5):
        positions = 0.7 * torch.randn(atoms, 3, generator=g, dtype=torch.float64)
        species = torch.randint(SPECIES, (atoms,), generator=g)
        energy = torch.randn(1, generator=g, dtype=torch.float64)
        forces = torch.randn(atoms, 3, generator=g, dtype=torch.float64)
        zero = torch.zeros(atoms, dtype=torch.int64)
        made.append(Batch(positions, species, *pairs(positions, positions), zero, energy, forces))
    return made


def collated(parts: list[Batch]) -> Batch:
    first = list(itertools.accumulate([len(p.positions) for p in parts], initial=0))
    moved = [
        p._replace(src=p.src + first[k], dst=p.dst + first[k], molecule=p.molecule + k) for k, p in enumerate(parts)
    ]
    return Batch(*map(torch.cat, zip(*moved, strict=True)))


@contextmanager
def held(module: nn.Module):
    """Lets a gradient within the forward pass of FSDP2 neither reduce nor free what the backward pass needs yet."""
    if not isinstance(module, FSDPModule):
        yield
        return
    switches = (module.set_is_last_backward, module.set_requires_gradient_sync, module.set_reshard_after_backward)
    for switch in switches:
        switch(False)
    yield
    for switch in switches:
        switch(True)


class ShareOfLoss(nn.Module):
    """The loss of a share of the molecules, such that the mean over ranks is that of all."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(self, share: Batch, count: int, components: int, world: int) -> Tensor:
        positions = share.positions.clone().requires_grad_()
        vectors = positions[share.dst] - positions[share.src]
        of_atoms = self.model(vectors, share.species, share.src, share.dst, len(positions))
        energies = of_atoms.new_zeros(len(share.energies)).index_add(0, share.molecule, of_atoms)
        with held(self):
            (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=True)
        of_energies = (energies - share.energies).square().sum() / count
        of_forces = (gradient + share.forces).square().sum() / components
        return world * (of_energies + of_forces)


def trained(module: nn.Module, data: list[Batch], rank: int, world: int) -> list[dict[str, Tensor]]:
    """Two steps: gradients of each, and the parameters at the end, each whole whatever the ranks share."""

    def whole(t: Tensor) -> Tensor:
        return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()

    def named(of) -> dict[str, Tensor]:
        return {n.removeprefix("module."): whole(of(p)) for n, p in module.named_parameters()}

    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    share, components = collated(data[rank::world]), sum(part.forces.numel() for part in data)
    results = []
    for _ in range(2):
        optimizer.zero_grad()
        module(share, len(data), components, world).backward()
        results.append(named(lambda p: p.grad))
        optimizer.step()
    return [*results, named(lambda p: p)]


def in_ddp(seed: int, world: int) -> nn.Module:
    return DistributedDataParallel(ShareOfLoss(potential(seed)))


def in_fsdp(seed: int, world: int) -> nn.Module:
    """One unit: parameters are whole from the forward pass's start to its end, and again for the backward pass."""
    return fully_shard(ShareOfLoss(potential(seed)), mesh=init_device_mesh("cpu", (world,)))


def in_fsdp_by_layers(seed: int, world: int) -> nn.Module:
    """Units of their own for layers; they stay whole after the forward pass, since the gradient within it needs them."""
    module, mesh = ShareOfLoss(potential(seed)), init_device_mesh("cpu", (world,))
    for part in (*module.model.layers, module):
        fully_shard(part, mesh=mesh, reshard_after_forward=False)
    return module


WRAPPERS = {"DDP": in_ddp, "FSDP2": in_fsdp, "FSDP2 by layers": in_fsdp_by_layers}


# Domains of a periodic box.

BOX = torch.tensor([8.0, 8.0, 3.0], dtype=torch.float64)
GRIDS = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1)}
SHIFTS = torch.tensor(list(itertools.product((-1, 0, 1), repeat=3)), dtype=torch.float64) * BOX


def atoms_in_box(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(60, 3, generator=g, dtype=torch.float64) * BOX, torch.randint(SPECIES, (60,), generator=g)


class Domain(NamedTuple):
    """``own``: atoms by their number in the box. ``ghosts``, ``shifts``, ``owners``: of copies around the domain."""

    own: Tensor
    ghosts: Tensor
    shifts: Tensor
    owners: Tensor


def domains(positions: Tensor, world: int, reach: float) -> list[Domain]:
    """Ghosts are all periodic images within ``reach`` of a domain, its own atoms' too, in the order of their owners."""
    grid = torch.tensor(GRIDS[world])
    cell = (positions / BOX * grid).floor().to(torch.int64)
    owner = (cell[:, 0] * grid[1] + cell[:, 1]) * grid[2] + cell[:, 2]
    images = positions + SHIFTS[:, None]
    result = []
    for rank, corner in enumerate(itertools.product(*map(range, GRIDS[world]))):
        low = torch.tensor(corner) * BOX / grid
        near = ((images >= low - reach) & (images < low + BOX / grid + reach)).all(2)
        near &= ~((owner == rank) & (SHIFTS == 0).all(1)[:, None])
        shift, atom = near.nonzero(as_tuple=True)
        order = torch.argsort(owner[atom], stable=True)
        shift, atom = shift[order], atom[order]
        result.append(Domain((owner == rank).nonzero()[:, 0], atom, SHIFTS[shift], owner[atom]))
    return result


class Exchange:
    """Rows of own atoms to the ranks that have them as ghosts, and back, where they are added."""

    def __init__(self, rank: int, parts: list[Domain]) -> None:
        row = torch.full((sum(len(part.own) for part in parts),), -1)
        row[parts[rank].own] = torch.arange(len(parts[rank].own))
        wanted = [row[part.ghosts[part.owners == rank]] for part in parts]
        self.rows, self.own = torch.cat(wanted), len(parts[rank].own)
        self.to_each = [len(rows) for rows in wanted]
        self.from_each = torch.bincount(parts[rank].owners, minlength=len(parts)).tolist()

    def forward(self, own: Tensor) -> Tensor:
        ghosts = own.new_empty(sum(self.from_each), *own.shape[1:])
        dist.all_to_all_single(ghosts, own[self.rows].contiguous(), self.from_each, self.to_each)
        return ghosts

    def reverse(self, ghosts: Tensor) -> Tensor:
        rows = ghosts.new_empty(sum(self.to_each), *ghosts.shape[1:])
        dist.all_to_all_single(rows, ghosts.contiguous(), self.to_each, self.from_each)
        return rows.new_zeros(self.own, *rows.shape[1:]).index_add(0, self.rows, rows)


class WithGhosts(torch.autograd.Function):
    """[own, ...] -> [own + ghosts, ...]; its gradient is the reverse communication."""

    @staticmethod
    def forward(ctx, own: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return torch.cat([own, exchange.forward(own)])

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        own = ctx.exchange.own
        return g[:own] + ctx.exchange.reverse(g[own:]), None


def by_wide_ghosts(model: Potential, positions: Tensor, species: Tensor, rank: int, world: int) -> dict[str, Tensor]:
    """NequIP's way in LAMMPS: ghosts as far as all layers see, no exchange but that of positions and forces."""
    parts = domains(positions, world, CUTOFF * len(model.layers))
    domain, exchange = parts[rank], Exchange(rank, parts)
    own = positions[domain.own]
    local = torch.cat([own, exchange.forward(own) + domain.shifts]).requires_grad_()
    src, dst = pairs(local.detach(), local.detach())
    energies = model(local[dst] - local[src], species[torch.cat([domain.own, domain.ghosts])], src, dst, len(local))
    energies = energies[: len(own)]
    (gradient,) = torch.autograd.grad(energies.sum(), local)
    ghosts_share = exchange.reverse(gradient[len(own) :])
    forces = -(gradient[: len(own)] + ghosts_share)
    return {"own": domain.own, "energies": energies.detach(), "forces": forces, "ghosts' share": ghosts_share}


def by_exchange(model: Potential, positions: Tensor, species: Tensor, rank: int, world: int) -> dict[str, Tensor]:
    """SevenNet's way: ghosts as far as one layer sees, whose features their owners send between layers."""
    parts = domains(positions, world, CUTOFF)
    domain, exchange = parts[rank], Exchange(rank, parts)
    own = positions[domain.own].requires_grad_()
    shifts = torch.cat([torch.zeros(len(own), 3, dtype=own.dtype), domain.shifts])
    local = WithGhosts.apply(own, exchange) + shifts
    src, dst = pairs(local.detach(), own.detach())
    energies = model(
        local[dst] - local[src],
        species[torch.cat([domain.own, domain.ghosts])],
        src,
        dst,
        len(own),
        lambda x: WithGhosts.apply(x, exchange),
    )
    (gradient,) = torch.autograd.grad(energies.sum(), own)
    return {"own": domain.own, "energies": energies.detach(), "forces": -gradient}


DECOMPOSITIONS = {"wide ghosts": by_wide_ghosts, "exchanged features": by_exchange}


def rank_main(rank: int, world: int, folder: str, seed: int) -> None:
    """All of it in one set of processes, since it is their start that takes time."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    wait = timedelta(seconds=SECONDS / 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=wait)
    try:
        data = molecules(seed)
        results = {name: trained(wrap(seed, world), data, rank, world) for name, wrap in WRAPPERS.items()}
        model, (positions, species) = potential(seed), atoms_in_box(seed)
        for name, forward in DECOMPOSITIONS.items():
            results[name] = forward(model, positions, species, rank, world)
        torch.save(results, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_processes(function, args: tuple, count: int, method: str = "spawn") -> None:
    """Fails, and leaves no process, when one fails or all have not ended in time."""
    context = mp.start_processes(function, args, count, join=False, start_method=method)
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=max(0.0, end - time.monotonic())):
            assert time.monotonic() < end, f"{count} processes ({method}) did not end within {SECONDS} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join(10)


@pytest.fixture(scope="module", params=[2, 4], ids=lambda world: f"{world} ranks")
def ranks(request, tmp_path_factory):
    """World size, seed, results of each rank."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    seed = testing.generators(f"ranks {world}")[0].randrange(2**31)
    run_processes(rank_main, (world, str(folder), seed), world)
    return world, seed, [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_is_that_of_one_process(ranks, wrapper):
    """Gradients of a loss on energies and forces in two steps, and parameters after them, on every rank."""
    _, seed, results = ranks
    expected = trained(ShareOfLoss(potential(seed)), molecules(seed), 0, 1)
    for result in results:
        for stage, (got, truth) in enumerate(zip(result[wrapper], expected, strict=True)):
            assert set(got) == set(truth)
            for name, value in truth.items():
                assert float(value.abs().max()) > 0, name
                assert relative_error(got[name], value) < 1e-10, (stage, name)
    one_alone = trained(ShareOfLoss(potential(seed)), molecules(seed)[0::2], 0, 1)
    assert relative_error(one_alone[0]["model.readout.weight"], expected[0]["model.readout.weight"]) > 1e-3


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_domains_are_the_box(ranks, decomposition):
    """Energies and forces of each atom, against edges with shifts in one process."""
    _, seed, results = ranks
    model, (positions, species) = potential(seed), atoms_in_box(seed)
    src, dst = pairs((positions + SHIFTS[:, None]).flatten(0, 1), positions)
    shift, src = SHIFTS[src // len(positions)], src % len(positions)
    positions.requires_grad_()
    energies = model(positions[dst] - positions[src] - shift, species, src, dst, len(positions))
    (gradient,) = torch.autograd.grad(energies.sum(), positions)
    parts = [result[decomposition] for result in results]
    own = torch.cat([part["own"] for part in parts])
    assert torch.equal(own.sort().values, torch.arange(len(positions)))
    assert all(len(part["own"]) > 0 for part in parts)
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert relative_error(together["energies"], energies.detach()[own]) < 1e-12
    assert relative_error(together["forces"], -gradient[own]) < 1e-12
    if "ghosts' share" in together:  # what would be lost without the way back
        assert float(together["ghosts' share"].abs().max()) > 1e-3 * float(gradient.abs().max())


# Fork and spawn.


def conv_inputs(seed: int) -> tuple:
    g = torch.Generator().manual_seed(seed)
    plan = eqk.Plan.normalized("8x0e", "0e + 1o", "8x0e + 8x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
    x, y = torch.randn(300, 8, generator=g), torch.randn(20000, 4, generator=g)
    w = torch.randn(20000, plan.weight_numel, generator=g)  # 1.2 MiB: eqk.keep_memory keeps blocks from 1 MiB on
    src, dst = torch.randint(300, (2, 20000), generator=g)
    return x, y, w, src, dst, 300, str(plan)


def conv_and_gradient(seed: int) -> Tensor:
    x, y, w, *rest = conv_inputs(seed)
    x.requires_grad_()
    w.requires_grad_()
    out = eqk.tensor_product_conv(x, y, w, *rest)
    gradients = torch.autograd.grad((out * out.detach().sin()).sum(), (x, w))
    return torch.cat([t.detach().flatten() for t in (out, *gradients)])


@pytest.fixture
def two_threads():
    """What the parent has used when it forks; eqk has run forward and backward on both."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def child_main(rank: int, path: str, seed: int) -> None:
    torch.set_num_threads(1)  # see docs/scale_out.md
    found = eqk.dispatch.choose("rotate", torch.device("cpu"))
    before = len(os.listdir("/proc/self/task"))
    with eqk.dispatch.use_backend("cpu"):
        result = conv_and_gradient(seed)
        torch.save((result, len(os.listdir("/proc/self/task")) - before, found), path)


@pytest.mark.parametrize(("method", "inherited"), [("fork", "reference"), ("spawn", "cpu")])
def test_child_has_the_same_bits(method, inherited, tmp_path, rng, two_threads):
    """After eqk has run on two threads in the parent, with kept memory, whose free blocks a fork copies.

    It starts no thread for them. A forked child has the backend of the block that it was made in, a spawned one that of
    its environment, and a choice of its own changes nothing of the parent's.
    """
    seed, path = rng.randrange(2**31), tmp_path / "child.pt"
    eqk.keep_memory()
    try:
        expected = conv_and_gradient(seed)
        assert eqk.keep_memory() > 0
        with eqk.dispatch.use_backend("reference"):
            run_processes(child_main, (str(path), seed), 1, method)
            assert eqk.dispatch.choose("rotate", torch.device("cpu")) == "reference"
    finally:
        eqk.keep_memory(0)
    result, started, found = torch.load(path)
    assert torch.equal(result, expected)
    assert started == 0
    assert found == inherited
    assert torch.equal(conv_and_gradient(seed), expected)


def test_fork_while_threads_are_in_an_op():
    """forked.py: with a lock in the caches of plans a child of the first twenty hung."""
    command = [sys.executable, str(Path(__file__).parent / "forked.py"), "40"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert result.stdout == "40\n", result.stdout + result.stderr


class Convolved(torch.utils.data.Dataset):
    """Each item is the work of an op, forward and backward."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 4

    def __getitem__(self, n: int) -> Tensor:
        return conv_and_gradient(self.seed + n)


def test_workers_of_a_data_loader(rng, two_threads):
    data = Convolved(rng.randrange(2**31))
    expected = [data[n] for n in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=SECONDS
    )
    results = list(loader)
    assert len(results) == len(expected)
    for result, one in zip(results, expected, strict=True):
        assert torch.equal(result, one)
