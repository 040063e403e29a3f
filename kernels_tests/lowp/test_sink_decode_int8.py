"""The decode kernel of an int8 cache, compiled for a CPU: a CTA of one warp, against the float64 reference."""

import ctypes
import functools
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowp.paged import tight
from lowp.paged.cases import Case, build
from lowp.paged.reference import reference
from lowp.sink_decode import build as builds
from lowp.sink_decode.call import Call
from lowp.sink_decode.launch import variant_of
from lowp.sink_decode.params import params_of
from lowp.sink_decode.resources import Launch

HOST = Path(__file__).parent / "host"
INT8 = Case((77, 16, 0, 3), 16, 2, kv_format="int8", granularity="token_head")
STATIC = replace(INT8, granularity="channel", v_granularity="head")
CASES = {
    "token scales": INT8,
    "interleaved": replace(INT8, layout="interleaved"),
    "static": STATIC,
    "static, interleaved": replace(STATIC, layout="interleaved"),
    "scales per head": replace(INT8, granularity="head"),
    "K per channel, V per token": replace(INT8, granularity="channel", v_granularity="token_head"),
    "128 dims": replace(INT8, head_dim=128),
    "window": replace(INT8, window_left=20),
    "3 query tokens, query in shared memory": replace(INT8, head_dim=128, query_tokens=3),
    "fp16 query": replace(INT8, query="fp16"),
    "large scores": replace(INT8, q_factor=8.0),
    "tiny query": replace(INT8, q_factor=1e-30),
    "sink over all": replace(INT8, sinks=1e4),
    "no sink": replace(INT8, sinks=-math.inf),
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++; none here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("builds")


@functools.cache
def library(folder, variant, launch):
    """Compile a build of the kernel with g++ and load it."""
    sources = folder / str(len(list(folder.iterdir())))
    sources.mkdir()
    for path in (*(builds.SOURCE.folder / name for name in builds.SOURCES[:-1]), *HOST.iterdir()):
        shutil.copy(path, sources)
    defines = [f"-D{name}={value}" for name, value in builds.defines(variant, launch).items()]
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", *defines]
    subprocess.run([*command, "-o", sources / "kernel.so", sources / "sink_decode.cpp"], check=True)
    return ctypes.CDLL(str(sources / "kernel.so"))


def run(arguments, folder, tiles=2):
    out, lse = torch.empty_like(arguments["q"]), torch.empty(arguments["q"].shape[:-1])
    call = Call(**arguments, out=out, lse=lse, workspace=None)
    kernel = library(folder, variant_of(call), Launch(1, 6, tiles, 1, cluster=1))
    kernel.run(ctypes.byref(params_of(call)), call.kv_heads, call.batch)
    return out, lse


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_on_a_cpu(name, folder):
    arguments = build(CASES[name])
    out, lse = run(arguments, folder)
    exact, exact_lse = reference(**arguments)
    assert not tight.problems(out, exact) + tight.lse_problems(lse, exact_lse)


def single_head(batch, lengths):
    """One KV head, a page a sequence, without sink: codes and queries of zeros, to be set."""
    tables = {"block_table": torch.arange(batch, dtype=torch.int32)[:, None]}
    scales = {name: torch.ones(batch, 1, 16) for name in ("k_scale", "v_scale")}
    caches = {name: torch.zeros(batch, 1, 16, 64, dtype=torch.int8) for name in ("k_cache", "v_cache")}
    sinks = {"sinks": torch.full((8,), -math.inf)}
    options = {
        "sm_scale": 1.0,
        "window_left": -1,
        "layout": "HND",
        "seq_lens": torch.tensor(lengths, dtype=torch.int32),
    }
    return {"q": torch.zeros(batch, 8, 64, dtype=torch.bfloat16)} | tables | scales | caches | sinks | options


def codes():
    """All of int8, 64 a row."""
    return torch.arange(-128, 128).to(torch.int8).view(4, 64)


def test_every_value_is_exact_at_every_token(folder):
    """The last token of 1 to 16 takes all the weight: its scores are 254 nats over the others'."""
    arguments = single_head(64, [token + 1 for token in range(16) for _ in range(4)])
    arguments["q"][..., 5] = 1.0
    arguments["k_cache"][..., 5] = -127
    for row in range(64):
        arguments["k_cache"][row, 0, row // 4, 5] = 127
        arguments["v_cache"][row, 0, row // 4] = codes()[row % 4]
    out, _ = run(arguments, folder)
    assert (out == codes().repeat(16, 1)[:, None]).all()


def test_every_key_is_exact_at_every_dim(folder):
    """Of one token: head h of row b reads dim 8 (b // 4) + h."""
    arguments = single_head(32, [1] * 32)
    for row in range(32):
        arguments["k_cache"][row, 0, 0] = codes()[row % 4]
        arguments["q"][row, range(8), range(row // 4 * 8, row // 4 * 8 + 8)] = 0.75
    _, lse = run(arguments, folder)
    read = torch.stack([codes()[row % 4, row // 4 * 8 :][:8] for row in range(32)])
    assert torch.allclose(lse, 0.75 * read, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_query_that_is_not_finite_gives_nan(value, folder):
    """In its head alone."""
    arguments = single_head(1, [16])
    arguments["k_cache"].fill_(1)
    arguments["q"][0, 3, 7] = value
    out, lse = run(arguments, folder)
    assert [head for head in range(8) if lse[0].isnan()[head]] == [3]
    assert out[0, 3].isnan().all() and out.isfinite().sum() == 7 * 64
