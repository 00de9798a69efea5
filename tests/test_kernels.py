"""Every fast twin against its reference: the same spikes, and all gradients."""

import itertools

import pytest
import torch

from spiketrain import functional, kernels
from spiketrain.functional import Rule
from spiketrain.kernels import native
from spiketrain.kernels.leaky import Anew

compiler = pytest.mark.skipif(not native.available(Rule(), torch.float32), reason="no C++ compiler on this machine")
SHAPES = {"vector": (3, 7), "image": (2, 5, 3, 3)}


def inputs(steps, shape, dtype, layout):
    x = torch.randn(steps, *shape).to(dtype)
    if layout == "channels-last":
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    if layout == "constant":
        x = x[0].expand(steps, *shape)
    return x


def results(scan, x, shape, rule, channels, start):
    """Spikes, last potential, and gradients by everything, of one implementation."""
    wide = functional.widen(x).dtype
    generator = torch.Generator().manual_seed(1)
    size = (shape[1],) if channels else ()
    coefficients = [(base + 0.1 * torch.rand(size, generator=generator)).to(wide).requires_grad_() for base in (0.5, 0.9, 0.6, 2.0)]
    v = torch.rand(shape, generator=generator).to(wide).requires_grad_() if start else None
    leaf = x[0].clone().requires_grad_() if x.stride(0) == 0 and len(x) > 1 else x.detach().requires_grad_()
    given = leaf.expand_as(x) if leaf.dim() < x.dim() else leaf
    s, last = scan(given, v, *coefficients, rule)
    weight = torch.randn(s.shape, generator=generator).to(s.dtype)
    ((s * weight).sum().to(wide) + last.sum()).backward()
    wanted = [leaf, *coefficients] + ([v] if start else [])
    return s.detach(), last.detach(), [p.grad for p in wanted]


CASES = [
    # steps, shape, dtype, layout, rule, coefficient a channel, from a given potential
    (1, "image", torch.float32, "plain", Rule(), False, False),
    (4, "image", torch.float32, "channels-last", Rule("qgate", strict=True), False, False),
    (4, "image", torch.float32, "channels-last", Rule("atan"), True, True),
    (4, "image", torch.float32, "constant", Rule("atan", "soft", False), False, True),
    (4, "image", torch.bfloat16, "channels-last", Rule("sigmoid", "hard", False), False, False),
    (33, "vector", torch.float64, "plain", Rule("atan", "hard", False), False, True),
    (33, "vector", torch.float32, "plain", Rule("triangle", "soft"), True, False),
    (4, "image", torch.float32, "channels-last", Rule("atan", through_time=False), True, True),
    (4, "image", torch.bfloat16, "constant", Rule("sigmoid", "soft", through_time=False), False, True),
    (33, "vector", torch.float64, "plain", Rule("atan", "hard", False, through_time=False), False, True),
]


@compiler
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(part) for part in c[:4]) + f"-{c[4].surrogate}-{c[4].reset}")
def test_the_compiled_kernel_equals_the_reference(case):
    steps, name, dtype, layout, rule, channels, start = case
    shape = SHAPES[name]
    x = inputs(steps, shape, dtype, layout)
    s, v, grads = results(functional.scan, x, shape, rule, channels, start)
    fast_s, fast_v, fast_grads = results(lambda *a: kernels.scan(*a, "compiled"), x, shape, rule, channels, start)
    assert 0.05 < float(s.float().mean()) < 0.95
    assert torch.equal(s, fast_s)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(fast_v, v, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(fast_grads, grads, strict=True):
        if theirs is None:  # autograd saw no way to it; zero is the same
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * 5)


RULES = [  # every surrogate, every reset, with and without a gradient through it, both conventions at the threshold
    Rule(name, reset, detach, strict)
    for name, (reset, detach, strict) in zip(
        functional.SURROGATES,
        itertools.cycle([("hard", True, False), ("soft", True, True), ("hard", False, True), ("soft", False, False)]),
        strict=False,
    )
]


@compiler
@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.surrogate}-{r.reset}-{r.detach}-{r.strict}")
def test_every_surrogate_and_reset(rule):
    x = torch.randn(5, 3, 7, 5, 5)
    s, v, grads = results(functional.scan, x, (3, 7, 5, 5), rule, True, True)
    fast_s, fast_v, fast_grads = results(lambda *a: kernels.scan(*a, "compiled"), x, (3, 7, 5, 5), rule, True, True)
    assert torch.equal(s, fast_s)
    torch.testing.assert_close(fast_v, v, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(fast_grads, grads, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-4, atol=1e-4)


def normed(scan, x, steps, rule, norm, channels, shortcut=False):
    """Spikes, statistics, and gradients by everything, of one implementation of batch norm and neuron; of x by a shortcut, too."""
    wide = functional.widen(x).dtype
    generator = torch.Generator().manual_seed(2)
    c = x.shape[2]
    leaf = x.detach().requires_grad_()
    rows = (steps, c) if norm == "rows" else (c,)
    weight, bias = ((base + 0.3 * torch.rand(rows, generator=generator)).to(wide).requires_grad_() for base in (0.8, 0.1))
    size = (c,) if channels else ()
    coefficients = [(base + 0.1 * torch.rand(size, generator=generator)).to(wide).requires_grad_() for base in (0.5, 0.9, 0.6, 2.0)]
    given = functional.Norm(weight, bias, 1e-5, norm == "step")
    s, _, found, along = scan(leaf, None, given, coefficients, rule, steps)
    back = torch.randn(s.shape, generator=generator).to(s.dtype)
    loss = (s * back).sum()
    if shortcut:
        loss = loss + (along * torch.randn(x.shape, generator=generator).to(x.dtype)).sum()
    loss.backward()
    return s.detach(), found, [p.grad for p in (leaf, weight, bias, *coefficients)]


NORMED = [
    # shape of x, steps, dtype, layout, statistics of all steps or a step, or of all and a weight a step; coefficient a channel
    ((4, 3, 32, 6, 6), 4, torch.float64, "channels-last", "time", False),
    ((4, 3, 32, 6, 6), 4, torch.float64, "plain", "time", True),
    ((33, 2, 5, 3, 3), 33, torch.float64, "channels-last", "time", True),
    ((3, 4, 40, 4, 4), 3, torch.float64, "channels-last", "step", False),
    ((3, 2, 7, 5, 5), 3, torch.float64, "plain", "step", True),
    ((1, 4, 8, 4, 4), 6, torch.float64, "channels-last", "time", True),
    ((1, 3, 7, 3, 3), 3, torch.float64, "plain", "step", False),
    ((4, 2, 3, 37, 9), 4, torch.float32, "plain", "time", True),
    ((4, 2, 67, 4, 4), 4, torch.float32, "channels-last", "time", False),
    ((4, 2, 16, 4, 4), 4, torch.bfloat16, "channels-last", "time", False),
    ((4, 2, 64, 4, 4), 4, torch.bfloat16, "plain", "step", False),
    ((4, 3, 32, 6, 6), 4, torch.float64, "channels-last", "rows", False),
    ((3, 2, 7, 5, 5), 3, torch.float64, "plain", "rows", True),
    ((1, 4, 8, 4, 4), 6, torch.float64, "channels-last", "rows", True),
    ((1, 3, 7, 3, 3), 3, torch.float64, "plain", "rows", False),
    ((1, 3, 40, 3, 3), 1, torch.float64, "channels-last", "rows", False),
    ((4, 2, 67, 4, 4), 4, torch.float32, "channels-last", "rows", False),
    ((4, 2, 64, 4, 4), 4, torch.bfloat16, "plain", "rows", False),
]


@compiler
@pytest.mark.parametrize("case", NORMED, ids=lambda c: "-".join(str(part) for part in c))
def test_norm_and_neuron_together_equal_the_reference(case, monkeypatch):
    shape, steps, dtype, layout, norm, channels = case
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *a, **k: x.new_full(*a, float("nan"), **k))  # what is not written shows
    x = inputs(shape[0], shape[1:], dtype, layout) * 2 + 3  # far from zero: the variance must not drown
    rule = Rule("atan", "soft", False) if channels else Rule()
    s, found, grads = normed(lambda x, v, n, c, r, t: (*functional.norm_scan(x, v, n, *c, r, t), x), x, steps, rule, norm, channels, True)
    fast_s, fast_found, fast_grads = normed(lambda *a: kernels.norm_scan(*a, "compiled", along=True), x, steps, rule, norm, channels, True)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]
    assert fast_found.count == found.count
    torch.testing.assert_close(fast_found.mean, found.mean, rtol=tolerance, atol=tolerance, check_dtype=False)
    torch.testing.assert_close(fast_found.var, found.var, rtol=tolerance, atol=tolerance, check_dtype=False)
    assert 0.05 < float(s.float().mean()) < 0.95
    assert (s != fast_s).float().mean() <= (0 if dtype == torch.float64 else 1e-3)  # sums are added in another order
    if torch.equal(s, fast_s):
        for ours, theirs in zip(fast_grads, grads, strict=True):
            if theirs is None:  # at T=1 nothing decays
                assert ours is None or not ours.any()
                continue
            size = float(theirs.abs().max()) + 1e-6
            bound = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
            if theirs.dim() == 0:  # one coefficient for all: a sum of thousands of terms, and where they cancel their rounding counts more
                bound *= 3
            torch.testing.assert_close(ours / size, theirs / size, rtol=0, atol=bound)


@compiler
@pytest.mark.parametrize("case", NORMED, ids=lambda c: "-".join(str(part) for part in c))
def test_currents_that_are_used_up_and_made_anew_change_no_bit(case):
    shape, steps, dtype, layout, norm, channels = case
    x = inputs(shape[0], shape[1:], dtype, layout) * 2 + 3
    rule = Rule("atan", "soft", False) if channels else Rule()
    addresses = []

    def used_up(x, *rest):
        y = x.clone()
        found = kernels.norm_scan(y, *rest, "compiled", anew=Anew((x.detach().clone(),), torch.clone))
        addresses.extend([y.data_ptr(), found[0].data_ptr()])
        return found

    kept = normed(lambda *a: kernels.norm_scan(*a, "compiled"), x, steps, rule, norm, channels)
    made = normed(used_up, x, steps, rule, norm, channels)
    assert torch.equal(kept[0], made[0]) and 0.05 < float(made[0].float().mean()) < 0.95
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(kept[2], made[2], strict=True))
    assert (addresses[0] == addresses[1]) == (len(x) == steps)  # where no step is seen twice


@compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cut", [lambda x: x[::2], lambda x: x[:3, :2], lambda x: x[:3, ..., ::2], lambda x: x[:3, :, 1:]], ids=range(4))
@pytest.mark.parametrize("last", [False, True])
def test_currents_with_gaps_in_memory(cut, dtype, last):
    """As of every second step, or of a part of the batch, of the pixels or of the channels."""
    draw = torch.Generator().manual_seed(4)
    whole = torch.randn(6, 4, 6, 6, 33, generator=draw).to(dtype)
    x = cut(whole.movedim(4, 2) if last else whole.transpose(2, 4).contiguous())
    assert not x.is_contiguous() and x.stride(0) != 0
    given = functional.Norm(*torch.rand(2, x.shape[2], generator=draw).double())
    coefficients, grad = (0.5, 0.9, 0.3, 2.0), torch.randn(x.shape, generator=draw).to(dtype)

    def by(kernel, x):
        leaf = x.detach().requires_grad_()
        spikes, _, found, _ = kernels.norm_scan(leaf, None, given, coefficients, Rule(), 3, kernel)
        alone, _ = kernels.scan(leaf, None, *coefficients, Rule(), kernel)
        return [spikes, found.mean, found.var, alone, *torch.autograd.grad([spikes, alone], leaf, [grad, grad])]

    dense = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if last else x.contiguous()
    assert all(map(torch.equal, by("compiled", x), by("compiled", dense)))
    for ours, theirs in zip(by("compiled", x), by("reference", x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2, check_dtype=False)


@compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_step", [False, True])
def test_running_statistics_follow_those_of_a_batch(per_step, kept, dtype):
    x = inputs(4, (3, 32, 6, 6), dtype, "channels-last") * 2 + 3
    states = []
    for kernel in ("reference", "compiled"):
        mean, var, updates = torch.arange(32).to(kept), torch.full((32,), 2.0, dtype=kept), torch.tensor(7)
        running = functional.Running(mean, var, 0.3, None if per_step else updates)
        before = mean._version
        norm = functional.Norm(torch.ones(32), torch.zeros(32), 1e-5, per_step, running=running)
        kernels.norm_scan(x, None, norm, (0.5, 0.5, 1.0, 2.0), Rule(), 4, kernel)
        assert mean._version > before  # whoever kept it for a gradient hears of it
        states.append((mean, var, updates))
    for ours, theirs in zip(*states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert int(states[0][2]) == (7 if per_step else 8) and abs(float(states[0][0][31]) - 31) > 5


@compiler
@pytest.mark.parametrize("layout", ["plain", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_behind_the_same_affine_spikes_are_equal_to_the_bit(layout, dtype):
    x = inputs(4, (3, 40, 5, 5), dtype, layout)
    affine = (torch.rand(1, 40) + 0.5, torch.randn(1, 40) * 0.1)
    coefficients = (0.5, 0.5, 0.3, 2.0)
    slow, fast = (kernels.affine_scan(x, affine, coefficients, Rule(), 4, k) for k in ("reference", "compiled"))
    assert torch.equal(slow, fast)
    assert 0.05 < float(fast.float().mean()) < 0.95


@compiler
def test_shared_statistics_are_those_of_the_whole_batch():
    whole = torch.randn(3, 8, 5, 4, 4, dtype=torch.float64) + 2
    halves = whole.chunk(2, 1)
    norm = functional.Norm(torch.ones(5).double(), torch.zeros(5).double())
    everybody = []  # what each half would have sent, in the order of the calls

    def record(t):
        everybody[-1].append(t)
        return t

    for half in halves:
        everybody.append([])
        functional.moments(half, functional.Norm(norm.weight, norm.bias, total=record))
    assert [len(calls) for calls in everybody] == [1, 1]
    sums, found = torch.stack([calls[0] for calls in everybody]).sum(0), functional.moments(whole, norm)
    for half in halves:  # as the other half's numbers reach this one
        ours = functional.moments(half, functional.Norm(norm.weight, norm.bias, total=lambda _: sums))
        torch.testing.assert_close(ours.mean, found.mean)
        torch.testing.assert_close(ours.var, found.var)
        assert ours.count == found.count


@compiler
@compiler
@pytest.mark.parametrize("layout", ["plain", "channels-last", "ragged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_large_result_that_goes_past_the_caches_is_that_of_its_parts(layout, dtype):
    """The kernel writes results of 16 MiB and more in another way, where their rows are whole lines of the cache."""
    batch = (72 if layout == "ragged" else 32) // dtype.itemsize
    shape = (4, batch, 64, *((31, 33) if layout == "ragged" else (64, 32)))
    x, weight = (inputs(4, shape[1:], dtype, "channels-last" if layout == "channels-last" else "plain") for _ in range(2))
    assert x.numel() * dtype.itemsize >= 16 << 20
    coefficients = [torch.tensor(c, dtype=functional.widen(x).dtype) for c in (0.5, 0.5, 0.6, 2.0)]

    def passes(x, weight):
        leaf = x.detach().requires_grad_()
        s = kernels.scan(leaf, None, *coefficients, Rule(), "compiled", keep=False)[0]
        s.backward(weight)
        return s.detach(), leaf.grad

    torch.full_like(x, torch.nan)  # what the allocator gives next is not zero
    s, gx = passes(x, weight)
    for rows in (slice(0, 1), slice(1, None)):
        for whole, part in zip((s, gx), passes(x[:, rows].contiguous(), weight[:, rows].contiguous()), strict=True):
            assert torch.equal(whole[:, rows], part)


@compiler
@pytest.mark.parametrize("surrogate", ["atan", "sigmoid", "superspike"])
def test_the_tails_of_a_slope_are_as_exact_as_bfloat16(surrogate):
    x = torch.linspace(-6, 6, 1 << 16).bfloat16().view(1, 1, -1)
    grads = []
    for kernel, given in (("compiled", x), ("reference", x.double())):
        leaf = given.clone().requires_grad_()
        kernels.scan(leaf, None, 0.5, 1.0, 0.0, 1.5, Rule(surrogate), kernel, keep=False)[0].sum().backward()
        grads.append(leaf.grad.double())
    assert ((grads[0] - grads[1]).abs() <= 5e-3 * grads[1].abs()).all() and (grads[1] > 0).all()


@compiler
def test_there_is_no_gradient_of_a_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    s = kernels.scan(x, None, 0.5, 1.0, 1.0, 2.0, Rule(), "compiled", keep=False)[0]
    (g,) = torch.autograd.grad((x * s).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@compiler
@pytest.mark.parametrize("layout", ["plain", "channels-last", "constant", "steps apart"])
@pytest.mark.parametrize("shape", [(2, 40, 24, 24), (3, 5, 47, 53)], ids=str)
def test_a_sum_over_steps_is_rounded_once(shape, layout):
    x = inputs(5, shape, torch.bfloat16, layout)
    if layout == "steps apart":
        x = inputs(10, shape, torch.bfloat16, layout)[::2]
    found, wanted = kernels.over_steps(x), x.double().sum(0, keepdim=True)
    assert found.dtype is torch.bfloat16 and found.stride()[1:] == torch.empty_like(x[0]).stride()
    assert ((found - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5).all()


@pytest.mark.parametrize("n", [1, 8, 13, 4099])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_keep_every_spike(n, dtype):
    spikes = (torch.rand(n) < 0.3).to(dtype)
    bits = native.pack(spikes, Rule())
    assert bits.numel() == -(-n // 8)
    assert torch.equal(native.unpack(bits, torch.full_like(spikes, float("nan")), Rule()), spikes)


@compiler
def test_the_layout_of_the_output_is_that_of_the_input():
    x = inputs(4, SHAPES["image"], torch.float32, "channels-last")
    s, _ = kernels.scan(x, None, 0.5, 0.5, 0.5, 2.0, Rule(), "compiled")
    assert s[0].is_contiguous(memory_format=torch.channels_last)
