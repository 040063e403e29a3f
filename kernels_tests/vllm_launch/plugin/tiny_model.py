"""The tiny model in a vLLM for CUDA, with the backend and without: the same texts, log-probabilities compared.

    python -m kernels_tests.vllm_launch.plugin.tiny_model [--compiled] [--jobs N] [--out FOLDER] [NAME ...]

Prints a verdict a line; exits with 1 if one is FAIL. About 3 minutes on an H200 with 3 engines at a time. --compiled:
vLLM's default compilation and piecewise graphs in place of none. NAME: of ENGINES, all if none is given; stock-bf16 and
what they are compared with are always run. FOLDER: logs and answers.

Each engine fills the GPU's free memory with NaN first, then answers 28 prompts of 5 to 12,000 tokens in chunks of 512:
mixed batches, chunked prefills; some again with their prefix cached; and scores what it has generated as a prompt.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.engine.engines import reason
from vllm_launch.decoder.contract import INT8, KV_FORMAT, KV_SCALES

MODEL = Path(__file__).parents[3] / "models" / "tiny_gpt_oss"
# vLLM looks for a free port from VLLM_PORT on, and opens it much later: engines that start at once get ranges of their
# own, below the ports that the system gives to clients.
FIRST_PORT, PORTS = 21000, 100
LENGTHS = (5, 16, 17, 64, 100, 127, 128, 129, 130, 200, 255, 256, 257, 300, 400, 511, 512, 513, 700, 900, 1024)
LENGTHS += (1500, 2000, 3000, 4000, 6000, 9000, 12000)
TOKENS = 64
SCORED = (10, 24, 27)  # prompts whose answers are scored through prefill
CACHED = (27, 3, 12, 20)  # prompts that are answered again, alone
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
CUSTOM = {"attention_backend": "CUSTOM"}
ENGINES = {
    "stock-bf16": {},
    "stock-fp8": {"kv_cache_dtype": "fp8"},
    "bf16": CUSTOM,
    "fp8": CUSTOM | {"kv_cache_dtype": "fp8"},
    "bf16-eager": CUSTOM | {"enforce_eager": True},
    "fp8-eager": CUSTOM | {"kv_cache_dtype": "fp8", "enforce_eager": True},
    "fp8-skip-sliding": CUSTOM | {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": ["sliding_window"]},
    "fp8-ngram": CUSTOM | {"kv_cache_dtype": "fp8", "speculative_config": NGRAM},
    "int8": CUSTOM | {"kv_cache_dtype": INT8},
    "int8-eager": CUSTOM | {"kv_cache_dtype": INT8, "enforce_eager": True},
    "int8-skip-sliding": CUSTOM | {"kv_cache_dtype": INT8, "kv_cache_dtype_skip_layers": ["sliding_window"]},
    "int8-static": CUSTOM | {"kv_cache_dtype": "fp8"},
    "bf16-fa2": CUSTOM,  # the prefills of other GPUs
    "fp8-fa2": CUSTOM | {"kv_cache_dtype": "fp8"},
}
SCALES = "int8.safetensors"  # of int8-static, in --out; calibrated on SCALES_TEXT
SCALES_TEXT = MODEL / "passages.py"
# Mean |log p difference| of generated tokens up to the first one that differs, and of prompt tokens; measured: 0.0105
# and 0 in BF16, 0.042 and 0.076 in FP8.
BF16_BOUNDS, FP8_BOUNDS = (0.02, 0.02), (0.06, 0.10)
# Set before the first run: the share of FP8's bounds that the formats' errors on a CPU allow.
INT8_BOUNDS, INT8_STATIC_BOUNDS = (tuple(share * bound for bound in FP8_BOUNDS) for share in (0.25, 0.45))
# (candidate, reference, bounds)
COMPARISONS = (
    ("bf16", "stock-bf16", BF16_BOUNDS),
    ("fp8", "stock-bf16", FP8_BOUNDS),
    ("fp8-skip-sliding", "stock-bf16", FP8_BOUNDS),
    ("bf16-eager", "bf16", BF16_BOUNDS),
    ("fp8-eager", "fp8", BF16_BOUNDS),
    ("fp8-ngram", "fp8", BF16_BOUNDS),
    ("int8", "bf16", INT8_BOUNDS),
    ("int8-skip-sliding", "bf16", INT8_BOUNDS),
    ("int8-eager", "int8", BF16_BOUNDS),
    ("int8-static", "bf16", INT8_STATIC_BOUNDS),
    ("bf16-fa2", "bf16", BF16_BOUNDS),
    ("fp8-fa2", "fp8", BF16_BOUNDS),
)
# Decode against own prefill, by the largest of the scored answers; those of int8 set before the first run.
PATHS_BOUNDS = {"bf16": 0.04, "e4m3": 0.09, "int8": 0.05, "int8-static": 0.06}


def kv_format(name: str) -> str:
    """The KV format of an engine, as its record names it."""
    formats = {"fp8": "int8-static" if name == "int8-static" else "e4m3", INT8: "int8"}
    return formats.get(ENGINES[name].get("kv_cache_dtype"), "bf16")


def serve(name: str, out: Path, compiled: bool) -> None:
    """Answer everything with one engine, in this process; write the answers to out/NAME.json."""
    import torch

    filled = torch.full((int(torch.cuda.mem_get_info()[0] * 0.15) // 4,), torch.nan, device="cuda")
    del filled
    from vllm import LLM, SamplingParams

    from vllm_launch import plugin

    if "attention_backend" in ENGINES[name]:
        plugin.register()
    if name.endswith("-fa2"):
        from vllm_launch.plugin.attention import flash_attention

        flash_attention.choose = lambda device: flash_attention.fa2
    started = time.time()
    sizes = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}
    uncompiled = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"} if not compiled else {}
    llm = LLM(
        model=str(MODEL),
        dtype="bfloat16",
        max_model_len=131072,
        max_num_seqs=32,
        max_num_batched_tokens=512,
        gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=4 * 2**30,
        enable_prefix_caching=True,
        compilation_config=sizes | uncompiled,
        **ENGINES[name],
    )
    ready = time.time()
    tokenizer = llm.get_tokenizer()
    with (MODEL / "heldout.jsonl").open() as lines:
        text = [token for line in lines for token in tokenizer.encode(json.loads(line)["text"])]
    prompts = [[text[(997 * i + j) % len(text)] for j in range(length)] for i, length in enumerate(LENGTHS)]
    generation = SamplingParams(temperature=0, max_tokens=TOKENS, min_tokens=TOKENS, ignore_eos=True, logprobs=1)
    scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def generate(token_lists):
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in token_lists], generation, use_tqdm=False)
        answers = [output.outputs[0] for output in outputs]
        return [
            {
                "tokens": list(answer.token_ids),
                "logprobs": [
                    entry[token].logprob for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)
                ],
            }
            for answer in answers
        ]

    def score(ids):
        output = llm.generate([{"prompt_token_ids": ids}], scoring, use_tqdm=False)[0]
        return [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]

    answers = generate(prompts)
    result = {
        "start_s": round(ready - started, 1),
        "answers": answers,
        "cached": {str(i): generate([prompts[i]])[0] for i in CACHED},
        "prompts": {str(i): score(prompts[i]) for i in (20, 23)},
        "paths": {str(i): score(prompts[i] + answers[i]["tokens"])[len(prompts[i]) - 1 :] for i in SCORED},
        "run_s": round(time.time() - ready, 1),
    }
    (out / f"{name}.json").write_text(json.dumps(result))


def run_engine(name: str, out: Path, compiled: bool) -> dict | str:
    """Run `serve` in a process of its own; returns its answers, or why it failed."""
    environment = {
        "FP8_SINKS_PLUGIN": "1",
        "FP8_SINKS_RECORD": str(out / f"{name}.record.json"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_PORT": str(FIRST_PORT + PORTS * list(ENGINES).index(name)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if name == "int8-static":
        environment |= {KV_FORMAT: "int8", KV_SCALES: str(out / SCALES)}
    command = [sys.executable, "-m", __spec__.name, "--serve", name, "--out", str(out)]
    log = out / f"{name}.log"
    with log.open("w") as stream:
        code = subprocess.run(
            command + ["--compiled"] * compiled,
            env=os.environ | environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=580,
        ).returncode
    return json.loads((out / f"{name}.json").read_text()) if code == 0 else f"{reason(log, 0, code)}; log: {log}"


def calibrate(path: Path) -> None:
    """Write the scale file of int8-static; raises CalledProcessError."""
    options = ["--kv-format", "int8", "--text", str(SCALES_TEXT), "--out", str(path)]
    subprocess.run([sys.executable, "-m", "fp8_sinks", "scales", "calibrate", str(MODEL), *options], check=True)


def distance(candidate: list[float], reference: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(candidate, reference, strict=True)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def compare(candidate: dict, reference: dict) -> tuple[float, float, str]:
    """Mean distances of generated tokens up to the first difference, and of prompts; and how many texts are equal."""
    generated, equal = [], 0
    for a, b in zip(candidate["answers"], reference["answers"], strict=True):
        pairs = zip(a["tokens"], b["tokens"], strict=True)
        count = next((i for i, (x, y) in enumerate(pairs) if x != y), TOKENS)
        equal += count == TOKENS
        generated += distance(a["logprobs"][:count], b["logprobs"][:count])
    prompts = [d for i, logs in candidate["prompts"].items() for d in distance(logs, reference["prompts"][i])]
    return mean(generated), mean(prompts), f"{equal}/{len(LENGTHS)} texts equal"


def is_finite(answers: dict) -> bool:
    numbers = [x for answer in answers["answers"] for x in answer["logprobs"]]
    numbers += [x for key in ("prompts", "paths") for scores in answers[key].values() for x in scores]
    return all(map(math.isfinite, numbers))


def judge(results: dict[str, dict], out: Path) -> list[tuple[bool, str]]:
    """Return every verdict: whether it passes, and its line."""
    verdicts = []
    for name, answers in results.items():
        verdicts.append((is_finite(answers), f"{name}: finite; start {answers['start_s']} s, run {answers['run_s']} s"))
        record = out / f"{name}.record.json"
        if "attention_backend" in ENGINES[name]:
            content = json.loads(record.read_text()) if record.exists() else {}
            resolved = (content.get("decoder"), content.get("kv_format"))
            verdicts.append((resolved == ("lowp", kv_format(name)), f"{name}: record {content}"))
    for candidate, reference, (generated_bound, prompt_bound) in COMPARISONS:
        if candidate in results and reference in results:
            generated, prompt, texts = compare(results[candidate], results[reference])
            figures = f"generated {generated:.4f} (<= {generated_bound}), prompts {prompt:.4f} (<= {prompt_bound})"
            passes = generated <= generated_bound and prompt <= prompt_bound
            verdicts.append((passes, f"{candidate} against {reference}: mean |Δ log p| {figures}; {texts}"))
    if {"fp8", "stock-fp8", "stock-bf16"} <= set(results):
        ours, stock = (compare(results[name], results["stock-bf16"]) for name in ("fp8", "stock-fp8"))
        figures = f"generated {ours[0]:.4f} and {stock[0]:.4f}, prompts {ours[1]:.4f} and {stock[1]:.4f}"
        passes = ours[0] <= stock[0] * 1.1 and ours[1] <= stock[1] * 1.1
        verdicts.append((passes, f"fp8 no further from stock-bf16 than stock-fp8 (within 10%): {figures}"))
    for name, answers in results.items():
        means = [mean(distance(answers["paths"][str(i)], answers["answers"][i]["logprobs"])) for i in SCORED]
        bound = PATHS_BOUNDS[kv_format(name)]
        figures = ", ".join(f"{value:.4f}" for value in means)
        passes = max(means) <= bound or name.startswith("stock")
        verdicts.append((passes, f"{name}: decode against own prefill: {figures} (<= {bound})"))
        same = [
            sum(
                a == b
                for a, b in zip(answers["cached"][str(i)]["tokens"], answers["answers"][i]["tokens"], strict=True)
            )
            for i in CACHED
        ]
        verdicts.append((True, f"{name}: answered again with a cached prefix: {same} of {TOKENS} tokens equal"))
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.out, arguments.compiled)
        return 0
    if unknown := set(arguments.names) - set(ENGINES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(ENGINES)}")
    out = arguments.out or Path(tempfile.mkdtemp(prefix="fp8-sinks-tiny-"))
    out.mkdir(parents=True, exist_ok=True)
    references = [reference for name, reference, _ in COMPARISONS if name in arguments.names]
    names = list(dict.fromkeys(["stock-bf16", *references, *arguments.names])) if arguments.names else list(ENGINES)
    if "int8-static" in names:
        calibrate(out / SCALES)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        ended = dict(zip(names, pool.map(lambda name: run_engine(name, out, arguments.compiled), names), strict=True))
    verdicts = [(False, f"{name}: {failure}") for name, failure in ended.items() if isinstance(failure, str)]
    verdicts += judge({name: answers for name, answers in ended.items() if not isinstance(answers, str)}, out)
    for passes, line in verdicts:
        print("PASS" if passes else "FAIL", line)
    return 0 if all(passes for passes, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
