"""After the authors' transformer_block, so2_ops and so3: dense Wigner matrices of e3nn, a layer for each order."""

import math

import torch
from e3nn import o3
from torch import nn
from torch_geometric.utils import softmax

from . import SmoothLeakyReLU, radial_profile


def m_primary(lmax, mmax):
    """l^2 + l + m of each row in the frame of an edge: for each m of all degrees those of m, then those of -m."""
    index = [l * l + l for l in range(lmax + 1)]
    for m in range(1, mmax + 1):
        index += [l * l + l + m for l in range(m, lmax + 1)] + [l * l + l - m for l in range(m, lmax + 1)]
    return torch.tensor(index)


def rescale_of(lmax, mmax):
    factors = [math.sqrt((2 * l + 1) / (2 * mmax + 1)) if l > mmax else 1.0 for l in range(lmax + 1)]
    return torch.tensor(factors, dtype=torch.float64).repeat_interleave(2 * torch.arange(lmax + 1) + 1)


def rotation_to_y(vec):
    """The shortest rotation to the y axis; in the lower half to -y, and then half a turn about x.

    The frames are not equivariant, and SiLU on a grid depends on them: these are the ones that eqk has.
    """
    u = vec / vec.norm(dim=1, keepdim=True)
    sign = torch.where(u[:, 1] < 0, -1.0, 1.0).to(u.dtype)
    x, y, z = u[:, 0], sign * u[:, 1], u[:, 2]
    x, z = sign * x, sign * z
    rows = [1 - x * x / (1 + y), -x, -x * z / (1 + y), x, y, z, -x * z / (1 + y), -z, 1 - z * z / (1 + y)]
    shortest = torch.stack(rows, 1).reshape(-1, 3, 3)  # of sign u to y
    one = torch.ones_like(sign)
    return torch.stack([one, sign, sign], 1)[:, :, None] * shortest


def euler_angles(matrix):
    """As o3.matrix_to_angles, without its inverse cosine, which loses digits near the y axis."""
    column, row = matrix[:, :, 1], matrix[:, 1]
    alpha, gamma = torch.atan2(column[:, 0], column[:, 2]), torch.atan2(row[:, 0], -row[:, 2])
    return alpha, torch.atan2(torch.hypot(column[:, 0], column[:, 2]), column[:, 1]), gamma


class Wigner:
    """Of edges, [edges, rows, (lmax + 1)^2], and [edges, (lmax + 1)^2, rows] of the way back, rescaled.

    As e3nn 0.4 and fairchem-core make them: turns about y alone, and matrices J that exchange x and y.
    """

    def __init__(self, lmax, mmax):
        self.lmax, self.index, self.rescale = lmax, m_primary(lmax, mmax), rescale_of(lmax, mmax)
        axis, half_turn = torch.tensor([1.0, 1.0, 0.0]), torch.tensor(math.pi)
        self.J = [o3.Irrep(l, 1).D_from_axis_angle(axis, half_turn) for l in range(lmax + 1)]

    @staticmethod
    def about_y(l, angle):
        turns = angle[:, None] * torch.arange(l, -l - 1, -1).to(angle)
        sines = turns.sin().diag_embed().flip(2)
        sines[:, l, l] = 0
        return turns.cos().diag_embed() + sines

    def __call__(self, vec):
        alpha, beta, gamma = euler_angles(rotation_to_y(vec))
        whole = vec.new_zeros(len(vec), (self.lmax + 1) ** 2, (self.lmax + 1) ** 2)
        for l, J in enumerate(self.J):
            J, block = J.to(vec), slice(l * l, (l + 1) ** 2)
            whole[:, block, block] = self.about_y(l, alpha) @ J @ self.about_y(l, beta) @ J @ self.about_y(l, gamma)
        there = whole[:, self.index]
        return there, there.transpose(1, 2) * self.rescale.to(vec)[:, None]


class SO2Linear(nn.Module):
    def __init__(self, lmax, mmax, channels_in, channels_out, extra=0):
        super().__init__()
        self.lmax, self.mmax, self.channels_out, self.extra = lmax, mmax, channels_out, extra
        self.fc_m0 = nn.Linear((lmax + 1) * channels_in, extra + (lmax + 1) * channels_out)
        self.so2_m_fc = nn.ModuleList(
            nn.Linear((lmax + 1 - m) * channels_in, 2 * (lmax + 1 - m) * channels_out, bias=False)
            for m in range(1, mmax + 1)
        )

    def forward(self, x):
        row = self.lmax + 1
        x_0 = self.fc_m0(x[:, :row].flatten(1))
        extra, x_0 = x_0.split([self.extra, row * self.channels_out], dim=1)
        out = [x_0.reshape(len(x), row, self.channels_out)]
        for m, fc in enumerate(self.so2_m_fc, 1):
            degrees = self.lmax + 1 - m
            x_m = fc(x[:, row : row + 2 * degrees].reshape(len(x), 2, -1))
            x_r, x_i = x_m.chunk(2, dim=2)
            both = torch.stack([x_r[:, 0] - x_i[:, 1], x_r[:, 1] + x_i[:, 0]], 1)
            out.append(both.reshape(len(x), 2 * degrees, self.channels_out))
            row += 2 * degrees
        return torch.cat(out, 1), extra


class Grid:
    """Matrices to values on a grid of e3nn and back, [beta, alpha, components]."""

    def __init__(self, lmax, res):
        to_grid = o3.ToS2Grid(lmax, res, normalization="component")
        from_grid = o3.FromS2Grid(res, lmax, normalization="component")
        self.to_grid = torch.einsum("mbi, am -> bai", to_grid.shb, to_grid.sha)
        self.from_grid = torch.einsum("am, mbi -> bai", from_grid.sha, from_grid.shb)

    def __call__(self, x, function):
        values = torch.einsum("bai, zic -> zbac", self.to_grid.to(x), x)
        return torch.einsum("bai, zbac -> zic", self.from_grid.to(x), function(values))


class EdgeGrid(Grid):
    def __init__(self, lmax, mmax, res):
        super().__init__(lmax, res)
        index, factors = m_primary(lmax, mmax), rescale_of(lmax, mmax)
        self.to_grid = (self.to_grid * factors.to(self.to_grid))[:, :, index]
        self.from_grid = (self.from_grid * factors.to(self.from_grid))[:, :, index]


class SO3Linear(nn.Module):
    def __init__(self, channels_in, channels_out, lmax):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(lmax + 1, channels_out, channels_in) / channels_in**0.5)
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.degrees = torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])

    def forward(self, x):
        out = torch.einsum("bmi, moi -> bmo", x, self.weight[self.degrees])
        return torch.cat([out[:, :1] + self.bias, out[:, 1:]], 1)


class SeparableLayerNorm(nn.Module):
    """Their EquivariantLayerNormArraySphericalHarmonics."""

    def __init__(self, lmax, channels):
        super().__init__()
        self.norm_l0 = nn.LayerNorm(channels, eps=1e-5)
        self.affine_weight = nn.Parameter(torch.ones(lmax, channels))
        degrees = [l for l in range(1, lmax + 1) for _ in range(2 * l + 1)]
        self.degrees = torch.tensor(degrees) - 1
        self.balance = torch.tensor([1 / (2 * l + 1) / lmax for l in degrees])

    def forward(self, x):
        feature = x[:, 1:]
        norm = torch.einsum("nic, i -> nc", feature.pow(2), self.balance.to(x)).mean(dim=1)
        norm = (norm + 1e-5).pow(-0.5)[:, None, None] * self.affine_weight[self.degrees]
        return torch.cat([self.norm_l0(x[:, :1]), feature * norm], 1)


class Attention(nn.Module):
    def __init__(self, channels, heads, alpha, value, lmax, mmax, sizes, hidden, res):
        super().__init__()
        self.heads, self.logits, self.wigner = heads, heads * alpha, Wigner(lmax, mmax)
        degrees = [lmax + 1 - m for m in range(mmax + 1)]
        self.radial = radial_profile([*sizes, 2 * channels * sum(degrees)])
        # Of each m for m and -m alike.
        starts = [sum(degrees[:m]) for m in range(mmax + 1)]
        parts = [torch.arange(n) + start for n, start in zip(degrees, starts, strict=True)]
        self.groups = torch.cat([parts[0], *(part.repeat(2) for part in parts[1:])])
        self.conv1 = SO2Linear(lmax, mmax, 2 * channels, hidden, heads * alpha + hidden)
        self.conv2 = SO2Linear(lmax, mmax, hidden, heads * value)
        self.grid = EdgeGrid(lmax, mmax, res)
        self.alpha_norm = nn.LayerNorm(alpha)
        self.alpha_act = SmoothLeakyReLU()
        self.alpha_dot = nn.Parameter(torch.randn(heads, alpha))
        self.project = SO3Linear(heads * value, channels, lmax)

    def forward(self, x, vec, scalars, graph):
        wigner, wigner_inv = self.wigner(vec)
        message = torch.bmm(wigner, torch.cat([x[graph.src], x[graph.dst]], 2))
        radial = self.radial(scalars).reshape(len(vec), -1, message.shape[2])
        message, extra = self.conv1(message * radial[:, self.groups])
        logits, gating = extra[:, : self.logits], extra[:, self.logits :]
        activated = self.grid(message, nn.functional.silu)
        message = torch.cat([nn.functional.silu(gating)[:, None], activated[:, 1:]], 1)
        message, _ = self.conv2(message)

        logits = self.alpha_act(self.alpha_norm(logits.reshape(len(vec), self.heads, -1)))
        alpha = softmax(torch.einsum("bik, ik -> bi", logits, self.alpha_dot), graph.dst, num_nodes=len(x))
        message = message.reshape(*message.shape[:2], self.heads, -1) * alpha[:, None, :, None]
        message = torch.bmm(wigner_inv, message.flatten(2))
        summed = x.new_zeros(len(x), *message.shape[1:]).index_add(0, graph.dst, message)
        return self.project(summed)


class GridMLP(nn.Module):
    def __init__(self, layers, lmax, res):
        super().__init__()
        self.layers, self.grid = layers, Grid(lmax, res)

    def forward(self, x):
        return self.grid(x, self.layers)


class FeedForward(nn.Module):
    def __init__(self, channels, hidden, lmax, res):
        super().__init__()
        self.linear1 = SO3Linear(channels, hidden, lmax)
        self.scalars = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU())
        layers = nn.Sequential(
            nn.Linear(hidden, hidden, bias=False),
            nn.SiLU(),
            nn.Linear(hidden, hidden, bias=False),
            nn.SiLU(),
            nn.Linear(hidden, hidden, bias=False),
        )
        self.grid = GridMLP(layers, lmax, res)
        self.linear2 = SO3Linear(hidden, channels, lmax)

    def forward(self, x):
        gating = self.scalars(x[:, :1])
        y = self.grid(self.linear1(x))
        return self.linear2(torch.cat([gating, y[:, 1:]], 1))


class Block(nn.Module):
    def __init__(self, channels, heads, alpha, value, lmax, mmax, sizes, hidden, feed_forward, res):
        super().__init__()
        self.norm1, self.norm2 = SeparableLayerNorm(lmax, channels), SeparableLayerNorm(lmax, channels)
        self.attention = Attention(channels, heads, alpha, value, lmax, mmax, sizes, hidden, res)
        self.feed_forward = FeedForward(channels, feed_forward, lmax, res)

    def forward(self, x, vec, scalars, graph):
        x = x + self.attention(self.norm1(x), vec, scalars, graph)
        return x + self.feed_forward(self.norm2(x))
