"""The kernel of ours on a CPU: under Triton's interpreter, which must be chosen before triton is imported."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

FILES = ("test_fused.py", "test_fused_compile.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels are tested here")
@pytest.mark.skipif(find_spec("triton") is None, reason="no triton to interpret the kernel")
def test_the_kernel_in_tritons_interpreter():
    paths = [str(Path(__file__).with_name(name)) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths]
    result = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped" not in result.stdout.splitlines()[-1]
