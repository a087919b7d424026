"""The kernel in Triton, in its interpreter or on a GPU.

Triton decides when it is imported whether it interprets, so the tests of kernels run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from listedpatterns import agree, pattern, sample

from workingpapers.methods.attention import triton_blocks
from workingpapers.methods.attention.listed import available

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_in_the_interpreter():
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("test_listed.py")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "kernel", "-p", "no:cacheprovider", str(tests)]
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_what_the_interpreter_serves(monkeypatch):
    monkeypatch.setattr(triton_blocks, "_installed", lambda: True)
    q, k, v = sample(16)
    assert not triton_blocks.serves(q, k, v)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_blocks.serves(q, k, v)
    assert not triton_blocks.serves(*(x.bfloat16() for x in (q, k, v)))
    assert not triton_blocks.serves(*(x.double() for x in (q, k, v)))
    assert not triton_blocks.serves(*(x.repeat(1, 1, 1, 17) for x in (q, k, v)))


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lines", [False, True])
def test_on_a_gpu(dtype, lines):
    pytest.importorskip("triton")
    for seed, (T, T_q, block_q, block_k, d) in enumerate(
        [(200, 200, 16, 2, 64), (1000, 700, 64, 64, 128), (300, 300, 300, 16, 40), (90, 1, 32, 2, 128)]
    ):
        tensors = sample(T, T_q, 2, 4, 2, d, d, seed=seed, dtype=dtype)
        if available(*(x.cuda() for x in tensors)):
            agree(*tensors, pattern(T, T_q, 2, 4, block_q, block_k, lines, seed), device="cuda")
