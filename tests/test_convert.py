"""eqk.convert on modules and on a pretrained potential: same numbers, same parameters, same checkpoints."""

import copy
import gc
import io
import pickle
import random

import pytest
import torch
from e3nn import o3 as theirs

import eqk


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = theirs.FullyConnectedTensorProduct("4x0e+3x1o", "1x0e+1x1o", "5x0e+2x1o+1x1e")
        self.again = self.conv
        self.pair = theirs.FullTensorProduct("2x0e+1x1o", "1x1o")
        self.inner = torch.nn.ModuleDict({"mul": theirs.ElementwiseTensorProduct("3x1o", "3x0e")})
        self.linear = theirs.Linear("4x0e", "2x0e")
        self.harmonics = theirs.SphericalHarmonics([2, 0, 2, 1], True, "norm")

    def forward(self, x, y):
        y = y + self.harmonics(x[:, 4:7])[:, [5, 0, 11, 13]]
        z = self.conv(x, y) + self.again(x, 2 * y)
        return z.sum() + self.pair(x[:, :5], y[:, 1:]).pow(2).sum() + self.inner["mul"](x[:, 4:], x[:, :3]).sum()


def test_swaps_everything_in_place_and_keeps_it_equal():
    model, twin = Block(), Block()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(6, 13), torch.randn(6, 4)
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    expected = model(x, y)
    calls = []
    handle = model.conv.register_forward_hook(lambda *_: calls.append("hook"))
    model.conv.user_attribute = "kept"
    model.eval()
    random_state = torch.random.get_rng_state()
    report = eqk.convert(model)
    assert torch.equal(random_state, torch.random.get_rng_state())

    assert report.model is model
    assert [row.name for row in report.swapped] == ["conv", "again", "pair", "inner.mul", "harmonics"]
    assert [(row.name, row.reason) for row in report.left] == [("linear", "o3.Linear is matrix products already")]
    for text in ("swapped 5", "left 1", "eqk.o3.FullTensorProduct", "inner.mul"):
        assert text in str(report)
    assert type(model.conv) is eqk.o3.FullyConnectedTensorProduct
    assert model.again is model.conv
    assert (model.conv.user_attribute, model.conv.training, model.training) == ("kept", False, False)
    torch.testing.assert_close(model(x, y), expected)
    assert calls == ["hook", "hook"]
    handle.remove()
    model(x, y)
    assert len(calls) == 2

    assert list(model.state_dict()) == keys
    assert all(p is parameters[n] for n, p in model.named_parameters())
    with torch.no_grad():
        model.conv.weight.normal_()
    assert twin.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(twin(x, y), model(x, y))
    with torch.no_grad():
        twin.conv.weight.normal_()
    assert model.load_state_dict(twin.state_dict(), strict=True)
    torch.testing.assert_close(twin(x, y), model(x, y))

    assert not eqk.convert(model).swapped
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _saved(model)):
        torch.testing.assert_close(other(x, y), model(x, y))
        assert list(other.state_dict()) == keys
    torch.testing.assert_close(torch.jit.script(model.conv)(x, y), model.conv(x, y))
    from e3nn.util import jit

    torch.testing.assert_close(jit.compile(copy.deepcopy(model)).conv(x, y), model.conv(x, y))
    model.double()
    assert model.conv(x.double(), y.double()).dtype == torch.float64


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_root_and_right():
    tp = theirs.FullyConnectedTensorProduct("2x0e+1x1o", "1x1o", "2x1o", compile_right=True)
    y = torch.randn(3, 3)
    report = eqk.convert(tp)
    assert type(tp) is theirs.FullyConnectedTensorProduct
    assert report.model.weight is tp.weight
    assert report.swapped[0].name == "(root)"
    torch.testing.assert_close(report.model.right(y), tp.right(y))
    assert repr(report.model) == repr(tp)
    if hasattr(theirs, "TensorSquare"):
        square = theirs.TensorSquare("2x0e+3x1o", "4x0e+2x1o+1x2e")
        x = torch.randn(3, 11)
        torch.testing.assert_close(eqk.convert(square).model(x), square(x))


@pytest.mark.parametrize("mode", ["uvw", "uvu", "uuu"])
def test_every_triple_of_degrees(mode):
    """e3nn 0.4 has other signs than 0.6 in some of its Wigner 3j symbols."""
    irreps = [(2, (degree, 1)) for degree in range(4)]
    paths = [(a, b, c, mode, True) for a in range(4) for b in range(4) for c in range(abs(a - b), min(a + b, 3) + 1)]
    tp = theirs.TensorProduct(irreps, irreps, irreps, paths)
    x, y = torch.randn(3, 32), torch.randn(3, 32)
    new = eqk.convert(tp).model
    torch.testing.assert_close(new(x, y), tp(x, y), rtol=1e-5, atol=1e-5)
    assert eqk.Plan.from_e3nn(new) == new.plan


# Where e3nn 0.4's symbols have the opposite sign of e3nn 0.6's, up to degree 2.
E3NN_04 = {(1, 2, 2), (2, 1, 2), (2, 2, 1)}


def mixed(o3, compile_right=False):
    """All triples up to degree 2; those with 0 and (1, 1, 1) in modes that e3nn specializes and modes that it does not."""
    irreps = [(2, (degree, 1)) for degree in range(3)]
    triples = [(a, b, c) for a in range(3) for b in range(3) for c in range(abs(a - b), min(a + b, 2) + 1)]
    paths = [(*t, mode, True) for t in triples for mode in ("uvw", "uuu")]
    out = irreps + [(4, ir) for _, ir in irreps]
    paths += [(a, b, c + 3, "uvuv", False) for a, b, c in triples]
    return o3.TensorProduct(irreps, irreps, out, paths, compile_right=compile_right)


def flipped(state, triples):
    """A checkpoint with the opposite sign of e3nn 0.6 in the symbols of ``triples``."""
    out = {}
    for key, value in state.items():
        name = key.rpartition("._w3j_")[2]
        degrees = tuple(map(int, name.split("_"))) if name != key else None
        sign = -1.0 if degrees in triples else 1.0
        out[key] = value.clone() if degrees is None else sign * eqk.wigner_3j(*degrees, dtype=value.dtype)
    return out


def signs(plan):
    return [ins.coefficient > 0 for ins in plan.instructions]


@pytest.fixture(params=["script", "eager", "inductor"])
def jit_mode(request):
    import e3nn

    before = e3nn.get_optimization_defaults()
    if "jit_mode" in before:
        e3nn.set_optimization_defaults(jit_mode=request.param)
    else:
        e3nn.set_optimization_defaults(jit_script_fx=request.param == "script")
    yield request.param
    name = "jit_mode" if "jit_mode" in before else "jit_script_fx"
    e3nn.set_optimization_defaults(**{name: before[name]})


@pytest.mark.parametrize("triples", [E3NN_04, {(1, 1, 1), (0, 1, 1), (2, 1, 1)}], ids=["e3nn 0.4", "invented"])
def test_signs_are_those_of_the_modules_symbols(jit_mode, triples):
    x, y = torch.randn(3, 18), torch.randn(3, 18)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
    tp = mixed(theirs)
    before, other = flipped(tp.state_dict(), set()), flipped(tp.state_dict(), triples)
    tp.load_state_dict(before)
    plain = tp(x, y).detach()
    modules = {"converted": eqk.convert(copy.deepcopy(tp)).model, "eqk's own": mixed(eqk.o3)}
    tp.load_state_dict(other)
    expected = tp(x, y).detach()
    assert (expected - plain).abs().max() > 0.1
    close(eqk.tensor_product(x, y, tp.weight, eqk.Plan.from_e3nn(tp)), expected)
    close(eqk.convert(tp).model(x, y), expected)
    for name, module in modules.items():
        module.load_state_dict(other, strict=True)
        close(module(x, y), expected)
        assert signs(eqk.Plan.from_e3nn(module)) == signs(eqk.Plan.from_e3nn(tp))
        # Its own checkpoint says so too, to either kind of module and to e3nn's.
        targets = [mixed(eqk.o3)]
        if name == "converted":
            targets += [eqk.convert(mixed(theirs)).model, mixed(theirs)]
        for target in targets:
            # fx adds constants of its own to some of e3nn 0.4's modules.
            target.load_state_dict(module.state_dict(), strict=type(target) is not theirs.TensorProduct)
            close(target(x, y), expected)
        close(copy.deepcopy(module)(x, y), expected)
        module.load_state_dict(before, strict=True)
        close(module(x, y), plain)
    assert set(modules["eqk's own"].state_dict()) == {"weight", "output_mask"}


def test_signs_where_a_checkpoint_has_no_symbols():
    tp = mixed(theirs)
    tp.load_state_dict(flipped(tp.state_dict(), E3NN_04))
    x, y = torch.randn(3, 18), torch.randn(3, 18)
    expected = tp(x, y).detach()
    own = mixed(eqk.o3)
    plain = copy.deepcopy(own.state_dict())
    converted = eqk.convert(tp).model
    # As in e3nn: keys that are absent change nothing, and strict loading names them.
    filtered = {key: value for key, value in converted.state_dict().items() if "_w3j_" not in key}
    converted.load_state_dict(filtered, strict=False)
    torch.testing.assert_close(converted(x, y), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match=r'Missing key.*_compiled_main_left_right\._w3j_1_2_2"'):
        copy.deepcopy(converted).load_state_dict(plain)
    reference = own(x, y).detach()
    own.load_state_dict(converted.state_dict())
    torch.testing.assert_close(own(x, y), expected, rtol=1e-5, atol=1e-5)
    own.load_state_dict({"output_mask": own.output_mask}, strict=False)
    torch.testing.assert_close(own(x, y), expected, rtol=1e-5, atol=1e-5)
    own.load_state_dict(plain)
    torch.testing.assert_close(own(x, y), reference)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_symbols_of_any_dtype(dtype):
    tp = mixed(theirs).to(dtype)
    tp.load_state_dict(flipped(tp.state_dict(), E3NN_04))
    wanted = mixed(eqk.o3)
    wanted.load_state_dict(flipped(mixed(theirs).state_dict(), E3NN_04))
    assert signs(eqk.Plan.from_e3nn(tp)) == signs(wanted.plan)


def test_symbols_that_are_none_are_refused_by_name():
    tp = mixed(theirs, compile_right=True)
    good = {key: value.clone() for key, value in tp.state_dict().items()}
    key = "_compiled_main_left_right._w3j_1_2_2"
    targets = [eqk.convert(copy.deepcopy(tp)).model, mixed(eqk.o3)]
    for bad in (1.01 * good[key], good[key] * float("nan"), good[key].T, -good[key]):
        state = {**good, key: bad}
        for target in targets:
            plan = target.plan
            with pytest.raises(RuntimeError, match=r"_compiled_main_(left_right|right)\._w3j_1_2_2: expected"):
                torch.nn.Sequential(target).load_state_dict({f"0.{k}": v for k, v in state.items()})
            assert target.plan == plan
        if bad.shape == good[key].shape:
            tp.load_state_dict(state)
            with pytest.raises(ValueError, match=r"tp: _compiled_main_(left_right|right)\._w3j_1_2_2: expected"):
                eqk.Plan.from_e3nn(tp)
            assert "_w3j_1_2_2: expected" in eqk.convert(torch.nn.Sequential(tp)).left[0].reason


def test_leaves_what_it_cannot_know_and_says_why():
    class Doubled(theirs.FullTensorProduct):
        def forward(self, x, y):
            return 2 * super().forward(x, y)

    class Named(theirs.FullTensorProduct):
        def __init__(self, irreps):
            super().__init__(irreps, irreps)

    patched = theirs.FullTensorProduct("1x1o", "1x1o")
    patched.forward = lambda x, y: x
    scripted = theirs.FullTensorProduct("1x1o", "1x1o")
    from e3nn.util import jit

    class Radial(theirs.SphericalHarmonics):
        def forward(self, x):
            return super().forward(x) * x.norm(dim=-1, keepdim=True)

    model = torch.nn.ModuleList([Doubled("1x1o", "1x1o"), Named("1x1o"), patched, jit.script(scripted)])
    model += [jit.script(Named("1x1o")), jit.script(theirs.SphericalHarmonics(1, True)), Radial(1, True)]
    # eqk's own are none of e3nn's that stayed.
    model += [jit.script(eqk.o3.FullTensorProduct("1x1o", "1x1o")), jit.script(eqk.o3.SphericalHarmonics(1, True))]
    report = eqk.convert(model)
    assert [row.name for row in report.swapped] == ["1"]
    assert [row.name for row in report.left] == ["0", "2", "3", "4", "5", "6"]
    reasons = ("Doubled defines forward", "forward replaced", *3 * ["TorchScript"], "Radial defines forward")
    for row, reason in zip(report.left, reasons, strict=True):
        assert reason in row.reason


@pytest.mark.parametrize("irreps_out", ["0e+1o+2e", "1e+2e", "3o+3o+1o", 2, [0, 1, 2, 3]])
@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize("normalize", [True, False])
def test_spherical_harmonics(irreps_out, normalization, normalize):
    old = theirs.SphericalHarmonics(irreps_out, normalize, normalization)
    model = torch.nn.Sequential(old)
    x = torch.randn(4, 2, 3)
    calls = []
    handle = old.register_forward_hook(lambda *_: calls.append("hook"))
    assert [row.after for row in eqk.convert(model).swapped] == ["eqk.o3.SphericalHarmonics"]
    torch.testing.assert_close(model(x), old(x), rtol=1e-5, atol=1e-5)
    assert calls == ["hook", "hook"]
    handle.remove()
    assert (model[0].irreps_in, model[0].irreps_out) == (old.irreps_in, old.irreps_out)
    assert not model.state_dict()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_compiled_products_call_the_new_module():
    x, y = torch.randn(3, 13), torch.randn(3, 4)
    make = lambda: theirs.FullyConnectedTensorProduct("4x0e+3x1o", "1x0e+1x1o", "5x0e+2x1o")  # noqa: E731
    count = []

    def backend(graph, inputs):
        count.append(str(graph.graph).count("eqk.tensor_product"))
        return graph

    model = torch.nn.ModuleDict({"compiled": make(), "wrapped": torch.compile(make(), backend=backend)})
    model["compiled"].compile(backend="eager")
    parent = torch.nn.Sequential(make())
    whole = torch.compile(parent, backend=backend)
    root = torch.compile(make(), backend=backend)
    modules = (model["compiled"], model["wrapped"], root)
    for module in modules:
        module(x, y)
    old = model["compiled"]
    report = eqk.convert(model)
    assert [row.name for row in report.swapped] == ["compiled", "wrapped._orig_mod"]
    assert "not compiled: call compile() again" in report.swapped[0].after
    assert eqk.convert(root).model is root
    eqk.convert(whole)
    count.clear()
    for module in (model["compiled"], model["wrapped"], root):
        inner = getattr(module, "_orig_mod", module)
        assert type(inner) is eqk.o3.FullyConnectedTensorProduct
        before = module(x, y)
        inner.weight = torch.nn.Parameter(2 * inner.weight.detach())
        torch.testing.assert_close(module(x, y), 2 * before)
        torch.testing.assert_close(module.forward(x, y), 2 * before)
    assert count
    assert all(count)
    old.weight.data.zero_()
    assert model["compiled"](x, y).abs().max() > 0.1
    model["compiled"].compile(backend=backend)
    count.clear()
    model["compiled"](x, y)
    assert all(count)


def test_state_dict_hooks_get_the_new_module():
    model = torch.nn.Sequential(theirs.FullTensorProduct("1x1o", "1x1o"))
    calls = []
    handles = [
        model[0].register_load_state_dict_pre_hook(lambda module, *_: calls.append(("pre", module))),
        model[0]._register_load_state_dict_pre_hook(lambda module, *_: calls.append(("old", module)), with_module=True),
        model[0]._register_load_state_dict_pre_hook(lambda *_: calls.append(("plain", None))),
        model[0].register_load_state_dict_post_hook(lambda module, _: calls.append(("post", module))),
        model[0].register_state_dict_pre_hook(lambda module, *_: calls.append(("save", module))),
    ]
    eqk.convert(model)
    gc.collect()
    model.load_state_dict(model.state_dict())
    new = model[0]
    assert calls == [("save", new), ("pre", new), ("old", new), ("plain", None), ("post", new)]
    for handle in handles:
        handle.remove()
    model.load_state_dict(model.state_dict())
    assert len(calls) == 5


def test_layout_and_bad_arguments():
    tp = theirs.FullTensorProduct("2x1o", "1x1o")
    x, y = torch.randn(4, 6), torch.randn(4, 3)
    given = x.reshape(4, 2, 3).mT.flatten(1)
    out = eqk.convert(tp, layout=("ir_mul", "mul_ir", "mul_ir")).model(given, y)
    torch.testing.assert_close(out, tp(x, y))
    for layout in (
        "im_rul",
        ("mul_ir",),
        ("mul_ir",) * 4,
        ("ir_mul", "ir_mul", "ir_mul", "shared"),
        None,
        3,
        (1, 2, 3),
    ):
        with pytest.raises(ValueError, match="layout: expected one of mul_ir, ir_mul, or one for each of x, y, out"):
            eqk.convert(tp, layout=layout)
    with pytest.raises(TypeError, match="model"):
        eqk.convert("model")


def test_sevennet_0():
    ase_build = pytest.importorskip("ase.build", reason="ase is not installed")
    util = pytest.importorskip("sevenn.util", reason="sevenn is not installed")
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    atoms = ase_build.bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=random.randrange(2**31))

    def build():
        model = util.load_checkpoint("7net-0").build_model().eval()
        model.set_is_batch_data(False)
        return model

    def evaluate(model):
        out = model(AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, 5.0)))
        return out["inferred_total_energy"].detach(), out["inferred_force"].detach()

    model, twin = build(), build()
    energy, force = evaluate(model)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    report = eqk.convert(model)
    assert len(report.swapped) == 16, report
    assert sum(row.after == "eqk.adapters.sevennet.FusedConvolution" for row in report.swapped) == 5
    assert {row.reason for row in report.left} == {"o3.Linear is matrix products already"}
    new_energy, new_force = evaluate(model)
    assert force.abs().max() > 0.5
    assert (new_energy - energy).abs() < 1e-5 * energy.abs()
    assert (new_force - force).abs().max() < 1e-5
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    twin.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(twin.state_dict(), strict=True)
    assert (evaluate(_saved(model))[1] - new_force).abs().max() < 1e-5


def test_sevennet_0_scripted():
    """Converted, then scripted, frozen and saved as sevenn's deployment for LAMMPS does: energy and its gradient."""
    ase_build = pytest.importorskip("ase.build", reason="ase is not installed")
    util = pytest.importorskip("sevenn.util", reason="sevenn is not installed")
    import e3nn.util.jit
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    atoms = ase_build.bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=random.randrange(2**31))
    results = []
    for converted in (False, True):
        model = util.load_checkpoint("7net-0").build_model().eval()
        model.set_is_batch_data(False)
        model.delete_module_by_key("force_output")
        model.eval_type_map = False
        if converted:
            eqk.convert(model)
        scripted = torch.jit.freeze(e3nn.util.jit.script(model))
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        data = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, 5.0)).to_dict()
        data = {key: value for key, value in data.items() if isinstance(value, torch.Tensor)}
        data["x"] = torch.full((len(atoms),), 3)  # any species
        data["edge_vec"].requires_grad_()
        energy = torch.jit.load(file)(data)["inferred_total_energy"]
        results.append((energy.detach(), *torch.autograd.grad(energy, data["edge_vec"])))
    assert results[0][1].abs().max() > 0.01
    for old, new in zip(*results, strict=True):
        assert (new - old).abs().max() < 1e-5 * max(1, old.abs().max())
