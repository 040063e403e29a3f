"""The accuracy figures against cases worked out by hand."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from bench.accuracy import metrics
from bench.accuracy.forced import Scored
from bench.accuracy.verdicts import Agreement

LOG_HALF = math.log(0.5)


def scored(*logprobs, top=None) -> Scored:
    return Scored(
        token_ids=list(range(len(logprobs))),
        logprobs=list(logprobs),
        top=top or [{0: LOG_HALF, 1: LOG_HALF}] * len(logprobs),
    )


def logs(*shares) -> dict[int, float]:
    return {token: math.log(share) for token, share in enumerate(shares)}


def test_a_server_against_itself_differs_in_nothing():
    texts = [scored(-1.0, -2.5, top=[logs(0.6, 0.3), logs(0.1, 0.2)])] * metrics.MIN_TEXTS
    agreement = metrics.agreement(texts, texts)
    assert (agreement.texts, agreement.tokens) == (8, 16)
    for name, value in (("mean_abs_delta", 0), ("p99_abs_delta", 0), ("kl", 0), ("top1", 1), ("perplexity_ratio", 1)):
        figure = getattr(agreement, name)
        assert (figure.value, figure.low, figure.high) == pytest.approx((value, value, value)), name


def test_known_deltas():
    agreement = metrics.agreement([scored(-1.0, -2.0)], [scored(-1.5, -1.75)])
    assert agreement.mean_abs_delta.value == pytest.approx((0.5 + 0.25) / 2)
    assert agreement.perplexity_ratio.value == pytest.approx(math.exp(3.25 / 2 - 3.0 / 2))
    assert agreement.mean_abs_delta.low is None, "two texts of one kind make no interval"


def test_texts_count_by_their_tokens():
    agreement = metrics.agreement([scored(0.0), scored(0.0, 0.0, 0.0)], [scored(-4.0), scored(0.0, 0.0, 0.0)])
    assert agreement.mean_abs_delta.value == pytest.approx(1.0)


def test_p99_is_the_value_that_99_of_100_do_not_exceed():
    deltas = [i / 100 for i in range(200)]
    agreement = metrics.agreement([scored(*[0.0] * 200)], [scored(*deltas)])
    assert agreement.p99_abs_delta.value == pytest.approx(np.quantile(deltas, 0.99, method="inverted_cdf"))


def test_divergence_of_two_tokens_by_hand():
    # 0.5, 0.3, rest 0.2 against 0.4, 0.4, rest 0.2
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4)
    assert metrics.divergence(logs(0.5, 0.3), logs(0.4, 0.4)) == pytest.approx(expected)


def test_the_remaining_tokens_are_a_bucket_of_their_own():
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert metrics.divergence(logs(0.5), logs(0.9)) == pytest.approx(expected)


def test_an_empty_rest_is_no_zero_and_no_negative_mass():
    assert metrics.divergence({0: 1e-7}, {0: 1e-7}) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(metrics.divergence(logs(0.5, 0.5), logs(0.25, 0.25)))


def test_a_token_that_the_candidate_does_not_list_has_its_last_probability():
    candidate = {5: math.log(0.7), 6: math.log(0.1)}
    expected = 0.9 * math.log(0.9 / 0.1) + 0.1 * math.log(0.1 / 0.9)
    assert metrics.divergence({0: math.log(0.9)}, candidate) == pytest.approx(expected)


def test_the_given_token_beyond_the_top_20_is_not_counted():
    best = {token: math.log(0.04) for token in range(metrics.TOP)}
    with_given = best | {99: math.log(1e-6)}
    assert metrics.divergence(with_given, best) == metrics.divergence(best, with_given) == pytest.approx(0)


def test_divergence_is_a_lower_bound_of_the_full_divergence():
    chance = np.random.default_rng(3)
    for _ in range(50):
        p, q = (chance.dirichlet(np.full(300, 0.1)) + 1e-9 for _ in range(2))
        tops = [{int(t): math.log(x[t]) for t in np.argsort(x)[-metrics.TOP :]} for x in (p, q)]
        assert 0 < metrics.divergence(*tops) < (p * np.log(p / q)).sum()


@pytest.mark.parametrize(
    ("candidate", "same"),
    [(logs(0.6, 0.3), True), (logs(0.3, 0.6), False), (logs(0.4, 0.4), True), ({7: -0.1, 0: -3.0}, False)],
)
def test_the_most_likely_token_and_ties(candidate, same):
    assert metrics.same_top(logs(0.5, 0.2), candidate) is same


def test_a_wrong_top_of_four():
    good, wrong = logs(0.6, 0.3), logs(0.3, 0.6)
    agreement = metrics.agreement(
        [scored(-1, -1, -1, -1, top=[good] * 4)], [scored(-1, -1, -1, -1, top=[good, good, wrong, good])]
    )
    assert agreement.top1.value == 0.75


@pytest.mark.parametrize(("texts", "least"), [(8, 0.88), (16, 0.9), (48, 0.9)])
def test_intervals_cover_the_truth_when_tokens_are_correlated(texts, least):
    chance, draws = np.random.default_rng(1), metrics._draws(texts)
    covered, of_tokens = 0, 0
    for _ in range(300):
        # Each text has a level of its own; the mean over all texts there could be is 1.
        levels = np.exp(0.4 * chance.standard_normal(texts) - 0.08)
        values = levels[:, None] * chance.exponential(1, (texts, 64))
        figure = metrics._figure(lambda counts, values=values: counts @ values.mean(1) / texts, draws)
        covered += figure.low <= 1 <= figure.high
        error = 1.96 * values.std() / values.size**0.5
        of_tokens += abs(values.mean() - 1) <= error
    assert covered / 300 >= least
    assert of_tokens / 300 < 0.7, "tokens taken as independent would promise too much here"


def test_the_same_data_give_the_same_interval():
    candidate = [scored(*np.linspace(0, i / 10, 5)) for i in range(1, 10)]
    reference = [scored(*[0.0] * 5)] * 9
    first, second = (metrics.agreement(reference, candidate) for _ in range(2))
    assert first == second and first.kl.low is not None


def test_unlike_tokens_and_no_texts_are_refused():
    unlike = scored(-1.0).model_copy(update={"token_ids": [9]})
    for reference, candidate in (([], []), ([scored(-1.0)], [unlike])):
        with pytest.raises(ValueError):
            metrics.agreement(reference, candidate)


@pytest.mark.parametrize("broken", [{"logprobs": [math.nan]}, {"top": [{0: -math.inf}]}])
def test_scored_tokens_have_finite_log_probabilities(broken):
    with pytest.raises(ValidationError):
        Scored(**(scored(-1.0).model_dump() | broken))


def test_a_server_that_masks_every_given_token_has_finite_figures():
    masked, right = [scored(*[-9999.0] * 4)] * 9, [scored(*[-1.0] * 4)] * 9
    worse, better = metrics.agreement(right, masked), metrics.agreement(masked, right)
    assert worse.mean_abs_delta.value == 9998 and worse.perplexity_ratio.value > 1e300
    assert 0 < better.perplexity_ratio.value < 1e-300
    assert Agreement.model_validate_json(worse.model_dump_json()) == worse
