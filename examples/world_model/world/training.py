"""Train the model on random clips: loss, optimizers, schedule, and the state from which a run resumes."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from world.clip_attention import clip_attention
from world.config import STEP_NOISES, Config
from world.data import random_clips
from world.decoder import encode
from world.files import replacing
from world.model import WorldModel

LOSSES = ("cached", "draft", "decoded")  # mean square errors of values in [-1, 1]
WARMUP = 0.03  # of the steps
MATRIX_RATE, RATE = 4e-3, 3e-3  # peaks: of the blocks' matrices (Muon), of the rest (AdamW)
WEIGHT_DECAY = 0.01
SOFTEST = 0.7  # share of a 3 x 3 average in cached frames, whose targets stay sharp: a rollout's own frames are softer
DECODER_FRAMES = 32  # of a step, that train the decoder
DECODER_NOISE = 0.05  # on the latents that it sees in training


@dataclass(frozen=True)
class Plan:
    """A training run. Two runs with the same plan on one machine give the same weights."""

    steps: int
    clips: int = 16
    frames: int = 12
    seed: int = 1


@dataclass
class Run:
    """What a run resumes from. losses: of the steps so far, as `step` returns them."""

    plan: Plan
    model: WorldModel
    optimizers: list[torch.optim.Optimizer]
    generator: torch.Generator
    losses: list[list[float]]


def start(config: Config, plan: Plan, device: str) -> Run:
    torch.manual_seed(plan.seed)
    model = WorldModel(config).to(device)
    matrices = [layer.weight for layer in model.blocks.modules() if isinstance(layer, nn.Linear)]
    chosen = {id(weight) for weight in matrices}
    remaining = [weight for weight in model.parameters() if id(weight) not in chosen]
    muon = torch.optim.Muon(matrices, MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(remaining, RATE, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return Run(plan, model, [muon, adamw], torch.Generator().manual_seed(plan.seed), [])


def step(run: Run) -> list[float]:
    """Train on the next clips; return its LOSSES."""
    plan, model = run.plan, run.model
    device = model.embed.position.device
    clips = random_clips(plan.clips, plan.frames, model.config.frame, run.generator, device)
    latents = encode(clips.frames, model.config.latent)
    history, draft = denoising_losses(model, latents, clips.controls, run.generator)
    decoding = decoding_loss(model, latents, clips.frames, run.generator)
    (history + draft + decoding).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    share = rate_share(len(run.losses), plan.steps)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
        optimizer.step()
        optimizer.zero_grad()
    run.losses.append([history.item(), draft.item(), decoding.item()])
    return run.losses[-1]


def denoising_losses(model: WorldModel, latents, controls, generator: torch.Generator) -> list[torch.Tensor]:
    """Return the mean square errors of latents in [-1, 1] in the two streams of `clip_attention`.

    A clip's first frame follows from nothing: its draft is left out.
    """
    device, (clips, frames) = latents.device, latents.shape[:2]
    history_noise, draft_noise = STEP_NOISES[1], STEP_NOISES[0]
    noise = torch.tensor([history_noise] * frames + [draft_noise] * frames, device=device).expand(clips, -1)
    gaussian = torch.randn(clips, 2 * frames, *latents.shape[2:], generator=generator).to(device)
    truth = latents.repeat(1, 2, 1, 1, 1)
    cached = soften(latents, SOFTEST * torch.rand(clips, frames, generator=generator).to(device))
    noisy = blend(torch.cat([cached, latents], 1), gaussian, noise)
    positions = torch.arange(frames, device=device).repeat(2)
    attend = clip_attention(model.config, frames, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        denoised = model(noisy, noise, controls.repeat(1, 2, 1), positions, attend)
    errors = (denoised.float() - truth).square()
    return [errors[:, :frames].mean(), errors[:, frames + 1 :].mean()]


def decoding_loss(model: WorldModel, latents, frames, generator: torch.Generator) -> torch.Tensor:
    count = latents.shape[0] * latents.shape[1]
    chosen = torch.randperm(count, generator=generator)[:DECODER_FRAMES].to(latents.device)
    latents, frames = (x.flatten(0, 1)[chosen][:, None] for x in (latents, frames))
    noise = DECODER_NOISE * torch.randn(latents.shape, generator=generator).to(latents.device)
    return (model.decoder(latents + noise) - frames).square().mean()


def blend(truth: torch.Tensor, gaussian: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return frames [batch, frames, ...] with each frame's share of noise."""
    noise = noise[..., None, None, None]
    return (1 - noise) * truth + noise * gaussian


def soften(latents: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Blend each frame with its 3 x 3 average. share: [batch, frames]."""
    average = F.avg_pool2d(latents.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
    return torch.lerp(latents, average.view_as(latents), share[..., None, None, None])


def rate_share(number: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the peak: a linear warm-up, then a cosine to 0."""
    warmup = max(1, round(WARMUP * steps))
    if number < warmup:
        return (number + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (number - warmup) / max(1, steps - warmup)))


def save(run: Run, path: Path) -> None:
    state = {
        "plan": asdict(run.plan),
        "config": asdict(run.model.config),
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "generator": run.generator.get_state(),
        "losses": run.losses,
    }
    with replacing(path) as part:
        torch.save(state, part)


def resume(path: Path, config: Config, plan: Plan, device: str) -> Run:
    """Return the run saved at `path`. Raises ValueError if it has another plan or model."""
    state = torch.load(path, map_location=device, weights_only=True)
    for name, saved, expected in (("plan", state["plan"], asdict(plan)), ("model", state["config"], asdict(config))):
        if saved != expected:
            raise ValueError(f"{path} has the {name} {saved}; expected {expected}; remove it to start anew")
    run = start(config, plan, device)
    run.model.load_state_dict(state["model"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    run.generator.set_state(state["generator"].cpu())
    run.losses.extend(state["losses"])
    return run
