import pickle
import random

import fuzz
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eqk import Irreps, Plan, tensor_product, testing, wigner_3j
from eqk.plan import MODES, path_shape
from eqk.testing import CASES

A_PLAN = "2x0e+3x1o * 1x0e+1x1o -> 3x1o+2x0e [mul_ir,ir_mul,mul_ir] per_sample {1 0 0 uvu w 1.5; 0 0 1 uvu - -0.25}"


def accepted_by_op(text):
    """Whether the parser in the op takes the string: x of no columns is refused only after the plan is parsed."""
    try:
        torch.ops.eqk.tensor_product(torch.empty(0), torch.empty(0), None, text)
    except (RuntimeError, ValueError) as error:
        message = str(error)
        assert "plan: expected" in message or "x: expected 2 dimensions" in message, message
        return "plan: expected" not in message
    raise AssertionError("a tensor of one dimension was accepted")


def accepted_by_python(text):
    try:
        Plan.parse(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_round_trip_of_cases(case):
    text = str(case.plan)
    assert Plan.parse(text) == case.plan
    assert str(Plan.parse(text)) == text
    assert hash(Plan.parse(text)) == hash(case.plan)
    assert pickle.loads(pickle.dumps(case.plan)) == case.plan
    assert accepted_by_op(text)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**62))
def test_round_trip_of_random_plans(number):
    plan = testing.random_plan(random.Random(number))
    text = str(plan)
    assert Plan.parse(text) == plan
    assert accepted_by_op(text)
    x, y, w = testing.random_operands(plan, 1, torch.float32, torch.Generator())
    assert tensor_product(x, y, w, text).shape == (1, plan.irreps_out.dim)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.tuples(st.integers(0, 20), st.sampled_from((1, -1)))), max_size=6))
def test_round_trip_of_irreps(entries):
    irreps = Irreps(entries)
    assert Irreps(str(irreps)) == irreps
    assert irreps.dim == sum(mul * (2 * l + 1) for mul, (l, _) in entries)


def test_both_parsers_agree(rng):
    """On strings of random mutations: the op and Plan.parse take the same ones."""
    disagreed = []
    for _ in range(3000):
        text = fuzz.mutate_plan(
            rng.choice((A_PLAN, str(CASES["mixed-mul_ir-mul_ir-mul_ir-shared"].plan), str(CASES["empty-all"].plan))),
            rng,
        )
        if rng.random() < 0.3:
            text = fuzz.mutate_plan(text, rng) if text else text
        if accepted_by_python(text) != accepted_by_op(text):
            disagreed.append((text, accepted_by_python(text)))
    assert not disagreed, (len(disagreed), disagreed[:10])


@pytest.mark.parametrize("space", ["\t", "\n", "\r", "\u00a0"])
def test_other_white_space(space):
    for text in (
        "- * - -> - [mul_ir,mul_ir,mul_ir] none {" + space + "}",
        A_PLAN.replace(" ", space, 1),
        A_PLAN + space,
    ):
        assert not accepted_by_python(text)
        assert not accepted_by_op(text)


@pytest.mark.parametrize("end", range(len(A_PLAN)))
def test_truncated(end):
    assert not accepted_by_python(A_PLAN[:end])
    assert not accepted_by_op(A_PLAN[:end])


@pytest.mark.parametrize("old, new, named", [
    ("2x0e", "2x21e", "irreps_in1"),
    ("1x0e+", "1x33o+", "irreps_in2"),
    ("-> 3x1o", "-> 3x99o", "irreps_out"),
    ("[mul_ir", "[mul", "layout_in1"),
    (",ir_mul", ",xir", "layout_in2"),
    ("mul_ir]", "none]", "layout_out"),
    ("per_sample", "each", "weights"),
    ("per_sample", "none", "weights"),
    ("1 0 0 uvu", "1 0 0 uvx", "instruction 0"),
    ("1 0 0 uvu", "2 0 0 uvu", "instruction 0: expected i_in1"),
    ("1 0 0 uvu", "1 7 0 uvu", "instruction 0: expected i_in2"),
    ("1 0 0 uvu", "1 0 9 uvu", "instruction 0: expected i_out"),
    ("1 0 0 uvu", "1 1 0 uvu", "instruction 0: .*selection rules"),
    ("0 0 1 uvu -", "0 0 1 uvw -", "instruction 1: .*weight"),
    ("0 0 1 uvu -", "0 0 1 uvv -", "instruction 1: .*multiplicity"),
    ("0 0 1 uvu -", "0 0 1 uuu -", "instruction 1: .*multiplicities"),
    ("1.5", "nan", "coefficient"),
    ("1.5", "1e999", "coefficient"),
    ("1.5", "x", "instruction"),
])  # fmt: skip
def test_errors_name_the_argument(old, new, named):
    text = A_PLAN.replace(old, new, 1)
    assert text != A_PLAN
    with pytest.raises(ValueError, match=named):
        Plan.parse(text)
    assert not accepted_by_op(text)


def test_arguments_that_are_wrong():
    with pytest.raises(ValueError, match="in1_var"):
        Plan.normalized("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uuu", True)], in1_var=[1.0, 2.0])
    for name in ("irrep_normalization", "path_normalization"):
        with pytest.raises(ValueError, match=name):
            Plan.normalized("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uuu", True)], **{name: "all"})
    with pytest.raises(ValueError, match="path weights"):
        Plan.normalized("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uuu", True, -1.0)])
    with pytest.raises(ValueError, match="irreps"):
        Plan("1x0z", "1x0e", "1x0e", ())
    with pytest.raises(ValueError, match="irreps_in1: expected multiplicities"):
        Plan([(2**40, "0e")], "1x0e", "1x0e", ())


def test_weights_follow_the_instructions():
    assert Plan("2x0e", "1x0e", "2x0e", ((0, 0, 0, "uvu", False),), weights="shared").weights == "none"
    shapes = {
        "uvw": (2, 3, 4),
        "uvu": (2, 3),
        "uvv": (2, 3),
        "uuw": (2, 4),
        "uuu": (2,),
        "uvuv": (2, 3),
        "uvu<v": (2,),
        "u<vw": (2, 4),
    }
    assert {mode: path_shape(mode, 2, 3, 4) for mode in MODES} == shapes


def test_from_e3nn(rng, generator, float64_default):
    from e3nn import o3

    product = o3.FullyConnectedTensorProduct("3x0e+2x1o", "1x0e+1x1o", "4x0e+2x1o+1x2e", internal_weights=True)
    plan = Plan.from_e3nn(product)
    assert plan.weights == "shared"
    x, y, w = testing.random_operands(plan, 5, torch.float64, generator)
    testing.assert_close(tensor_product(x, y, w, plan), product(x, y, w))
    assert Plan.from_e3nn(product, weights="per_sample", layout_out="ir_mul").layout_out == "ir_mul"
    for cls in (o3.FullTensorProduct, o3.ElementwiseTensorProduct):
        product = cls("3x0e+2x1o", "3x1o+2x2e")
        plan = Plan.from_e3nn(product)
        x, y, _ = testing.random_operands(plan, 5, torch.float64, generator)
        testing.assert_close(tensor_product(x, y, None, plan), product(x, y))


def test_plan_built_inside_a_compiled_function():
    def product(x, y, w):
        plan = Plan.normalized("4x1o+2x0e", "1x1o", "4x0e", [(0, 0, 0, "uvu", True)])
        return tensor_product(x, y, w, plan)

    operands = torch.randn(3, 14), torch.randn(3, 3), torch.randn(3, 4)
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*operands), product(*operands))

    def text(x):
        return x, str(Plan("4x1o", Irreps("1x1o"), "4x0e", [(0, 0, 0, "uvu", True)])), repr(Irreps("2x1o+3e"))

    assert torch.compile(text, backend="eager")(operands[0])[1:] == text(operands[0])[1:]


def test_instructions_may_be_a_generator():
    paths = [(0, 0, 0, "uvu", True, 2.0), (0, 0, 0, "uvu", False)]
    for build in (Plan.normalized, Plan):
        assert build("2x1o", "1x1o", "2x0e", (p for p in paths)) == build("2x1o", "1x1o", "2x0e", paths)


def test_plans_that_are_too_long_for_the_op_are_refused():
    with pytest.raises(ValueError, match=r"instructions: expected a string of at most 2\^20 characters, got 10\d{5}"):
        Plan("1x1o", "1x1o", "1x0e", [(0, 0, 0, "uuu", True)] * 63_000)
    longest = Plan("1x1o", "1x1o", "1x0e", [(0, 0, 0, "uuu", True)] * 61_600)
    assert accepted_by_op(str(longest))


EINSUMS = {
    "uvu": "nau,nbv,abk->nku",
    "uvv": "nau,nbv,abk->nkv",
    "uuw": "nau,nbu,abk->nk",
    "uuu": "nau,nbu,abk->nku",
    "uvuv": "nau,nbv,abk->nkuv",
}


@pytest.mark.parametrize("mode", EINSUMS)
def test_couplings_are_their_tables(mode, generator):
    """Two of a mode, of which one result is a sum, and derivatives to the second, against dense tables."""
    u, v = 3, 3 if mode in ("uuw", "uuu") else 2
    channels = {"uvu": u, "uvv": v, "uuw": 1, "uuu": u, "uvuv": u * v}[mode]
    dims = (4, 3), (2, 5), (3, 6)
    tables = {}
    for place in ((0, 0, 0), (1, 1, 0), (0, 1, 1)):
        shape = [dim[at] for dim, at in zip(dims, place, strict=True)]
        dense = torch.randn(shape, generator=generator, dtype=torch.float64)
        tables[place] = dense * (torch.rand(shape, generator=generator) < 0.4)
    plan = Plan.from_couplings(
        *[[(mul, dim) for dim in both] for mul, both in zip((u, v, channels), dims, strict=True)],
        [(*place, mode, table) for place, table in tables.items()],
    )
    assert len(plan.instructions) == sum(int(table.count_nonzero()) for table in tables.values())
    assert plan.weights == "none"

    def dense(x, y):
        xs, ys = (
            [part.unflatten(1, (-1, mul)) for part in t.split([mul * dim for dim in both], 1)]
            for t, mul, both in ((x, u, dims[0]), (y, v, dims[1]))
        )
        out = [0, 0]
        for (i, j, o), table in tables.items():
            out[o] = out[o] + torch.einsum(EINSUMS[mode], xs[i], ys[j], table).flatten(1)
        return torch.cat(out, 1)

    x, y, _ = testing.random_operands(plan, 7, torch.float64, generator)
    comparison = testing.Comparison(dense, [x, y], 2, generator)
    for dtype in (torch.float64, torch.float32):
        results = comparison.results(lambda x, y: tensor_product(x, y, None, plan), dtype)
        assert max(map(max, comparison.excess(results, dtype))) <= 1


def test_couplings_of_irreps(generator):
    """Those of e3nn's symbols are the plan of the irreps."""
    irreps = "4x1o", "1x2e", "4x3o"
    plan = Plan(*irreps, [(0, 0, 0, "uvu", False)], layout_in1="ir_mul", layout_out="ir_mul")
    table = wigner_3j(1, 2, 3, dtype=torch.float64)
    coupled = Plan.from_couplings([(4, 3)], [(1, 5)], [(4, 7)], [(0, 0, 0, "uvu", table)])
    x, y, _ = testing.random_operands(plan, 5, torch.float64, generator)
    testing.assert_close(tensor_product(x, y, None, coupled), tensor_product(x, y, None, plan))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in1": [(2, -1)]}, r"in1: expected pairs \(channels, dimension\) of integers >= 0, got \(2, -1\)"),
        ({"out": [(2, 3, 1)]}, r"out: expected pairs"),
        ({"in2": [3]}, r"in2: expected pairs \(channels, dimension\) of integers >= 0, got 3"),
        ({"couplings": [(0, 0, 0, "uvu")]}, r"coupling 0: expected \(i_in1, i_in2, i_out, mode, table\)"),
        ({"couplings": [(0, 1, 0, "uvu", torch.ones(3, 3, 3))]}, "coupling 0: expected i_in2 below 1, got 1"),
        (
            {"couplings": [(0, 0, 0, "uvu", torch.ones(3, 3))]},
            r"coupling 0: expected a real table of shape \[3, 3, 3\]",
        ),
        ({"couplings": [(0, 0, 0, "uvu", 1j * torch.ones(3, 3, 3))]}, "got .* of torch.complex64"),
        ({"couplings": [(0, 0, 0, "uvw", torch.ones(3, 3, 3))]}, "a weight in mode uvw"),
        ({"couplings": [(0, 0, 0, "uvu", torch.full((3, 3, 3), torch.nan))]}, "a finite coefficient"),
    ],
)
def test_couplings_that_are_wrong(wrong, message):
    arguments = {"in1": [(2, 3)], "in2": [(1, 3)], "out": [(2, 3)], "couplings": []}
    with pytest.raises(ValueError, match=message):
        Plan.from_couplings(**arguments | wrong)
