"""Plans of batches: attention over the planned pieces is attention of each whole request, in fp64."""

import random

import pytest
import torch

from vllm_launch.plugin.attention.metadata import Decodes, Piece, new_key_rows, pad_queries, plan_batch

SINK, DIM = 0.7, 8
BATCHES = {
    "empty": [],
    "padding only": [(0, 0), (0, 0)],
    "decodes": [(1, 7), (1, 1), (1, 300)],
    "padded decodes": [(1, 7), (1, 1), (0, 0), (0, 0)],
    "drafts": [(4, 9), (4, 4), (4, 100)],
    "drafts of different lengths": [(4, 9), (1, 30), (2, 2), (3, 50)],
    "prompts": [(30, 30), (5, 5), (90, 90)],
    "prompts of one token behind": [(30, 30), (1, 1), (1, 1)],
    "cached prefixes": [(6, 70), (30, 46), (5, 21)],
    "chunks": [(64, 64), (64, 128), (64, 192)],
    "mixed": [(1, 9), (2, 70), (40, 40), (30, 90), (7, 7), (50, 99), (0, 0)],
    "padding between prefills": [(30, 60), (0, 0), (20, 40)],
    "over the scratch": [(10, 500), (10, 60), (40, 1000), (20, 20)],
    "at the edge of the scratch": [(10, 128), (10, 118), (10, 129), (1, 1)],
    "in the order of their tokens": [(1, 50), (5, 60), (6, 6), (7, 40), (8, 8), (30, 30), (40, 90), (300, 300)],
    "a request's last chunk of one token": [(20, 50), (1, 90)],
}


def plan(batch, windows=(-1,), scratch_rows=128, most_decode_tokens=1):
    queries, lengths = [query for query, _ in batch], [length for _, length in batch]
    return plan_batch(
        queries, lengths, most_decode_tokens=most_decode_tokens, windows=windows, scratch_rows=scratch_rows
    )


def whole_attention(q, k, v, positions, window_left):
    """Attention with a sink of single-head queries at these positions."""
    out, lse = partial_attention(q, k, v, positions, window_left)
    return out * (1 / (1 + (SINK - lse).exp()))[:, None]


def partial_attention(q, k, v, positions, window_left):
    """Attention without the sink, and its LSE; positions None: all keys are seen."""
    scores = q @ k.T
    if positions is not None:
        key = torch.arange(len(k))
        seen = key <= positions[:, None]
        if window_left >= 0:
            seen &= key >= positions[:, None] - window_left
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def compute(batch_plan, window_left, queries, lengths, q, keys, values):
    """Run a plan as the backend does; tokens that it leaves out stay NaN."""
    out = torch.full_like(q, torch.nan)
    first = 0
    if batch_plan.decodes:
        for row in range(batch_plan.decodes.rows):
            new = slice(first, first := first + queries[row])
            positions = torch.arange(lengths[row] - queries[row], lengths[row])
            out[new] = whole_attention(q[new], keys[row], values[row], positions, window_left)
    for group in batch_plan.prefills.get(window_left, ()):
        assert len({(piece.first_token, piece.query_lengths) for piece in group}) == 1
        parts = [run_piece(piece, window_left, q, keys, values, lengths) for piece in group]
        lse = torch.logsumexp(torch.stack([*(part[1] for part in parts), torch.full_like(parts[0][1], SINK)]), 0)
        piece = group[0]
        new = slice(piece.first_token, piece.first_token + piece.tokens)
        assert out[new].isnan().all()  # no token is computed twice
        out[new] = sum(part * (part_lse - lse).exp()[:, None] for part, part_lse in parts)
    return out


def run_piece(piece: Piece, window_left, q, keys, values, lengths):
    outs, lses, first, new_rows = [], [], piece.first_token, new_key_rows(piece)
    for i, query in enumerate(piece.query_lengths):
        row = piece.first_row + i
        context = lengths[row] - query
        assert 0 <= piece.starts[i] <= piece.ends[i] <= context
        new = slice(context, lengths[row] if piece.causal else context)
        k, v = (torch.cat([x[row][piece.starts[i] : piece.ends[i]], x[row][new]]) for x in (keys, values))
        assert len(k) == piece.key_lengths[i]
        # The kernel aligns the last query token with the last key.
        positions = torch.arange(len(k) - query, len(k)) if piece.causal else None
        out, lse = partial_attention(q[first : first + query], k, v, positions, window_left if piece.causal else -1)
        outs.append(out)
        lses.append(lse)
        first += query
    if piece.causal:
        assert len(new_rows) == piece.tokens
    return torch.cat(outs), torch.cat(lses)


def check(batch, window_left, scratch_rows=128, most_decode_tokens=1):
    queries, lengths = [query for query, _ in batch], [length for _, length in batch]
    batch_plan = plan(batch, (window_left,), scratch_rows, most_decode_tokens)
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        return torch.randn(count, DIM, generator=generator, dtype=torch.float64)

    q, keys, values = draw(sum(queries)), [draw(n) for n in lengths], [draw(n) for n in lengths]
    out = compute(batch_plan, window_left, queries, lengths, q, keys, values)
    expected = [
        whole_attention(part, k, v, torch.arange(length - query, length), window_left)
        for part, query, length, k, v in zip(q.split(queries), queries, lengths, keys, values, strict=True)
    ]
    assert batch_plan.tokens == len(q)
    torch.testing.assert_close(out, torch.cat([q[:0], *expected]), rtol=1e-9, atol=1e-9)
    for piece in (piece for group in batch_plan.prefills.get(window_left, ()) for piece in group):
        assert not piece.reads_cache or sum(piece.key_lengths) <= scratch_rows


@pytest.mark.parametrize("most_decode_tokens", [1, 4])
@pytest.mark.parametrize("window_left", [-1, 0, 15, 63])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_pieces_are_the_whole(batch, window_left, most_decode_tokens):
    check(batch, window_left, most_decode_tokens=most_decode_tokens)


@pytest.mark.parametrize("seed", range(60))
def test_random_batches(seed):
    choose = random.Random(seed)
    batch = []
    for _ in range(choose.randint(1, 12)):
        query = choose.choice([0, 1, 1, 1, 2, 4, 5, choose.randint(1, 60)])
        context = choose.choice([0, 0, 1, 15, 16, choose.randint(1, 400)])
        batch.append((query, query + context if query else 0))
    if choose.random() < 0.7:  # as vLLM orders them
        batch.sort(key=lambda request: (request[0] > 4, request[0] == request[1]))
    check(batch, choose.choice([-1, 15, 60]), choose.choice([128, 160, 1000]), choose.choice([1, 4]))


def test_a_window_layer_reads_its_window_alone():
    (group,) = plan([(20, 100), (8, 24)], (15,)).prefills[15]
    assert group[0].starts == (65, 1) and group[0].ends == (80, 16)


def test_prompts_without_context_read_no_cache():
    plans = plan([(20, 20), (30, 30)], (-1, 15))
    for window in (-1, 15):
        (group,) = plans.prefills[window]
        assert group == (Piece(0, 0, (20, 30), (0, 0), (0, 0), causal=True),)
        assert not group[0].reads_cache


def test_requests_share_a_call_as_far_as_the_scratch_reaches():
    groups = plan([(10, 60), (10, 60), (10, 60), (10, 20)]).prefills[-1]
    assert [group[0].rows for group in groups] == [2, 2]


def test_short_prompts_join_requests_with_context():
    """So that vLLM's order, by tokens alone, does not make a call of each request."""
    groups = plan([(5, 60), (6, 6), (7, 40), (8, 8), (300, 300), (9, 20)], scratch_rows=500).prefills[-1]
    assert [group[0].rows for group in groups] == [4, 1, 1]
    assert groups[0][0].ends == (55, 0, 33, 0)
    assert [group[0].rows for group in plan([(5, 60), (100, 100)]).prefills[-1]] == [1, 1]


def test_a_long_context_is_read_in_equal_parts_behind_the_own_keys():
    (group,) = plan([(10, 500)]).prefills[-1]
    new_keys, *parts = group
    assert new_keys == Piece(0, 0, (10,), (0,), (0,), causal=True)
    assert [part.context_lengths for part in parts] == [(122,), (123,), (122,), (123,)]
    assert not any(part.causal for part in parts)


def test_a_window_over_the_scratch_is_refused():
    with pytest.raises(ValueError, match="at most 128"):
        plan([(100, 300)], (60,))


def test_decodes_have_no_lengths_unless_they_differ():
    assert plan([(2, 9), (2, 5), (30, 30)], most_decode_tokens=4).decodes == Decodes(2, 2)
    assert plan([(2, 9), (1, 5), (30, 30)], most_decode_tokens=4).decodes == Decodes(2, 2, (2, 1))
    assert plan([(30, 30), (1, 5)]).decodes is None


def test_padded_queries_end_their_rows():
    sources, targets = pad_queries([3, 1, 2])
    assert sources == [0, 1, 2, 3, 3, 3, 4, 4, 5]
    assert targets == [0, 1, 2, 5, 7, 8]
    assert [sources[target] for target in targets] == list(range(6))


def test_own_keys_lie_behind_the_context():
    piece = Piece(0, 0, (2, 3), (0, 4), (4, 6), causal=True)
    assert new_key_rows(piece) == [4, 5, 8, 9, 10]
