"""Are the sinks right? The server's prompt log-probabilities against transformers with true and with wrong sinks.

Independent of vLLM: transformers' own GptOssForCausalLM, eager attention, FP32, on the CPU of the bench process. A
server that drops, shifts or rescales the sinks, or mixes up bases of the logarithm, comes out nearer to a wrong model
than to the true one, or far from all.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from bench.accuracy.forced import Scored
from bench.accuracy.texts import Text
from bench.accuracy.verdicts import TRUE_SINKS, SinkCheck, sink_status
from bench.suite import SinkBounds
from flashinfer_patches.errors import Problem
from vllm_launch.model import Model

GIB = 1 << 30
ARCHITECTURE = "GptOssForCausalLM"
WRONG = ("zeroed", "shifted by one head", "doubled")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a stored weight
MXFP4_BYTES = 17 / 32  # 4 bits, and 8 bits of scale for 32 of them
OVERHEAD = 1.2  # activations, and what loading holds for a while


def check(served: Sequence[Scored], exact: dict[str, list[float]], bounds: SinkBounds) -> SinkCheck:
    """A server's prefill log-probabilities of some texts against `of_transformers` of the same texts."""
    values = np.concatenate([text.logprobs for text in served])
    distances = {name: float(np.abs(values - expected).mean()) for name, expected in exact.items()}
    return verdict(distances, len(values), bounds)


def not_run(reason: str, bounds: SinkBounds) -> SinkCheck:
    """The check that could not be made."""
    return SinkCheck(
        status="not run", reason=reason, tokens=0, mean_abs_delta={}, bound=bounds.mean_abs_delta, factor=bounds.factor
    )


def verdict(distances: dict[str, float], tokens: int, bounds: SinkBounds) -> SinkCheck:
    """Passed if the true sinks are near enough and the nearest wrong ones far enough (`bounds`).

    Distances that are not all finite make a failed check, with a reason instead of distances.
    """
    finite = all(map(math.isfinite, distances.values()))
    return SinkCheck(
        status=sink_status(distances, bounds.mean_abs_delta, bounds.factor) if finite else "FAILED",
        reason=None if finite else "a log-probability of transformers or the server is not finite",
        tokens=tokens,
        mean_abs_delta=distances if finite else {},
        bound=bounds.mean_abs_delta,
        factor=bounds.factor,
    )


def judged(check: SinkCheck, bounds: SinkBounds) -> SinkCheck:
    """A saved check, judged by other bounds."""
    if check.reason is not None:  # it has no distances
        return check.model_copy(update={"bound": bounds.mean_abs_delta, "factor": bounds.factor})
    return verdict(check.mean_abs_delta, check.tokens, bounds)


def obstacle(model: Model, texts: Sequence[Text]) -> str | None:
    """Why the check cannot run on this machine with this model and these texts; None if it can."""
    if not texts:
        return "the suite asks for no prompt log-probabilities"
    if model.architecture != ARCHITECTURE:
        return f"only {ARCHITECTURE} is checked; this model is a {model.architecture}"
    if model.weight_bytes is None:
        return "the model's weights are not on this machine"
    if not model.has_sinks:
        return "the model has no sinks"
    needed, free = int(fp32_bytes(model) * OVERHEAD), psutil.virtual_memory().available
    if needed > free:
        return f"transformers in FP32 needs {needed / GIB:,.1f} GiB of memory, {free / GIB:,.1f} GiB are free"
    return None


def fp32_bytes(model: Model) -> int:
    """The weights' bytes in FP32, from their bytes on disk and their storage type in config.json."""
    path = Path(model.path) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem("model", f"cannot read {path}: {error}", "give --model a complete model folder") from error
    try:
        quantization = config.get("quantization_config") or {}
        is_mxfp4 = quantization.get("quant_method") == "mxfp4"
        dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    except AttributeError as error:
        raise _not_as_expected(path, "quantization_config") from error
    if not isinstance(dtype, str):
        raise _not_as_expected(path, "dtype")
    if is_mxfp4:
        return int(model.weight_bytes * 4 / MXFP4_BYTES)
    return model.weight_bytes * 4 // BYTES.get(dtype, 2)


def _not_as_expected(path: Path, name: str) -> Problem:
    kinds = {"quantization_config": "an object", "dtype": "a name"}
    return Problem("model", f"{path}: {name} is not {kinds[name]}", "give --model a complete model folder")


@contextmanager
def environment_restored() -> Iterator[None]:
    """Undo what a block does to this process's environment: later servers would inherit it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@environment_restored()  # libraries that transformers imports set KMP_* and others
def of_transformers(model: Model, texts: list[Text]) -> dict[str, list[float]]:
    """Log-probabilities (nats, FP32) of the texts' scored tokens: sinks -> values, with TRUE_SINKS and each of WRONG.

    The texts have one length and one start.
    """
    import torch
    from transformers import GptOssForCausalLM, Mxfp4Config
    from transformers.utils import logging

    logging.disable_progress_bar()
    packed = model.weight_bytes * 4 / MXFP4_BYTES <= fp32_bytes(model)
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
    loaded = GptOssForCausalLM.from_pretrained(
        model.path, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **options
    ).eval()
    layers = [layer.self_attn for layer in loaded.model.layers]
    changes = {
        TRUE_SINKS: torch.clone,
        "zeroed": torch.zeros_like,
        "shifted by one head": lambda sinks: sinks.roll(1),
        "doubled": lambda sinks: 2 * sinks,
    }
    originals = [layer.sinks.detach().clone() for layer in layers]
    threads = torch.get_num_threads()
    if fp32_bytes(model) < GIB:
        torch.set_num_threads(1)  # on busy cores, threads that wait for each other cost a small model 20 times
    values = {}
    try:
        with torch.no_grad():
            for name, change in changes.items():
                for layer, sinks in zip(layers, originals, strict=True):
                    layer.sinks.copy_(change(sinks))
                values[name] = _log_probabilities(loaded, texts)
    finally:
        torch.set_num_threads(threads)
    return values


def _log_probabilities(loaded, texts: list[Text]) -> list[float]:
    import torch

    ids = torch.tensor([text.ids for text in texts])
    start = texts[0].start
    logits = loaded(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - start + 1).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(2, ids[:, start:, None]).flatten().tolist()
