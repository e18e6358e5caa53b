"""The host side of the installed CUDA library, on the GPUs of stub_cuda.py.

Run by test_cuda_host.py in a process of its own: those GPUs are torch's as long as the process lives. By hand:
``python -m pytest -p stub_cuda tests/stubbed_cuda.py``.
"""

import dataclasses
import gc
import itertools
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import stub_cuda
import torch
from emulated_cuda import H100, installed_bindings
from stub_cuda import OPS, Runtime

import eqk
from eqk import _library, dispatch, gaunt_grid, reference
from eqk.gaunt_plan import GauntPlan
from eqk.testing import (
    CASES,
    GAUNTS,
    assert_close,
    derivatives,
    random_directions,
    random_gaunt_operands,
    random_operands,
)
from eqk.wigner import _generators
from eqk.wigner import columns as wigner_columns

EQK = torch.ops.eqk
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MEMBERS = ("forward", "jvp", "backward", "double_backward")
SLOTS = range(4)
OUTPUT, GRADIENTS = (False, False, False, True), (True, True, True, False)
BY_CHANNELS = CASES["depthwise-5"].plan
GENERAL = CASES["mixed-mul_ir-ir_mul-mul_ir-per_sample"].plan
SHARED = CASES["uvu-shared"].plan


@pytest.fixture(scope="session")
def machine():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # to the runtime of the library, before it is replaced
    assert _library.cuda_reason is None
    with pytest.raises(RuntimeError) as without_driver:
        run("forward", BY_CHANNELS, draw(BY_CHANNELS, 2, torch.float32, torch.Generator()), None)
    machine = Runtime(Path(eqk.__file__).parent / "lib" / "libeqk_cuda.so")
    machine.without_driver = str(without_driver.value)
    machine.bindings = installed_bindings()
    machine.tables = {}
    return machine


@pytest.fixture(autouse=True)
def runtime(machine):
    """The stub, of which nothing may be left: streams, a fault that met no call, memory, another device or mode."""
    machine.take(), stub_cuda.allocated()
    before = stub_cuda.live()
    yield machine
    machine.execute = machine.capturing = False
    for device in range(stub_cuda.DEVICES):
        OPS.set_stream(device, 0)
    broken, machine.broken = machine.broken, []
    assert not broken
    assert not machine.faults
    assert not machine.streams
    assert not machine.pending
    assert getattr(machine.thread, "mode", 0) == 0
    assert OPS.device() == 0
    for _ in range(50):
        if stub_cuda.live() == before:
            break
        gc.collect()  # of graphs that a cycle keeps
        time.sleep(0.1)  # a thread of autograd's may still hold what it has just run
    assert stub_cuda.live() == before
    assert len(machine.memory) == len(machine.tables)


def stream(device: int, number: int) -> int:
    return 0x9000 + stub_cuda.DEVICES * number + device


def draw(plan, rows, dtype, generator, device="cuda:0"):
    g = torch.randn(rows, plan.irreps_out.dim, generator=generator)
    return [*random_operands(plan, rows, dtype, generator, device), g.to(device, dtype)]


def note_tables(runtime, plan, dtype, calls):
    for call in calls:
        if call.name == "cudaMalloc":
            runtime.tables[str(plan), dtype == torch.float64, call.device] = call.details["address"]


def note_all_tables(runtime, calls):
    """Of plans that a test does not name."""
    for call in calls:
        if call.name == "cudaMalloc":
            runtime.tables[call.details["address"]] = call.details["address"]


def run(member, plan, v, t, wanted=(True,) * 4):
    """The results of a member of the family for x, y, w, g; None where it has none."""
    text = str(plan)
    if member == "forward":
        return [None, None, None, EQK.tensor_product(*v[:3], text)]
    if member == "jvp":
        return [None, None, None, EQK.tensor_product_jvp(*v[:3], *t[:3], text)]
    if member == "backward":
        return [*EQK.tensor_product_backward(*v, text, wanted[:3]), None]
    return list(EQK.tensor_product_double_backward(*v, *t, text, wanted))


def launches(calls):
    fields = ("name", "grid", "block", "shared", "argument")
    return [{f: c.details[f] for f in fields} for c in calls if c.name == "cudaLaunchKernel"]


def name(dtype):
    return str(dtype).removeprefix("torch.")


def check_chain(runtime, plan, function, truth, operands, shape, order, generator):
    """Derivatives of a function of tensors on a device, each against that of ``truth`` in float64 on the host; its calls."""
    host, device = [t.cpu() for t in operands], operands[0].device
    value = torch.empty(shape, dtype=host[0].dtype)
    directions = random_directions(host, value, order, generator)
    got = derivatives(function, operands, [[t.to(device) for t in d] for d in directions])
    calls = runtime.take()
    note_tables(runtime, plan, value.dtype, calls)
    wide = [[t.double() for t in tensors] for tensors in (host, *directions)]
    for k, (results, expected) in enumerate(zip(got, derivatives(truth, wide[0], wide[1:]), strict=True)):
        for result, want in zip(results, expected, strict=True):
            assert_close(result.cpu(), want, k)
    return calls


def check(runtime, member, plan, v, t, wanted=(True,) * 4):
    """Calls a member and compares each byte of what it launches, and all that it allocates, with the problem's."""
    device, dtype, rows = v[0].device.index, v[0].dtype, v[0].shape[0]
    before = OPS.device()
    runtime.take(), stub_cuda.allocated()
    results = run(member, plan, v, t, wanted)
    calls, blocks = runtime.take(), stub_cuda.allocated()
    assert OPS.device() == before
    assert all(c.device == device and c.error == 0 for c in calls)
    assert all(on == device for _, _, on in blocks)
    assert all(r is None or r.device == v[0].device for r in results)

    shared = plan.weights == "shared"
    copies = iter(blocks)
    copied = []

    def operand(slot, tensor):
        """Address and stride: the tensor's own, or of its copy where the columns of a row are not adjacent."""
        if tensor is None or (slot == 2 and plan.weights == "none"):
            return 0, 0
        if tensor.numel() == 0 or tensor.shape[-1] == 1 or tensor.stride(-1) == 1:
            address, stride = tensor.data_ptr(), tensor.stride(0)
        else:
            address, size, _ = next(copies)
            assert size == tensor.numel() * tensor.element_size()
            copied.append(size)
            stride = tensor.shape[-1]
        return address, 0 if slot == 2 and shared else stride

    # Forward and jvp take no g.
    with_g = "backward" in member
    values = [operand(s, v[s] if s < 3 or with_g else None) for s in SLOTS]
    tangents = [operand(s, t[s] if t and (s < 3 or with_g) else None) for s in SLOTS]
    addresses = [0 if r is None or r.numel() == 0 else r.data_ptr() for r in results]
    problem = runtime.bindings.Problem(
        str(plan),
        name(dtype),
        rows,
        t is not None,
        [a for a, _ in values],
        [a for a, _ in tangents],
        [s for _, s in values],
        addresses,
        [s for _, s in tangents],
    )
    own = [r.numel() * r.element_size() for r in results if r is not None and r.numel()]
    scratch = [problem.scratch_bytes] if problem.scratch_bytes else []
    assert [size for _, size, _ in blocks] == copied + own + scratch

    key = str(plan), dtype == torch.float64, device
    allocated = [c.details["size"] for c in calls if c.name == "cudaMalloc"]
    # Their contents, which differ in padding, are read where the launches are executed.
    assert allocated == ([] if key in runtime.tables else [len(problem.tables())])
    note_tables(runtime, plan, dtype, calls)
    address = runtime.tables[key]
    assert launches(calls) == problem.launches(address, blocks[-1][0] if scratch else 0)
    for call in calls[len(calls) - len(launches(calls)) :]:
        assert call.name in ("cudaLaunchKernel", "cudaFuncSetAttribute")
    return results, calls


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_launches(runtime, case, generator):
    for dtype in DTYPES:
        v = draw(case.plan, case.rows, dtype, generator)
        t = draw(case.plan, case.rows, dtype, generator)
        for member in MEMBERS:
            check(runtime, member, case.plan, v, t if member in ("jvp", "double_backward") else None)


@pytest.mark.parametrize("plan", [BY_CHANNELS, GENERAL, SHARED], ids=["channels", "general", "shared"])
@pytest.mark.parametrize("member", ["backward", "double_backward"])
def test_only_what_is_wanted(runtime, plan, member, generator):
    """Each subset of results and of tangents."""
    v, t = (draw(plan, 5, torch.float32, generator) for _ in range(2))
    for number in range(16):
        subset = [bool(number >> slot & 1) for slot in SLOTS]
        some = [a if keep else None for a, keep in zip(t, reversed(subset), strict=True)]
        results, calls = check(runtime, member, plan, v, some if member == "double_backward" else None, subset)
        for result, want in zip(results, subset, strict=True):
            assert result is None or (result.numel() > 0) == want
        assert bool(launches(calls)) == any(subset[: 3 + (member == "double_backward")])


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("device", [0, 1])
def test_streams_and_devices(runtime, device, current):
    """The stream is torch's current one of the tensor's device, whatever the current device is."""
    plan = eqk.Plan("2x0e", "1x1o", "2x1o", ((0, 0, 0, "uvu", True, 1.5 + device + 2 * current),))
    OPS.set_device(current)
    try:
        for number in (0, 1, 2):
            streams = {d: stream(d, number) if number else 0 for d in (0, 1)}
            for d, s in streams.items():
                OPS.set_stream(d, s)
            v = draw(plan, 4, torch.float32, torch.Generator(), f"cuda:{device}")
            for member in MEMBERS:
                calls = check(runtime, member, plan, v, v if member in ("jvp", "double_backward") else None)[1]
                assert {c.details["stream"] for c in calls if c.name == "cudaLaunchKernel"} == {streams[device]}
                others = {c.details["stream"] for c in calls if c.name == "cudaMemcpyAsync"}
                assert others.isdisjoint({*streams.values(), 0})
    finally:
        OPS.set_device(0)


def test_tables_of_a_plan(runtime, generator):
    """Once a plan, kind of dtype and device, complete before the first launch, on a stream that blocks no other."""
    plan = eqk.Plan("2x0e", "1x1o", "2x1o", ((0, 0, 0, "uvu", True, 0.7),))
    copied = []
    for device in ("cuda:0", "cuda:1", "cuda:0"):
        for dtype in DTYPES:
            v = draw(plan, 3, dtype, generator, device)
            calls = check(runtime, "forward", plan, v, None)[1]
            copied += [(device, dtype) for c in calls if c.name == "cudaMemcpyAsync"]
            order = [c.name for c in calls]
            if "cudaMalloc" in order:
                assert order == [
                    "cudaThreadExchangeStreamCaptureMode",
                    "cudaMalloc",
                    "cudaStreamCreateWithFlags",
                    "cudaMemcpyAsync",
                    "cudaStreamSynchronize",
                    "cudaStreamDestroy",
                    "cudaThreadExchangeStreamCaptureMode",
                    "cudaLaunchKernel",
                ]
                assert calls[2].details["flags"] == stub_cuda.NON_BLOCKING
    # 16-bit types have float32's.
    assert copied == [(device, dtype) for device in ("cuda:0", "cuda:1") for dtype in (torch.float32, torch.float64)]


def test_threads(runtime):
    """First calls of one plan at once: one copy of the tables is kept for each device, each thread on its own stream."""
    plan = eqk.Plan("3x0e", "1x1o", "3x1o", ((0, 0, 0, "uvu", True, 0.3),))
    barrier, seen = threading.Barrier(8), []

    def call(n):
        device = n % 2
        v = draw(plan, 3, torch.float32, torch.Generator(), f"cuda:{device}")
        OPS.set_stream(device, stream(device, n))
        barrier.wait()
        run("forward", plan, v, None)
        seen.append((device, stream(device, n)))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls, kept = runtime.take(), {}
    for c in calls:
        if c.name == "cudaMalloc":
            kept[c.details["address"]] = c
        elif c.name == "cudaFree":  # where another thread was faster
            assert kept.pop(c.details["address"]).device == c.device
    note_tables(runtime, plan, torch.float32, kept.values())
    assert sorted(c.device for c in kept.values()) == [0, 1]
    assert sorted((c.device, c.details["stream"]) for c in calls if c.name == "cudaLaunchKernel") == sorted(seen)


def test_first_call_in_a_capture(runtime, generator):
    """While a stream is captured, CUDA refuses memory to a thread that did not ask for the relaxed mode."""
    plan = eqk.Plan("2x0e", "1x1o", "2x1o", ((0, 0, 0, "uvu", True, 0.9),))
    v = draw(plan, 3, torch.float32, generator)
    runtime.capturing = True
    calls = check(runtime, "forward", plan, v, None)[1]
    assert [c.details["mode"] for c in calls if "Capture" in c.name] == [stub_cuda.RELAXED, 0]


# Operations of torch that wait for the device, or read it from the host, in CUDA's implementation.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::unique_dim", "aten::_unique2", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave",
    "aten::histc", "aten::copy_ between devices",
}  # fmt: skip


def captured(runtime, function, device):
    """What ``function`` would leave in a CUDA graph: its launches, with the operations of torch.

    Fails where a capture would, or would record what cannot be replayed: a call of the runtime beyond
    those that a capture allows in any mode, a launch on any stream but the captured one, an operation of torch that waits for the device.
    """
    of_graph = stream(device, 7)
    runtime.take(), OPS.operations(), stub_cuda.allocated()
    OPS.set_stream(device, of_graph)
    runtime.capturing = True
    try:
        function()
    finally:
        runtime.capturing = False
        OPS.set_stream(device, 0)
        calls, operations, blocks = runtime.take(), OPS.operations(), stub_cuda.allocated()
    refused = {c.name for c in calls} - stub_cuda.HARMLESS
    assert not refused, f"a graph cannot hold {refused}"
    assert not WAITING & set(operations), f"the host waits in {WAITING & set(operations)}"
    launched = launches(calls)
    streams = {c.details["stream"] for c in calls if c.name == "cudaLaunchKernel"}
    assert streams <= {of_graph}, f"launches are on streams {streams}, not on that of the capture"
    ranges = [(address, size) for address, size, _ in blocks]
    return launched, operations, ranges + stub_cuda.live()


def assert_same_graph(a, b):
    """But for where tensors lie, which an allocator of graphs holds fast: each word of an argument that is no address."""
    for n, (one, two) in enumerate(zip(a[0], b[0], strict=True)):
        assert {**one, "argument": None} == {**two, "argument": None}
        words = [memoryview(launch["argument"]).cast("Q") for launch in (one, two)]
        for word, other in zip(*words, strict=True):
            addresses = [any(p <= w < p + size for p, size in g[2]) for w, g in ((word, a), (other, b))]
            assert word == other or all(addresses), (n, one["name"], hex(word), hex(other))
    assert a[1] == b[1]


def all_orders(function, operands):
    """Value, gradients, and gradients of these, as a training step on forces has them."""
    inputs = [t.detach().requires_grad_() for t in operands]
    out = function(*inputs)
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    torch.autograd.grad(sum(t.sin().sum() for t in first), inputs)


def of_its_own(plan):
    """As ``plan``, but no other test's, which would count its tables."""
    return dataclasses.replace(
        plan, instructions=[i._replace(coefficient=i.coefficient / 3) for i in plan.instructions]
    )


def of_product(plan, dtype=torch.float32):
    plan = of_its_own(plan)
    return lambda g: (draw(plan, 5, dtype, g)[:3], lambda *t: eqk.tensor_product(*t, plan))


def of_graph(function, given, hidden=0):
    """Of a convolution, whose edges are others each time, with their orders or without."""
    plan = of_its_own(CASES["depthwise-5"].plan)

    def make(g):
        (x, y, w), src, dst = edges_of(plan, 9, 3, 4, torch.float32, g, "cuda:0")
        shapes = [(9, hidden), (hidden, plan.weight_numel)] if hidden else []
        operands = [x, y, *((torch.randn(s, generator=g).to("cuda:0") for s in shapes) if hidden else [w])]
        orders = [n.cpu().argsort(stable=True).to("cuda:0") if given else None for n in (dst, src)]
        orders = dict(zip(("by_dst", "by_src"), orders, strict=True))
        return operands, lambda *t: function(*t, src, dst, 4, plan, **orders)

    return make


def of_signals(plan, weighted=False):
    def make(g):
        x, y, *weights = gaunt_operands(plan, 4, (weighted,) * 3, torch.float32, g, "cuda:0")[:5]
        weights = weights if weighted else []
        return [x, y, *weights], lambda x, y, *w: EQK.gaunt_product(x, y, *(w or [None] * 3), str(plan))

    return make


GRAPHS = {
    "channels": of_product(BY_CHANNELS),
    "64 KiB of shared memory": of_product(CASES["even-parity"].plan),
    "general": of_product(GENERAL),
    "shared weights": of_product(SHARED),
    "float64": of_product(BY_CHANNELS, torch.float64),
    "convolution": of_graph(eqk.tensor_product_conv, False),
    "convolution in order": of_graph(eqk.tensor_product_conv, True),
    "radial convolution": of_graph(eqk.tensor_product_conv_radial, False, 8),
    "radial convolution in order": of_graph(eqk.tensor_product_conv_radial, True, 8),
    "product of signals": of_signals(GauntPlan.normalized(2, 2, 2, 3, 3, "all", "component")),
    "product of signals by a grid": of_signals(GAUNTS["all"], True),
    "wigner": lambda g: ([torch.randn(5, 4, generator=g).to("cuda:0")], lambda q: eqk.wigner(q, 3, 2)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_capture(runtime, name, generator):
    """Value, backward and double backward after a warm-up: one graph for numbers, and edges, of any kind."""
    make, graphs = GRAPHS[name], []
    runtime.execute = "radial" in name  # torch's operations index by what a kernel writes
    all_orders(*reversed(make(generator)))
    note_all_tables(runtime, runtime.take())
    for _ in range(2):
        operands, function = make(generator)
        graphs.append(captured(runtime, lambda f=function, t=operands: all_orders(f, t), 0))
    assert_same_graph(*graphs)
    assert bool(graphs[0][0]) == ("by a grid" not in name)
    gaunt_grid._grids.cache_clear()


def test_what_a_capture_refuses(runtime, generator):
    """Planted: each is found that a capture on a GPU would not survive, or that would be replayed wrong."""
    (x, y, w), product = of_product(BY_CHANNELS)(generator)
    product(x, y, w)
    note_all_tables(runtime, runtime.take())

    def with_another_stream():
        OPS.set_stream(0, stream(0, 3))
        product(x, y, w)

    fresh = eqk.Plan("2x0e", "1x1o", "2x1o", ((0, 0, 0, "uvu", True, 0.123),))
    v = draw(fresh, 3, torch.float32, generator)
    for fault, message in (
        (lambda: product(x, y, w).sum().item(), "host waits in .*_local_scalar_dense"),
        (lambda: product(x, y, w).tolist(), "host waits in .*copy_ between devices"),
        (lambda: bool(product(x, y, w).sum() > 0), "host waits"),
        (lambda: product(x, y, w)[x[:, 0] > 0], "host waits in .*nonzero"),
        (lambda: product(x, y, w) + torch.zeros(5, 1).to("cuda:0"), "host waits in .*copy_ between devices"),
        (lambda: eqk.tensor_product(*v[:3], fresh), "a graph cannot hold .*cudaStreamSynchronize"),
        (with_another_stream, "not on that of the capture"),
    ):
        with pytest.raises(AssertionError, match=message):
            captured(runtime, fault, 0)
    runtime.tables.update({address: address for address in runtime.memory.keys() - set(runtime.tables.values())})
    graphs = [captured(runtime, lambda n=n: product(x[:n], y[:n], w[:n]), 0) for n in (5, 4)]
    with pytest.raises(AssertionError):
        assert_same_graph(*graphs)


@pytest.mark.parametrize("plan", [BY_CHANNELS, GENERAL, SHARED], ids=["channels", "general", "shared"])
def test_no_rows(runtime, plan, generator):
    """Nothing is launched but the sum over no rows, which is the gradient of shared weights."""
    v = draw(plan, 0, torch.float32, generator)
    for member in MEMBERS:
        runtime.execute = True
        results, calls = check(runtime, member, plan, v, v if member in ("jvp", "double_backward") else None)
        sums = plan is SHARED and "backward" in member
        assert len(launches(calls)) == 2 * sums
        shapes = [t.shape for t in v]
        assert all(r is None or r.shape == shape for r, shape in zip(results, shapes, strict=True))
        if sums:
            assert torch.equal(results[2].cpu(), torch.zeros(plan.weight_numel))


@pytest.mark.parametrize("name", ["empty-in1", "empty-in2", "empty-out", "empty-all", "no-instructions"])
def test_no_columns(runtime, name, generator):
    plan = CASES[name].plan
    v = draw(plan, 4, torch.float32, generator)
    runtime.execute = True
    for member in MEMBERS:
        results = check(runtime, member, plan, v, v if member in ("jvp", "double_backward") else None)[0]
        for result, like in zip(results, v, strict=True):
            assert result is None or like is None or torch.equal(result.cpu(), torch.zeros(like.shape))


def transposed(t):
    return t.T.contiguous().T


def of_wider_rows(t):
    wide = t.new_zeros(t.shape[0], t.shape[1] + 3)
    wide[:, 2:-1] = t
    return wide[:, 2:-1]


def misaligned(t):
    flat = t.new_zeros(t.numel() + 1)
    flat[1:] = t.flatten()
    return flat[1:].view(t.shape)


def every_second_row(t):
    return torch.stack((t, -t), 1).flatten(0, 1)[::2]


def one_row_for_all(t):
    return t[:1].expand_as(t)


def one_column_for_all(t):
    return t[:, :1].expand_as(t)


@pytest.mark.parametrize(
    "change", [transposed, of_wider_rows, misaligned, every_second_row, one_row_for_all, one_column_for_all]
)
def test_strides(runtime, change, generator):
    """Rows of any stride are read where they lie, rows whose columns are apart are copied."""
    plan = BY_CHANNELS
    v, t = (draw(plan, 3, torch.float32, generator) for _ in range(2))
    for slots in ((0,), (1,), (2,), (3,), SLOTS):
        runtime.execute = slots is SLOTS
        host = [[change(a.cpu()) if s in slots else a.cpu() for s, a in enumerate(group)] for group in (v, t)]
        moved = [[on_device(a) for a in group] for group in host]
        assert all(a.stride() == b.stride() for a, b in zip(host[0] + host[1], moved[0] + moved[1], strict=True))
        for member in ("backward", "double_backward"):
            results, _ = check(runtime, member, plan, moved[0], moved[1] if member == "double_backward" else None)
            if not runtime.execute:
                continue
            expected = run(member, plan, [a.double() for a in host[0]], [a.double() for a in host[1]])
            for result, truth in zip(results, expected, strict=True):
                if result is not None:
                    assert_close(result.cpu(), truth, 1 + (member != "backward"))


def on_device(t, device="cuda:0"):
    """With the strides and the offset of ``t``."""
    storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    return storage.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


NAMES = ("x", "y", "w", "g", "tangent of x", "tangent of y", "tangent of w", "tangent of g")


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
@pytest.mark.parametrize("n", range(1, 8))
def test_two_devices(runtime, n, device, generator):
    v = draw(GENERAL, 3, torch.float32, generator) + draw(GENERAL, 3, torch.float32, generator)
    v[n] = v[n].to(device)
    message = f"eqk::tensor_product_double_backward: {NAMES[n]}: expected device cuda:0 as x has, got {device}$"
    with pytest.raises(RuntimeError, match=message):
        run("double_backward", GENERAL, v[:4], v[4:])
    assert not launches(runtime.take())


def test_x_on_another_device(runtime, generator):
    for device in ("cpu", "cuda:1"):
        v = draw(GENERAL, 3, torch.float32, generator)
        v[0] = v[0].to(device)
        with pytest.raises(RuntimeError, match=f"y: expected device {device} as x has, got cuda:0"):
            eqk.tensor_product(*v[:3], GENERAL)
        assert not launches(runtime.take())


@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("how", ["columns", "dimensions", "dtype", "rows"])
def test_operands_that_do_not_fit(runtime, n, how, generator):
    v = draw(GENERAL, 3, torch.float32, generator) + draw(GENERAL, 3, torch.float32, generator)
    v[n] = {"columns": v[n][:, 1:], "dimensions": v[n][None], "dtype": v[n].double(), "rows": v[n][1:]}[how]
    named = "[xyw]" if n == 0 else NAMES[n]
    with pytest.raises(RuntimeError, match=f"eqk::tensor_product_double_backward: {named}: expected"):
        run("double_backward", GENERAL, v[:4], v[4:])
    assert not runtime.take()


STEPS = {
    "cudaThreadExchangeStreamCaptureMode": "capture mode",
    "cudaMalloc": "tables of the plan",
    "cudaStreamCreateWithFlags": "stream for the tables of the plan",
    "cudaMemcpyAsync": "copying the tables of the plan",
    "cudaStreamSynchronize": "copying the tables of the plan",
    "cudaLaunchKernel": "eqk_tensor_product_forward_f32_l3",
}
ERRORS = {
    stub_cuda.MEMORY_ALLOCATION: "out of memory",
    stub_cuda.INSUFFICIENT_DRIVER: "CUDA driver version is insufficient for CUDA runtime version",
    stub_cuda.NO_DEVICE: "no CUDA-capable device is detected",
    stub_cuda.NO_KERNEL_IMAGE: "no kernel image is available for execution on the device",
    stub_cuda.LAUNCH_FAILURE: "unspecified launch failure",
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("function", STEPS)
def test_errors_of_the_runtime(runtime, function, error, generator):
    """Each names its step; memory, streams, the mode and the device are given back, and the next call runs."""
    number = list(STEPS).index(function) * len(ERRORS) + list(ERRORS).index(error)
    plan = eqk.Plan("2x0e", "1x1o", "2x1o", ((0, 0, 0, "uvu", True, 1 + number / 64),))
    v = draw(plan, 3, torch.float32, generator, "cuda:1")
    runtime.faults[function] = error
    with pytest.raises(RuntimeError, match=f"eqk::tensor_product: {STEPS[function]}: {ERRORS[error]}$"):
        run("forward", plan, v, None)
    assert OPS.device() == 0
    calls = runtime.take()
    assert [c.name for c in calls if c.error] == [function]
    if function == "cudaLaunchKernel":
        note_tables(runtime, plan, torch.float32, calls)
    runtime.execute = True
    results = check(runtime, "forward", plan, v, None)[0]
    assert_close(results[3].cpu(), reference.tensor_product(*(t.cpu().double() for t in v[:3]), plan))


def test_without_a_driver(runtime):
    """The library's own CUDA runtime, before it was replaced."""
    step, reason = runtime.without_driver.removeprefix("eqk::tensor_product: ").split(": ")
    assert step == "capture mode"
    assert reason in (ERRORS[stub_cuda.INSUFFICIENT_DRIVER], ERRORS[stub_cuda.NO_DEVICE])


def test_more_than_48_kib_of_shared_memory(runtime, generator):
    """CUDA refuses such a launch on a device where the kernel was not allowed it."""
    plan = CASES["even-parity"].plan
    asked = []
    for device in (0, 1):
        v, t = (draw(plan, 3, torch.float32, generator, f"cuda:{device}") for _ in range(2))
        for member in MEMBERS:
            calls = check(runtime, member, plan, v, t if member in ("jvp", "double_backward") else None)[1]
            for before, call in itertools.pairwise(calls):
                if call.name == "cudaLaunchKernel" and call.details["shared"] > 48 << 10:
                    kernel, shared = call.details["name"], call.details["shared"]
                    attribute = stub_cuda.MAX_DYNAMIC_SHARED_MEMORY
                    assert before.details == {"kernel": kernel, "attribute": attribute, "value": shared}
                    asked.append(member)
    assert asked
    runtime.faults["cudaFuncSetAttribute"] = stub_cuda.INVALID_VALUE
    with pytest.raises(RuntimeError, match=r"eqk_tensor_product_\w+: invalid argument$"):
        run(asked[0], plan, v, t)


def test_dispatch(runtime, generator, monkeypatch):
    v = draw(BY_CHANNELS, 3, torch.float32, generator, "cuda:1")
    explained = dispatch.explain("tensor_product", *v)
    assert explained.startswith("eqk::tensor_product on cuda:1")
    assert "cuda: can run" in explained
    assert explained.endswith("-> cuda")
    check(runtime, "forward", BY_CHANNELS, v, None)
    out = eqk.tensor_product(*v[:3], BY_CHANNELS)
    assert out.device == v[0].device
    assert [launch["name"] for launch in launches(runtime.take())] == ["eqk_tensor_product_forward_f32_l3"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0) if device == 1 else (9, 0))
    dispatch._device_reason.cache_clear()
    assert "cuda: the GPU has compute capability 7.0" in dispatch.explain("tensor_product", *v)
    assert dispatch.choose("tensor_product", torch.device("cuda:0")) == "cuda"
    dispatch._device_reason.cache_clear()


def chosen(runtime, plan, rows, tangents, wanted):
    """What the launches of a problem are, but for addresses."""
    anywhere = lambda on: [0x1000 * (s + 1) * bool(on[s]) for s in SLOTS]  # noqa: E731
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    with_g = any(wanted[:3])
    problem = runtime.bindings.Problem(
        str(plan),
        "float32",
        rows,
        any(tangents),
        anywhere([1, 1, 1, with_g]),
        anywhere(tangents),
        columns,
        anywhere(wanted),
    )
    return [{**launch, "argument": None} for launch in problem.launches(0x1000, 0x1000)]


@pytest.mark.parametrize("plan", [BY_CHANNELS, SHARED], ids=["channels", "shared"])
@pytest.mark.parametrize("number", range(1, 8))
def test_autograd(runtime, plan, number, generator):
    """Each order launches what the gradients that were asked for take, on the forward's stream, and has the numbers."""
    runtime.execute = True
    wanted = [bool(number >> slot & 1) for slot in range(3)]
    v, t = (draw(plan, 3, torch.float32, generator, "cuda:1") for _ in range(2))
    directions = [a for a, want in zip(t, wanted, strict=False) if want]
    OPS.set_stream(1, stream(1, number))

    def orders(product, v, directions, after=lambda: None):
        v = [a.detach().requires_grad_(want) for a, want in zip(v, (*wanted, True), strict=True)]
        asked = [a for a, want in zip(v, wanted, strict=False) if want]
        out = product(*v[:3], plan)
        after()
        first = torch.autograd.grad(out, asked, v[3], create_graph=True)
        after()
        second = torch.autograd.grad(first, (*asked, v[3]), directions, materialize_grads=True)
        after()
        return [(out.detach(),), [a.detach() for a in first], second]

    taken = []
    got = orders(eqk.tensor_product, v, directions, lambda: taken.append(runtime.take()))
    for calls in taken:
        note_tables(runtime, plan, torch.float32, calls)
    nothing, out = [False] * 4, [False] * 3 + [True]
    # A gradient does not depend on the slot it is of.
    again = [want and sum(wanted) > 1 for want in wanted]
    expected = [(nothing, out), (nothing, [*wanted, False]), ([*wanted, False], [*again, True])]
    for calls, (tangents, results) in zip(taken, expected, strict=True):
        found = [{**launch, "argument": None} for launch in launches(calls)]
        assert found == chosen(runtime, plan, 3, tangents, results)
        assert {(c.device, c.details["stream"]) for c in calls if c.name == "cudaLaunchKernel"} == {
            (1, stream(1, number))
        }
    host = [[a.cpu().double() for a in group] for group in (v, directions)]
    for order, (results, truths) in enumerate(zip(got, orders(reference.tensor_product, *host), strict=True)):
        for result, truth in zip(results, truths, strict=True):
            assert result.device == v[0].device
            assert_close(result.cpu(), truth, order)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*itertools.product(["depthwise-3"], DTYPES[:2]), *itertools.product(["uuw-shared"], DTYPES)],
    ids=str,
)
def test_numbers(runtime, name, dtype, generator):
    """The whole chain, to third order: eqk.tensor_product of CUDA tensors, each launch executed, is the reference."""
    plan = CASES[name].plan
    runtime.execute = True
    operands = [(t / t.abs().max()).to("cuda:0") for t in random_operands(plan, 2, dtype, generator)]
    check_chain(
        runtime, plan, lambda *t: eqk.tensor_product(*t, plan), lambda *t: reference.tensor_product(*t, plan),
        operands, (2, plan.irreps_out.dim), 3, generator,
    )  # fmt: skip


def edges_of(plan, edges, num_src, num_dst, dtype, generator, device="cuda:1"):
    """Operands of the convolution in no order, scaled to 1."""
    _, y, w = random_operands(plan, edges, dtype, generator)
    x, _, _ = random_operands(plan, num_src, dtype, generator)
    indices = (torch.randint(n, (edges,), generator=generator).to(device) for n in (num_src, num_dst))
    return [None if t is None else (t / t.abs().max()).to(device) for t in (x, y, w)], *indices


SHARED_WEIGHTS = eqk.Plan("4x0e", "1x0e", "4x0e", ((0, 0, 0, "uvu", True, 0.7),), weights="shared")


@pytest.mark.parametrize(
    ("plan", "dtype", "capability", "by_kernels"),
    [
        (CASES["depthwise-5"].plan, torch.float32, 9, {"forward", "backward", "backward_dual"}),
        (CASES["depthwise-5"].plan, torch.float32, 7, set()),
        (CASES["depthwise-3"].plan, torch.float64, 9, set()),
        (CASES["depthwise-3"].plan, torch.bfloat16, 9, set()),
        (CASES["uuw-shared"].plan, torch.float32, 9, set()),
        (SHARED_WEIGHTS, torch.float32, 9, {"forward"}),
    ],
    ids=["float32", "before sm_80", "float64", "bfloat16", "mode", "shared weights"],
)
def test_convolution(runtime, plan, dtype, capability, by_kernels, generator):
    """The whole chain to third order, by kernels of its own or, what they do not cover, by torch operations."""
    runtime.execute, runtime.capability = True, capability
    operands, src, dst = edges_of(plan, 7, 3, 4, dtype, generator)
    OPS.set_stream(1, stream(1, 1))
    try:
        calls = check_chain(
            runtime, plan, lambda *t: eqk.tensor_product_conv(*t, src, dst, 4, plan),
            lambda *t: reference.tensor_product_conv(*t, src.cpu(), dst.cpu(), 4, str(plan)), operands,
            (4, plan.irreps_out.dim), 3, generator,
        )  # fmt: skip
    finally:
        runtime.capability = 9
    launched = [c for c in calls if c.name == "cudaLaunchKernel"]
    assert {(c.device, c.details["stream"]) for c in launched} == {(1, stream(1, 1))}
    names = {c.details["name"] for c in launched}
    for member in ("forward", "backward", "backward_dual"):
        assert (f"eqk_tensor_product_conv_{member}_f32" in names) == (member in by_kernels)
    by_messages = any("_conv_" not in n for n in names)
    assert by_messages == ("backward_dual" not in by_kernels)


def test_launches_of_the_convolution(runtime, generator):
    """Each byte of them, for either width of indices, the order given or found; what is allocated; jvp; no edges."""
    plan = CASES["even-parity"].plan
    for edges, kind, given in ((9, torch.int64, True), (9, torch.int32, False), (0, torch.int64, False)):
        operands, src, dst = edges_of(plan, edges, 3, 4, torch.float32, generator) if edges else (
            [t[: 3 if n == 0 else 0].to("cuda:1") for n, t in enumerate(random_operands(plan, 3, torch.float32, generator))],
            *(torch.empty(0, dtype=kind, device="cuda:1") for _ in range(2)),
        )  # fmt: skip
        src, dst = src.to(kind), dst.to(kind)
        by_dst, by_src = (n.cpu().argsort(stable=True).to("cuda:1", kind) if given else None for n in (dst, src))
        g = torch.randn(4, plan.irreps_out.dim, generator=generator).to("cuda:1")
        rest = (src, dst, 4, str(plan), by_dst, by_src)
        for member, wanted in (
            ("forward", OUTPUT), ("jvp", OUTPUT), ("backward", GRADIENTS), ("backward", (False, True, True, False)),
            ("double_backward", (True,) * 4),
        ):  # fmt: skip
            v, dual = [*operands, g if "backward" in member else None], member in ("jvp", "double_backward")
            t = v if dual else [None] * 4
            runtime.take(), stub_cuda.allocated()
            if member == "forward":
                results = [None] * 3 + [EQK.tensor_product_conv(*v[:3], *rest)]
            elif member == "jvp":
                results = [None] * 3 + [EQK.tensor_product_conv_jvp(*v[:3], *t[:3], *rest)]
            elif member == "backward":
                results = [*EQK.tensor_product_conv_backward(*v, *rest, wanted[:3]), None]
            else:
                results = EQK.tensor_product_conv_double_backward(*v, *t, *rest, wanted)
            calls, blocks = runtime.take(), stub_cuda.allocated()
            assert all(on == 1 for _, _, on in blocks)
            # Without orders: the sorted indices and, as int64, their order, that of dst first.
            found = [blocks[-4 if wanted[0] else -2][0], blocks[-2][0]] if edges else [0, 0]
            orders = (
                [(t.data_ptr(), 1, kind.itemsize) for t in (by_dst, by_src)] if given else [(n, 1, 8) for n in found]
            )
            orders = [orders[0], orders[1] if wanted[0] else (0, 0, 0)]
            indices = [(src.data_ptr(), 1, kind.itemsize), (dst.data_ptr(), 1, kind.itemsize), *orders]
            address = lambda t: 0 if t is None else t.data_ptr()  # noqa: E731
            strides = [0 if a is None else a.stride(0) for a in v]
            problem = runtime.bindings.Convolution(
                str(plan), "float32", (edges, 3, 4), indices, dual, [address(a) for a in v], [address(a) for a in t],
                strides, [address(r) if want else 0 for r, want in zip(results, wanted, strict=True)],
                strides if dual else [0] * 4,
            )  # fmt: skip
            assert problem.covered
            assert blocks[-1][1] == problem.scratch_bytes
            expected = problem.launches(blocks[-1][0])
            executed = launches(calls)
            assert [launch["name"] for launch in executed] == [launch["name"] for launch in expected]
            assert executed == expected


def test_convolution_without_destinations(runtime, generator):
    """Gradients of the sources are zeros, of shared weights too, which have no other part in the results."""
    runtime.execute = True
    for plan in (CASES["depthwise-5"].plan, SHARED_WEIGHTS):
        x, y, w = random_operands(plan, 3, torch.float32, generator)
        w = w if plan.weights == "shared" else w[:0]
        none = torch.empty(0, dtype=torch.int64, device="cuda:1")
        g = torch.empty(0, plan.irreps_out.dim, device="cuda:1")
        operands = [t.to("cuda:1") for t in (x, y[:0], w)]
        gx, gy, gw = EQK.tensor_product_conv_backward(*operands, g, none, none, 0, str(plan), None, None, (True,) * 3)
        note_tables(runtime, plan, torch.float32, runtime.take())
        assert [t.shape for t in (gx, gy, gw)] == [t.shape for t in operands]
        assert not gx.cpu().any()
        assert not gw.cpu().any()


@pytest.fixture
def high_precision():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def radial_operands(plan, edges, hidden, dtype, generator):
    (x, y, _), src, dst = edges_of(plan, edges, 3, 4, dtype, generator)
    shapes = (edges, hidden), (hidden, plan.weight_numel)
    return [x, y, *((torch.rand(s, generator=generator) - 0.5).to("cuda:1", dtype) for s in shapes)], src, dst


@pytest.mark.parametrize(
    ("hidden", "dtype", "capability", "by_kernels"),
    [(8, torch.float32, 9, True), (8, torch.float32, 7, False), (8, torch.float64, 9, False), (4000, torch.float32, 9, False)],
    ids=["float32", "before sm_80", "float64", "many features"],
)  # fmt: skip
def test_radial_convolution(runtime, hidden, dtype, capability, by_kernels, generator):
    """The whole chain to second order, whose forward has a kernel of its own where that covers it."""
    plan = CASES["depthwise-5"].plan
    runtime.execute, runtime.capability = True, capability
    operands, src, dst = radial_operands(plan, 7, hidden, dtype, generator)

    def truth(x, y, h, a):
        return reference.tensor_product_conv(x, y, h @ a, src.cpu(), dst.cpu(), 4, str(plan))

    try:
        calls = check_chain(
            runtime, plan, lambda *t: eqk.tensor_product_conv_radial(*t, src, dst, 4, plan), truth, operands,
            (4, plan.irreps_out.dim), 2, generator,
        )  # fmt: skip
    finally:
        runtime.capability = 9
    names = [launch["name"] for launch in launches(calls)]
    assert ("eqk_tensor_product_conv_radial_f32" in names) == by_kernels
    assert "eqk_tensor_product_conv_radial_bf16x3" not in names


@pytest.mark.parametrize("edges", [9, 0])
@pytest.mark.parametrize("exact", [True, False])
def test_launches_of_the_radial_convolution(runtime, exact, edges, generator, request):
    """Each byte of them, at the precision that torch was asked for, of matrix products as a whole or of CUDA's."""
    plan = CASES["depthwise-5"].plan
    operands, src, dst = radial_operands(plan, 9, 16, torch.float32, generator)
    operands, src, dst = [t[:edges] if n in (1, 2) else t for n, t in enumerate(operands)], src[:edges], dst[:edges]
    by_dst = dst.cpu().argsort(stable=True).to("cuda:1")
    if not exact:
        request.getfixturevalue("high_precision")
    runtime.take(), stub_cuda.allocated()
    out = EQK.tensor_product_conv_radial(*operands, src, dst, 4, str(plan), by_dst, None)
    calls, blocks = runtime.take(), stub_cuda.allocated()
    indices = [*((i.data_ptr(), 1, 8) for i in (src, dst, by_dst)), (0, 0, 0)]
    addresses, strides = [t.data_ptr() for t in operands], [t.stride(0) for t in operands]
    problem = runtime.bindings.RadialConvolution(
        str(plan), (edges, 3, 4, 16), indices, addresses, strides, out.data_ptr(), exact, H100
    )
    assert problem.covered
    assert blocks[-1][1] == problem.scratch_bytes
    expected = problem.launches(blocks[-1][0])
    assert launches(calls) == expected
    precision = "f32" if exact else "bf16x3"
    of_edges, *of_units = (launch["name"].removeprefix("eqk_tensor_product_conv_radial_") for launch in expected[1:])
    assert of_edges == f"edges_{precision}"
    assert set(of_units) == {precision}


def radial_truth(plan, src, dst, num_dst, v, t):
    """Gradients of x, y, h, a, g, or with tangents the derivatives of those along them, in float64."""
    v = [a.cpu().double().requires_grad_() for a in v]

    def gradients(scalar, **how):
        if not isinstance(scalar, torch.Tensor) or not scalar.requires_grad:
            return [torch.zeros_like(a) for a in v]
        return torch.autograd.grad(scalar, v, materialize_grads=True, **how)

    x, y, h, a, g = v
    out = reference.tensor_product_conv(x, y, h @ a, src.cpu(), dst.cpu(), num_dst, str(plan))
    first = gradients((out * g).sum(), create_graph=t is not None)
    if t is None:
        return first
    return gradients(sum((d * b.cpu().double()).sum() for d, b in zip(first, t, strict=True) if b is not None))


@pytest.mark.parametrize(
    ("of_part", "hidden", "kind", "given"),
    [(4, 7, torch.int32, True), (5, 0, torch.int64, False), (1000, 9, torch.int64, False)],
)
def test_gradients_of_the_radial_convolution(runtime, monkeypatch, of_part, hidden, kind, given, generator):
    """In parts of so many edges: the numbers, whatever is missing and wanted; the same bits twice; no weights of all."""
    plan = CASES["depthwise-5"].plan
    edges, num_dst = 11, 7
    (x, y, _), src, dst = edges_of(plan, edges, 5, num_dst - 2, torch.float32, generator)  # the last two are alone
    dst = torch.where(dst == 1, 2, dst)
    shapes = (edges, hidden), (hidden, plan.weight_numel), (num_dst, plan.irreps_out.dim)
    h, a, g = ((torch.rand(s, generator=generator) - 0.5).to("cuda:1") for s in shapes)
    wide = (torch.rand(edges, 2 * hidden, generator=generator) - 0.5).to("cuda:1")
    v = [x, y, wide[:, ::2] if given else h, a, g]  # columns that are apart
    t = [(torch.rand(b.shape, generator=generator) - 0.5).to("cuda:1") for b in v]
    by_dst, by_src = (i.cpu().argsort(stable=True).to("cuda:1", kind) if given else None for i in (dst, src))
    rest = (src.to(kind), dst.to(kind), num_dst, str(plan), by_dst, by_src)
    runtime.execute = True
    of_weights = 4 * plan.weight_numel * edges
    none = [None] * 5
    for tangents, wanted in (
        (None, (1, 1, 1, 1)), (None, (1, 0, 0, 0)), (None, (0, 1, 0, 1)), (t, (1, 1, 1, 1, 1)),
        ([*none[:2], t[2], *none[:2]], (1, 0, 1, 1, 0)), ([*none[:3], t[3], None], (0, 1, 1, 0, 1)),
    ):  # fmt: skip
        wanted = [bool(want) for want in wanted]
        of_tangents = tangents and (tangents[2] is not None or tangents[3] is not None)
        with_rows = 1 + (any(wanted[2:4]) + bool(of_tangents) if hidden else 0)
        bytes_of_weights = 4 * plan.weight_numel * with_rows * of_part
        monkeypatch.setattr(sys.modules["eqk.tensor_product_conv_radial"], "BYTES_OF_WEIGHTS", bytes_of_weights)
        op = EQK.tensor_product_conv_radial_double_backward if tangents else EQK.tensor_product_conv_radial_backward
        stub_cuda.allocated(), runtime.take()
        results, again = (op(*v, *(tangents or ()), *rest, wanted) for _ in range(2))
        largest = sorted(size for _, size, _ in stub_cuda.allocated())
        names = [launch["name"].removeprefix("eqk_tensor_product_conv_") for launch in launches(runtime.take())]
        kernel = "backward_dual_f32" if tangents else "backward_f32"
        assert names.count(kernel) >= 2 * -(-edges // of_part)
        assert names.count(kernel) % (2 * -(-edges // of_part)) == 0
        assert of_part > edges or of_weights not in largest
        truth = radial_truth(plan, src, dst, num_dst, v, tangents)
        for result, same, want, is_wanted in zip(results, again, truth, wanted, strict=False):
            assert torch.equal(result.cpu(), same.cpu())
            assert (result.numel() > 0) == (is_wanted and want.numel() > 0)
            if is_wanted:
                assert_close(result.cpu(), want, 1 + (tangents is not None))


def test_gradients_of_the_radial_convolution_without_edges(runtime, generator):
    plan = CASES["depthwise-5"].plan
    operands, src, dst = radial_operands(plan, 7, 8, torch.float32, generator)
    operands, src, dst = [t[:0] if n in (1, 2) else t for n, t in enumerate(operands)], src[:0], dst[:0]
    g = torch.ones(4, plan.irreps_out.dim).to("cuda:1")
    rest = (src, dst, 4, str(plan), None, None)
    runtime.execute = True
    v = [*operands, g]
    for results in (
        EQK.tensor_product_conv_radial_backward(*v, *rest, [True] * 4),
        EQK.tensor_product_conv_radial_double_backward(*v, *v, *rest, [True] * 5),
    ):
        for result, like in zip(results, v, strict=False):
            assert torch.equal(result.cpu(), torch.zeros(like.shape))


def test_precision_of_the_radial_convolution(high_precision):
    assert not EQK.tensor_product_conv_radial_is_exact()
    torch.set_float32_matmul_precision("highest")
    assert EQK.tensor_product_conv_radial_is_exact()


def test_errors_of_the_radial_convolution(runtime, generator):
    plan = CASES["depthwise-5"].plan
    operands, src, dst = radial_operands(plan, 7, 8, torch.float32, generator)
    runtime.faults["cudaFuncSetAttribute"] = runtime.faults["cudaLaunchKernel"] = stub_cuda.NO_KERNEL_IMAGE
    with pytest.raises(RuntimeError, match="eqk::tensor_product_conv_radial: eqk_tensor_product_conv_order: no kernel"):
        eqk.tensor_product_conv_radial(*operands, src, dst, 4, plan)
    runtime.faults.pop("cudaFuncSetAttribute", None)
    with pytest.raises(
        RuntimeError, match=r"eqk::tensor_product_conv_radial: h: expected shape \[7, 8\], got \[6, 8\]"
    ):
        EQK.tensor_product_conv_radial(*operands[:2], operands[2][1:], operands[3], src, dst, 4, str(plan), None, None)
    assert dispatch.choose("tensor_product_conv_radial", src.device) == "cuda"


def test_operands_of_the_convolution_that_do_not_fit(runtime, generator):
    plan = CASES["depthwise-5"].plan
    (x, y, w), src, dst = edges_of(plan, 7, 3, 4, torch.float32, generator)
    for arguments, message in (
        ((x, y[1:], w, src, dst, 4), r"y: expected shape \[7, 4\], got \[6, 4\]"),
        ((x, y, w, src.cpu(), dst, 4), "src: expected device cuda:1 as x has, got cpu"),
        ((x, y, w, src, dst.float(), 4), "dst: expected dtype int32 or int64"),
        ((x, y, w, src, dst, -1), "num_dst: expected at least 0, got -1"),
        ((x, y.double(), w, src, dst, 4), "y: expected dtype Float as x has"),
    ):
        with pytest.raises(RuntimeError, match=f"eqk::tensor_product_conv: {message}"):
            eqk.tensor_product_conv(*arguments, plan)
    assert not launches(runtime.take())


def test_errors_of_the_convolution(runtime, generator):
    plan = CASES["depthwise-5"].plan
    operands, src, dst = edges_of(plan, 7, 3, 4, torch.float32, generator)
    for step, what in (
        ("cudaLaunchKernel", "eqk_tensor_product_conv_order"),
        ("cudaDeviceGetAttribute", "compute capability"),
    ):
        runtime.faults[step] = stub_cuda.NO_KERNEL_IMAGE
        with pytest.raises(RuntimeError, match=f"eqk::tensor_product_conv: {what}: no kernel image is available"):
            eqk.tensor_product_conv(*operands, src, dst, 4, plan)
    assert dispatch.choose("tensor_product_conv", src.device) == "cuda"
    assert "cuda: can run" in dispatch.explain("tensor_product_conv", src)
    assert "torch: the op has a kernel there" in dispatch.explain("tensor_product_conv_radial", src)


SIGNALS = (0, 1, 5)  # slots of x, y and g among x, y, a, b, c, g


def gaunt_operands(plan, rows, weighted, dtype, generator, device="cuda:1"):
    operands = random_gaunt_operands(plan, rows, weighted, dtype, generator)
    g = torch.randn(rows, plan.dims[2], generator=generator).to(dtype)
    return [None if t is None else t.to(device) for t in (*operands, g)]


@pytest.mark.parametrize(
    ("plan", "weighted", "dtype", "by_kernels"),
    [
        (GauntPlan.normalized(2, 2, 2, 3, 3, "all", "component"), False, torch.float32, True),
        (GauntPlan(1, 2, 0, 3, 3), False, torch.float32, True),
        (GAUNTS["all"], True, torch.float32, False),
        (GAUNTS["single-y"], False, torch.float32, False),
        (GAUNTS["even"], False, torch.float64, False),
    ],
    ids=["square", "degrees", "weights", "single", "float64"],
)
def test_products_of_signals(runtime, plan, weighted, dtype, by_kernels, generator):
    """The whole chain to second order, by kernels or torch operations."""
    runtime.execute = True
    operands = [t for t in gaunt_operands(plan, 4, (weighted,) * 3, dtype, generator)[:5] if t is not None]

    def product(op):
        return lambda x, y, *weights: op(x, y, *(weights or (None,) * 3), str(plan))

    shape, chain = (4, plan.dims[2]), (product(EQK.gaunt_product), product(reference.gaunt_product))
    calls = check_chain(runtime, plan, *chain, operands, shape, 2, generator)
    assert bool(launches(calls)) == by_kernels
    gaunt_grid._grids.cache_clear()


def test_launches_of_products_of_signals(runtime, generator):
    """Each byte of them, on the current stream of the tensors' device; operands whose columns or rows are apart."""
    plan = GauntPlan.normalized(2, 2, 2, 3, 3, "all", "component")
    OPS.set_stream(1, stream(1, 1))
    v, t = (gaunt_operands(plan, 5, (False,) * 3, torch.float32, generator) for _ in range(2))
    v[1] = torch.cat([v[1]] * 2, 1)[:, : plan.dims[1]]
    for member, wanted in (
        ("", (0, 0, 1)), ("_jvp", (0, 0, 1)), ("_backward", (1, 1, 0)), ("_backward", (0, 1, 0)),
        ("_double_backward", (1, 1, 1)), ("_double_backward", (1, 0, 0)),
    ):  # fmt: skip
        with_g, dual = "backward" in member, member in ("_jvp", "_double_backward")
        groups = [group[: 5 + with_g] for group in ([v, t] if dual else [v])]
        flags = [bool(wanted[SIGNALS.index(s)]) if s in SIGNALS else False for s in range(5 + dual)]
        runtime.take(), stub_cuda.allocated()
        op = getattr(EQK, f"gaunt_product{member}")
        results = op(*(a for group in groups for a in group), str(plan), *([flags] if with_g else []))
        calls, blocks = runtime.take(), stub_cuda.allocated()
        assert len(blocks) == sum(wanted)
        assert {c.details["stream"] for c in calls} == {stream(1, 1)}
        at = [[0] * 6, [0] * 6]
        strides = [[0] * 6, [0] * 6]
        for part, group in enumerate(groups):
            for slot, operand in enumerate(group):
                if operand is not None:
                    at[part][slot], strides[part][slot] = operand.data_ptr(), operand.stride(0)
        of_results = iter(address for address, _, _ in blocks)
        outputs = [next(of_results) if s in SIGNALS and wanted[SIGNALS.index(s)] else 0 for s in range(6)]
        problem = runtime.bindings.GauntProblem(str(plan), "float32", 5, dual, *at, *strides, outputs)
        assert problem.covered
        assert launches(calls) == problem.launches()
        assert len(results if with_g else [results]) == (len(flags) if with_g else 1)


def test_products_of_no_signals(runtime, generator):
    plan = GAUNTS["odd"]
    x, y, _, _, _, g = gaunt_operands(plan, 0, (False,) * 3, torch.float32, generator)
    assert EQK.gaunt_product(x, y, None, None, None, str(plan)).shape == (0, plan.dims[2])
    none = [None] * 3
    gradients = EQK.gaunt_product_double_backward(x, y, *none, g, x, y, *none, g, str(plan), [True] * 6)
    assert [tuple(t.shape) for t in gradients] == [(0, 64), (0, 64), (0,), (0,), (0,), (0, 64)]
    assert not launches(runtime.take())


def test_errors_of_products_of_signals(runtime, generator):
    plan = GAUNTS["even"]
    x, y, *_ = gaunt_operands(plan, 3, (False,) * 3, torch.float32, generator)
    runtime.faults["cudaLaunchKernel"] = stub_cuda.NO_KERNEL_IMAGE
    with pytest.raises(
        RuntimeError, match="eqk::gaunt_product: eqk_gaunt_product_forward_even_l2_f32: no kernel image"
    ):
        EQK.gaunt_product(x, y, None, None, None, str(plan))
    with pytest.raises(RuntimeError, match=r"eqk::gaunt_product: y: expected shape \[3, 45\], got \[2, 45\]"):
        EQK.gaunt_product(x, y[1:], None, None, None, str(plan))
    assert dispatch.choose("gaunt_product", x.device) == "cuda"


@pytest.mark.parametrize(("lmax", "mmax"), [(0, 0), (3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
def test_wigner(runtime, dtype, lmax, mmax, generator):
    """The whole chain to third order: kernels of the op and its gradient, around them tensor products."""
    runtime.execute = True
    q = torch.randn(5, 4, generator=generator).to("cuda:1", dtype)
    ops = (eqk.wigner, reference.wigner)
    ours, truth = (lambda q, op=op: op(q, lmax, mmax) for op in ops)
    # The plan is that of the tensor products which its derivatives are made of.
    plan, shape, order = _generators(lmax, mmax), (5, wigner_columns(lmax, mmax)), 1 if dtype == torch.bfloat16 else 3
    calls = check_chain(runtime, plan, ours, truth, [q], shape, order, generator)
    names = {launch["name"] for launch in launches(calls)}
    suffix = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    assert {f"eqk_wigner_{member}_{suffix}" for member in ("forward", "backward")} <= names


def test_launches_of_wigner(runtime, generator):
    """Each byte of them, on the current stream of the tensors' device; rows that are apart."""
    OPS.set_stream(1, stream(1, 1))
    wide, of_matrices = (torch.randn(7, n, generator=generator).to("cuda:1") for n in (9, 80))
    for q in (wide[:, :4], wide[:, 5:]):
        for g in (None, of_matrices[:, 3:73]):
            runtime.take(), stub_cuda.allocated()
            result = EQK.wigner(q, 3, 2) if g is None else EQK.wigner_backward(q, g, 3, 2)
            calls, blocks = runtime.take(), stub_cuda.allocated()
            assert [(address, size) for address, size, _ in blocks] == [(result.data_ptr(), result.numel() * 4)]
            assert {(c.device, c.details["stream"]) for c in calls} == {(1, stream(1, 1))}
            of_g = (0, 0) if g is None else (g.data_ptr(), 80)
            launch = runtime.bindings.wigner_launch(3, 2, "float32", 7, q.data_ptr(), 9, *of_g, result.data_ptr())
            assert launches(calls) == [launch]


def test_wigner_of_no_rows(runtime):
    q, g = (torch.zeros(0, n).to("cuda:0") for n in (4, 35))
    assert EQK.wigner(q, 2, 2).shape == (0, 35)
    assert EQK.wigner_backward(q, g, 2, 2).shape == (0, 4)
    assert not launches(runtime.take())


def test_errors_of_wigner(runtime):
    q, g = (torch.ones(3, n).to("cuda:1") for n in (4, 35))
    for member, call in (
        ("forward", lambda: EQK.wigner(q, 2, 2)),
        ("backward", lambda: EQK.wigner_backward(q, g, 2, 2)),
    ):
        runtime.faults["cudaLaunchKernel"] = stub_cuda.NO_KERNEL_IMAGE
        with pytest.raises(RuntimeError, match=f"eqk::wigner: eqk_wigner_{member}_f32: no kernel image is available"):
            call()
    with pytest.raises(RuntimeError, match="eqk::wigner_backward: g: expected device cuda:1 as q has, got cpu"):
        EQK.wigner_backward(q, g.cpu(), 2, 2)
    assert dispatch.choose("wigner", q.device) == "cuda"
    assert "cuda: can run" in dispatch.explain("wigner", q)
