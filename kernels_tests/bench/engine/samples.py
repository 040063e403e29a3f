"""A made-up result of kind `engine` for tests: no figure in it was measured."""

from bench.engine.cells import parse
from bench.engine.result import EngineResult, EngineRow, KernelTime, Piece, StepProfile
from bench.engine.variants import named
from kernels_tests.bench.samples import a_result

# Milliseconds of two starts, by variant and cell.
STEPS = {
    "stock-bf16": {"1x2048": (4.44, 4.46), "1x122880": (5.55, 5.57), "8x32768": (7.25, 7.28), "full": (12.0, 12.1)},
    "plugin-fp8": {"1x2048": (4.20, 4.21), "1x122880": (4.72, 4.73), "8x32768": (6.18, 6.19), "full": (14.0, 14.1)},
    "stock-fp8": {"1x2048": (4.60, 4.61), "1x122880": (5.69, 5.70), "8x32768": (7.26, 7.29)},
}
FULL_BATCHES = {"stock-bf16": 50, "plugin-fp8": 100}


def an_engine_row(variant: str, cell: str, step_ms: float | None, start=1, **changes) -> EngineRow:
    shape = parse(cell)
    batch = shape.batch or FULL_BATCHES.get(variant, 50)
    figures = {"step_ms": step_ms, "error": "RuntimeError: no | memory"}
    if step_ms:
        figures = {
            "step_ms": step_ms,
            "mean_ms": step_ms * 1.01,
            "step_ms_samples": [step_ms] * 4,
            "distinct_tokens": batch,
            "capacity_tokens": 3_287_584 if named(variant).kv_format == "e4m3" else 1_642_172,
            "tokens_per_s": 1e3 * batch / step_ms,
            "start_s": 111.0 if start == 1 else 22.0,
        }
        if batch == 1:
            figures |= {"ttft_s": 0.1, "ttft_s_samples": [0.1, 0.1], "prefill_tok_s": shape.context / 0.1}
    row = EngineRow(
        variant=variant,
        start=start,
        cell=cell,
        vllm="0.26.0",
        compilation="none",
        runner="v1",
        backend="CUSTOM" if named(variant).decoder == "lowp" else "FLASH_ATTN",
        decoder=named(variant).decoder,
        cuda_graphs="full_decode_only",
        kv_format=named(variant).kv_format,
        batch=batch,
        context=shape.context,
        lengths=shape.lengths,
        cache="assumed",
        **figures,
    )
    return row.model_copy(update=changes)


def rows_of(*variants: str, piece=1, starts=2) -> list[EngineRow]:
    return [
        an_engine_row(variant, cell, steps[start - 1], start, piece=piece)
        for variant in variants or STEPS
        for cell, steps in STEPS[variant].items()
        for start in range(1, starts + 1)
    ]


def an_engine_result(*rows: EngineRow, identity="20260702-120000", **changes) -> EngineResult:
    source = a_result(gpu=True, day=2).provenance
    piece = Piece(id=identity, provenance=source, gpu="0123456789ab", read_ceiling_bytes_per_s=4.46e12)
    result = EngineResult(
        id=identity,
        provenance=source,
        shape="gpt-oss-120b",
        compilation="none",
        routing="spread",
        pieces=[piece],
        rows=list(rows or rows_of()),
        profiles=[
            StepProfile(
                cell="1x2048",
                kernels={
                    name: [KernelTime(name="a|kernel<1>", calls=36, us=134.0)] for name in ("stock-bf16", "stock-fp8")
                },
            )
        ],
    )
    return result.model_copy(update=changes)
