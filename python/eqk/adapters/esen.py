"""The messages of eSEN (``fairchem.core.models.esen``, fairchem-core 1.10): ``eqk.so2_edge_message``.

The backbone computes Wigner matrices [edges, components, components], which all layers multiply with. Here what it
hands to them as a matrix and its inverse are quaternions of the same rotations and the directions of the edges.
"""

from __future__ import annotations

import torch
from fairchem.core.models.esen.common.rotation import init_edge_rot_mat
from fairchem.core.models.esen.esen import eSEN_Backbone
from fairchem.core.models.esen.esen_block import Edgewise
from fairchem.core.models.esen.nn.activation import GateActivation, S2Activation, SeparableS2Activation
from fairchem.core.models.esen.nn.embedding import EdgeDegreeEmbedding
from fairchem.core.models.esen.nn.radial import RadialMLP
from fairchem.core.models.esen.nn.so2_layers import SO2_Convolution, SO2_m_Conv
from torch import Tensor, nn

from eqk.adapters import become, require_classes, require_plain
from eqk.adapters._equiformer import so2_classes, so2_parameters
from eqk.adapters._grid import message_options
from eqk.edge_degree_embedding import edge_degree_embedding
from eqk.edge_frame import matrix_to_quaternion
from eqk.so2_edge_message import so2_edge_message


class FusedBackbone(eSEN_Backbone):
    """eSEN_Backbone without Wigner matrices."""

    def get_rotmat_and_wigner(self, edge_distance_vecs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix = init_edge_rot_mat(edge_distance_vecs, rot_clip=not self.direct_forces)
        return matrix, matrix_to_quaternion(matrix), matrix[:, 1]  # the last: what it takes to the y axis


class FusedEdgeDegreeEmbedding(EdgeDegreeEmbedding):
    """EdgeDegreeEmbedding as one convolution with spherical harmonics."""

    def forward(
        self,
        x: Tensor,
        x_edge: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        wigner_inv: Tensor,
        node_offset: int = 0,
    ) -> Tensor:
        radial = self.rad_func(x_edge).unflatten(1, (self.lmax + 1, self.sphere_channels))
        if self.use_envelope:
            radial = radial * self.envelope(edge_distance / self.cutoff)[:, None, None]
        target = edge_index[1] - node_offset
        return x + edge_degree_embedding(wigner_inv, radial, target, len(x), self.rescale_factor).to(x.dtype)


class FusedEdgewise(Edgewise):
    """Edgewise as one op."""

    def forward(
        self,
        x: Tensor,
        x_edge: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        wigner: Tensor,
        wigner_inv: Tensor,
        node_offset: int = 0,
    ) -> Tensor:
        *hidden, last = self.so2_conv_1.rad_func.net
        return so2_edge_message(
            x,
            wigner,
            torch.cat([edge_index, edge_index[1:] - node_offset]),
            *(so2_parameters(conv, "so2_m_conv") for conv in (self.so2_conv_1, self.so2_conv_2)),
            self.lmax,
            self.mmax,
            h=nn.Sequential(*hidden)(x_edge),
            a=last.weight.mT,
            bias=last.bias,
            w=self.envelope(edge_distance / self.cutoff) if self.use_envelope else None,
            **self._eqk_activation,
        )


def _activation(layer: Edgewise) -> dict:
    """The options of the message that are its activation's."""
    if layer.act_type == "gate":
        require_classes(layer, {"act": GateActivation, "act.scalar_act": nn.SiLU, "act.gate_act": nn.Sigmoid})
        return {"activation": "gate"}
    parts = {"act": SeparableS2Activation, "act.scalar_act": nn.SiLU}
    require_classes(layer, parts | {"act.s2_act": S2Activation, "act.s2_act.act": nn.SiLU})
    grid = layer.SO3_grid["lmax_mmax"]
    return message_options(grid, grid.rescale)


def _check(layer: Edgewise) -> None:
    parts = {"so2_conv_1.rad_func": RadialMLP}
    for conv in ("so2_conv_1", "so2_conv_2"):
        parts |= so2_classes(conv, SO2_Convolution, "so2_m_conv", SO2_m_Conv, layer.mmax)
    require_classes(layer, parts)
    inside = (layer.act, layer.so2_conv_1, layer.so2_conv_2)
    require_plain(layer, *(module for part in inside for module in part.modules()))


def fuse(module: nn.Module) -> str | None:
    if type(module) is not eSEN_Backbone:
        return None
    layers = [block.edge_wise for block in module.blocks]
    require_classes(module, {"edge_degree_embedding": EdgeDegreeEmbedding})
    require_classes(module, {f"blocks.{n}.edge_wise": Edgewise for n in range(len(layers))})
    require_plain(module, module.edge_degree_embedding)
    for layer in layers:
        _check(layer)
    options = [_activation(layer) for layer in layers]
    for layer, activation in zip(layers, options, strict=True):
        become(layer, FusedEdgewise)
        layer._eqk_activation = activation
    become(module.edge_degree_embedding, FusedEdgeDegreeEmbedding)
    return become(module, FusedBackbone)
