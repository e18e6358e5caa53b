"""MACE's symmetric contraction as a module on ``torch.ops.eqk.symmetric_contraction``."""

import math

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from eqk._library import wigner_3j
from eqk.irreps import Irrep, Irreps, IrrepsLike, irreps_argument
from eqk.o3._module import ArgumentError
from eqk.symmetric_contraction import symmetric_contraction
from eqk.symmetric_contraction_plan import MAX_CORRELATION, Chain, SymmetricContractionPlan, chains_to


def basis_of(irreps_in: Irreps, out: Irrep, correlation: int, dtype: torch.dtype) -> Tensor:
    """[dim of out if not 1, dim_in, ..., dim_in, paths] as MACE's ``U_matrix_real``, with eqk's Wigner 3j symbols."""
    dim, columns = irreps_in.dim, irreps_in.slices()

    def dense(chain: Chain) -> Tensor:
        """[out, dim_in, ..., dim_in]"""
        u = torch.eye(dim, dtype=torch.float64)[columns[chain.irreps[0]]]
        for i, l in zip(chain.irreps[1:], chain.degrees, strict=True):
            c = wigner_3j(l, (u.shape[0] - 1) // 2, irreps_in[i].ir.l, torch.float64) * math.sqrt(2 * l + 1)
            longer = u.new_zeros(2 * l + 1, *u.shape[1:], dim)
            longer[..., columns[i]] = torch.einsum("kaj,a...->k...j", c, u)
            u = longer
        return u

    paths = [dense(chain) for chain in chains_to(irreps_in, out, correlation)]
    u = torch.stack(paths, -1) if paths else torch.zeros(out.dim, *[dim] * correlation, 1)
    return (u.squeeze(0) if out.dim == 1 else u).to(dtype)


def plan_of(module: nn.Module) -> SymmetricContractionPlan:
    """The plan of a module that has MACE's attributes: paths of one output after another, the largest degree first.

    Raises ValueError, naming the buffer's output and path, where the buffers are no equivariant basis.
    """
    basis = [
        (n, contraction.get_buffer(f"U_matrix_{degree}"))
        for n, contraction in enumerate(module.contractions)
        for degree in range(contraction.correlation, 0, -1)
    ]
    irreps = [Irreps([(1, (ir.l, ir.p)) for _, ir in group]) for group in (module.irreps_in, module.irreps_out)]
    return SymmetricContractionPlan.from_basis(*irreps, basis)


def use_buffers(module: nn.Module, incompatible_keys: object = None) -> None:
    """Makes the plan of a module from its buffers, as they are now; a hook for after load_state_dict too."""
    module._plan_text = str(plan_of(module))


def varies(node_attrs: Tensor) -> bool:
    """Whether anybody may ask for a derivative along the attributes, or maps over them."""
    if torch.compiler.is_compiling():
        return node_attrs.requires_grad  # the op refuses the rest
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(node_attrs)
    return wrapped or node_attrs.requires_grad or forward_ad.unpack_dual(node_attrs).tangent is not None


def _op(x: Tensor, w: Tensor, species: Tensor | None, plan: str) -> Tensor:
    if torch.jit.is_scripting():
        return torch.ops.eqk.symmetric_contraction(x, w, species, plan)
    else:
        return symmetric_contraction(x, w, species, plan)


def contract(x: Tensor, node_attrs: Tensor, weights: list[Tensor], plan: str) -> Tensor:
    """The contraction of x [nodes, channels, dim_in] with weights of each species, mixed as node_attrs say.

    node_attrs: [nodes, species]. Where each row is one-hot, and no derivative along it is asked for, it stands for an
    index; torch.compile takes that for granted, and the op refuses rows that are not. weights: [species, paths,
    channels] each, one after another along the paths.
    """
    if torch.jit.is_scripting():
        constant = node_attrs.is_cpu and not node_attrs.requires_grad
    else:
        constant = node_attrs.is_cpu and not varies(node_attrs)
    if not constant:
        return _op(x, torch.einsum("ne,epc->npc", node_attrs, torch.cat(weights, 1)), None, plan)
    species = torch.ops.eqk.one_hot_index(node_attrs)
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        return _op(x, torch.cat(weights, 1), species, plan)
    if bool((species < 0).any()):
        return _op(x, torch.einsum("ne,epc->npc", node_attrs, torch.cat(weights, 1)), None, plan)
    if node_attrs.shape[1] > 4:  # of many species, weights that no node has are not worth copying
        present, species = torch._unique2(species, return_inverse=True)[:2]
        weights = [w.index_select(0, present) for w in weights]
    return _op(x, torch.cat(weights, 1), species, plan)


class Contraction(nn.Module):
    """The parameters and buffers of one output irrep, under the names of ``mace.modules.symmetric_contraction``."""

    def __init__(self, irreps_in: Irreps, out: Irrep, correlation: int, channels: int, num_elements: int) -> None:
        super().__init__()
        self.correlation = correlation
        dtype = torch.get_default_dtype()
        self.weights = nn.ParameterList()
        for degree in range(correlation, 0, -1):
            u = basis_of(irreps_in, out, degree, dtype)
            self.register_buffer(f"U_matrix_{degree}", u)
            w = nn.Parameter(torch.randn(num_elements, u.shape[-1], channels) / u.shape[-1])
            if degree == correlation:
                self.weights_max = w
            else:
                self.weights.append(w)
        for n in range(correlation):
            zero = not bool(self.get_buffer(f"U_matrix_{n + 1}").any())
            name = f"weights_{n}" if n < correlation - 1 else "weights_max"
            self.register_buffer(f"{name}_zeroed", torch.tensor(zero))
            if zero:
                # As in MACE 0.3.16, whose weights of number n are those of degree correlation - 1 - n, not n + 1.
                frozen = self.weights[n] if n < correlation - 1 else self.weights_max
                frozen.data.zero_()
                frozen.requires_grad_(False)


class SymmetricContraction(nn.Module):
    """``mace.modules.SymmetricContraction`` (mace-torch 0.3.16): same arguments, parameters and state_dict keys.

    Args:
        irreps_in: irreps of equal multiplicity, the channels.
        irreps_out: its irreps, whose multiplicities do not count.
        correlation: largest degree of the polynomials, 1 to 4.
        irrep_normalization, path_normalization: MACE's, which has no effect there either.
        use_reduced_cg: MACE's; only False.
        internal_weights, shared_weights: MACE's; only the defaults.
        num_elements: number of species.

    The bases are buffers ``contractions.N.U_matrix_DEGREE``. Those of a checkpoint that is loaded count, whatever
    Wigner 3j symbols or reduced basis made them. New ones have eqk's symbols (e3nn 0.6's).

    Raises:
        ValueError (which is an AssertionError too): naming the argument that does not fit.
    """

    def __init__(
        self,
        irreps_in: IrrepsLike,
        irreps_out: IrrepsLike,
        correlation: int,
        irrep_normalization: str | None = "component",
        path_normalization: str | None = "element",
        use_reduced_cg: bool = False,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        num_elements: int | None = None,
    ) -> None:
        super().__init__()
        self.irreps_in = irreps_argument("irreps_in", irreps_in)
        self.irreps_out = irreps_argument("irreps_out", irreps_out)

        def require(ok: bool, name: str, expected: str, got: object) -> None:
            if not ok:
                raise ArgumentError(f"{name}: expected {expected}, got {got!r}")

        channels = {mul for mul, _ in self.irreps_in}
        require(len(channels) == 1, "irreps_in", "irreps of equal multiplicity", self.irreps_in)
        fits = isinstance(correlation, int) and 1 <= correlation <= MAX_CORRELATION
        require(fits, "correlation", f"an int from 1 to {MAX_CORRELATION}", correlation)
        names = ("component", "norm", "none", None)
        require(irrep_normalization in names, "irrep_normalization", "component, norm or none", irrep_normalization)
        names = ("element", "path", "none", None)
        require(path_normalization in names, "path_normalization", "element, path or none", path_normalization)
        require(not use_reduced_cg, "use_reduced_cg", "False", use_reduced_cg)
        require(internal_weights in (None, True), "internal_weights", "None or True", internal_weights)
        fits = isinstance(num_elements, int) and num_elements > 0
        require(fits, "num_elements", "a positive int", num_elements)
        self.internal_weights, self.shared_weights = True, shared_weights
        single = Irreps([(1, ir) for _, ir in self.irreps_in])
        self.contractions = nn.ModuleList(
            Contraction(single, ir, correlation, self.irreps_in[0].mul, num_elements) for _, ir in self.irreps_out
        )
        use_buffers(self)
        self.register_load_state_dict_post_hook(use_buffers)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [nodes, channels, dim_in], y [nodes, num_elements] one-hot, or a mixture -> [nodes, channels * dim_out]."""
        weights: list[Tensor] = []
        for contraction in self.contractions:
            weights.append(contraction.weights_max)
            for w in contraction.weights:
                weights.append(w)
        return contract(x, y, weights, self._plan_text)
