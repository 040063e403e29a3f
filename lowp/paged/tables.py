"""Block tables and sinks of seeded inputs."""

import math

import torch


def block_table(
    spans: list[tuple[int, int]], width: int, random: torch.Generator, *, spare_pages: int = 0, unused: int = 0
) -> tuple[torch.Tensor, int]:
    """Make a block table of pages in random order, and return it with the number of pages that the cache has.

    spans: of each sequence the columns of the pages that it uses, first and past the last; the others hold `unused`.
    The cache has `spare_pages` pages that no sequence uses. Returns [sequences, width] int32 on the generator's device.
    """
    counts = [end - start for start, end in spans]
    pages = sum(counts) + spare_pages
    order = torch.randperm(pages, generator=random, device=random.device)[: sum(counts)].int()
    table = torch.full((len(spans), width), unused, dtype=torch.int32, device=random.device)
    for row, (part, (start, end)) in enumerate(zip(order.split(counts), spans, strict=True)):
        table[row, start:end] = part
    return table, pages


def sinks_near(tokens: int, heads: int, random: torch.Generator) -> torch.Tensor:
    """Draw sinks [heads] near the log-sum-exp of `tokens` scores, so that a sink dropped or shifted shows.

    randn queries and keys give logits of about N(0, 1), whose log-sum-exp is about log(tokens) + 1/2.
    """
    spread = 4 * torch.rand(heads, generator=random, device=random.device) - 2
    return math.log(tokens) + 0.5 + spread
