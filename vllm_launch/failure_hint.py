"""Likely remedies for a server that died, from its log."""

import re

from vllm_launch.resolved import ANSI

# (pattern, remedy), the most specific first: the first pattern that matches anywhere in the log decides.
_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"Selected backend \S*CUSTOM is not valid for", "serve with `decoder: stock`, as profile fp8-stock does"),
    (r"Backend CUSTOM must be registered before use", "our plugin failed: see the first error of fp8-sinks in the log"),
    (r"Selected backend \S+ is not valid for this configuration", "change or drop --attention-backend"),
    (r"No valid attention backend found", "no backend of this vLLM fits: change --kv-cache-dtype or vLLM"),
    (r"Unknown attention backend: ", "give --attention-backend one of the names listed"),
    (r"FlashInfer backend currently does not support attention", "drop --attention-backend FLASHINFER"),
    (r"--kv-cache-dtype \S+ is not supported by the CPU", "set --kv-cache-dtype to auto, fp8 or fp8_e4m3"),
    (r"No MXFP4 MoE backend supports", "no kernel for MXFP4 experts on this device: use a BF16 checkpoint"),
    (r"Model architectures \[[^\]]*TinyGptOss", "vLLM did not load our plugin: install fp8-sinks"),
    (r"Model architectures .* are not supported", "use a vLLM that knows this model"),
    (r"Failed to load model - not enough GPU memory", "the weights do not fit: a smaller model or more GPUs"),
    (r"No available memory for the cache blocks", "raise --gpu-memory-utilization: no room is left for KV"),
    (r"To serve at least one request with the model's max seq len", "lower --max-model-len"),
    (r"Free memory on device .* on startup is less", "free GPU memory or lower --gpu-memory-utilization"),
    (r"Error in memory profiling", "another process freed GPU memory during the start: start again"),
    (r"CUDA out of memory", "lower --gpu-memory-utilization or --max-num-batched-tokens"),
    (r"on kv cache allocation is less than requested", "lower VLLM_CPU_KVCACHE_SPACE or free memory"),
    (r"less than desired CPU memory utilization", "lower --gpu-memory-utilization (here: of RAM)"),
    (r"User-specified max_model_len .* is greater", "lower --max-model-len to what the model was made for"),
    (r"No module named 'fastsafetensors'", "install fastsafetensors, or drop --load-format"),
    (r"Repo id must be in the form", "no such folder: check --model"),
    (r"Cannot find an appropriate cached snapshot", "the model is not on this machine: download it first"),
    (r"Invalid repository ID or local directory", "no such model, or a folder without config.json"),
    (r"Address already in use", "the port is taken: choose another, or end the process that has it"),
    (r"error: unrecognized arguments: ", "this vLLM has no such argument: remove it"),
    (r"error: argument .*: invalid choice", "this vLLM does not take that value: use one of those listed"),
    (r"no kernel image is available", "this build has no kernels for this GPU: install one that does"),
    (r"Bfloat16 is only supported on GPUs", "this GPU has no BF16: use a newer one"),
    (r"Failed to infer device type|No CUDA GPUs are available", "no usable GPU: check driver and container"),
    (r"Engine core initialization failed", "the cause is further up in the log, at the first ERROR line"),
)


def failure_hint(log_text: str) -> str | None:
    """The likely remedy for a server that died, with the log line behind it; None without a known failure."""
    text = ANSI.sub("", log_text)
    for pattern, remedy in _REMEDIES:
        if match := re.search(pattern, text):
            line = text[match.start() : match.start() + 160].splitlines()[0].strip()
            return f"{remedy} (in the log: {line})"
    return None
