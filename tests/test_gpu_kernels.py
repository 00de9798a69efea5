"""The Triton kernels: run by `gpu_kernels.py` in a process of its own, and compiled for a GPU that need not be there.

Triton decides when it is imported whether it interprets, hence the process.
"""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

triton = pytest.importorskip("triton")
TENSORS = "x v starts grad_s grad_v scale shift mean rstd norm_means decay gain threshold alpha grad_x grad_v0 norm_sums sums".split()
TENSORS += "spikes v_last parts bits var".split()
NARROW = {"x", "grad_s", "grad_x", "spikes"}
"""Tensors in x's own dtype."""


def test_the_kernels_equal_the_reference():
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/gpu_kernels.py"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **interpret}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert re.search(r"\d{2,} passed", ran.stdout)


def ptx(kernel, given, dtype="bf16", wide="fp32", **constants):
    """The code that Triton makes of a kernel for an H100 where these tensors are given; sizes are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, known, facts = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr"
        if name in constants:
            known[(i,)] = constants[name]
        elif name not in TENSORS:
            signature[name] = "i32"
        elif name in given.split():
            signature[name] = "*u8" if name == "bits" else f"*{dtype if name in NARROW else wide}"
        else:
            known[(i,)] = None
        if name in ("N", "C", "M", "Q") or signature[name].startswith("*"):
            facts[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, known, facts)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "enable_fp_fusion": False})
    return made.asm["ptx"]


def constants(steps=4, last=True, wide="fp32", **others):
    """Numbers known at compile time, for a sequence of that many steps, channels-last or not."""
    tl = triton.language
    width = 64 if last else 1
    return {
        "A": tl.float64 if wide == "fp64" else tl.float32, "K": steps if steps <= 16 else 8, "SHORT": steps <= 16, "CONSTANT": False,
        "PER_STEP": False, "MANY": 0, "HARD": True, "STRICT": False, "BC": width, "LAST": last, "SPLIT": not last, "WIDE": False,
        "BLOCK": 1024, **others,
    }  # fmt: skip


BACKWARD = {"APART": False, "SURROGATE": "atan", "DETACH": True, "THROUGH": True, "UNIT": 4}


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from spiketrain.kernels import gpu_kernels

    return gpu_kernels


@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "channels-first"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_memory_is_read_and_written_16_bytes_at_a_time_and_rounded_product_by_product(kernels, last, dtype):
    block = 1024 if dtype == "bf16" else 512
    code = ptx(kernels.forward_kernel, "x scale shift decay gain threshold spikes v_last", dtype, **constants(last=last, BLOCK=block))
    assert "ld.global.v4.b32" in code and "st.global.v4.b32" in code
    assert not re.search(r"\b(fma|mad)\.\w+\.f(32|64)", code)


@pytest.mark.parametrize("wide", ["fp32", "fp64"])
def test_every_kernel_compiles_for_a_gpu(kernels, wide):
    from spiketrain.kernels import gpu_bits

    dtype = "fp64" if wide == "fp64" else "fp16"
    rule = "x grad_s scale shift decay gain threshold alpha"
    long = constants(33, wide=wide)
    per_step = {**constants(2, last=False, wide=wide, PER_STEP=True, WIDE=True), **BACKWARD, "UNIT": 256, "NEEDS": 0}
    made = [
        ptx(kernels.forward_kernel, "x v starts decay gain threshold", dtype, wide, **long),
        ptx(kernels.backward_kernel, f"{rule} starts v grad_v grad_x grad_v0 sums", dtype, wide, **long, **BACKWARD, NEEDS=15),
        ptx(kernels.backward_kernel, f"{rule} mean rstd norm_sums", dtype, wide, **per_step),
        ptx(kernels.backward_kernel, f"{rule} mean rstd norm_means grad_x", dtype, wide, **{**per_step, "APART": True}),
        ptx(kernels.backward_kernel, f"{rule} mean rstd norm_means grad_x", dtype, wide, **{**per_step, "CONSTANT": True}),
        ptx(kernels.moments_kernel, "x parts", dtype, wide, **constants(wide=wide)),
        ptx(kernels.moments_kernel, "x parts", dtype, wide, **{**constants(wide=wide, last=False), "PER_STEP": True, "WIDE": True}),
        ptx(kernels.merge_kernel, "parts mean var", dtype, wide, ROWS=512, BJ=4),
        ptx(gpu_bits.pack_kernel, "spikes bits", dtype, wide, BLOCK=256),
        ptx(gpu_bits.unpack_kernel, "spikes bits", dtype, wide, BLOCK=2048),
    ]
    assert all(".visible .entry" in code for code in made)


@pytest.mark.parametrize("ones", ["C S", "N M C Q T S rows G J"])
def test_a_size_of_1_is_known_when_a_kernel_is_compiled(kernels, ones):
    known = dict.fromkeys(ones.split(), 1)
    for last in (True, False):
        numbers = {**constants(1 if "T" in known else 2, last=last, PER_STEP="T" not in known), **known}
        tensors = "x scale shift decay gain threshold"
        ptx(kernels.forward_kernel, f"{tensors} spikes", **numbers)
        back = {**numbers, **BACKWARD, "UNIT": 1024 if not last else 16}
        ptx(kernels.backward_kernel, f"{tensors} alpha grad_s mean rstd norm_sums sums", **back, NEEDS=15)
        ptx(kernels.backward_kernel, f"{tensors} alpha grad_s mean rstd norm_means grad_x", **back, NEEDS=0)
        ptx(kernels.moments_kernel, "x parts", **numbers)
    ptx(kernels.merge_kernel, "parts mean var", ROWS=1, BJ=64, **known)
