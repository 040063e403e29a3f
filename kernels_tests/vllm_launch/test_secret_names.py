"""Names of secrets, and names that only look like them."""

import pytest

from vllm_launch.secret_names import is_secret

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
OTHERS = [
    "num_key_value_heads",
    "max-num-batched-tokens",
    "pad_token",
    "eos_token_id",
    "tokenizer",
    "TOKENIZERS_PARALLELISM",
]
OTHERS += [
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


@pytest.mark.parametrize("name", OTHERS)
def test_no_secret(name):
    assert not is_secret(name)
