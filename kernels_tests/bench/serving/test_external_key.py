"""The key of an external server goes to the servers alone; no host and no key is in result and report."""

import json

import pytest

from bench.servers import external
from bench.servers.external import HOST, URL, hide_hosts
from kernels_tests.bench.serving.conftest import row_of

KEYS = ["key-of-the-stub", "k3y", 'quo"ted']


def set_key(stub, monkeypatch, key):
    stub.key = key
    monkeypatch.setenv(external.KEY_VARIABLE, key)


def files_with(key, folder):
    """Files that hold a key, as it is or as JSON escapes it."""
    forms = {key.encode(), json.dumps(key)[1:-1].encode()}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


@pytest.mark.parametrize("key", KEYS)
def test_the_key_goes_to_the_servers_alone_and_into_no_file(serving, stub, tmp_path, monkeypatch, key):
    stub.key = key
    serving("--url", stub.url, exit_code=1)
    assert not (tmp_path / "run").exists()
    set_key(stub, monkeypatch, key)
    assert key not in serving("--url", stub.url).output
    assert {authorization for _, authorization, _ in stub.calls} == {None, f"Bearer {key}"}
    assert files_with(key, tmp_path / "run") == []


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("status", "exit_code"), [(404, 0), (500, 1)])
def test_a_key_that_the_server_repeats_is_masked(serving, stub, tmp_path, monkeypatch, key, status, exit_code):
    set_key(stub, monkeypatch, key)
    stub.status, stub.error_body = status, "got {authorization}"
    assert key not in serving("--url", stub.url, exit_code=exit_code).output
    row = row_of(tmp_path)
    assert "***" in " ".join([*row.unavailable, *(each.message for each in row.failures)])
    assert files_with(key, tmp_path / "run") == []


@pytest.mark.parametrize("key", ["secret-key\n", "secret key", "secret-k\u00e9y", "secret-key\u2713"])
def test_a_malformed_key_is_refused(serving, stub, monkeypatch, key):
    monkeypatch.setenv(external.KEY_VARIABLE, key)
    assert "secret" not in serving("--url", stub.url, exit_code=1).output
    assert stub.calls == []


def test_no_host_is_in_result_and_report(serving, stub, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fp8-sinks", "bench", "serving", "--url", f"{stub.url}/v1"])
    serving("--url", f"{stub.url}/v1")
    for name in ("result.json", "report.md"):
        text = (tmp_path / "run" / name).read_text()
        assert "127.0.0.1" not in text and str(stub.server_port) not in text
    assert json.loads((tmp_path / "run" / "request.json").read_text())["url"] == stub.url


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://127.0.0.1:1800/v1 and http://127.0.0.1:18001/v1", f"{URL}/v1 and {URL}/v1"),
        ("connect to 127.0.0.1:1800 failed, or 127.0.0.1. Then", f"connect to {HOST} failed, or {HOST}. Then"),
        ("http://127.0.0.1:99/x", f"http://{HOST}/x"),
        ("1127.0.0.1", "1127.0.0.1"),
    ],
)
def test_urls_and_hosts_are_hidden_with_their_ports(text, hidden):
    assert hide_hosts(text, ["http://127.0.0.1:1800", "http://127.0.0.1:18001"]) == hidden


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://gpu-1.invalid:80", "GPU-1.invalid:80"),
        ("http://gpu-1:80", "gpu-1.some.domain:80"),
        ("http://gpu-1:80", "gpu-1"),
        ("http://[::1]:80", "[::1]:80"),
    ],
)
def test_a_host_is_hidden_with_its_domain(monkeypatch, url, text):
    monkeypatch.setattr(external.socket, "getaddrinfo", lambda *_: [])
    assert hide_hosts(f"see {text} there", [url]) == f"see {HOST} there"
