"""What a cache reports of its rings: numerics and times (`stats`), and bytes (`memory`)."""

from collections import defaultdict, deque

import torch

from lowp.static_cache.ring import Ring, state
from lowp.static_cache.stats import COUNTS
from lowp.static_cache.store import Store, is_quantized
from lowp.static_cache.timing import milliseconds


def memory(rings: list[Ring], scratch: torch.Tensor | None, device: torch.device) -> dict:
    """Return the bytes of a cache.

    layers: bytes of each window with its scales, and of the same window in BF16. tail_bytes: the current frames' slots.
    total_bytes: every tensor of the cache. allocated, reserved: of the device by torch, None on a CPU.
    """
    layers, by_format = [], defaultdict(int)
    for number, ring in enumerate(rings):
        sides = {"k": _window_bytes(ring.k, ring.window), "v": _window_bytes(ring.v, ring.window)}
        formats = {"k": ring.k.kv_format, "v": ring.v.kv_format}
        for side, size in sides.items():
            by_format[formats[side]] += size
        layers.append(
            {
                "layer": number,
                "window": ring.window,
                "k_format": formats["k"],
                "v_format": formats["v"],
                "bytes": sum(sides.values()),
                "bf16_bytes": 2 * torch.bfloat16.itemsize * _values(ring, ring.window),
            }
        )
    window_bytes, bf16_bytes = (sum(layer[key] for layer in layers) for key in ("bytes", "bf16_bytes"))
    tail_bytes = sum(store.codes[:, :, ring.window :].nbytes for ring in rings for store in (ring.k, ring.v))
    scratch_bytes = 0 if scratch is None else scratch.nbytes
    on_gpu = device.type == "cuda"
    return {
        "layers": layers,
        "by_format": dict(by_format),
        "window_bytes": window_bytes,
        "bf16_bytes": bf16_bytes,
        "ratio": window_bytes / bf16_bytes,
        "tail_bytes": tail_bytes,
        "scratch_bytes": scratch_bytes,
        "total_bytes": scratch_bytes + sum(tensor.nbytes for ring in rings for tensor in state(ring)),
        "allocated": torch.cuda.memory_allocated(device) if on_gpu else None,
        "reserved": torch.cuda.memory_reserved(device) if on_gpu else None,
    }


def stats(rings: list[Ring], times: dict[str, deque] | None, tail_only: int | None) -> dict:
    """Return counts of what was committed and read since the last reset, by layer, and times of calls.

    at_limit: codes of the format's largest magnitude. clamped: values over it, infinities too. A scale per token and
    head puts the largest of each token at the limit, and clamps nothing.
    dequantised_bytes: bytes that one `get` of each layer writes. 0 where a view is returned; `attend` calls no `get`.
    """
    layers = [
        {
            "layer": number,
            "frames": int(ring.counters.frames),
            "gets": int(ring.counters.gets),
            "dequantised_bytes": _dequantised_bytes(ring, tail_only),
            "k": _side(ring, 0, ring.k),
            "v": _side(ring, 1, ring.v),
        }
        for number, ring in enumerate(rings)
    ]
    return {"layers": layers, "ms": None if times is None else {name: milliseconds(times[name]) for name in times}}


def check_finite(report: dict) -> None:
    """Raise ValueError if `stats` counted NaN or infinities in committed frames."""
    for layer in report["layers"]:
        for side in ("k", "v"):
            counts = layer[side]
            if counts["nan"] or counts["inf"]:
                raise ValueError(
                    f"layer {layer['layer']}: {side.upper()} had {counts['nan']} NaN and {counts['inf']} infinities in"
                    f" {layer['frames']} frames; expected finite values"
                )


def _side(ring: Ring, row: int, store: Store) -> dict:
    frames = int(ring.counters.frames)
    counts = dict(zip(COUNTS, ring.counters.values[row].tolist(), strict=True))
    return {"format": store.kv_format, "scale": _scales(ring, row, store, frames), **counts}


def _scales(ring: Ring, row: int, store: Store, frames: int) -> dict | None:
    if store.scale is None or not frames:
        return None
    if not store.scale_per_slot:
        return {"min": store.scale.min().item(), "mean": store.scale.mean().item(), "max": store.scale.max().item()}
    least, largest, total = ring.counters.scale_range[row].tolist()
    return {"min": least, "mean": total / frames, "max": largest}


def _window_bytes(store: Store, window: int) -> int:
    scale = 0 if store.scale is None else store.scale[:, :, :window].nbytes
    return store.codes[:, :, :window].nbytes + scale


def _dequantised_bytes(ring: Ring, tail_only: int | None) -> int:
    tokens = ring.window if tail_only is None else min(tail_only, ring.window)
    stores = [store for store in (ring.k, ring.v) if tail_only is not None or is_quantized(store.kv_format)]
    return len(stores) * _values(ring, tokens) * ring.dtype.itemsize


def _values(ring: Ring, tokens: int) -> int:
    batch, heads, _, _ = ring.k.codes.shape
    return batch * heads * tokens * ring.k.head_dim
