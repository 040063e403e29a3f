"""The plan that the device makes of KV splits (split.cuh), compiled for a CPU: every tile once, in equal quotas."""

import math
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch

from lowp.sink_decode import build
from lowp.sink_decode.resources import Launch, Variant

HOST = Path(__file__).parent / "host"
CALLS = 60
MOST_SPLITS, APART_STEPS = 64, 2  # split.cuh's kMaxSplits and kApartSteps
PLAIN = Variant(64, 8, True, torch.float8_e4m3fn, False, False)
BUILDS = [
    (PLAIN, Launch(8, 2, 2, 2, cluster=0)),
    (PLAIN, Launch(1, 2, 2, 16, cluster=0)),
    (PLAIN, Launch(2, 2, 1, 8, cluster=0, least_steps=1)),
    (Variant(64, 8, True, torch.float8_e4m3fn, False, True), Launch(4, 2, 2, 4, cluster=0)),
    (Variant(64, 8, True, torch.float8_e4m3fn, False, True, query_tokens=3), Launch(2, 2, 2, 8, cluster=0)),
]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++; none here")


@dataclass(frozen=True)
class Call:
    lengths: tuple[int, ...]
    splits: int
    window_left: int
    table_tokens: int

    @property
    def line(self) -> str:
        words = (len(self.lengths), self.splits, self.window_left, self.table_tokens // 16, *self.lengths)
        return " ".join(map(str, words))

    def tiles(self, query_tokens: int) -> list[tuple[int, int]]:
        """The first tile of each row that is read, and the end."""
        lengths = [min(length, self.table_tokens) for length in self.lengths]
        skipped = [max(0, n - query_tokens - self.window_left) if self.window_left >= 0 else 0 for n in lengths]
        return [(first // 16, math.ceil(n / 16)) for first, n in zip(skipped, lengths, strict=True)]


class Split(NamedTuple):
    cta: int
    row: int
    index: int
    count: int
    first_tile: int
    end_tile: int


def calls(window: bool) -> list[Call]:
    """Calls of every kind of lengths: empty, short, equal, unequal, one long row, longer than the table."""
    random, result = Random(16), []
    for number in range(CALLS):
        batch = round(100 ** random.random())
        longest = round(16 * 4096 ** random.random())
        lengths = {
            0: [longest] * batch,
            1: [longest - 13 * row % min(64, longest) for row in range(batch)],
            2: [random.randint(0, longest) for _ in range(batch)],
            3: [longest, *(random.randint(0, 200) for _ in range(batch - 1))],
            4: [random.choice([0, 1, 16, 17, longest]) for _ in range(batch)],
            5: [0] * batch,
        }[number % 6]
        random.shuffle(lengths)
        splits = random.choice([1, 2, 7, 16, 33, 66, 132])
        window_left = random.choice([0, 15, 127, 5000]) if window else -1
        table_tokens = random.choice([longest // 32 * 16 + 16, 131_072])
        result.append(Call(tuple(lengths), splits, window_left, table_tokens))
    return [*result, Call((3, 65_536, 100), 132, 2**20 if window else -1, 131_072)]


@pytest.fixture(scope="module", params=BUILDS, ids=lambda pair: f"{pair[1].warps} warps, window {pair[0].window}")
def planned(request, tmp_path_factory):
    """A build's variant and launch, and its calls, each with the splits that the CTAs compute."""
    variant, launch = request.param
    folder = tmp_path_factory.mktemp("plan")
    for path in (build.SOURCE.folder / "config.cuh", build.SOURCE.folder / "split.cuh", *HOST.iterdir()):
        shutil.copy(path, folder)
    defines = [f"-D{name}={value}" for name, value in build.defines(variant, launch).items()]
    program = folder / "plan"
    subprocess.run(["g++", "-std=c++17", "-O1", *defines, "-o", program, folder / "plan.cpp"], check=True)
    todo = calls(variant.window)
    lines = "\n".join(call.line for call in todo)
    output = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout
    splits = defaultdict(list)
    for line in output.splitlines():
        number, *fields = map(int, line.split())
        splits[number].append(Split(*fields))
    return variant, launch, [(call, splits[number]) for number, call in enumerate(todo)]


def test_splits_cover_each_tile_once(planned):
    variant, launch, plans = planned
    step_tiles = launch.tiles * launch.warps
    for call, splits in plans:
        rows = defaultdict(list)
        for split in splits:
            rows[split.row].append(split)
        assert sorted(rows) == list(range(len(call.lengths)))  # empty ones too: their output is written
        long_steps = []
        for row, (first, end) in enumerate(call.tiles(variant.query_tokens)):
            parts = sorted(rows[row], key=lambda split: split.index)
            assert [split.index for split in parts] == list(range(len(parts)))
            assert {split.count for split in parts} == {len(parts)} and len(parts) <= MOST_SPLITS
            borders = [split.first_tile for split in parts] + [end]
            assert borders[0] == first and [split.end_tile for split in parts] == borders[1:]
            steps = math.ceil((end - first) / step_tiles)
            if steps <= 2 * launch.least_steps:
                assert [(split.cta, split.count) for split in parts] == [(row, 1)]
            else:
                assert all(split.first_tile < split.end_tile and split.cta < call.splits for split in parts)
                long_steps.append(steps)
        if long_steps:
            check_quotas(call, splits, launch, long_steps)


def check_quotas(call, splits, launch, long_steps):
    """No CTA has more than an equal quota of the long rows; or a little more, where that keeps rows apart."""
    quota = max(math.ceil(sum(long_steps) / call.splits), math.ceil(max(long_steps) / MOST_SPLITS), launch.least_steps)
    longer = (
        quota + extra
        for extra in range(APART_STEPS + 1)
        if sum(math.ceil(steps / (quota + extra)) for steps in long_steps) <= call.splits
    )
    apart = next(longer, None)
    loads = defaultdict(list)
    for split in splits:
        steps = math.ceil((split.end_tile - split.first_tile) / (launch.tiles * launch.warps))
        if split.count > 1 or steps > 2 * launch.least_steps:
            loads[split.cta].append(steps)
    assert max(map(sum, loads.values())) <= (apart or quota)
    assert apart is None or max(map(len, loads.values())) == 1


def test_partials_have_distinct_addresses(planned):
    """merge.cuh finds the partials of a row by its first quota: equal for all of its splits."""
    _, _, plans = planned
    for call, splits in plans:
        first_quotas, addresses = defaultdict(set), []
        for split in splits:
            if split.count > 1:
                first_quota = call.splits - 1 - split.cta - split.index
                first_quotas[split.row].add(first_quota)
                addresses.append(2 * (first_quota + split.index) + (split.index == 0))
        assert all(len(quotas) == 1 for quotas in first_quotas.values())
        assert len(set(addresses)) == len(addresses) and all(0 <= x < 2 * call.splits for x in addresses)
