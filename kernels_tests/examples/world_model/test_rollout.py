"""Rollouts: what is generated from what, with which noise; what is recorded; what is refused."""

import pytest
import torch
from world import frame_steps
from world.data import Clips, make_clips
from world.plan import windows
from world.rollout import clip_noise, rollout
from world.settings import BF16, Requested, from_values

FRAMES, CONTEXT = 8, 3
PLAIN = Requested(BF16)
QUANTIZED = {"mxfp_enable": False, "kv_late_layers": 0}


@pytest.fixture(scope="module")
def clips() -> Clips:
    return make_clips(11, 2, FRAMES)


def generate(model, clips, requested=PLAIN, **options):
    return rollout(model, clips, requested, context=CONTEXT, **options)


def differing(a: torch.Tensor, b: torch.Tensor) -> list[bool]:
    """Return which frames of two rollouts differ."""
    return [not torch.equal(x, y) for x, y in zip(a.unbind(1), b.unbind(1), strict=True)]


def changed(clips: Clips, frame: int, name: str) -> Clips:
    values = {"frames": clips.frames.clone(), "controls": clips.controls.clone()}
    values[name][:, frame] = values[name][:, frame].flip(-1)
    return Clips(**values)


def test_a_rollout_repeats_and_depends_on_its_seed(model, clips):
    first, record = generate(model, clips)
    assert first.shape == (2, FRAMES - CONTEXT, *clips.frames.shape[2:]) and first.abs().max() <= 1
    assert torch.equal(first, generate(model, clips)[0])
    assert all(differing(first, generate(model, clips, seed=1)[0]))
    assert [frame["frame"] for frame in record["frames"]] == list(range(CONTEXT, FRAMES))


def test_a_clip_has_the_same_noise_for_every_count_of_clips():
    assert torch.equal(clip_noise(3, torch.Size((3, 2, 4)))[:2], clip_noise(3, torch.Size((2, 2, 4))))


@pytest.mark.parametrize(("forced", "expected"), [(True, [False, False, True, True]), (False, [False] * 4)])
def test_frames_follow_from_the_true_history_if_forced(model, clips, forced, expected):
    """A change of the second true frame after the context reaches the frames after it, never itself."""
    variant = changed(clips, CONTEXT + 1, "frames")
    result = differing(generate(model, clips, forced=forced)[0], generate(model, variant, forced=forced)[0])
    assert result[:4] == expected


@pytest.mark.parametrize("forced", [True, False])
def test_controls_act_on_their_frame_and_not_before(model, clips, forced):
    variant = changed(clips, CONTEXT + 1, "controls")
    result = differing(generate(model, clips, forced=forced)[0], generate(model, variant, forced=forced)[0])
    assert result[:3] == [False, True, True]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"k_fp8": True},
        {"k_fp8": True, "kv_storage": "i8_scale"},
        {"v_scale": "ema"},
        {"kv_late_layers": 1},
        {"kv_tail_only": True, "attn_backend": "reference"},
        {"attn_sdpa_decode": True},
        {"attn_backend": "flex"},
        {"local_window": 3},
    ],
)
def test_every_storage_is_near_bf16(model, clips, values):
    baseline, _ = generate(model, clips)
    frames, record = generate(model, clips, from_values(QUANTIZED | values))
    if values.keys().isdisjoint({"kv_tail_only", "local_window"}):
        assert (frames - baseline).abs().mean() < 0.1
        assert record["memory"]["ratio"] < 1
    assert frames.isfinite().all()


def test_sdpa_over_the_plain_cache_equals_attend(model, clips):
    values = {"mxfp_enable": False, "fp8_kv": False}
    sdpa = generate(model, clips, from_values(values | {"attn_sdpa_decode": True}))[0]
    assert (sdpa - generate(model, clips)[0]).abs().mean() < 0.02


def test_mx_layers_are_converted_and_listed(model, clips):
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    frames, record = generate(model, clips, from_values({"fp8_kv": False, "mxfp_kernel": "emulated"}))
    transform = record["transform"]
    names = {layer["name"] for layer in transform["layers"]}
    assert {"blocks.0.attn.qkv", "blocks.1.mlp.fc2", "final_proj"} <= names
    assert not any(name.startswith(("embed", "decoder")) for name in names)
    assert transform["count"] == len(names) and frames.isfinite().all()
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in weights.items()), "the model is copied"


def test_the_record_has_times_memory_and_sources(model, clips):
    _, record = generate(model, clips, from_values(QUANTIZED | {"profile_kv": True, "profile_kv_first": 2}))
    frame = record["frames"][0]
    parts = {f"{part}_step{step}_ms" for part in ("attention", "mlp") for step in (1, 2)}
    assert parts | {"total_ms", "pipeline_ms", "draw_ms", "decoder_ms", "quantise_step2_ms"} <= frame.keys()
    assert frame["total_ms"] == pytest.approx(frame["pipeline_ms"] + frame["draw_ms"])
    assert "quantise_step1_ms" not in frame, "the first step commits nothing"
    assert record["requested"]["sources"] == dict.fromkeys([*QUANTIZED, "profile_kv", "profile_kv_first"], "caller")
    assert [layer["window"] for layer in record["memory"]["layers"]] == list(windows(BF16, model.config))
    assert all(layer["bf16_bytes"] > layer["bytes"] for layer in record["memory"]["layers"])
    assert [entry["frame"] for entry in record["kv_profile"]] == [CONTEXT, CONTEXT + 1]
    assert record["kv_profile"][0]["ms"]["update"]
    assert record["summary"]["frames"] == FRAMES - CONTEXT - len(record["cold_frames"])


def test_compiled_frames_equal_eager_frames(model, clips, monkeypatch):
    """By aot_eager, which compiles in seconds; a graph for each kind of step, and no graph break."""
    compile_ = torch.compile
    monkeypatch.setattr(
        frame_steps.torch, "compile", lambda function, **options: compile_(function, backend="aot_eager", **options)
    )
    values = QUANTIZED | {"v_scale": "token_head"}
    eager = generate(model, clips, from_values(values))[0]
    frames, record = generate(model, clips, from_values(values | {"compile": True}))
    assert torch.allclose(frames, eager, atol=0.05)
    assert record["cold_frames"][0] == CONTEXT and record["parts"] == "eager frames after the rollout"
    assert "attention_step1_ms" not in record["frames"][0] and "attention_step1_ms" in record["part_frames"][0]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"kv_late_layers": 12}, ValueError, r"kv_late_layers is 12; expected 0 .all. to 2"),
        ({"attn_backend": "paged"}, ValueError, "backend 'paged' is unknown"),
        ({"attn_backend": "flex", "v_scale": "token_head"}, NotImplementedError, "flex has no V scales per slot"),
        ({"v_fmt": "int8"}, NotImplementedError, "int8 (needs scales|has no v_scale none)"),
        ({"mxfp_enable": True, "mxfp_kernel": "triton"}, NotImplementedError, "kernel 'triton'"),
        ({"mxfp_enable": True, "mxfp_kernel": "auto"}, NotImplementedError, r"kernel 'auto' .* this is a CPU"),
        ({"mxfp_enable": True, "mxfp_kernel": "emulated", "mxfp_late_layers": 3}, ValueError, "late_layers=3"),
    ],
)
def test_refusals_of_lowp(model, clips, values, error, message):
    with pytest.raises(error, match=message) as caught:
        generate(model, clips, from_values(QUANTIZED | values))
    assert "\n" not in str(caught.value)


def test_refused_calls(model, clips):
    with pytest.raises(ValueError, match="context is 8 of 8 frames"):
        rollout(model, clips, PLAIN, context=FRAMES)
    with pytest.raises(ValueError, match=r"is compiled; expected apply_mx before torch\.compile"):
        generate(torch.compile(model), clips, from_values(QUANTIZED | {"mxfp_enable": True}))
    broken = Clips(clips.frames.clone(), clips.controls)
    broken.frames[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 0: K had \d+ NaN"):
        generate(model, broken)
    model_in_fp32 = type(model)(model.config)
    with pytest.raises(TypeError, match=r"float32 weights; expected torch\.bfloat16"):
        generate(model_in_fp32, clips, from_values({"fp8_kv": False, "mxfp_kernel": "emulated"}))
