"""Time of eqk.wigner against dense matrices from Euler angles, on the CPU.

    python bench/wigner.py --threads 1
    python bench/wigner.py --cases 6-2 --threads 1 --phases forward

Cases LMAX-MMAX; --rows rotations as quaternions, of which the packed matrices of degrees 0 to LMAX are made, rows
|m'| <= MMAX. Both providers take e3nn's quaternion_to_angles and cut the rows out of whole matrices: e3nn, its wigner_D
for each degree, which are exponentials; jd, the product Y(alpha) J Y(beta) J Y(gamma), Y about the polar axis and J
constant, of e3nn 0.4 and EquiformerV2. composed: eqk's matrices with their gradient from tensor products, as devices
without a kernel have it. Checks, in float64: values and gradients of eqk against all. Phases, --malloc and how times
are taken: as in bench/tensor_product.py. floor: q and the result, or the gradient of q and the cotangent of the result,
move once in forward and in backward, twice in double; multiply-adds as they are in the kernel, and one for each number
of the result and component of the torque.
"""

import importlib
import sys

import torch
from tensor_product import PHASES, main_on_cpu, phase_function, timed

import eqk
from eqk.testing import TOLERANCES, relative_error
from eqk.wigner import columns

STANDARD = ["2-2", "4-2", "6-2", "6-6"]


def about_y(l: int, angle: torch.Tensor) -> torch.Tensor:
    """D^l of a rotation about y."""
    at, multiples = torch.arange(2 * l + 1), angle[:, None] * torch.arange(l, -l - 1, -1)
    d = angle.new_zeros(len(angle), 2 * l + 1, 2 * l + 1)
    d[:, at, 2 * l - at] = multiples.sin()
    d[:, at, at] = multiples.cos()
    return d


def euler_matrices(provider: str, lmax: int, mmax: int):
    from e3nn import o3

    # Half a turn about (x + y) / sqrt(2) exchanges x and y.
    exchange = eqk.wigner(torch.tensor([[0.0, 1.0, 1.0, 0.0]], dtype=torch.float64), lmax)[0]
    parts = exchange.split([(2 * l + 1) ** 2 for l in range(lmax + 1)])
    j = [p.view(2 * l + 1, 2 * l + 1) for l, p in enumerate(parts)]

    def by_exchange(l, alpha, beta, gamma):
        return about_y(l, alpha) @ j[l].to(alpha) @ about_y(l, beta) @ j[l].to(alpha) @ about_y(l, gamma)

    matrix = o3.wigner_D if provider == "e3nn" else by_exchange

    def packed(q):
        angles = o3.quaternion_to_angles(torch.nn.functional.normalize(q, dim=1))
        matrices = [matrix(l, *angles) for l in range(lmax + 1)]
        return torch.cat([d[:, max(0, l - mmax) : l + mmax + 1].flatten(1) for l, d in enumerate(matrices)], 1)

    return packed


class Composed(torch.autograd.Function):
    """eqk.wigner, differentiated by the torch operations of devices without a kernel."""

    @staticmethod
    def forward(ctx, q, lmax, mmax):
        ctx.degrees = lmax, mmax
        ctx.save_for_backward(q)
        return eqk.wigner(q, lmax, mmax)

    @staticmethod
    def backward(ctx, g):
        module = importlib.import_module("eqk.wigner")  # the package exports the function under that name
        return module._gradient_on_other_devices(*ctx.saved_tensors, g, *ctx.degrees), None, None


def multiply_adds(lmax: int, mmax: int) -> int:
    """Of csrc/wigner/recursion.h, a division, comparison, addition or product alone counted as one."""
    total = 44  # products of q
    for k in range(mmax + 1):
        for m in range(lmax + 1):
            steps = lmax - max(k, m)
            if k == m == 0:
                total += 4 * steps
            elif k == 0 or m == 0:
                total += 6 + 6 * steps
            else:
                total += (8 if k == m else 10) + 12 * steps + 4 * (steps + 1)
    return total


def bench(name: str, args, clock, limits) -> list[list]:
    lmax, mmax = map(int, name.split("-"))
    generator, width = torch.Generator().manual_seed(0), columns(lmax, mmax)
    q, g, direction = (torch.randn(args.rows, n, generator=generator) for n in (4, width, 4))
    functions = {"eqk": lambda q: eqk.wigner(q, lmax, mmax)}
    torch.set_default_dtype(torch.float64)  # of e3nn's generators
    for provider in args.providers:
        composed = provider == "composed"
        functions[provider] = (
            (lambda q: Composed.apply(q, lmax, mmax)) if composed else euler_matrices(provider, lmax, mmax)
        )
        for phase in PHASES[:2]:
            pair = [
                phase_function(phase, functions[f], (q.double(),), g.double(), None)()[0] for f in ("eqk", provider)
            ]
            error = relative_error(*pair)
            if error > 100 * TOLERANCES[torch.float64][1]:  # angles lose digits of the gradient near the poles
                sys.exit(f"{name}: {phase} of eqk differs from {provider} by {error:.1e}")
    torch.set_default_dtype(torch.float32)
    total, floor = [0.0, 0.0], {}
    for phase, moved, products in zip(PHASES, (1, 1, 2), (0, 3, 12), strict=True):
        total[0] += 4 * args.rows * moved * (4 + width)
        total[1] += args.rows * (multiply_adds(lmax, mmax) + products * width)
        floor[phase] = max(total[0] / limits[0], total[1] / limits[1])
    return timed(name, functions, (q,), g, [direction], floor, args, clock)


if __name__ == "__main__":
    main_on_cpu(__doc__, bench, STANDARD, None, ["e3nn", "jd", "composed"], more_phases=PHASES[2:], rows=4096)
