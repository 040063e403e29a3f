"""Rollouts on a GPU: compiled and eager, fused attention, linear layers that its units multiply."""

import pytest
import torch
from world.data import make_clips
from world.rollout import rollout
from world.settings import BF16, Requested, from_values, request

pytestmark = pytest.mark.gpu
FRAMES, CONTEXT = 24, 4


def generate(model, requested, device="cuda"):
    return rollout(model, make_clips(11, 2, FRAMES), requested, context=CONTEXT, device=device)


@pytest.mark.parametrize("compiled", [True, False])
def test_bf16_equals_a_cpu(model, compiled):
    requested = from_values({"mxfp_enable": False, "fp8_kv": False, "compile": compiled})
    frames, record = generate(model, requested)
    expected, _ = generate(model, Requested(BF16), "cpu")
    assert record["resolved"]["backend"] == "flex"
    assert (frames[:, 0] - expected[:, 0]).abs().mean() < 0.02
    assert record["memory"]["allocated"] > 0 and record["memory"]["reserved"] > 0


def test_the_default_runs_and_names_its_kernel(model):
    requested = request(None, {"OWL_KV_LATE_LAYERS": "0"})
    frames, record = generate(model, requested)
    assert frames.isfinite().all() and record["resolved"]["compiled"]
    has_units = torch.cuda.get_device_capability() >= (10, 0)
    assert (record["resolved"]["mx_kernel"] == "auto") == has_units == (not record["resolved"]["notices"])


def test_only_leading_frames_are_cold(model):
    _, record = generate(model, from_values({"mxfp_enable": False, "kv_late_layers": 0, "compile": True}))
    assert record["cold_frames"] == list(range(CONTEXT, CONTEXT + len(record["cold_frames"])))
    assert len(record["cold_frames"]) <= 4, "nothing is compiled again"
    assert record["part_frames"][0]["attention_step1_ms"] > 0
