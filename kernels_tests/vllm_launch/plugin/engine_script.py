"""Answers prompts with vLLM's engine on a CPU, by its own attention or by ours (`cpu_backend`); writes them as JSON.

python -m kernels_tests.vllm_launch.plugin.engine_script stock|ours OUT [JSON of vLLM's arguments]
"""

import json
import os
import sys
from pathlib import Path

ENVIRONMENT = {  # read when vLLM is imported; not set where this module is imported only
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_PLUGINS": "none",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

MODEL = Path(__file__).parents[3] / "models" / "tiny_gpt_oss"
LENGTHS = (5, 16, 17, 64, 127, 128, 129, 200, 300, 500, 640, 1)
CACHED = (9, 10)  # prompts that are answered again, with their prefix in the cache
TOKENS = 16
ARGUMENTS = {
    "model": str(MODEL),
    "dtype": "bfloat16",
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 128,  # chunked prefills, and mixed batches
    "enable_prefix_caching": True,
    "enforce_eager": True,
}


def main(attention: str, path: str, arguments: str = "{}") -> None:
    os.environ |= ENVIRONMENT
    from vllm import LLM, SamplingParams
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if attention == "ours":
        backend = "kernels_tests.vllm_launch.plugin.cpu_backend.SinkBackend"
        register_backend(AttentionBackendEnum.CPU_ATTN, backend)
    llm = LLM(**ARGUMENTS | json.loads(arguments))
    tokenizer = llm.get_tokenizer()
    with (MODEL / "heldout.jsonl").open() as lines:
        text = [token for line in lines for token in tokenizer.encode(json.loads(line)["text"])]
    prompts = [{"prompt_token_ids": text[97 * i : 97 * i + length]} for i, length in enumerate(LENGTHS)]
    generation = SamplingParams(temperature=0, max_tokens=TOKENS, min_tokens=TOKENS, ignore_eos=True, logprobs=1)
    scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def generate(prompts):
        answers = [output.outputs[0] for output in llm.generate(prompts, generation, use_tqdm=False)]
        return [
            {
                "tokens": list(answer.token_ids),
                "logprobs": [
                    logs[token].logprob for logs, token in zip(answer.logprobs, answer.token_ids, strict=True)
                ],
            }
            for answer in answers
        ]

    scored = llm.generate([prompts[9]], scoring, use_tqdm=False)[0].prompt_logprobs[1:]
    result = {
        "answers": generate(prompts),
        "cached": generate([prompts[i] for i in CACHED]),
        "prompt": [next(iter(logs.values())).logprob for logs in scored],
    }
    Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
