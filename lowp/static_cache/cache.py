"""The caches of a model: one ring for each layer, stored in the model's dtype or in storage formats."""

from collections.abc import Sequence

import torch

from lowp.static_cache import checks, report, timing
from lowp.static_cache import ring as rings
from lowp.static_cache.store import NAMES, Storage

TIMED = ("update", "get")
Scale = str | torch.Tensor


class StaticCache:
    """Keys and values of the newest frames of each layer, stored in `dtype`.

    A step of the model: for each layer `attend(q, cache, layer, k, v)`, then `update(k, v, layer)`. Sampling steps that
    see a frame which is not final run with updates disabled: `update` returns at once. The last one commits the frame.

    layers: their number. frame_tokens: tokens of a frame; every call passes one frame, [batch, heads, frame_tokens,
    head_dim], contiguous. windows: for each layer the tokens of its history, a multiple of frame_tokens; the current
    frame is not in it. timed: record the times of calls outside compiled code, for `stats`.
    """

    def __init__(self, layers, batch, heads, head_dim, frame_tokens, windows, dtype, device, *, timed=False):
        checks.check_dtype(dtype)
        storages = [Storage(NAMES[dtype], NAMES[dtype])] * layers
        self._allocate(storages, (batch, heads, frame_tokens, head_dim), windows, dtype, device, timed)

    def get(self, layer: int, new_k=None, new_v=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K and V of the history, followed by the current frame if it is given, in `dtype`.

        Order is that of the ring; `written(layer)` tells which tokens to attend to. Rings in `dtype` return views of
        their memory, which the next call changes. Others dequantise: all of the window into new tensors, or with
        tail_only the newest tokens, oldest first, into memory that all layers share.
        """
        checks.check_layer(self, layer)
        if (new_k is None) != (new_v is None):
            raise ValueError("one of new_k and new_v is None; expected both or neither")
        if new_k is not None:
            checks.check_frames(self, new_k=new_k, new_v=new_v)
        return timing.timed(self.times, "get", self.device, self._get, layer, new_k, new_v)

    def update(self, k: torch.Tensor, v: torch.Tensor, layer: int) -> None:
        """Commit a frame to a layer: write it over the oldest one. Does nothing while updates are disabled.

        NaN is stored as 0, infinities as the largest value of the format; `stats` counts them.
        """
        checks.check_layer(self, layer)
        checks.check_frames(self, k=k, v=v)
        if self.updates_enabled:
            timing.timed(self.times, "update", self.device, rings.commit, self.rings[layer], k, v)

    def get_offset(self, layer: int) -> torch.Tensor:
        """Return the tokens committed to a layer, the position of the current frame's first: int64 without axes.

        It is the cache's own tensor: `update` changes it.
        """
        checks.check_layer(self, layer)
        return self.rings[layer].end

    def written(self, layer: int) -> torch.Tensor:
        """Return which tokens of `get(layer, new_k, new_v)` are written, bool [tokens]."""
        checks.check_layer(self, layer)
        return rings.written(self.rings[layer], self.newest(layer))

    def newest(self, layer: int) -> int | None:
        """Return how many of the newest tokens a layer's history is limited to by tail_only; None without it."""
        return None if self.tail_only is None else min(self.tail_only, self.rings[layer].window)

    def enable_cache_updates(self) -> None:
        self.updates_enabled = True

    def disable_cache_updates(self) -> None:
        self.updates_enabled = False

    def reset(self) -> None:
        """Forget every frame, running scale and count; memory and addresses stay."""
        for ring in self.rings:
            rings.clear(ring)
        for calls in (self.times or {}).values():
            calls.clear()

    def memory(self) -> dict:
        """Return the bytes of the windows by layer and format, and what the device has allocated and reserved."""
        return report.memory(self.rings, self.scratch, self.device)

    def stats(self) -> dict:
        """Return counts, scales and times since the last reset. Waits for the GPU."""
        return report.stats(self.rings, self.times, self.tail_only)

    def _allocate(self, storages, frame_shape, windows, dtype, device, timed, tail_only=None):
        checks.check_windows(len(storages), frame_shape[2], windows)
        self.frame_shape = tuple(frame_shape)
        self.dtype = dtype
        self.device = torch.device(device)
        self.updates_enabled = True
        self.tail_only = tail_only
        self.rings = [
            rings.make_ring(window, self.frame_shape, dtype, self.device, storage)
            for window, storage in zip(windows, storages, strict=True)
        ]
        self.scratch = None if tail_only is None else self._make_scratch(min(tail_only, max(windows)))
        self.times = timing.make_times(TIMED) if timed else None

    def _make_scratch(self, tokens: int) -> torch.Tensor:
        batch, heads, frame_tokens, head_dim = self.frame_shape
        scratch = torch.zeros(2, batch, heads, tokens + frame_tokens, head_dim, dtype=self.dtype, device=self.device)
        torch._dynamo.mark_static_address(scratch)
        return scratch

    def _get(self, layer: int, new_k, new_v):
        ring = self.rings[layer]
        ring.counters.gets.add_(1)
        if self.tail_only is not None:
            return rings.read_newest(ring, self.newest(layer), new_k, new_v, self.scratch)
        return (rings.view if ring.has_tail else rings.read)(ring, new_k, new_v)


class QuantizedStaticCache(StaticCache):
    """A StaticCache whose K and V are stored in storage formats of `lowp.formats`, with their scales.

    k_format, v_format: a format for all layers, or a sequence with one for each; None is `dtype`, not quantised.
    k_scale, v_scale: none, token_head, ema, block or an fp32 tensor [heads], or a sequence with one for each layer; see
    `store.make_store`. A sequence mixes formats over the layers, as of V in 4 bits on the last ones alone.
    v_percentile: V's scales map this percentile of the magnitudes of a token (token_head) or frame (ema) onto the
    format's largest; larger ones are clamped.
    kv_late_layers: quantise the last N layers only; 0 quantises all.
    tail_only: `get` and attention dequantise and use the newest N tokens alone, a multiple of frame_tokens. Implemented
    by the reference path, to be measured.
    """

    def __init__(
        self,
        layers,
        batch,
        heads,
        head_dim,
        frame_tokens,
        windows,
        dtype,
        device,
        *,
        k_format: str | Sequence[str | None] | None = None,
        v_format: str | Sequence[str | None] | None = "e4m3",
        k_scale: Scale | Sequence[Scale] = "token_head",
        v_scale: Scale | Sequence[Scale] = "token_head",
        v_percentile: float = 100.0,
        kv_late_layers: int = 0,
        tail_only: int | None = None,
        timed: bool = False,
    ):
        checks.check_dtype(dtype)
        checks.check_late_layers(layers, kv_late_layers)
        if tail_only is not None:
            checks.check_tail_only(frame_tokens, tail_only)
        plain = NAMES[dtype]
        early = layers - kv_late_layers if kv_late_layers else 0
        k_formats, v_formats, k_scales, v_scales = (
            _by_layer(name, value, layers)
            for name, value in (
                ("k_format", k_format),
                ("v_format", v_format),
                ("k_scale", k_scale),
                ("v_scale", v_scale),
            )
        )
        frame_shape = (batch, heads, frame_tokens, head_dim)
        storages = []
        for layer, chosen in enumerate(zip(k_formats, v_formats, k_scales, v_scales, strict=True)):
            formats = [plain if layer < early or name is None else name for name in chosen[:2]]
            storages.append(Storage(*formats, *chosen[2:], v_percentile))
            checks.check_storage("k", formats[0], chosen[2], 100.0, frame_shape)
            checks.check_storage("v", formats[1], chosen[3], v_percentile, frame_shape)
        self._allocate(storages, frame_shape, windows, dtype, device, timed, tail_only)


def _by_layer(name: str, chosen, layers: int) -> list:
    """Return one entry for each layer: those of a sequence, or the same one for all."""
    entries = list(chosen) if isinstance(chosen, (list, tuple)) else [chosen] * layers
    if len(entries) != layers:
        raise ValueError(f"{name} has {len(entries)} entries; expected one for each of {layers} layers")
    return entries
