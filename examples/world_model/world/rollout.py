"""Roll the model out over clips: each frame from the true history, or from the frames that it made itself."""

import copy
from dataclasses import asdict

import torch

from lowp.mx_linear import Audit
from lowp.static_cache import StaticCache
from lowp.static_cache.report import check_finite
from world.config import STEP_NOISES
from world.data import Clips
from world.decoder import encode
from world.frame_steps import FrameSteps
from world.model import WorldModel
from world.plan import make_cache, make_plan, transform
from world.settings import Requested
from world.timing import Clock, cold_frames, compiled_graphs, summarise

PART_FRAMES = 4  # run eagerly after a compiled rollout, for the times of its parts


@torch.no_grad()
def rollout(
    model: WorldModel,
    clips: Clips,
    requested: Requested,
    *,
    device: str | torch.device = "cpu",
    context: int = 8,
    forced: bool = False,
    seed: int = 0,
) -> tuple[torch.Tensor, dict]:
    """Return frames [clips, frames - context, 3, side, side] in [-1, 1] on the CPU, and the record of the run.

    model: of a checkpoint, in BF16; it is copied, not changed. clips: rolled out together, a batch. The first `context`
    frames are history, not generated. forced: each frame is made from the true history, else from the frames before it.
    seed: of the noise; clip i has the same noise for every count of clips, settings and mode.
    Raises ValueError, TypeError or NotImplementedError for what the model, the device or `lowp` refuses.
    """
    device = torch.device(device)
    count, frames = clips.frames.shape[:2]
    if not 0 < context < frames:
        raise ValueError(f"context is {context} of {frames} frames; expected at least one, and one frame to generate")
    plan = make_plan(requested, model.config, device)
    model = copy.deepcopy(model).to(device)
    audit = transform(plan, model)
    cache = make_cache(plan, model.config, count, model.final_proj.weight.dtype, device)
    clock = Clock(device)
    steps = FrameSteps(model, cache, plan, clock)
    latents = encode(clips.frames, model.config.latent).to(device)
    noise = clip_noise(seed, latents.shape).to(device)
    controls = clips.controls.to(device)
    for number in range(context):
        steps.commit(latents[:, number], noise[:, number], controls[:, number])
    clock.end_frame()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    images, times, graphs, profiles = [], [], [], []
    for number in range(context, frames):
        before = compiled_graphs()
        image, frame_times = steps.generate(noise[:, number], controls[:, number], commit=not forced)
        images.append(image)
        times.append(frame_times)
        graphs.append(compiled_graphs() - before)
        if forced:
            steps.commit(latents[:, number], noise[:, number], controls[:, number])
            clock.end_frame()
        if is_profiled(requested.settings, number - context):
            profiles.append({"frame": number, **cache.stats(), "memory": cache.memory()})
    check_finite(cache.stats())
    cold = cold_frames([frame["total_ms"] for frame in times], graphs)
    record = {
        "requested": {"settings": asdict(requested.settings), "sources": dict(requested.sources)},
        "resolved": plan.record(),
        "transform": None if audit is None else audit_record(audit),
        "mode": "teacher-forced" if forced else "free-running",
        "clips": count,
        "context": context,
        "seed": seed,
        "step_noises": list(STEP_NOISES),
        "frames": [{"frame": context + number, **frame} for number, frame in enumerate(times)],
        "cold_frames": [context + number for number in cold],
        "summary": summarise(times, cold),
        "parts": "each frame",
        "memory": memory(cache, model, device),
        "kv": cache.stats()["layers"],
        "kv_profile": profiles,
    }
    if plan.compiled:
        parts = [steps.generate(noise[:, -1], controls[:, -1], True, eager=True)[1] for _ in range(PART_FRAMES)]
        record["parts"] = "eager frames after the rollout"
        record["part_frames"] = parts
    return torch.stack(images, 1), record


def clip_noise(seed: int, shape: torch.Size) -> torch.Tensor:
    """Return noise of `shape` [clips, frames, ...]; a clip's depends on the seed and its number alone."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(shape[0])]
    return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])


def is_profiled(settings, number: int) -> bool:
    return settings.profile_kv and (number < settings.profile_kv_first or number % settings.profile_kv_every == 0)


def audit_record(audit: Audit) -> dict:
    return {**asdict(audit), "count": audit.count, "categories": audit.categories, "table": audit.table()}


def memory(cache: StaticCache, model: WorldModel, device: torch.device) -> dict:
    """Return the cache's bytes by layer and format, the weights', and what the device has allocated and reserved."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    weights = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    return {**cache.memory(), "weight_elements_bytes": weights, "peak_allocated": peak}
