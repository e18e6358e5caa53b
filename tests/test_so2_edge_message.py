"""eqk.so2_edge_message against dense matrices of e3nn, one step after the other, and what makes it a message."""

import math

import e3nn.o3
import pytest
import torch
import torch._dynamo.testing
from test_rotate import dense, m_primary, of_rows
from test_so2_conv import layer
from test_so2_conv import truth as conv_truth
from test_tensor_product import assert_same_bits
from torch.nn.functional import silu

import eqk
from eqk.testing import assert_close, derivatives, random_directions

DEGREES = [(2, 2), (3, 2), (4, 2), (6, 2), (6, 3), (6, 4)]
ACTIVATIONS = ("gate", "s2", "swiglu_s2")
SIZES = {"gate": (1, lambda lmax: lmax), "s2": (1, lambda lmax: 1), "swiglu_s2": (2, lambda lmax: 3)}


class Problem:
    """Operands in float64, and the message of them by eqk and by dense steps."""

    def __init__(
        self, lmax, mmax, activation, generator, *, edges=7, nodes=5, c=2, hidden=2, out=3, heads=1, sources=2,
        by="order", rescale=False, last=True, grid_rescale=False,
    ):  # fmt: skip
        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.lmax, self.mmax, self.activation, self.by = lmax, mmax, activation, by
        self.rescale, self.grid_rescale, self.sources, self.hidden, self.out = (
            rescale,
            grid_rescale,
            sources,
            hidden,
            out,
        )
        width, extra = SIZES[activation]
        self.width, self.extra = width * hidden, extra(lmax) * hidden
        self.index = torch.randint(nodes - 1, (2, edges), generator=generator)  # the last node has no edges
        self.res = None if activation == "gate" else ((3 * lmax + 2) // 2, 3 * mmax + 1)
        groups = lmax + 1 if by == "degree" else sum(lmax + 1 - m for m in range(mmax + 1))
        weights = groups * sources * c
        one = layer(lmax, mmax, sources * c, self.width, self.extra, generator)
        two = layer(lmax, mmax, hidden, out, 0, generator)
        vec = normal(edges, 3)
        vec[:2] = torch.tensor([[0.0, 1.7, 0.0], [1e-9, -0.4, 0.0]])[: len(vec)]
        self.count = len(one)
        self.operands = [
            normal(nodes, (lmax + 1) ** 2, c),
            vec,
            normal(edges, 3 if last else weights) / 2,
            normal(3, weights) if last else None,
            normal(edges, heads),
            *[p / p.shape[-1] ** 0.5 for p in (*one, *two)],
        ]

    def layers(self, parameters):
        return parameters[: self.count], parameters[self.count :]

    def ours(self, x, vec, h, a, w, *parameters, **options):
        return eqk.so2_edge_message(
            x, eqk.edge_frame(vec), self.index, *self.layers(parameters), self.lmax, self.mmax, h=h, a=a, w=w,
            activation=self.activation, rescale=self.rescale, res=self.res, grid_rescale=self.grid_rescale, **options,
        )  # fmt: skip

    def truth(self, x, vec, h, a, w, *parameters):
        one, two = self.layers(parameters)
        lmax, mmax = self.lmax, self.mmax
        d = dense(eqk.reference.wigner(eqk.edge_frame(vec), lmax, mmax), lmax, mmax, False)
        src, dst = self.index
        z = d @ (torch.cat([x[src], x[dst]], 2) if self.sources == 2 else x[src])
        r = (h if a is None else h @ a).unflatten(1, (-1, z.shape[2]))
        z = z * of_rows(r, lmax, mmax, self.by, z.shape[2])
        y, s = conv_truth(lmax, mmax, self.width, self.extra)(z, *one)
        message, _ = conv_truth(lmax, mmax, self.out, 0)(self.active(y, s), *two)
        message = message * of_rows(w[:, None], lmax, mmax, "edge", self.out)
        if self.rescale:
            scale = [math.sqrt(max(1, (2 * l + 1) / (2 * mmax + 1))) for l, _ in m_primary(lmax, mmax)]
            message = message * torch.tensor(scale, dtype=x.dtype)[:, None]
        out = x.new_zeros(len(x), (lmax + 1) ** 2, self.out)
        return out.index_add(0, dst, d.mT @ message)

    def active(self, y, s):
        rows = m_primary(self.lmax, self.mmax)
        if self.activation == "gate":
            gates = s.sigmoid().unflatten(1, (self.lmax, -1))
            return torch.stack([y[:, n] * gates[:, l - 1] if l else silu(y[:, n]) for n, (l, _) in enumerate(rows)], 1)
        # Component normalisation: e3nn's to a grid; the way back is the transpose with the quadrature's weights.
        beta, weights = eqk.s2_quadrature.rings(self.res[0], "gausslegendre") if False else self.rings()
        alpha = torch.arange(self.res[1], dtype=torch.float64) * 2 * math.pi / self.res[1]
        sin = (1 - beta**2).sqrt()
        points = torch.stack(
            [sin[:, None] * alpha.sin(), beta[:, None].expand(-1, len(alpha)), sin[:, None] * alpha.cos()]
        )
        harmonics = e3nn.o3.spherical_harmonics(
            list(range(self.lmax + 1)), points.flatten(1).T, True, normalization="integral"
        )[:, [l * l + l + m for l, m in rows]]
        scale = torch.tensor(
            [math.sqrt(max(1, (2 * l + 1) / (2 * self.mmax + 1))) for l, _ in rows], dtype=torch.float64
        )
        harmonics = harmonics * (scale if self.grid_rescale else 1)
        factor = math.sqrt(4 * math.pi / (self.lmax + 1))  # component
        to = harmonics * factor
        back = (
            harmonics / factor * (weights[:, None] * 2 * math.pi / len(alpha)).expand(-1, len(alpha)).reshape(-1, 1)
        ).T
        grid = torch.einsum("gi,eic->egc", to, y)
        if self.activation == "s2":
            z = torch.einsum("ig,egc->eic", back, silu(grid))
            return torch.cat([silu(s)[:, None], z[:, 1:]], 1)
        u, v = grid.chunk(2, 2)
        p, t, gate = s.chunk(3, 1)
        z = torch.einsum("ig,egc->eic", back, u * v) * gate.sigmoid()[:, None]
        return torch.cat([z[:, :1] + (silu(p) * t)[:, None], z[:, 1:]], 1)

    def rings(self):
        import numpy

        return [torch.from_numpy(t) for t in numpy.polynomial.legendre.leggauss(self.res[0])]
