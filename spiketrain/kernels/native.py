"""The passes of `leaky` on the processor: `native.cpp`, compiled by the machine's C++ compiler when first needed, and kept.

A library is compiled for each rule and dtype (about two seconds) into the user's cache folder, under a name that follows from
the source, the flags, the compiler and the processor. The number of steps and all sizes are arguments: no other length of a
sequence or layer is ever compiled for again.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from spiketrain.functional import SURROGATES, Rule, widen

ELEMENTS = {torch.bfloat16: "bf16", torch.float32: "float", torch.float64: "double"}
FLAGS = (
    "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC", "-shared", "-fopenmp",
    *(("-march=native", "-mprefer-vector-width=512") if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)),
)  # fmt: skip
Line = tuple[Tensor, Tensor]
"""scale and shift, `[S,C]`."""


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: what the environment variable CXX names, or g++ or clang++."""
    return next((found for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled kernels are kept: SPIKETRAIN_CACHE, else the user's cache folder."""
    base = os.environ.get("SPIKETRAIN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spiketrain"
    return Path(base) / "kernels"


@functools.cache
def available(rule: Rule, dtype: torch.dtype) -> bool:
    """True where the kernels of this rule and dtype are, or can be, compiled here."""
    if dtype not in ELEMENTS:
        return False
    try:
        library(rule, dtype)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@functools.cache
def library(rule: Rule, dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled kernels of a rule and dtype; `OSError` or `CalledProcessError` where they cannot be had."""
    source = resources.files(__package__).joinpath("native.cpp").read_bytes()
    macros = {
        "SURROGATE": list(SURROGATES).index(rule.surrogate), "HARD": int(rule.reset == "hard"), "DETACH": int(rule.detach),
        "STRICT": int(rule.strict), "ELEMENT": ELEMENTS[dtype],
    }  # fmt: skip
    words = [*FLAGS, *(f"-D{name}={value}" for name, value in macros.items())]
    if (program := compiler()) is None:
        raise OSError("no C++ compiler")
    digest = hashlib.sha256(source + repr((words, program, _processor())).encode()).hexdigest()
    file = cache_folder() / f"leaky-{digest[:24]}.so"
    if not file.exists():
        _compile(program, words, source, file)
    return ctypes.CDLL(str(file))


def _compile(program: str, words: list[str], source: bytes, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # several processes may compile at once: the last rename stays
        code, made = Path(folder) / "native.cpp", Path(folder) / "native.so"
        code.write_bytes(source)
        subprocess.run([program, *words, str(code), "-o", str(made)], check=True, capture_output=True)
        made.replace(file)


@functools.cache
def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p), ("x_step", ctypes.c_int64), ("v", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("shift", ctypes.c_void_p),
        ("S", ctypes.c_int64), ("coefficient", ctypes.c_void_p * 4), ("count", ctypes.c_int64 * 4),
    )  # fmt: skip


class _Back(ctypes.Structure):
    _fields_ = (
        ("grad_s", ctypes.c_void_p), ("grad_v", ctypes.c_void_p), ("mean", ctypes.c_void_p),
        ("line", ctypes.c_void_p * 3), ("gx", ctypes.c_void_p), ("gv", ctypes.c_void_p), ("coefficient_sums", ctypes.c_void_p),
        ("norm_sums", ctypes.c_void_p),
    )  # fmt: skip


def _arguments(x: Tensor, v: Tensor | None, line: Line | None, coefficients: list[Tensor]) -> _Arguments:
    scale, shift = line or (None, None)
    return _Arguments(
        x.data_ptr(), x.stride(0) if len(x) > 1 else 0, _at(v), _at(scale), _at(shift), 1 if scale is None else len(scale),
        (ctypes.c_void_p * 4)(*(c.data_ptr() for c in coefficients)), (ctypes.c_int64 * 4)(*(c.numel() for c in coefficients)),
    )  # fmt: skip


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _sizes(x: Tensor) -> list[ctypes.c_int64 | int]:
    return [*map(ctypes.c_int64, x.shape), torch.get_num_threads()]


def _p(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(_at(x))


def moments(x: Tensor, per_step: bool, rule: Rule) -> tuple[Tensor, Tensor]:
    """Sums of x `[T,P,C,Q]`, and of its squared distance from its mean, by channel: float64 `[S,C]`, S = T where `per_step`, else 1."""
    origin = widen(x[0, 0, :, 0]).contiguous()  # near the values, so that no digits are lost in the squares
    rows, count = (len(x), x[0].numel()) if per_step else (1, x.numel())
    found = torch.empty(rows, 2, x.shape[2], dtype=torch.float64)
    library(rule, x.dtype).spike_moments(_p(x), _p(origin), _p(found), int(per_step), *_sizes(x))
    first, second = found.unbind(1)
    count //= x.shape[2]
    return first + count * origin.double(), (second - first.square() / count).clamp_(min=0)


def forward(
    x: Tensor, v: Tensor | None, line: Line | None, coefficients: list[Tensor], rule: Rule, last: Tensor | None
) -> Tensor:
    """Spikes `[T,P,C,Q]` in x's dtype; fills `last` `[P,C,Q]` with the last potential. x may have a stride of 0 along time."""
    spikes = x.new_empty(x.shape)
    arguments = _arguments(x, v, line, coefficients)
    library(rule, x.dtype).spike_forward(ctypes.byref(arguments), _p(spikes), _p(last), *_sizes(x))
    return spikes


def sums(
    x: Tensor, v: Tensor | None, grad_s: Tensor, grad_v: Tensor | None, line: Line, mean: Tensor,
    coefficients: list[Tensor], rule: Rule, learned: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Σgy and Σgy·(x − mean), float64 `[S,2,C]`, and the sums of `backward` where `learned`."""
    norms = torch.empty(len(mean), 2, x.shape[2], dtype=torch.float64)
    to = torch.empty(4, x.shape[2], dtype=torch.float64) if learned else None
    _backward(x, v, grad_s, grad_v, line, mean, None, coefficients, rule, None, None, to, norms)
    return norms, to


def backward(
    x: Tensor, v: Tensor | None, grad_s: Tensor, grad_v: Tensor | None, line: Line | None, back: tuple[Tensor, Tensor, Tensor] | None,
    coefficients: list[Tensor], rule: Rule, learned: bool, gv: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradient by x (of one step where x is the same at every step), and sums by decay, gain, threshold and alpha `[4,C]`.

    Fills `gv` `[P,C,Q]` with the gradient by v.

    back: gx = back[0]·gy + back[1]·x + back[2], each `[S,C]`; None: gx = gy.
    """
    constant = len(x) > 1 and x.stride(0) == 0
    gx = x.new_empty((1, *x.shape[1:]) if constant else x.shape)
    to = torch.empty(4, x.shape[2], dtype=torch.float64) if learned else None
    _backward(x, v, grad_s, grad_v, line, None, back, coefficients, rule, gx, gv, to, None)
    return gx, to


def _backward(
    x: Tensor, v: Tensor | None, grad_s: Tensor, grad_v: Tensor | None, line: Line | None, mean: Tensor | None,
    back: tuple[Tensor, Tensor, Tensor] | None, coefficients: list[Tensor], rule: Rule, gx: Tensor | None, gv: Tensor | None,
    to: Tensor | None, norms: Tensor | None,
) -> None:  # fmt: skip
    arguments = _arguments(x, v, line, coefficients)
    lines = (ctypes.c_void_p * 3)(*map(_at, back or (None,) * 3))
    outputs = _Back(_at(grad_s), _at(grad_v), _at(mean), lines, _at(gx), _at(gv), _at(to), _at(norms))
    library(rule, x.dtype).spike_backward(ctypes.byref(arguments), ctypes.byref(outputs), *_sizes(x))


def pack(spikes: Tensor, rule: Rule) -> Tensor:
    """Dense spikes as bits, uint8 `[⌈N/8⌉]`: bit i of byte j is the spike 8j + i in the order of memory."""
    bits = torch.empty(-(-spikes.numel() // 8), dtype=torch.uint8)
    library(rule, spikes.dtype).spike_pack(_p(spikes), _p(bits), ctypes.c_int64(spikes.numel()), torch.get_num_threads())
    return bits


def unpack(bits: Tensor, spikes: Tensor, rule: Rule) -> Tensor:
    """Fills the dense tensor `spikes` with the spikes that `pack` made bits of; returns it."""
    library(rule, spikes.dtype).spike_unpack(_p(bits), _p(spikes), ctypes.c_int64(spikes.numel()), torch.get_num_threads())
    return spikes
