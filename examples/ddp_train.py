"""The training of train_nequip_style.py on several processes: each takes a share of every batch.

    torchrun --standalone --nproc-per-node 2 examples/ddp_train.py
    torchrun --standalone --nproc-per-node 2 examples/ddp_train.py --structures 20 --epochs 3

Before training, the gradient of the first batch by all ranks is compared with that of one rank which has the whole
batch: the program fails if they differ by more than 1e-6 of the largest. Afterwards all ranks must have the same
weights.

The loss holds forces, and so a gradient within the forward pass: DistributedDataParallel sees one module that returns
the loss, and averages gradients of weights in the only backward pass that there is of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import ase
import torch
import torch.distributed as dist

# Imported before there is a process group: the functions of this module keep the group that they find as a default.
# DistributedDataParallel imports it otherwise, the group outlives its destruction, and a thread of gloo that drops its
# last tensor while Python shuts down ends the process by SIGABRT.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from train_nequip_style import (
    ENERGY_WEIGHT,
    MOLECULES,
    Batch,
    Potential,
    build,
    collate,
    errors_of,
    errors_of_a_guess,
    labelled,
    loss_of,
    squared_errors,
    train,
)

TOLERANCE = 1e-6
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class ShareOfLoss(nn.Module):
    """The loss of a share of a batch, such that the mean over ranks is that of the batch, whatever the shares are."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(self, share: Batch, molecules: int, components: int) -> Tensor:
        """``molecules``, ``components``: how many the whole batch has, of forces too."""
        of_energy, of_forces = squared_errors(self.model, share)
        loss = ENERGY_WEIGHT * of_energy / molecules + of_forces / components
        return loss * dist.get_world_size()


def gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """Of all weights, in one row."""
    model.zero_grad()
    loss.backward()
    rows = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return torch.cat([row.flatten() for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=300, help="for training; a fifth more are kept unseen")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=10, help="of all ranks together (default: 10)")
    parser.add_argument("--rate", type=float, default=0.01, help="of Adam, at first (default: 0.01)")
    parser.add_argument("--dtype", choices=DTYPES, default="float64")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error(
            "start it by torchrun, for example: torchrun --standalone --nproc-per-node 2 examples/ddp_train.py"
        )
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    try:
        if args.batch_size % world or args.structures % world:
            parser.error(f"--batch-size, --structures: expected multiples of {world} ranks")
        run(args, rank, world)
    finally:
        dist.destroy_process_group()


def run(args: argparse.Namespace, rank: int, world: int) -> None:
    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    unseen = max(len(MOLECULES), args.structures // 5)
    made = [labelled(MOLECULES, args.structures + unseen, 0.06, 1000 * args.seed) if rank == 0 else None]
    dist.broadcast_object_list(made)
    structures, dtype = made[0][:-unseen], DTYPES[args.dtype]
    test = collate(made[0][-unseen:], dtype)
    model = build(structures, args.seed, dtype, channels=args.channels, layers=args.layers)
    share_of_loss = DistributedDataParallel(ShareOfLoss(model))
    say(f"{world} ranks, {len(structures)} structures, {unseen} unseen, {args.dtype}")

    def loss_of_batch(batch: Sequence[ase.Atoms]) -> Tensor:
        return share_of_loss(collate(batch[rank::world], dtype), len(batch), 3 * sum(map(len, batch)))

    first = structures[: args.batch_size]
    of_all_ranks = gradients(model, loss_of_batch(first))
    of_one = gradients(model, loss_of(model, collate(first, dtype)))
    difference = float((of_all_ranks - of_one).abs().max() / of_one.abs().max())
    say(f"gradients of {world} ranks and of one differ by {difference:.1e} of the largest")
    if not difference <= TOLERANCE:
        sys.exit(f"FAILED: gradients differ by {difference:.1e}, more than {TOLERANCE:.0e}")

    losses, _ = train(
        model, structures, test, args.epochs, args.batch_size, args.rate, args.seed, loss_of_batch, quiet=rank != 0
    )
    say(f"loss of rank 0's shares: {losses[0]:.4f} in the first epoch, {losses[-1]:.4f} in the last")
    say(f"errors on unseen structures: {errors_of(model, test)}")
    say(f"errors of a guess:           {errors_of_a_guess(model, test)}")
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyone = [torch.empty_like(weights) for _ in range(world)]
    dist.all_gather(everyone, weights)
    if not all(torch.equal(weights, other) for other in everyone):
        sys.exit("FAILED: the ranks have different weights")
    say(f"All {world} ranks have the same weights.")


if __name__ == "__main__":
    main()
