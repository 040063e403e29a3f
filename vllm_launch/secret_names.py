"""Which names are those of secrets: one rule for what a server inherits, a profile may say, and a result shows."""

import re

WORDS = {"key", "keys", "token", "secret", "secrets", "credential", "credentials", "sshpass"}
ENDINGS = ("password", "passwd", "passphrase", "apikey", "secret")
# What stands before "token" where a text's token is meant, as in pad_token_id.
OF_TEXT = {"audio", "bos", "cls", "draft", "end", "eos", "image", "mask", "max", "min", "num", "pad", "per", "sep"}
OF_TEXT |= {"special", "start", "stop", "think", "tool", "unk", "video"}


def is_secret(name: str) -> bool:
    """Whether a variable, an option or a key of JSON is named as a secret: HF_TOKEN; not num_key_value_heads."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        of_text = (word == "token" and before in OF_TEXT) or (word == "key" and after == "value")
        is_password = word == "pwd" and before  # PWD alone is the working directory
        if is_password or (not of_text and (word in WORDS or word.endswith(ENDINGS))):
            return True
    return False
