"""A server's log-probabilities of the texts, taken over HTTP and kept in one packed file.

Decode: the server is made to generate the tokens that really follow a prompt one by one, so every log-probability
went through the decode path and its KV cache. Prefill: the same tokens at once, as part of the prompt. The two are
separate figures: a broken decode kernel shows in the first alone.
"""

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from bench.accuracy import forced
from bench.accuracy.forced import PATHS, Scored, ScoredPath
from bench.accuracy.texts import Text
from bench.record.run_folder import broken_step
from bench.servers.client import Endpoint
from flashinfer_patches import files
from flashinfer_patches.files import writing
from flashinfer_patches.strict import Strict

DIGITS = 5  # of a saved log-probability, nats: far below BF16 noise


class TextAnswer(Strict):
    """One text: its prompt's length, and the log-probabilities of the tokens after it; None for a path not scored."""

    context: int
    decode: Scored | None
    prefill: Scored | None


class Answers(Strict):
    """What one server answered to all texts, in their order."""

    source: Literal["heldout", "book"]
    texts: list[TextAnswer]

    def at_contexts(self, contexts: set[int]) -> "Answers":
        """The answers to the texts of these contexts alone."""
        return self.model_copy(update={"texts": [text for text in self.texts if text.context in contexts]})


def collect(
    endpoint: Endpoint,
    source: Literal["heldout", "book"],
    texts: list[Text],
    file: Path,
    status: Callable[[str], None],
    paths: Sequence[ScoredPath] = PATHS,
    last_first: bool = False,
) -> Answers:
    """Load `file` (.json.gz), or score the texts on a running server and save it.

    paths: those that the server offers; for decode it needs the arguments of forced.arguments. last_first: send the
    texts in reverse, for other batches; the answers are in the order of the texts. Raises Problem("requests") where
    the server does not answer, Problem("file") for a damaged `file`.
    """
    if file.exists():
        return read(file)
    step = -1 if last_first else 1
    decode = iter(_score(endpoint, texts[::step] if "decode" in paths else [], "decode", status)[::step])
    with_prefill = [text for text in texts if text.prefill and "prefill" in paths]
    prefill = iter(_score(endpoint, with_prefill[::step], "prefill", status)[::step])
    answers = Answers(
        source=source,
        texts=[
            TextAnswer(
                context=text.start,
                decode=_rounded(next(decode)) if "decode" in paths else None,
                prefill=_rounded(next(prefill)) if text.prefill and "prefill" in paths else None,
            )
            for text in texts
        ],
    )
    write(answers, file)
    return answers


def read(path: Path) -> Answers:
    """The answers that `collect` saved; raises Problem("file")."""
    try:
        return Answers.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        raise broken_step(path) from error


def write(answers: Answers, path: Path) -> None:
    """Write packed; the same answers give the same bytes."""
    with writing(path.parent):
        files.replace(path, gzip.compress(answers.model_dump_json().encode(), mtime=0))


def _score(endpoint: Endpoint, texts: list[Text], path: ScoredPath, status: Callable[[str], None]) -> list[Scored]:
    if not texts:
        return []
    return forced.score_all(
        endpoint,
        texts,
        path,
        progress=lambda count, total: status(f"{path} log-probabilities, {count} of {total} texts"),
    )


def _rounded(scored: Scored) -> Scored:
    return Scored(
        token_ids=scored.token_ids,
        logprobs=[round(value, DIGITS) for value in scored.logprobs],
        top=[{token: round(value, DIGITS) for token, value in top.items()} for top in scored.top],
    )
