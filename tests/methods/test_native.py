"""Compiling C++ when it is first needed: where the result is kept, and what happens where that cannot be."""

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from workingpapers.errors import UserRemark
from workingpapers.methods import native

CODE = 'extern "C" int twice(int x) { return 2 * x; }\n'

needs_compiler = pytest.mark.skipif(native._compiler() is None, reason="no C++ compiler, or not x86-64 with AVX2")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of its own, with an empty cache."""
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    path = tmp_path / "twice.cpp"
    path.write_text(CODE)
    native.library.cache_clear()
    return path


@needs_compiler
def test_compiles_once(source, monkeypatch):
    assert native.library(source).twice(21) == 42
    (kept,) = (source.parent / "cache" / "native").iterdir()
    assert kept.name.startswith("twice-")
    native.library.cache_clear()
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    with pytest.warns(UserRemark, match="twice.cpp could not be compiled by a-compiler-that-is-not-there"):
        assert native.library(source) is None  # another compiler, another file
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(subprocess, "run", None)
    native.library.cache_clear()
    assert native.library(source).twice(4) == 8


@needs_compiler
def test_a_changed_source_is_another(source):
    assert native.library(source).twice(1) == 2
    source.write_text(CODE.replace("2 *", "3 *"))
    native.library.cache_clear()
    assert native.library(source).twice(1) == 3


def in_a_process(source):
    """Start a process that needs the source."""
    call = "from pathlib import Path; from workingpapers.methods import native; "
    call += f"assert native.library(Path({str(source)!r})).twice(3) == 6"
    return subprocess.Popen([sys.executable, "-W", "error", "-c", call])


@needs_compiler
def test_a_damaged_file_is_compiled_again(source):
    assert in_a_process(source).wait(60) == 0
    (kept,) = (source.parent / "cache" / "native").iterdir()
    kept.write_bytes(b"half")
    assert native.library(source).twice(3) == 6
    assert kept.read_bytes() != b"half"


@needs_compiler
def test_a_folder_that_cannot_be_written_to(source, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(source))  # a file, not a folder
    assert native.library(source).twice(5) == 10


@needs_compiler
def test_processes_that_compile_at_once(source):
    running = [in_a_process(source) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(list((source.parent / "cache" / "native").iterdir())) == 1


@needs_compiler
@pytest.mark.filterwarnings("error")
def test_errors_of_the_compiler_are_told(source):
    source.write_text("int broken(")
    with pytest.warns(UserRemark, match=r"(?s)twice.cpp could not be compiled.*error"):
        assert native.library(source) is None
    assert native.library(source) is None  # once a process: a second warning would be an error


@pytest.mark.parametrize(
    ("name", "value"),
    [("machine", lambda: "riscv64"), ("capability", lambda: "DEFAULT"), ("which", lambda name: None)],
)
@pytest.mark.filterwarnings("error")
def test_where_nothing_can_be_compiled(source, monkeypatch, name, value):
    monkeypatch.delenv("CXX", raising=False)
    place = {
        "machine": "platform.machine",
        "capability": "torch.backends.cpu.get_cpu_capability",
        "which": "shutil.which",
    }[name]
    monkeypatch.setattr(place, value)
    assert native.library(source) is None


def test_the_folder_is_in_the_users_cache(monkeypatch):
    monkeypatch.delenv("WORKINGPAPERS_CACHE", raising=False)
    assert native._folder().parts[-2:] == ("workingpapers", "native")
    monkeypatch.setenv("WORKINGPAPERS_CACHE", os.path.join("~", "here"))
    assert native._folder() == native.Path.home() / "here" / "native"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_tensors_that_cpp_may_read():
    x = torch.ones(3)
    assert native.reachable(x, torch.nn.Parameter(x))
    assert not native.reachable(x.to("meta"))
    assert not native.reachable(x.to_sparse())
    seen = []

    def look(x):
        seen.append(native.reachable(x))
        return x + 1

    with FlopCounterMode(display=False):
        look(x)
    torch.jit.trace(look, x, check_trace=False)
    torch.vmap(look)(x)
    torch.func.jvp(look, (x,), (x,))
    with forward_ad.dual_level():
        look(forward_ad.make_dual(x, x))
    torch.compile(look, backend="eager")(x)
    assert len(seen) > 5
    assert not any(seen)
