"""Ask an engine in this process: greedy answers, and the log-probabilities of a prompt's tokens."""

from collections.abc import Sequence

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from kernels_tests.vllm_launch.plugin.ties import TOP, Answer

IDLE_STEPS = 3


def greedy(tokens: int, **settings) -> SamplingParams:
    """Sample `tokens` tokens greedily, whatever they are."""
    return SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        logprobs=TOP,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **settings,
    )


def answer_of(output) -> Answer:
    """The answer of a request that has finished."""
    (completion,) = output.outputs
    top = [{token: entry.logprob for token, entry in entries.items()} for entries in completion.logprobs]
    return Answer(list(completion.token_ids), top)


def generate(llm: LLM, prompts: Sequence[list[int]], tokens: int | Sequence[int]) -> list[Answer]:
    """Answer the prompts together. tokens: of each answer, or of all."""
    lengths = [tokens] * len(prompts) if isinstance(tokens, int) else tokens
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = llm.generate(inputs, [greedy(length) for length in lengths], use_tqdm=False)
    return [answer_of(output) for output in outputs]


def settle(llm: LLM) -> None:
    """Let an engine without requests forget those that have ended."""
    for _ in range(IDLE_STEPS):
        llm.llm_engine.step()


def generate_alone(llm: LLM, prompts: Sequence[list[int]], tokens: int) -> list[Answer]:
    """Answer the prompts one by one, each with no prefix in the cache."""
    answers = []
    for ids in prompts:
        settle(llm)
        if not llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache cannot be emptied: blocks are in use")
        answers += generate(llm, [ids], tokens)
    return answers


def score(llm: LLM, ids: list[int]) -> list[dict[int, float]]:
    """Log-probabilities by prefill of all tokens but the first: of the token itself, and of the most likely."""
    scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": ids}], scoring, use_tqdm=False)
    return [{token: entry.logprob for token, entry in entries.items()} for entries in output.prompt_logprobs[1:]]


def score_tokens(llm: LLM, ids: list[int]) -> list[float]:
    """The same, of the tokens themselves alone."""
    return [top[token] for top, token in zip(score(llm, ids), ids[1:], strict=True)]
