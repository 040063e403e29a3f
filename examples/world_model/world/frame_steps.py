"""The work of one frame: two sampling steps, the decoder, and the picture, each timed."""

import time

import torch

from lowp.static_cache import StaticCache, attend
from world.config import STEP_NOISES
from world.model import WorldModel
from world.plan import Plan
from world.sampling import make_denoise, move
from world.timing import Clock

RECOMPILES = 64  # graphs of one function: one for each layer and kind of step


class FrameSteps:
    """Frames of a batch over one cache, compiled or not.

    Code is compiled anew for each object, and earlier compiled code dropped: its graphs hold another cache. A compiled
    step times no parts. FlexAttention builds the whole score matrix outside compiled code, so on a GPU it is compiled
    alone in steps that are not.
    """

    def __init__(self, model: WorldModel, cache: StaticCache, plan: Plan, clock: Clock):
        self.cache, self.clock = cache, clock
        self.dtype = model.final_proj.weight.dtype
        self.compiled = plan.compiled
        torch._dynamo.reset()
        attend_layer = attend
        if plan.backend == "flex" and cache.device.type == "cuda":
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
            attend_layer = torch.compile(attend)
        self.eager_functions = make_denoise(model, cache, plan.backend, clock, attend_layer), model.decoder
        if plan.compiled:
            denoise = make_denoise(model, cache, plan.backend)
            self.functions = torch.compile(denoise, fullgraph=True), torch.compile(model.decoder, fullgraph=True)
        else:
            self.functions = self.eager_functions

    def commit(self, latents, noise, controls) -> None:
        """Cache a true frame, with the noise of cached frames. latents, noise: [batch, 3, latent, latent]."""
        noisy = (1 - STEP_NOISES[-1]) * latents + STEP_NOISES[-1] * noise
        self.denoise(noisy, STEP_NOISES[-1], controls, True)

    def generate(self, noise, controls, commit: bool, eager: bool = False) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the frame made from noise, [batch, 3, side, side] on the CPU, and its times in ms.

        commit: the last step writes the frame to the cache. pipeline_ms ends with the decoded frame on the device,
        draw_ms is its copy to the host.
        """
        parts, x = {}, noise
        start = self.synchronised_time()
        for number, level in enumerate(STEP_NOISES, 1):
            next_level = (*STEP_NOISES, 0.0)[number]
            denoised = self.denoise(x, level, controls, commit and number == len(STEP_NOISES), eager)
            x = move(x, denoised, level, next_level)
            parts |= {f"{name}_step{number}_ms": ms for name, ms in self.clock.end_frame().items()}
        with self.clock("decoder"):
            image = (self.eager_functions if eager else self.functions)[1](x[:, None].to(self.dtype))[:, 0]
        parts |= {f"{name}_ms": ms for name, ms in self.clock.end_frame().items()}
        decoded = self.synchronised_time()
        image = image.float().cpu()
        total = time.perf_counter()
        times = {"total_ms": total - start, "pipeline_ms": decoded - start, "draw_ms": total - decoded}
        return image, {name: 1e3 * seconds for name, seconds in times.items()} | parts

    def denoise(self, noisy, level: float, controls, commit: bool, eager: bool = False) -> torch.Tensor:
        (self.cache.enable_cache_updates if commit else self.cache.disable_cache_updates)()
        function = (self.eager_functions if eager else self.functions)[0]
        noise = torch.full((len(noisy), 1), level, device=noisy.device)
        denoised = function(noisy[:, None].to(self.dtype), noise, controls[:, None])
        return denoised[:, 0].float()

    def synchronised_time(self) -> float:
        if self.cache.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
