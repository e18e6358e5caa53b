"""The messages of eSEN and UMA (``fairchem.core.models.uma``, fairchem-core 2.24): ``eqk.so2_edge_message``.

The backbone computes Wigner matrices [edges, components, components], which all layers multiply with. Here what it
hands to them as a matrix and its inverse times the envelope are the quaternions of the edges' frames and a _Frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fairchem.core.models.uma.escn_md import eSCNMDBackbone
from fairchem.core.models.uma.escn_md_block import Edgewise
from fairchem.core.models.uma.escn_moe import eSCNMDMoeBackbone
from fairchem.core.models.uma.nn.embedding import EdgeDegreeEmbedding
from fairchem.core.models.uma.nn.execution_backends import ExecutionBackend
from fairchem.core.models.uma.nn.mole import MOLE
from torch import Tensor, nn

from eqk.adapters import become, require_plain
from eqk.adapters._grid import message_options
from eqk.edge_degree_embedding import edge_degree_embedding
from eqk.edge_frame import edge_frame
from eqk.so2_edge_message import so2_edge_message


class _Frame(NamedTuple):
    """Stands for the inverse Wigner matrix, which the backbone multiplies with the envelope [edges, 1]."""

    vec: Tensor
    envelope: Tensor | None = None

    @property
    def ndim(self) -> int:
        return 2

    def __mul__(self, envelope: Tensor) -> _Frame:
        return self._replace(envelope=envelope)


class Backend(ExecutionBackend):
    """``"eqk"``: no Wigner matrices."""

    @staticmethod
    def prepare_wigner(wigner, wigner_inv, mappingReduced, coefficient_index):
        return wigner, wigner_inv


class _Frames:
    """The part of both backbones that differs."""

    def _get_rotmat_and_wigner(self, edge_distance_vecs: Tensor) -> tuple[Tensor, _Frame]:
        # From target to source, which is what the frame's pole points along.
        return edge_frame(edge_distance_vecs), _Frame(edge_distance_vecs)


class FusedBackbone(_Frames, eSCNMDBackbone):
    """eSCNMDBackbone without Wigner matrices."""


class FusedMoeBackbone(_Frames, eSCNMDMoeBackbone):
    """eSCNMDMoeBackbone without Wigner matrices."""


class FusedEdgeDegreeEmbedding(EdgeDegreeEmbedding):
    """EdgeDegreeEmbedding as one convolution with spherical harmonics."""

    def forward(self, x: Tensor, x_edge: Tensor, scatter_target: Tensor, wigner_inv_envelope: _Frame) -> Tensor:
        vec, envelope = wigner_inv_envelope
        radial = (self.rad_func(x_edge) * envelope).unflatten(1, (self.lmax + 1, self.sphere_channels))
        return x + edge_degree_embedding(vec, radial, scatter_target, len(x), self.rescale_factor).to(x.dtype)


class FusedEdgewise(Edgewise):
    """Edgewise as one op, with parameters of its own for each system where experts are mixed (MoLE)."""

    def forward_chunk(
        self,
        x_full: Tensor,
        x_original_shape: int,
        x_edge: Tensor,
        edge_index: Tensor,
        wigner: Tensor,
        wigner_inv_envelope: _Frame,
        scatter_target: Tensor | None = None,
        ac_mole_start_idx: int = 0,
    ) -> Tensor:
        target = edge_index[1] if scatter_target is None else scatter_target
        index = torch.cat([edge_index, target[None]])
        *hidden, last = self.so2_conv_1.rad_func.net
        h, envelope = nn.Sequential(*hidden)(x_edge), wigner_inv_envelope.envelope
        parts = [(slice(None), 0)]
        layers = [fc for c in (self.so2_conv_1, self.so2_conv_2) for fc in (c.fc_m0, *(m.fc for m in c.so2_m_conv))]
        mixed = [fc for fc in layers if isinstance(fc, MOLE)]
        weights = [_mixed(fc) if isinstance(fc, MOLE) else fc.weight[None] for fc in layers]
        if mixed:
            ends = mixed[0].global_mole_tensors.mole_sizes.cumsum(0).tolist()
            parts = [(slice(b, e), n) for n, (b, e) in enumerate(zip([0, *ends], ends, strict=False))]
        out = None
        for edges, system in parts:
            own = [w[system if len(w) > 1 else 0] for w in weights]
            one, two = own[: self.mmax + 1], own[self.mmax + 1 :]
            message = so2_edge_message(
                x_full,
                wigner[edges],
                index[:, edges],
                (one[0], self.so2_conv_1.fc_m0.bias, *one[1:]),
                (two[0], self.so2_conv_2.fc_m0.bias, *two[1:]),
                self.lmax,
                self.mmax,
                h=h[edges],
                a=last.weight.mT,
                bias=last.bias,
                w=envelope[edges],
                recompute=self._eqk_recompute,
                **self._eqk_activation,
            )
            out = message if out is None else out + message
        return out[:x_original_shape]


def _mixed(layer: MOLE) -> Tensor:
    """[systems, out, in]"""
    with torch.autocast(device_type=layer.weights.device.type, enabled=False):
        return torch.einsum("eoi, be->boi", layer.weights, layer.global_mole_tensors.expert_mixing_coefficients)


def _activation(layer: Edgewise) -> dict:
    if layer.act_type == "gate":
        return {"activation": "gate"}
    grid = layer.SO3_grid["lmax_mmax"]
    return message_options(grid, grid.rescale)


def _reason(layer: Edgewise) -> str | None:
    """Why the layer cannot be one op."""
    convolutions = layer.so2_conv_1, layer.so2_conv_2
    linear = [fc for c in convolutions for fc in (c.fc_m0, *(m.fc for m in c.so2_m_conv))]
    strange = {type(fc).__name__ for fc in linear if type(fc) not in (nn.Linear, MOLE)}
    if strange:
        return f"linear layers of the class {', '.join(sorted(strange))}"
    last = layer.so2_conv_1.rad_func.net[-1]
    return None if type(last) is nn.Linear else f"a radial network that ends with a {type(last).__name__}"


def fuse(module: nn.Module) -> str | None:
    if type(module) not in (eSCNMDBackbone, eSCNMDMoeBackbone):
        return None
    if type(module.backend) is not ExecutionBackend:
        raise ValueError(f"it has a backend of its own, {type(module.backend).__name__}")
    layers, embedding = [block.edge_wise for block in module.blocks], module.edge_degree_embedding
    for layer, known in (*((e, Edgewise) for e in layers), (embedding, EdgeDegreeEmbedding)):
        if type(layer) is not known:
            raise ValueError(f"a {type(layer).__name__} instead of {known.__name__}")
    for layer in layers:
        inside = [layer.act, *layer.so2_conv_1.modules(), *layer.so2_conv_2.modules()]
        require_plain(layer, *(m for m in inside if m is not layer.so2_conv_1.rad_func))
        if reason := _reason(layer):
            raise ValueError(reason)
    require_plain(embedding)
    options = [_activation(layer) for layer in layers]
    for layer, activation in zip(layers, options, strict=True):
        become(layer, FusedEdgewise)
        layer._eqk_activation = activation
        layer._eqk_recompute = layer.activation_checkpoint_chunk_size is not None
        layer.activation_checkpoint_chunk_size = None
        layer.backend = Backend()
    become(embedding, FusedEdgeDegreeEmbedding)
    embedding.backend = module.backend = Backend()
    return become(module, FusedBackbone if type(module) is eSCNMDBackbone else FusedMoeBackbone)
