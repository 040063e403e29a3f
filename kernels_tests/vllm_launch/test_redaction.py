"""Names of secrets, masked commands and settings, and folders that are named by a variable."""

import sys
import tempfile
from pathlib import Path

import pytest

from vllm_launch.redaction import REPO, is_secret, redact_all

SECRETS = [
    "VLLM_API_KEY",
    "HF_TOKEN",
    "api-key",
    "hf_token",
    "aws_secret",
    "AWS_ACCESS_KEY_ID",
    "PGPASSWORD",
    "SSHPASS",
]
SECRETS += [
    "MYSQL_PWD",
    "API_KEYS",
    "AZURE_CLIENT_SECRET_VALUE",
    "OPENAI_APIKEY",
    "GOOGLE_CREDENTIALS",
    "key",
    "a.token",
]
HARMLESS = [
    "num_key_value_heads",
    "max-num-batched-tokens",
    "pad_token",
    "eos_token_id",
    "tokenizer",
    "TOKENIZERS_PARALLELISM",
]
HARMLESS += [
    "MONKEY",
    "PWD",
    "OLDPWD",
    "KEYBOARD",
    "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE",
    "PATH",
    "kv-cache-dtype",
    "image_token_index",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_no_secret(name):
    assert not is_secret(name)


def test_redaction_names_no_folder_of_this_machine(monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(REPO / ".venv"))
    redacted = {
        f"{REPO}/models/x": "$REPO/models/x",
        f"{REPO}/.venv/bin/python": "$ENV/bin/python",
        f"{Path.home()}/m": "~/m",
        f"{tempfile.gettempdir()}/run": "$TMP/run",
        f"cannot write {Path.home()}.": "cannot write ~.",
        f"{Path.home()}other/m": f"{Path.home()}other/m",
    }
    assert redact_all({"a": list(redacted)}) == {"a": list(redacted.values())}


def test_values_of_secret_names_are_masked():
    command = ["--api-key", "s3same", "--hf-token=s3same", "--max-num-batched-tokens", "8192", "A_KEY=s3same"]
    command += ["--hf-overrides", '{"num_key_value_heads":2,"token":"s3same"}', "--tokenizer", "t"]
    command += ["--password", "s3same"]
    masked = redact_all(command)
    assert "s3same" not in " ".join(masked) and len(masked) == len(command)
    assert masked[3:5] == command[3:5] and masked[8:10] == command[8:10] and '"num_key_value_heads":2' in masked[7]
    settings = {"MY_TOKEN": "s3same", "nested": {"secret": "s3same", "words": ["--api-key", "s3same"]}, "size": 3}
    assert "s3same" not in str(redact_all(settings)) and redact_all(settings)["size"] == 3
