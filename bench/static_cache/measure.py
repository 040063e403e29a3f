"""Measure a point: attention by backend and storage, and whole frames, with error and memory. Needs a GPU."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from bench.kernels.measure import message
from bench.kernels.timing import graph_us
from bench.static_cache import rolled, shapes
from bench.static_cache.result import StaticCacheRow
from bench.static_cache.shapes import (
    FRAME_DESIGNS,
    FRAME_POINTS,
    FRAME_STORAGES,
    HEAD_DIM,
    HEADS,
    STEPS,
    STORAGES,
    Point,
)
from lowp.static_cache import QuantizedStaticCache, attend, reference
from lowp.static_cache.masks import refresh_block_mask
from lowp.static_cache.store import as_bytes, encode

ROTATED_BYTES = 256 << 20  # of the layers of one measurement: more than a GPU's own cache
DEVICE = "cuda"
HEAD_SCALE = 0.02  # of fixed scales: normal values stay in range
Report = Callable[[str], None]


def rows(point: Point, ceiling: float, report: Report) -> list[StaticCacheRow]:
    """Measure every case of a point; one that fails is a row with its error."""
    measured = []
    for backend, name in shapes.attention_cases(point):
        measured.append(
            _row(partial(_attention, point, backend, name), point, "attention", "ring", backend, name, ceiling)
        )
        report(line(measured[-1]))
    if point in FRAME_POINTS:
        for name in FRAME_STORAGES:
            for design, backend in FRAME_DESIGNS:
                case = partial(_ring_frame if design == "ring" else _rolled_frame, point, backend, name)
                measured.append(_row(case, point, "frame", design, backend, name, ceiling))
                report(line(measured[-1]))
    return measured


def line(row: StaticCacheRow) -> str:
    name = f"{row.point} {row.part}, {row.design}, {row.backend}, {row.storage}"
    if row.error:
        return f"{name}: FAILED: {row.error}"
    return f"{name}: {row.time_us:.1f} us, predicted {row.predicted_us:.1f}, relL2 {row.rel_l2:.1e}"


def _row(measurement, point: Point, part, design, backend, name: str, ceiling: float) -> StaticCacheRow:
    predict = {"attention": shapes.attention_us, "frame": shapes.frame_us}[part]
    if design == "rolled":
        predict = shapes.rolled_us
    try:
        figures = measurement()
    except Exception as error:  # a format that the installed torch refuses, or too little memory
        figures = {"error": message(error)}
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    return StaticCacheRow(
        part=part,
        design=design,
        backend=backend,
        storage=name,
        frame_tokens=point.frame_tokens,
        window=point.window,
        cache_bytes=shapes.window_bytes(STORAGES[name], point.window),
        predicted_us=predict(point, STORAGES[name], ceiling),
        **figures,
    )


def _attention(point: Point, backend: str, name: str) -> dict:
    cache = full_cache(point, name)
    q, k, v = draw(point)

    def layers():
        return [attend(q, cache, layer, k, v, backend) for layer in range(len(cache.rings))]

    call = torch.compile(layers, fullgraph=True) if backend == "flex" else layers
    error = _rel_l2(call()[0], reference.attention(q.float(), cache.rings[0], k, v))
    figures = _times(call, len(cache.rings)) | {"rel_l2": error}
    if backend == "triton":
        figures["peak_bytes"] = _peak_bytes(lambda: attend(q, cache, 0, k, v, backend))
    return figures


def _ring_frame(point: Point, backend: str, name: str) -> dict:
    """Two steps through all layers, each layer's output the next one's query; the second step commits."""
    cache = full_cache(point, name)
    q, k, v = draw(point)

    def frame():
        x = q
        for step in range(STEPS):
            for layer in range(len(cache.rings)):
                x = attend(x, cache, layer, k, v, backend)
                if step == STEPS - 1:
                    cache.update(k, v, layer)
        return x

    exact = q
    for ring in cache.rings * STEPS:
        exact = reference.attention(exact.float(), ring, k, v)
    compiled = torch.compile(frame, fullgraph=True)
    error = _rel_l2(compiled(), exact)
    return _times(compiled, len(cache.rings)) | {"rel_l2": error, "peak_bytes": _peak_bytes(compiled)}


def _rolled_frame(point: Point, backend: str, name: str) -> dict:
    storage = STORAGES[name]
    q, k, v = draw(point)
    sides = [
        [rolled.make(x, x_format) for x, x_format in _windows(point, storage)] for _ in range(_layers(point, name))
    ]
    attention = torch.compile(flex_attention) if backend == "flex" else scaled_dot_product_attention

    def frame():
        x = q
        for step in range(STEPS):
            for k_side, v_side in sides:
                x = attention(x, rolled.concatenate(k_side, k), rolled.concatenate(v_side, v))
                if step == STEPS - 1:  # the new windows are dropped: each replay of the graph reads the same ones
                    rolled.commit(k_side, k, storage.k_format)
                    rolled.commit(v_side, v, storage.v_format)
        return x

    exact = q.float()
    for k_side, v_side in sides * STEPS:
        tokens = [rolled.concatenate(side, x).float() for side, x in ((k_side, k), (v_side, v))]
        exact = scaled_dot_product_attention(exact, *tokens)
    error = _rel_l2(frame(), exact)
    return _times(frame, len(sides)) | {"rel_l2": error}


def full_cache(point: Point, name: str) -> QuantizedStaticCache:
    """Return a cache of as many layers as exceed the GPU's own cache, its windows full of random values."""
    storage, layers = STORAGES[name], _layers(point, name)
    fixed = torch.full((HEADS,), HEAD_SCALE)
    formats = {
        "k_format": None if storage.k_format == "bf16" else storage.k_format,
        "v_format": None if storage.v_format == "bf16" else storage.v_format,
        "k_scale": fixed if storage.k_scale == "head" else storage.k_scale,
        "v_scale": fixed if storage.v_scale == "head" else storage.v_scale,
    }
    windows = [point.window] * layers
    shape = (layers, 1, HEADS, HEAD_DIM, point.frame_tokens, windows)
    cache = QuantizedStaticCache(*shape, torch.bfloat16, DEVICE, **formats)
    for ring in cache.rings:
        for store, (x, _) in zip((ring.k, ring.v), _windows(point, storage), strict=True):
            quantized, scale = encode(store, x)
            as_bytes(store.codes)[:, :, : point.window] = as_bytes(quantized.values)
            if scale is not None:
                store.scale.copy_(as_bytes(scale))
        ring.end.fill_(point.window)
        refresh_block_mask(ring.block_mask, ring.window, ring.end)
    return cache


def draw(point: Point) -> list[torch.Tensor]:
    """Return q, k and v of a frame, BF16 [1, heads, frame_tokens, head_dim]."""
    return list(torch.randn(3, 1, HEADS, point.frame_tokens, HEAD_DIM, dtype=torch.bfloat16, device=DEVICE))


def _windows(point: Point, storage) -> list[tuple[torch.Tensor, str]]:
    values = torch.randn(2, 1, HEADS, point.window, HEAD_DIM, dtype=torch.bfloat16, device=DEVICE)
    return list(zip(values, (storage.k_format, storage.v_format), strict=True))


def _layers(point: Point, name: str) -> int:
    return max(2, -(-ROTATED_BYTES // shapes.window_bytes(STORAGES[name], point.window)))


def _times(call, layers: int) -> dict:
    """Return microseconds of a layer, from replays of a CUDA graph."""
    samples = [round(sample / layers, 3) for sample in graph_us([call], lambda: None)]
    return {"samples_us": samples, "time_us": median(samples)}


def _peak_bytes(call) -> int:
    """Return what a call allocates at most above what is allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def _rel_l2(out: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative L2 error of the worst head."""
    error, norm = (x.float().flatten(2).norm(dim=-1) for x in (out.float() - exact, exact))
    return float(f"{(error / norm).max().item():.2e}")
