"""Writes mace_symmetric_contraction.npz beside it, in an environment with mace-torch 0.3.16 (e3nn 0.4.4).

"signs" has the Wigner 3j symbols whose signs differ from those of e3nn 0.6.
"""

from pathlib import Path

import numpy as np
import torch
from mace.modules import SymmetricContraction

CASES = {
    "cubic": ("2x0e + 2x1o", "2x0e + 2x1o", 3, 3),
    "signs": ("2x0e + 2x1o + 2x2e + 2x3o", "2x1o + 2x2e", 2, 2),
    "quartic": ("1x0e + 1x1o", "1x0e + 1x1o", 4, 2),
    "zero-paths": ("3x0e + 3x1o", "3x1o + 3x2e", 2, 2),
}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    arrays = {}
    for name, (irreps_in, irreps_out, correlation, num_elements) in CASES.items():
        module = SymmetricContraction(irreps_in, irreps_out, correlation, num_elements=num_elements)
        channels, nodes = module.irreps_in[0].mul, 5
        # Numbers of few digits, which compress.
        with torch.no_grad():
            for p in module.parameters():
                p.copy_((p * 64).round() / 64)
        x = ((torch.randn(nodes, channels, module.irreps_in.dim // channels) * 16).round() / 16).requires_grad_()
        y = torch.nn.functional.one_hot(torch.arange(nodes) % num_elements, num_elements).double()
        mixed = (torch.rand(nodes, num_elements) * 16).round() / 16
        parameters = [p for _, p in sorted(module.named_parameters()) if p.requires_grad]
        out = module(x, y)
        first = torch.autograd.grad(out.pow(2).sum(), (x, *parameters), create_graph=True)
        second = torch.autograd.grad(first[0].pow(2).sum(), (x, *parameters))
        tensors = {"x": x, "y": y, "mixed": mixed, "out": out, "out_mixed": module(x, mixed)}
        tensors |= {f"first/{n}": t for n, t in enumerate(first)} | {f"second/{n}": t for n, t in enumerate(second)}
        tensors |= {f"state/{key}": value for key, value in module.state_dict().items()}
        arrays |= {f"{name}/{key}": value.detach().numpy() for key, value in tensors.items()}
        arguments = dict(irreps_in=irreps_in, irreps_out=irreps_out, correlation=correlation, num_elements=num_elements)
        arrays |= {f"{name}/{key}": np.array(value) for key, value in arguments.items()}
    np.savez_compressed(Path(__file__).with_name("mace_symmetric_contraction.npz"), **arrays)


if __name__ == "__main__":
    main()
