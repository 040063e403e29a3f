"""Keep secrets and folders of this machine out of results: one rule for what names a secret, and its masking."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
MASK = "***"
SHORTEST_SECRET = 8  # a shorter value may be part of any word

SECRET_WORDS = {"key", "keys", "token", "secret", "secrets", "credential", "credentials", "sshpass"}
SECRET_ENDINGS = ("password", "passwd", "passphrase", "apikey", "secret")
# Words before "token" that make it a token of text, as in pad_token_id.
TEXT_TOKENS = {"audio", "bos", "cls", "draft", "end", "eos", "image", "mask", "max", "min", "num", "pad", "per", "sep"}
TEXT_TOKENS |= {"special", "start", "stop", "think", "tool", "unk", "video"}


def is_secret(name: str) -> bool:
    """Whether the name of a variable, an option or a JSON key is that of a secret: HF_TOKEN, not pad_token_id."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        of_text = (word == "token" and before in TEXT_TOKENS) or (word == "key" and after == "value")
        is_password = word == "pwd" and before  # PWD alone is the working directory
        if is_password or (not of_text and (word in SECRET_WORDS or word.endswith(SECRET_ENDINGS))):
            return True
    return False


def redact(text: str) -> str:
    """Replace checkout, environment, temporary and home folder by $REPO, $ENV, $TMP and ~, secrets by MASK.

    Secrets are the values of this process's variables that `is_secret` names.
    """
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, MASK)
    folders = {
        str(REPO): "$REPO",
        sys.prefix: "$ENV",
        str(Path(tempfile.gettempdir()).resolve()): "$TMP",
        str(Path.home()): "~",
    }
    # The longest first: an environment inside the checkout is still $ENV.
    for folder in sorted(folders, key=len, reverse=True):
        if folder != os.sep:
            # A whole folder, not the start of a longer name.
            text = re.sub(rf"{re.escape(folder)}(?!\w|[.-]\w)", lambda _, name=folders[folder]: name, text)
    return text


def redact_all(value):
    """Apply `masked` to nested lists and maps, and `redact` to every string in them."""
    return _map_strings(masked(value), redact)


def masked(value):
    """Replace every value in nested lists and maps whose key or preceding option names a secret by MASK.

    A list may be the words of a command: `--name value`, `--name=value`, `NAME=value` and JSON are understood.
    """
    if isinstance(value, dict):
        return {key: MASK if is_secret(key) else masked(item) for key, item in value.items()}
    return _masked_words(value) if isinstance(value, list) else value


def _masked_words(words: list) -> list:
    result, after_secret = [], False
    for word in words:
        if not isinstance(word, str):
            result.append(masked(word))
            continue
        name, equals, _ = word.partition("=")
        secret = re.fullmatch(r"[-\w]+", name) and is_secret(name)
        if re.match("-{1,2}[A-Za-z]", word):
            after_secret = secret and not equals
            result.append(f"{name}={MASK}" if secret and equals else word)
        elif after_secret or (secret and equals):
            result.append(MASK)
        else:
            result.append(_masked_json(word))
    return result


def _masked_json(word: str) -> str:
    try:
        value = json.loads(word)
    except ValueError:
        return word
    hidden = masked(value)
    return word if hidden == value else json.dumps(hidden, separators=(",", ":"))


def _map_strings(value, change: Callable[[str], str]):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return value
