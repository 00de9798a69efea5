"""A C++ source of this folder as a library: compiled by the machine's compiler when first needed, and kept.

A library lies in the user's cache folder under a name that follows from the source, the flags, the compiler and the processor.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch

ELEMENTS = {torch.bfloat16: "bf16", torch.float32: "float", torch.float64: "double"}
"""What the macro ELEMENT is for a dtype."""
FLAGS = (
    "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC", "-shared", "-fopenmp",
    *(("-march=native", "-mprefer-vector-width=512") if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)),
)  # fmt: skip
FAILURES = (OSError, subprocess.CalledProcessError)
"""What `load` raises where a library cannot be had."""


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: what the environment variable CXX names, or g++ or clang++."""
    return next((found for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled kernels are kept: SPIKETRAIN_CACHE, else the user's cache folder."""
    base = os.environ.get("SPIKETRAIN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spiketrain"
    return Path(base) / "kernels"


def load(name: str, macros: Mapping[str, int | str], contract: bool = False) -> ctypes.CDLL:
    """`name`.cpp with these macros, compiled; one of `FAILURES` where it cannot be had. contract: a·b + c may be rounded once."""
    source = _with_includes(f"{name}.cpp")
    words = [*FLAGS, *(["-ffp-contract=fast"] if contract else []), *(f"-D{macro}={value}" for macro, value in macros.items())]
    if (program := compiler()) is None:
        raise OSError("no C++ compiler")
    digest = hashlib.sha256(source + repr((words, program, processor())).encode()).hexdigest()
    file = cache_folder() / f"{name}-{digest[:24]}.so"
    if not file.exists():
        _compile(program, words, source, file)
    return ctypes.CDLL(str(file))


def _with_includes(file: str) -> bytes:
    """A file of this folder, with those that it includes."""
    source = resources.files(__package__).joinpath(file).read_bytes()
    return re.sub(rb'#include "([\w.]+)"', lambda found: _with_includes(found[1].decode()), source)


def _compile(program: str, words: list[str], source: bytes, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # several processes may compile at once: the last rename stays
        code, made = Path(folder) / "source.cpp", Path(folder) / "library.so"
        code.write_bytes(source)
        subprocess.run([program, *words, str(code), "-o", str(made)], check=True, capture_output=True)
        made.replace(file)


@functools.cache
def processor() -> str:
    """The processor's abilities, in words: what -march=native depends on (a cache folder may be shared by machines). Empty if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
