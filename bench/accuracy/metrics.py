"""How far a candidate's log-probabilities of given tokens are from a reference's: values and 95% intervals.

Everything is in nats. Intervals are bootstraps over whole texts with a fixed seed: the tokens of a text are
correlated (they share their prompt, and its rounded keys and values), so a text is one draw, not its tokens. Plain
percentiles of few draws lie too close together; here they are moved out as Student's t asks ("expanded percentile
interval", Hesterberg, What Teachers Should Know About the Bootstrap, 2015). Fewer than MIN_TEXTS texts get none.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from bench.accuracy.forced import Scored
from bench.accuracy.verdicts import Agreement, Figure

TOP = 20
TINY = 1e-6  # minimum mass of the rest bucket: float32 log-probabilities leave about as much of an empty one
MAX_NATS = 700  # e to the power of more is no float64; a server that masks a given token scores it -9999
RESAMPLES, SEED, MIN_TEXTS = 1000, 2026, 8
Z = 1.959964  # of the normal distribution, 97.5%


def agreement(reference: Sequence[Scored], candidate: Sequence[Scored]) -> Agreement:
    """Compare text by text. Raises ValueError if they did not score the same tokens, or lengths do not agree."""
    _check(reference, candidate)
    pairs = list(zip(reference, candidate, strict=True))
    deltas = [np.subtract(c.logprobs, r.logprobs) for r, c in pairs]
    same = [[same_top(a, b) for a, b in zip(r.top, c.top, strict=True)] for r, c in pairs]
    kl = [[divergence(a, b) for a, b in zip(r.top, c.top, strict=True)] for r, c in pairs]
    sizes = np.array([len(delta) for delta in deltas])

    def mean_of(per_text: Sequence[Sequence[float]]) -> Callable[[np.ndarray], np.ndarray]:
        sums = np.array([np.sum(values) for values in per_text])
        return lambda draws: (draws @ sums) / (draws @ sizes)

    mean_delta = mean_of(deltas)
    absolute = [np.abs(delta) for delta in deltas]
    draws = _draws(len(pairs))
    return Agreement(
        texts=len(pairs),
        tokens=int(sizes.sum()),
        mean_abs_delta=_figure(mean_of(absolute), draws),
        p99_abs_delta=_figure(lambda counts: _quantile(absolute, counts, 0.99), draws),
        kl=_figure(mean_of(kl), draws),
        top1=_figure(mean_of(same), draws),
        perplexity_ratio=_figure(lambda counts: np.exp(np.clip(-mean_delta(counts), -MAX_NATS, MAX_NATS)), draws),
    )


def divergence(reference: dict[int, float], candidate: dict[int, float]) -> float:
    """KL(reference || candidate) over the reference's TOP tokens and one bucket for all others, nats.

        sum over i of p_i ln(p_i / q_i) + p_rest ln(p_rest / q_rest),  p_rest = max(TINY, 1 - sum p_i), same for q

    A token that the candidate does not list has at most the probability of the candidate's last of TOP, which is used
    as its q_i, so the figure errs in the candidate's favour, by little. Merging all others into one bucket can only
    lower a KL.
    """
    tokens = _most_likely(reference)
    lowest = candidate[_most_likely(candidate)[-1]]
    log_p = np.array([reference[token] for token in tokens])
    log_q = np.array([candidate.get(token, lowest) for token in tokens])
    p_rest, q_rest = (max(TINY, 1 - float(np.exp(x).sum())) for x in (log_p, log_q))
    return float((np.exp(log_p) * (log_p - log_q)).sum()) + p_rest * math.log(p_rest / q_rest)


def same_top(reference: dict[int, float], candidate: dict[int, float]) -> bool:
    """Whether the two share a most likely token; BF16 logits tie exactly now and then."""
    return not _argmax(reference).isdisjoint(_argmax(candidate))


def _argmax(top: dict[int, float]) -> set[int]:
    highest = max(top.values())
    return {token for token, value in top.items() if value == highest}


def _most_likely(top: dict[int, float]) -> list[int]:
    """The TOP most likely tokens; `top` has one more where the scored token is not among them."""
    return sorted(top, key=top.__getitem__, reverse=True)[:TOP]


def _draws(texts: int) -> np.ndarray:
    """How often each text counts: first row once each, then RESAMPLES draws with replacement. [1 + n, texts]."""
    drawn = np.random.default_rng(SEED).integers(texts, size=(RESAMPLES, texts))
    counts = np.zeros((RESAMPLES + 1, texts))
    counts[0] = 1
    np.add.at(counts, (np.arange(1, RESAMPLES + 1)[:, None], drawn), 1)
    return counts


def _figure(statistic: Callable[[np.ndarray], np.ndarray], draws: np.ndarray) -> Figure:
    values = statistic(draws)
    if draws.shape[1] < MIN_TEXTS:
        return Figure(value=float(values[0]), low=None, high=None)
    tail = _tail(draws.shape[1])
    low, high = np.quantile(values[1:], (tail, 1 - tail))
    return Figure(value=float(values[0]), low=float(low), high=float(high))


def _tail(texts: int) -> float:
    """The share of draws to leave out on each side for 95%: 2.5% for many texts, less for few.

    normal_cdf(-sqrt(n / (n - 1)) t), with Student's 97.5% point t of n - 1 degrees of freedom by its first correction.
    """
    freedom = texts - 1
    t = Z + (Z**3 + Z) / (4 * freedom)
    return math.erfc(t * math.sqrt(texts / freedom) / math.sqrt(2)) / 2


def _quantile(per_text: Sequence[np.ndarray], draws: np.ndarray, share: float) -> np.ndarray:
    """For each draw the smallest value with at least `share` of the tokens at or below it."""
    values = np.concatenate(per_text)
    order = np.argsort(values)
    text_of = np.repeat(np.arange(len(per_text)), [len(text) for text in per_text])[order]
    quantiles = np.empty(len(draws))
    for draw, counts in enumerate(draws):
        cumulative = np.cumsum(counts[text_of])
        quantiles[draw] = values[order[np.searchsorted(cumulative, share * cumulative[-1])]]
    return quantiles


def _check(reference: Sequence[Scored], candidate: Sequence[Scored]) -> None:
    if not reference or [text.token_ids for text in reference] != [text.token_ids for text in candidate]:
        raise ValueError("reference and candidate did not score the same tokens")
    for text in (*reference, *candidate):
        if not len(text.token_ids) == len(text.logprobs) == len(text.top) or not all(text.top):
            lengths = (
                f"{len(text.token_ids)} tokens, {len(text.logprobs)} log-probabilities, {len(text.top)} lists of top"
                " tokens"
            )
            raise ValueError(f"a text has {lengths}, expected as many of each and no empty list")
