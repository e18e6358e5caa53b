"""EquiformerV2 (``fairchem.core.models.equiformer_v2``, fairchem-core 1.10): attention, first features, activation.

Its layers multiply with Wigner matrices [edges, components, components] that the backbone gives to an SO3_Rotation.
Here that keeps quaternions of the same rotations and makes matrices only for layers that are as they were.
"""

from __future__ import annotations

import torch
from fairchem.core.common import gp_utils
from fairchem.core.models.equiformer_v2.activation import GateActivation, S2Activation, SeparableS2Activation
from fairchem.core.models.equiformer_v2.input_block import EdgeDegreeEmbedding
from fairchem.core.models.equiformer_v2.radial_function import RadialFunction
from fairchem.core.models.equiformer_v2.so2_ops import SO2_Convolution, SO2_m_Convolution
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding, SO3_Rotation
from fairchem.core.models.equiformer_v2.transformer_block import SO2EquivariantGraphAttention
from torch import Tensor, nn

from eqk.adapters import become, require_classes, require_plain
from eqk.adapters._equiformer import attention_features, edge_features, rescaled, so2_classes, so2_parameters
from eqk.adapters._grid import message_options, normalization_of
from eqk.edge_degree_embedding import edge_degree_embedding
from eqk.edge_frame import matrix_to_quaternion
from eqk.s2_activation import s2_activation
from eqk.segment_softmax import segment_softmax
from eqk.so2_edge_message import so2_edge_message


class FusedS2Activation(S2Activation):
    """S2Activation, alone or within SeparableS2Activation, as one op: no grid [nodes, beta, alpha, channels] is made.

    A grid whose matrices are none that eqk knows keeps them.
    """

    def forward(self, inputs: Tensor, SO3_grid: nn.ModuleList) -> Tensor:
        grid = SO3_grid[self.lmax][self.mmax]
        if not hasattr(grid, "_eqk_normalization"):
            grid._eqk_normalization = normalization_of(grid)
        if grid._eqk_normalization is None:
            return super().forward(inputs, SO3_grid)
        return s2_activation(
            inputs,
            "silu",
            self.lmax,
            res=(grid.lat_resolution, grid.long_resolution),
            quadrature="soft",
            normalization=grid._eqk_normalization,
            mmax=self.mmax,
            rescale=True,
        )


class FusedRotation(SO3_Rotation):
    """SO3_Rotation with quaternions, and Wigner matrices where a layer asks for a product with them."""

    def set_wigner(self, rot_mat3x3: Tensor) -> None:
        self._eqk_matrix, self.wigner = rot_mat3x3.detach(), None
        self._eqk_quaternion = matrix_to_quaternion(self._eqk_matrix)

    def rotate(self, embedding: Tensor, out_lmax: int, out_mmax: int) -> Tensor:
        self._require_wigner()
        return super().rotate(embedding, out_lmax, out_mmax)

    def rotate_inv(self, embedding: Tensor, in_lmax: int, in_mmax: int) -> Tensor:
        self._require_wigner()
        return super().rotate_inv(embedding, in_lmax, in_mmax)

    def _require_wigner(self) -> None:
        if self.wigner is None:
            super().set_wigner(self._eqk_matrix)


class FusedEdgeDegreeEmbedding(EdgeDegreeEmbedding):
    """EdgeDegreeEmbedding as one convolution with spherical harmonics."""

    def forward(
        self, atomic_numbers: Tensor, edge_distance: Tensor, edge_index: Tensor, num_nodes: int, node_offset: int = 0
    ) -> SO3_Embedding:
        lmax, mmax = self.lmax_list[0], self.mmax_list[0]
        radial = self.rad_func(edge_features(self, edge_distance, *atomic_numbers[edge_index]))
        radial = rescaled(radial, lmax, mmax)
        vec = self.SO3_rotation[0]._eqk_matrix[:, 1].to(radial.dtype)  # what the rotation takes to the y axis
        targets = edge_index[1] - node_offset
        return _embedding(edge_degree_embedding(vec, radial, targets, num_nodes, self.rescale_factor), self.lmax_list)


class FusedGraphAttention(SO2EquivariantGraphAttention):
    """SO2EquivariantGraphAttention in two passes over the edges: for logits, and for messages times attention."""

    def forward(
        self,
        x: SO3_Embedding,
        atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        node_offset: int = 0,
    ) -> SO3_Embedding:
        if gp_utils.initialized():  # the nodes are on several processes
            return super().forward(x, atomic_numbers, edge_distance, edge_index, node_offset)
        nodes, lmax, mmax = x.embedding, self.lmax_list[0], self.mmax_list[0]
        q = self.SO3_rotation[0]._eqk_quaternion.to(nodes.dtype)
        convolutions = self.so2_conv_1, self.so2_conv_2
        (zero, bias, *orders), conv2 = (so2_parameters(conv, "so2_m_conv") for conv in convolutions)
        *hidden, last = _radial_function(self).net
        h = nn.Sequential(*hidden)(edge_features(self, edge_distance, *atomic_numbers[edge_index]))

        n = self.num_heads * self.attn_alpha_channels
        alpha = attention_features(self, nodes, q, edge_index, lmax, h, last, zero[:n], bias[:n])
        alpha = segment_softmax(torch.einsum("bik, ik -> bi", alpha, self.alpha_dot), edge_index[1], len(nodes))
        if self.alpha_dropout is not None:
            alpha = self.alpha_dropout(alpha)

        message = so2_edge_message(
            nodes,
            q,
            edge_index,
            (zero[n:], bias[n:], *orders),
            conv2,
            lmax,
            mmax,
            h=h,
            a=last.weight.mT,
            bias=last.bias,
            w=alpha,
            rescale=True,
            recompute="second",  # of twice as many channels as the first: two thirds of what would be kept
            **self._eqk_activation,
        )
        return self.proj(_embedding(message, self.lmax_list))


def _embedding(t: Tensor, lmax_list: list[int]) -> SO3_Embedding:
    embedding = SO3_Embedding(0, lmax_list.copy(), t.shape[2], t.device, t.dtype)
    embedding.set_embedding(t)
    return embedding


def _radial_function(layer: SO2EquivariantGraphAttention) -> RadialFunction:
    return layer.rad_func if layer.use_m_share_rad else layer.so2_conv_1.rad_func


def _fuse_rotation(layer: nn.Module) -> None:
    if len(layer.lmax_list) != 1:
        raise ValueError("several resolutions")
    if type(layer.SO3_rotation[0]) is not FusedRotation:
        require_classes(layer, {"SO3_rotation.0": SO3_Rotation})
        become(layer.SO3_rotation[0], FusedRotation)


def _activation(layer: SO2EquivariantGraphAttention) -> dict:
    """The options of the message that are its activation's."""
    if layer.use_gate_act:
        parts = {"gate_act": GateActivation, "gate_act.scalar_act": nn.SiLU, "gate_act.gate_act": nn.Sigmoid}
        require_classes(layer, parts)
        return {"activation": "gate"}
    if not layer.use_sep_s2_act:
        raise ValueError("an activation on the sphere that has no scalars of its own")
    parts = {"s2_act": SeparableS2Activation, "s2_act.scalar_act": nn.SiLU, "s2_act.s2_act.act": nn.SiLU}
    require_classes(layer, parts)
    if type(layer.s2_act.s2_act) is not FusedS2Activation:
        require_classes(layer, {"s2_act.s2_act": S2Activation})
    return message_options(layer.SO3_grid[layer.lmax_list[0]][layer.mmax_list[0]])


def _fuse_attention(layer: SO2EquivariantGraphAttention) -> str:
    parts = {"rad_func" if layer.use_m_share_rad else "so2_conv_1.rad_func": RadialFunction}
    for conv in ("so2_conv_1", "so2_conv_2"):
        parts |= so2_classes(conv, SO2_Convolution, "so2_m_conv", SO2_m_Convolution, layer.mmax_list[0])
    require_classes(layer, parts)
    activation = _activation(layer)
    replaced = (layer.so2_conv_1, layer.so2_conv_2, layer.gate_act if layer.use_gate_act else layer.s2_act)
    require_plain(layer, *(module for part in (*replaced, _radial_function(layer)) for module in part.modules()))
    _fuse_rotation(layer)
    layer._eqk_activation = activation
    return become(layer, FusedGraphAttention)


def fuse(module: nn.Module) -> str | None:
    if type(module) is SO2EquivariantGraphAttention:
        return _fuse_attention(module)
    if type(module) is EdgeDegreeEmbedding:
        require_plain(module)
        _fuse_rotation(module)
        return become(module, FusedEdgeDegreeEmbedding)
    if type(module) is not S2Activation:
        return None
    if type(module.act) is not nn.SiLU:
        raise ValueError(f"its function is {type(module.act).__name__}")
    require_plain(module, module.act)
    return become(module, FusedS2Activation)
