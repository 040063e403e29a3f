"""Judge choices of a launch by a file of `sweep`: how much slower than the fastest launch, and than the law.

python -m lowp.sink_decode.fit sweep.json [--batch 8]
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, quantiles

from lowp.sink_decode.sweep_shapes import WIDE, Shape

SHOWN = 4  # launches of a batch


def table_of(shape: Shape) -> str:
    return "window" if shape.window_left >= 0 else "wide" if shape.table_tokens == WIDE else "narrow"


def summary(ratios: list[float]) -> str:
    """Median, 95th percentile and maximum."""
    high = quantiles(ratios, n=20, method="inclusive")[-1] if len(ratios) > 1 else ratios[0]
    return f"{median(ratios):.3f} {high:.3f} {max(ratios):.3f}"


def print_classes(rows: list[dict]) -> None:
    """Print for each kind of shapes the chosen launch and the fastest one over the law, and their ratio."""
    classes = defaultdict(list)
    for row in rows:
        shape = Shape(*row["shape"])
        classes[shape.kv_format, table_of(shape), shape.kind, "short" if shape.tokens < 64 else ""].append(row)
    print("class: shapes; median, 95th percentile, maximum of chosen / law; best / law; chosen / best")
    for name, members in classes.items():
        chosen = [row["times"][row["chosen"]] for row in members]
        best = [min(row["times"].values()) for row in members]
        law = [row["law_us"] for row in members]
        ratios = [[a / b for a, b in zip(x, y, strict=True)] for x, y in ((chosen, law), (best, law), (chosen, best))]
        print(f"{' '.join(name)}: {len(members)}; {'; '.join(map(summary, ratios))}")


def print_batches(rows: list[dict], batch: int | None) -> None:
    """Print for each batch under a wide table, whose lengths are unknown, what does best over all lengths."""
    batches = defaultdict(list)
    for row in rows:
        shape = Shape(*row["shape"])
        if table_of(shape) == "wide":
            batches[shape.kv_format, shape.batch].append(row)
    print("format, batch: launch, mean and maximum of time / law over all lengths; today's choice last")
    for (kv_format, size), members in sorted(batches.items()):
        if batch in (None, size):
            common = set.intersection(*(set(row["times"]) for row in members))
            ratios = {x: [row["times"][x] / row["law_us"] for row in members] for x in common}
            ranked = sorted(ratios, key=lambda launch: mean(ratios[launch]) + max(ratios[launch]))
            shown = dict.fromkeys([*ranked[:SHOWN], members[0]["chosen"]])
            words = [f"{launch}: {mean(ratios[launch]):.3f} {max(ratios[launch]):.3f}" for launch in shown]
            print(f"{kv_format} {size}: {'; '.join(words)}")


def print_overlap(rows: list[dict]) -> None:
    """Print what dependent launch gains, back to back and with an addition between the calls, by classes of time."""
    gains = defaultdict(list)
    for row in rows:
        for launch, us in row["between"].items():
            if launch.split(",")[5] == "1":
                other = ",".join(["0" if i == 5 else word for i, word in enumerate(launch.split(","))])
                group = next(limit for limit in (6, 12, 25, 50, 1e9) if row["law_us"] < limit)
                gains[group, "between"].append(row["between"].get(other, us) - us)
                if launch in row["times"] and other in row["times"]:
                    gains[group, "back to back"].append(row["times"][other] - row["times"][launch])
    print("law under, how: median, 95th percentile, maximum of the gain of overlap in us")
    for (limit, how), values in sorted(gains.items()):
        print(f"{limit:g} {how}: {len(values)}; {summary(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch", type=int, help="this batch alone")
    options = parser.parse_args()
    rows = [row for row in json.loads(options.file.read_text())["rows"] if row["chosen"] in row["times"]]
    print_classes(rows)
    print_batches(rows, options.batch)
    print_overlap(rows)


if __name__ == "__main__":
    main()
