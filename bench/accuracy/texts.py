"""The texts that are scored: cut out of the model's held-out text or of the book, the same for every profile."""

import json
import pkgutil
from pathlib import Path

from tokenizers import Tokenizer

from bench.suite import ContextTexts, Texts
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch.model import Model

END_OF_TEXT = "<|endoftext|>"  # between records of heldout.jsonl, as in training


class Text(Strict):
    """Token ids, of which those from `start` on are scored. prefill: by prefill too, not by decode alone."""

    ids: list[int]
    start: int
    prefill: bool = True


def texts_of(model: Model, settings: Texts) -> list[Text]:
    """What to score, tokenised by the model's own tokenizer.

    At each context the texts start at even distances over the source; prompts may overlap, scored tokens do not.
    Raises Problem("model") for a model without the source, Problem("suite") where the source is too short.
    """
    ids = tokenize(model.path, source_text(model, settings.source))
    return [text for entry in settings.contexts for text in _cut(ids, entry)]


def tokenize(model_path: str | Path, text: str) -> list[int]:
    """The ids of `text` by the model folder's tokenizer.json, without special tokens added. Raises Problem("model")."""
    path = Path(model_path) / "tokenizer.json"
    if not path.is_file():
        raise Problem("model", f"no {path}", "give --model a complete model folder (tokenizer.json)")
    return Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids


def source_text(model: Model, source: str) -> str:
    """The whole text of a source, `heldout` or `book`. Raises Problem("model") for a model without held-out text."""
    if source == "book":
        return book().decode()
    path = Path(model.path) / "heldout.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return END_OF_TEXT.join(json.loads(line)["text"] for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "serve the embedded model, or write `source: book` under `texts` in the suite"
        raise Problem("model", f"cannot read held-out text from {path}: {error}", remedy) from error


def book() -> bytes:
    """English text to make prompts of: the Python language reference that every Python ships (PSF licence)."""
    source = pkgutil.get_data("pydoc_data", "topics.py")
    if source is None:
        raise Problem("software", "this Python lacks pydoc_data/topics.py", "install the full standard library")
    return source


def _cut(ids: list[int], entry: ContextTexts) -> list[Text]:
    length = entry.context + entry.tokens
    step = (len(ids) - length) // max(1, entry.texts - 1)
    if step < entry.tokens:
        raise Problem(
            "suite",
            f"{entry.texts} texts of {entry.context:,} + {entry.tokens} tokens do not fit the {len(ids):,} there are",
            "ask for fewer or shorter ones under `texts` in the suite",
        )
    return [
        Text(ids=ids[first : first + length], start=entry.context, prefill=entry.prefill)
        for first in range(0, step * entry.texts, step)
    ]
