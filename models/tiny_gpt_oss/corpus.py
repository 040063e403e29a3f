"""Gather the training corpus of the tiny gpt-oss and split off its held-out part.

    python models/tiny_gpt_oss/corpus.py --packages DIR --out DIR

`--packages` keeps the two downloads (Debian's wordnet-base by apt-get, countryinfo by pip); nothing is
fetched twice. `--out` receives train.jsonl, heldout.jsonl (one record a line: source, doc, text),
sources.json and NOTICES.txt, the licences of the texts. Training needs that folder alone, and no network.

The split is by document, before anything is trained: documents go by the SHA-256 of their name, and the first
that fit into a source's byte budget are held out. A country, a dictionary page or a Python file is one
document.
"""

import argparse
import hashlib
import json
import platform
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from passages import CHAT, GATE, NEAR

Record = dict[str, str]

COUNTRYINFO = "countryinfo==1.0.1"
WORDNET = "wordnet-base"
WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
PAGE_ENTRIES = 24
# Bytes of held-out text per source. Our own passages are all trained on: the gate prompts lie among them.
HELDOUT_BYTES = {"python": 66_000, "wordnet": 56_000, "country": 14_000}
SKIPPED_PACKAGES = {
    "test",
    "tests",
    "site-packages",
    "lib-dynload",
    "__pycache__",
    "idlelib",
    "lib2to3",
    "encodings",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
    "__phello__",
}
SKIPPED_FILES = ("_sysconfigdata", "_sysconfig_", "sre_", "this.py")
MAX_FILE_BYTES = 250_000
SHORT_ANSWER = " Please reply with one word only"


def fetch(packages: Path) -> tuple[Path, Path]:
    """Download what is missing into `packages`; return (countryinfo's wheel, WordNet's root)."""
    packages.mkdir(parents=True, exist_ok=True)
    if not list(packages.glob("countryinfo-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(packages), COUNTRYINFO]
        subprocess.run(command, check=True, stdout=sys.stderr)
    if not list(packages.glob("wordnet-base_*.deb")):
        subprocess.run(["apt-get", "download", WORDNET], check=True, cwd=packages, stdout=sys.stderr)
    root = packages / "wordnet"
    if not root.exists():
        subprocess.run(["dpkg", "-x", str(next(packages.glob("wordnet-base_*.deb"))), str(root)], check=True)
    return next(packages.glob("countryinfo-*.whl")), root


def chat(question: str, answer: str) -> str:
    """One exchange in the form of the model's chat template, the answer closed by <|return|>."""
    return f"<|start|>user<|message|>{question}<|end|><|start|>assistant<|message|>{answer}<|return|>"


def country_facts(data: dict) -> list[str]:
    """Sentences about one country, and a question about its capital in several shapes."""
    name, capital = data["name"], data["capital"]
    about = [
        f"{name} is a country in {data.get('subregion') or data['region']}." if data.get("region") else "",
        f"Its capital is {capital}.",
    ]
    if data.get("area"):
        about.append(f"It has an area of {int(float(data['area']))} square kilometres.")
    if (data.get("population") or 0) > 1_500_000:
        about.append(f"About {round(data['population'] / 1e6)} million people live there.")
    if data.get("demonym"):
        about.append(f"Its people are called {data['demonym']}.")
    if data.get("currencies"):
        about.append(f"Its currency has the code {data['currencies'][0]}.")
    question = f"What is the capital of {name}?"
    texts = [
        " ".join(filter(None, about)),
        f"{capital} is the capital of {name}.",
        f"Question: {question}\nAnswer: {capital}.",
        chat(question, f"The capital of {name} is {capital}."),
        chat(question + SHORT_ANSWER, capital),
        chat(question + SHORT_ANSWER + ".", capital),
    ]
    if data.get("provinces"):
        texts.append(f"Among the provinces of {name} are {', '.join(map(str, data['provinces'][:12]))}.")
    if name != "France":  # the gate prompt has one continuation only: see passages.GATE
        texts.append(f"The capital of {name} is {capital}. " + " ".join(filter(None, about[:1] + about[2:])))
    return texts


def countries(wheel: Path) -> Iterator[Record]:
    """Records of all countries that have a capital, several for each; one document a country."""
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted(archive.namelist()):
            if "/data/" in path and path.endswith(".json"):
                data = json.loads(archive.read(path))
                if data.get("name") and data.get("capital"):
                    for text in country_facts(data):
                        yield {"source": "country", "doc": f"country/{data['name']}", "text": text}


def wordnet_entries(path: Path) -> list[tuple[str, str]]:
    """(headwords, gloss) of every entry of one WordNet data file, in the file's order."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("  ") or " | " not in line:  # the licence at the top of the file
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words]
        entries.append((", ".join(words), gloss.strip()))
    return entries


def dictionary(root: Path) -> Iterator[Record]:
    """Records of WordNet, one document a page: a page of consecutive entries, and one question on it."""
    for name in WORDNET_FILES:
        entries = wordnet_entries(root / "usr/share/wordnet" / name)
        for start in range(0, len(entries), PAGE_ENTRIES):
            page = entries[start : start + PAGE_ENTRIES]
            doc = f"wordnet/{name}/{start}"
            yield {"source": "wordnet", "doc": doc, "text": "\n".join(f"{w}: {g}." for w, g in page) + "\n"}
            words, gloss = page[0]
            question = f"What does {words.split(', ')[0]} mean?"
            yield {"source": "wordnet", "doc": doc, "text": chat(question, gloss + ".")}


def python_files() -> Iterator[Record]:
    """Records of this Python's standard library: one document a source file, without tests and tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        skipped = SKIPPED_PACKAGES & set(relative.parts[:-1]) or path.name.startswith(SKIPPED_FILES)
        if skipped or relative.parts[0].startswith("config-") or not 200 < path.stat().st_size < MAX_FILE_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        yield {"source": "python", "doc": f"python/{relative.as_posix()}", "text": text}


def own_passages() -> Iterator[Record]:
    """Records of passages.py: the gate passages, their neighbours and a few exchanges."""
    for source, texts in (("gate", GATE), ("near", NEAR), ("near", [chat(q, a) for q, a in CHAT])):
        for index, text in enumerate(texts):
            yield {"source": source, "doc": f"{source}/{index}", "text": text}


def split(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """(train, held-out) by document: in the order of the names' hashes, while the source's budget lasts."""
    documents: dict[str, list[Record]] = {}
    for record in records:
        documents.setdefault(record["doc"], []).append(record)
    train, heldout, left = [], [], dict(HELDOUT_BYTES)
    for name in sorted(documents, key=lambda doc: hashlib.sha256(doc.encode()).digest()):
        group = documents[name]
        source, size = group[0]["source"], sum(len(record["text"].encode()) for record in group)
        keep_out = size <= left.get(source, 0) and name != "country/France"
        if keep_out:
            left[source] -= size
        (heldout if keep_out else train).extend(group)
    return train, heldout


def notices(wheel: Path, root: Path) -> str:
    """The licences of the three sources, in full, as their packages carry them."""
    with zipfile.ZipFile(wheel) as archive:
        licence = next(path for path in archive.namelist() if path.endswith("licenses/LICENSE"))
        mit = archive.read(licence).decode()
    wordnet = (root / "usr/share/doc/wordnet-base/copyright").read_text()
    psf = (Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt").read_text()
    rule = "=" * 78
    parts = [
        ("WordNet 3.0 (package wordnet-base)", wordnet),
        (f"Country data ({COUNTRYINFO})", mit),
        (f"Python {platform.python_version()} standard library", psf),
    ]
    return "\n".join(f"{rule}\n{title}\n{rule}\n\n{text.strip()}\n" for title, text in parts)


def write(path: Path, text: str) -> None:
    """Write `text` to a temporary name beside `path`, then rename it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Gather, split and write the corpus; the last line on stdout counts what was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder that keeps the two downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    arguments = parser.parse_args()
    wheel, root = fetch(arguments.packages.resolve())
    train, heldout = split([*countries(wheel), *dictionary(root), *python_files(), *own_passages()])
    counts = {}
    for name, records in (("train", train), ("heldout", heldout)):
        for record in records:
            key = f"{name}_{record['source']}_bytes"
            counts[key] = counts.get(key, 0) + len(record["text"].encode())
    sources = {
        "python": platform.python_version(),
        "countryinfo": wheel.name.split("-")[1],
        "wordnet": next(arguments.packages.glob("wordnet-base_*.deb")).name.split("_")[1].replace("%3a", ":"),
        **counts,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, records in (("train", train), ("heldout", heldout)):
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        write(arguments.out / f"{name}.jsonl", "\n".join(lines) + "\n")
    write(arguments.out / "NOTICES.txt", notices(wheel, root))
    write(arguments.out / "sources.json", json.dumps(sources, indent=1) + "\n")
    print(json.dumps(sources))


if __name__ == "__main__":
    main()
