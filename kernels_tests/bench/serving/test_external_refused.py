"""`bench serving --url`: what is refused, and which model of a server is measured."""

import socket

import pytest

from bench.servers import external
from kernels_tests.bench.serving.conftest import row_of
from kernels_tests.bench.stub_server import CARD
from vllm_launch.model import EMBEDDED


@pytest.mark.parametrize(
    "words",
    [
        ["--url", "127.0.0.1:8000"],
        ["--url", "ftp://127.0.0.1"],
        ["--url", "http://user:secret@127.0.0.1:8000"],
        ["--url", "http://127.0.0.1:8000/?key=secret"],
        ["--url", "http://127.0.0.1:99999"],
        ["--url", "http://127.0.0.1 :8000"],
        ["--url", "http://127.0.0.1:8000/v1/chat/completions"],
        ["--url", "http://127.0.0.1:8000/v1/models/"],
        ["--url", "http://127.0.0.1:8000", "--reference-url", "http://127.0.0.1:8000/v1/"],
        ["--reference-url", "http://127.0.0.1:8000"],
        ["--url", "http://127.0.0.1:8000", "baseline", "fp8"],
        ["--url", "http://127.0.0.1:8000", "fp8", "--", "--seed", "1"],
        ["--url", "http://127.0.0.1:8000", "--", "--seed", "1"],
        ["--resume", "run", "--url", "http://127.0.0.1:8000"],
    ],
)
def test_a_wrong_request_is_refused(serving, tmp_path, words):
    assert "secret" not in serving(*words, exit_code=2).output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://Some.Host/v1/", "https://some.host"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://host/proxy/v1", "http://host/proxy"),
    ],
)
def test_a_url_may_end_in_v1(text, url):
    assert external.base_url(text) == url


def test_a_url_where_nothing_answers_is_refused(serving, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        invocation = serving("--url", f"http://127.0.0.1:{probe.getsockname()[1]}", exit_code=1)
    assert "Connection refused" in invocation.stderr and "HTTPConnectionPool" not in invocation.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": [{"name": "tiny"}]}'])
def test_another_program_than_a_server_is_refused(serving, stub, body):
    stub.models_body = body
    serving("--url", stub.url, exit_code=1)


def test_several_models_need_a_name(serving, stub, tmp_path):
    stub.cards = [CARD, CARD | {"id": "alias"}]
    serving("--url", stub.url, "--dry-run")
    stub.cards = [CARD | {"root": "base"}, CARD | {"id": "adapter", "root": "lora"}]
    output = serving("--url", stub.url, exit_code=4).output
    assert "tiny" in output and "adapter" in output and "--model" in output
    stub.cards = [CARD | {"id": EMBEDDED.name, "root": "base"}, CARD | {"id": "adapter", "root": "lora"}]
    assert f"model {EMBEDDED.name}," in serving("--url", stub.url, "--model", str(EMBEDDED), "--dry-run").output


def test_a_model_that_is_not_on_this_machine_has_to_be_named(serving, stub):
    stub.cards = [CARD | {"root": "/models/elsewhere"}]
    assert "--model" in serving("--url", stub.url, exit_code=4).output
    serving("--url", stub.url, "--model", str(EMBEDDED), "--dry-run")


def test_a_grid_longer_than_the_server_serves_is_refused(serving, stub, tmp_path):
    stub.cards = [CARD | {"max_model_len": 831}]
    serving("--url", stub.url, exit_code=2)
    assert "/v1/completions" not in stub.paths() and not (tmp_path / "run").exists()
    stub.cards = [CARD | {"max_model_len": 832}]
    serving("--url", stub.url)


def test_texts_longer_than_the_server_serves_are_not_scored(serving, stub, tmp_path):
    stub.cards = [CARD | {"max_model_len": 140}]
    serving("--url", stub.url, "--prompt", "32", "--output", "32", "--depth", "0")
    assert row_of(tmp_path).accuracy is None and len(row_of(tmp_path).unavailable) == 2


def test_tokens_before_the_prompt_are_no_other_tokenizer(serving, stub):
    stub.prefix = [7]
    serving("--url", stub.url, "--quick")


@pytest.mark.parametrize("name", ["stub", "reference"])
def test_a_server_with_another_tokenizer_is_refused(serving, stub, reference, tmp_path, name):
    mistaken = {"stub": stub, "reference": reference}[name]
    mistaken.tokenize = lambda _: [1, 2, 3]
    assert mistaken.url in serving("--url", stub.url, "--reference-url", reference.url, exit_code=4).output
    assert row_of(tmp_path).rates == [] and "127.0.0.1" not in row_of(tmp_path).failures[0].message
