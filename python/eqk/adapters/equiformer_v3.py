"""EquiformerV3 (equiformer-v3 0.0.3, or its repository): attention, first features, feed-forward layers, activations.

Its layers multiply with Wigner matrices [edges, components, components] that the model gives to its SO3Rotation; here
that keeps quaternions of the same rotations, differentiable where the model derives its energy, and makes matrices only
for layers that are as they were. Products on a grid that is exact for them are made on the smallest exact one.

Its code is a folder of a repository, so that it has whatever name it was imported by.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

from eqk.adapters import become, require_classes, require_plain
from eqk.adapters._equiformer import attention_features, edge_features, rescaled, so2_classes, so2_parameters
from eqk.adapters._grid import known_normalization
from eqk.edge_degree_embedding import edge_degree_embedding
from eqk.edge_frame import matrix_to_quaternion
from eqk.s2_activation import s2_activation
from eqk.s2_quadrature import exact_degree_and_order
from eqk.so2_edge_message import for_both, so2_edge_message


def _folder() -> str:
    """The name of the package of its modules; that of the distribution where nothing has imported it, as in pickles."""
    names = (name.rpartition(".")[0] for name in list(sys.modules) if name.endswith("equiformer_v3.transformer_block"))
    return next(names, "equiformer_v3.experimental.models.equiformer_v3")


_FOLDER = _folder()


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{_FOLDER}.{name}")


_activation, _block, _so3 = (_module(name) for name in ("activation", "transformer_block", "so3"))
_input, _radial, _so2 = (_module(name) for name in ("input_block", "radial_function", "so2_ops"))
SwiGLUS2 = _activation.SeparableGateS2Activation_SwiGLU_Merge
RecomputedSwiGLUS2 = _activation.SeparableGateS2Activation_SwiGLU_Merge_MemoryEfficient
GatedGridMLP = _block.GatedSwiGLUGridMLP


class FusedRotation(_so3.SO3Rotation):
    """SO3Rotation with quaternions, and Wigner matrices where a layer asks for them."""

    def set_wigner(self, rot_mat3x3: Tensor) -> None:
        self._eqk_matrix = rot_mat3x3 if self.use_rotation_mask else rot_mat3x3.detach()
        self._eqk_quaternion = matrix_to_quaternion(self._eqk_matrix)
        self._eqk_wigner = self._eqk_wigner_inv = None

    def _made(self, name: str) -> Tensor:
        if getattr(self, name) is None:
            super().set_wigner(self._eqk_matrix)
        return getattr(self, name)

    # Where they set them, they set them here.
    wigner = property(lambda self: self._made("_eqk_wigner"), lambda self, t: setattr(self, "_eqk_wigner", t))
    wigner_inv = property(
        lambda self: self._made("_eqk_wigner_inv"), lambda self, t: setattr(self, "_eqk_wigner_inv", t)
    )


class FusedEdgeDegreeEmbedding(_input.EdgeDegreeEmbedding):
    """EdgeDegreeEmbedding as one convolution with spherical harmonics."""

    def forward(
        self,
        atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        edge_envelope_weight: Tensor | None = None,
    ) -> Tensor:
        radial = self.rad_func(edge_features(self, edge_distance, *atomic_numbers[edge_index]))
        if edge_envelope_weight is not None:
            radial = radial * edge_envelope_weight
        radial = rescaled(radial, self.lmax, self.mmax)
        vec = self.so3_rotation._eqk_matrix[:, 1].to(radial.dtype)  # what the rotation takes to the y axis
        return edge_degree_embedding(vec, radial, edge_index[1], len(atomic_numbers), self.rescale_factor)


class FusedGraphAttention(_block.EquivariantGraphAttention):
    """EquivariantGraphAttention in two passes over the edges: for logits, and for messages times attention."""

    def forward(
        self,
        x: Tensor,
        source_atomic_numbers: Tensor,
        target_atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        edge_envelope_weight: Tensor | None = None,
    ) -> Tensor:
        *hidden, last = self.rad_func.net
        h = nn.Sequential(*hidden)(edge_features(self, edge_distance, source_atomic_numbers, target_atomic_numbers))
        x, q = x.to(h.dtype), self.so3_rotation._eqk_quaternion.to(h.dtype)
        layers = self.so2_linear_1, self.so2_linear_2
        (zero, bias, *orders), conv2 = (so2_parameters(layer, "so2_m_linear") for layer in layers)
        if self.use_add_merge:  # each node has radial weights of its own, and both the same layer
            zero, *orders = (for_both(t, self.num_in_channels) for t in (zero, *orders))

        n = self.num_heads * self.attn_alpha_channels
        alpha = attention_features(self, x, q, edge_index, self.lmax, h, last, zero[:n], bias[:n])
        alpha = torch.einsum("bik, ik -> bi", self.alpha_dropout(alpha), self.alpha_dot)
        alpha = self.attn_softmax(alpha, edge_index[1], num_nodes=len(x), exp_rescale=edge_envelope_weight)
        if edge_envelope_weight is not None:
            alpha = alpha * edge_envelope_weight

        message = so2_edge_message(
            x,
            q,
            edge_index,
            (zero[n:], bias[n:], *orders),
            conv2,
            self.lmax,
            self.mmax,
            h=h,
            a=last.weight.mT,
            bias=last.bias,
            w=self.attn_weights_dropout(alpha),
            rescale=True,
            **self._eqk_activation,
        )
        return self.proj(message)


class FusedFeedForward(_block.FeedForwardNetwork):
    """FeedForwardNetwork whose layers on the grid are a product of signals between linear layers.

    These are the same at each point, so that they are made of the components, an eighth as many numbers.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        mlp, scalars = self.grid_mlp, inputs[:, :1]
        u, v = mlp.grid_linear_1(self.so3_linear_1(inputs)).chunk(2, 2)
        out = s2_activation(u, "identity", self.lmax, times=[v], **self._eqk_grid)
        out = mlp.grid_linear_2(out * mlp.gate_act(mlp.gating_linear(scalars)))
        return self.so3_linear_2(torch.cat([out[:, :1] + self.scalar_mlp(scalars), out[:, 1:]], 1))


class FusedSwiGLUS2Activation(SwiGLUS2):
    """SeparableGateS2Activation_SwiGLU_Merge, of which no grid is made, so that none is made again either."""

    def forward(self, inputs: Tensor, scalars: Tensor) -> Tensor:
        scalars = scalars.reshape(len(inputs), 1, -1)
        u, v = inputs.chunk(2, 2)
        out = s2_activation(u, "identity", self.lmax, times=[v], **self._eqk_grid)
        out = out * self.gate_act(scalars[..., inputs.shape[2] :])
        return torch.cat([out[:, :1] + self.scalar_act(scalars[..., : inputs.shape[2]]), out[:, 1:]], 1)


class FusedS2Activation(_activation.S2Activation):
    """S2Activation as one op: no grid [rows, points, channels] is made."""

    def forward(self, inputs: Tensor) -> Tensor:
        return s2_activation(inputs, "silu", self.lmax, **self._eqk_grid)


class FusedSeparableS2Activation(_activation.SeparableS2Activation, FusedS2Activation):
    """SeparableS2Activation, whose degrees above 0 are S2Activation's."""


def _grid(grid: nn.Module, product: bool) -> dict:
    """What :func:`eqk.s2_activation` is told of their grid, or of the smallest one if that has all of a product."""
    require_plain(grid)
    order = "m_primary" if grid.use_m_primary else "l_primary"
    normalization = known_normalization(grid, grid.to_grid_mat, grid.from_grid_mat.mT, order)
    if normalization is None:
        raise ValueError("a grid whose matrices are not e3nn's")
    res, quadrature = (grid.lat_resolution, grid.long_resolution), "soft"
    degree, angular = exact_degree_and_order(res, quadrature)
    if product and degree >= 3 * grid.lmax and angular >= 3 * grid.mmax:
        res, quadrature = None, "gausslegendre"
    options = {"res": res, "quadrature": quadrature, "normalization": normalization, "rescale": True}
    return {**options, "mmax": grid.mmax, "order": order}


def _fuse_swiglu(act: nn.Module) -> str:
    parts = {"scalar_act": _activation.SwiGLU, "gate_act": nn.Sigmoid, "grid_drop": nn.Identity}
    require_classes(act, parts)
    require_plain(act, *act.modules())
    act._eqk_grid = _grid(act.so3_grid, product=True)
    return become(act, FusedSwiGLUS2Activation)


def _fuse_silu(act: nn.Module, cls: type[nn.Module]) -> str:
    require_classes(act, {"act": nn.SiLU})
    require_plain(act, *act.modules())
    act._eqk_grid = _grid(act.so3_grid, product=False)
    return become(act, cls)


def _message_options(act: nn.Module) -> dict:
    """The options of the message that are its activation's, which is fused itself first."""
    kind = type(act)
    if kind is _activation.GateActivation:
        require_classes(act, {"scalar_act": nn.SiLU, "gate_act": nn.Sigmoid})
        require_plain(act, *act.modules())
        return {"activation": "gate"}
    fuse(act)
    names = {FusedSwiGLUS2Activation: "swiglu_s2", FusedSeparableS2Activation: "s2"}
    if type(act) not in names:
        raise ValueError(f"its activation is {kind.__name__}")
    grid = {name: act._eqk_grid[name] for name in ("res", "quadrature", "normalization")}
    recomputed = kind is RecomputedSwiGLUS2
    return {"activation": names[type(act)], **grid, "grid_rescale": True, "recompute": recomputed or "second"}


def _fuse_rotation(layer: nn.Module) -> None:
    rotation = layer.so3_rotation
    if type(rotation) is FusedRotation:
        return
    require_classes(layer, {"so3_rotation": _so3.SO3Rotation})
    require_plain(rotation)
    for name in ("wigner", "wigner_inv"):
        vars(rotation).pop(name, None)
    become(rotation, FusedRotation)


def _fuse_attention(layer: nn.Module) -> str:
    parts = {"rad_func": _radial.RadialFunction}
    for linear in ("so2_linear_1", "so2_linear_2"):
        parts |= so2_classes(linear, _so2.SO2Linear, "so2_m_linear", _so2.SO2MLinear, layer.mmax)
    require_classes(layer, parts)
    replaced = (layer.rad_func, layer.so2_linear_1, layer.so2_linear_2)
    require_plain(layer, layer.act, *(module for part in replaced for module in part.modules()))
    activation = _message_options(layer.act)
    _fuse_rotation(layer)
    layer._eqk_activation = activation
    return become(layer, FusedGraphAttention)


def _fuse_feed_forward(layer: nn.Module) -> str | None:
    if not layer.use_grid_mlp:
        return None  # its activation is one of the classes here
    require_classes(layer, {"grid_mlp": GatedGridMLP, "grid_mlp.grid_drop": nn.Identity, "so3_grid": _so3.SO3Grid})
    require_plain(layer, layer.grid_mlp, layer.grid_mlp.grid_drop, layer.so3_grid)
    layer._eqk_grid = _grid(layer.so3_grid, product=True)
    return become(layer, FusedFeedForward)


def _fuse_embedding(layer: nn.Module) -> str:
    require_plain(layer)
    _fuse_rotation(layer)
    return become(layer, FusedEdgeDegreeEmbedding)


_FUSE = {
    _block.EquivariantGraphAttention: _fuse_attention,
    _block.FeedForwardNetwork: _fuse_feed_forward,
    _input.EdgeDegreeEmbedding: _fuse_embedding,
    SwiGLUS2: _fuse_swiglu,
    RecomputedSwiGLUS2: _fuse_swiglu,
    _activation.S2Activation: lambda act: _fuse_silu(act, FusedS2Activation),
    _activation.SeparableS2Activation: lambda act: _fuse_silu(act, FusedSeparableS2Activation),
}


def fuse(module: nn.Module) -> str | None:
    known = _FUSE.get(type(module))
    return known(module) if known else None
