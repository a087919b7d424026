"""Loops in C++ for which torch has no fast operation, compiled on the user's machine when they are first needed.

A source beside the module that uses it is compiled once, in about a second, into the cache (`native` in the folder of
the environment variable `WORKINGPAPERS_CACHE`, else in the user's cache folder), and loaded by ctypes, whose calls let
other threads of Python go on. It takes a compiler of C++17 that knows GCC's vector extensions, as GCC and Clang do,
found as `c++`, `g++` or `clang++` or named by the environment variable `CXX`, and a processor of x86-64 with AVX2 or
AVX-512. Where they are missing there is no library, and who asks for it goes on with torch's operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from workingpapers.errors import UserRemark, first_line

_PROCESSORS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}
"""What torch says of a processor, and what the compiler may then use: nothing that this torch does not use too."""

_HEADER = Path(__file__).with_name("native.h")  # what sources share
_OPTIONS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=fast")


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return the functions of a C++ file, compiled now or earlier; None where that is not possible.

    A compiler that fails is a `UserRemark`, once a process; a missing one is none.

    Args:
        source: the file; it declares what it offers as `extern "C"`, and may include `native.h`.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    command = [*compiler, *_OPTIONS, *_PROCESSORS[torch.backends.cpu.get_cpu_capability()]]
    content = source.read_bytes() + _HEADER.read_bytes()
    key = hashlib.sha256(repr(command).encode() + content).hexdigest()
    path = _folder() / f"{source.stem}-{key[:32]}.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not there yet, or damaged
        pass
    try:
        return _compiled(command, source, path)
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"{source.name} could not be compiled by {shlex.join(compiler)}, so that slower operations of torch take "
            f"its place: {_reason(error)}.",
            UserRemark,
            stacklevel=3,
        )
        return None


def _reason(error: Exception) -> str:
    """Return what a compiler complains of first, else how it ended, else why it did not start."""
    if not isinstance(error, subprocess.CalledProcessError):
        return first_line(error)
    said = (line.strip() for line in (error.stderr or "").splitlines())
    return next((line for line in said if "error" in line), f"it ended with exit status {error.returncode}")


def reachable(*tensors: Tensor) -> bool:
    """Return whether C++ may read tensors: plain ones in this machine's memory, which nothing watches or rewrites.

    What traces, compiles, transforms or counts torch's operations would not see what is done in C++.
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    watched = traced or torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if watched or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return False
    kinds, batched = (Tensor, torch.nn.Parameter), torch._C._functorch.is_legacy_batchedtensor
    plain = all(type(x) in kinds and not batched(x) for x in tensors)
    return plain and all(x.device.type == "cpu" and x.layout == torch.strided for x in tensors)


def _compiler() -> list[str] | None:
    """Return the command of a compiler; None if there is none or its results could not run here."""
    served = os.name == "posix" and platform.machine() in ("x86_64", "AMD64")
    if not served or torch.backends.cpu.get_cpu_capability() not in _PROCESSORS:
        return None
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def _folder() -> Path:
    named = os.environ.get("WORKINGPAPERS_CACHE")
    if named:
        return Path(named).expanduser().absolute() / "native"
    from platformdirs import user_cache_path

    return user_cache_path("workingpapers", appauthor=False) / "native"


def _compiled(command: list[str], source: Path, path: Path) -> ctypes.CDLL:
    """Compile, keep the result under `path` if that is possible, and load it."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, path.name)
        call = [*command, f"-I{_HEADER.parent}", str(source), "-o", str(built)]
        subprocess.run(call, check=True, capture_output=True, text=True, timeout=300)
        kept, part = built, path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):  # a full disk, or one that may not be written to
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(built, part)
                kept = part.replace(path)  # at once: another process finds all of it or nothing
            finally:
                part.unlink(missing_ok=True)
        return ctypes.CDLL(str(kept))
