"""The environment and the address of a server: inherited variables, dropped variables, and requests to it."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from kernels_tests.processes import completed
from kernels_tests.vllm_launch import machines
from vllm_launch import plan, preflight, profile, server
from vllm_launch.plan import FIXED_ENVIRONMENT


@pytest.fixture
def make_plan(monkeypatch, tmp_path, model_folder):
    """A function that plans a server of profile baseline on a CPU."""
    folder = model_folder()
    monkeypatch.setattr(plan, "detect", lambda device: machines.HOST)
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("cpu", "0.32.0"))

    def make(**options):
        options = {"port": 8000, "cache_root": tmp_path / "cache"} | options
        return plan.make(profile.load("baseline"), model_path=str(folder), **options)

    return make


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_url_of_a_host(make_plan, host, url):
    assert make_plan(host=host).url == url


def test_a_server_on_ipv6_loopback_answers(make_plan):
    """Health and nonce over a real socket, with a proxy set."""
    planned = make_plan(host="::1")

    class Ours(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'{{"data": [{{"id": "{planned.nonce}"}}]}}'.encode())

        def log_message(self, *_):
            pass

    class Ipv6Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    if preflight.cannot_listen("::1", 0):
        pytest.skip("this machine has no IPv6")
    with Ipv6Server(("::1", 0), Ours) as ours:
        threading.Thread(target=ours.serve_forever, daemon=True).start()
        listening = planned.model_copy(update={"port": ours.server_port})
        with server.requests.Session() as session:
            session.trust_env = False
            assert server._answers(listening, session)
        ours.shutdown()


BLINDING = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_LOGGING_CONFIG_PATH": "/nowhere.json",
    "VLLM_LOGGING_PREFIX": "x" * 8,
    "VLLM_LOGGING_STREAM": "/dev/null",
    "VLLM_LOGGING_COLOR": "1",
    "FORCE_COLOR": "1",
    "VLLM_PLUGINS": "another",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1",
    "VLLM_USE_RUST_FRONTEND": "1",
}
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DATABASE_PASSWORD")
HARMLESS = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "KEYBOARD": "de",
    "OMP_NUM_THREADS": "2",
}


def test_variables_that_defeat_the_checks_are_not_inherited(make_plan, monkeypatch):
    for name, value in {**BLINDING, **dict.fromkeys(SECRETS, "a-secret"), **HARMLESS}.items():
        monkeypatch.setenv(name, value)
    inherited = plan.child_environment(make_plan())
    assert not {*BLINDING, *SECRETS} & set(inherited) and "a-secret" not in inherited.values()
    assert HARMLESS.items() <= inherited.items()


def test_the_key_is_inherited_only_by_a_server_that_is_open_to_others(make_plan, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    assert "VLLM_API_KEY" not in plan.child_environment(make_plan(host="::1"))
    opened = make_plan(host="0.0.0.0")
    assert server.authorization(opened) == {"Authorization": "Bearer a-key"}
    assert plan.child_environment(opened)["VLLM_API_KEY"] == "a-key"


def test_the_shell_command_drops_the_same_variables(make_plan, monkeypatch):
    for name, value in BLINDING.items():
        monkeypatch.setenv(name, value)
    line = plan.as_shell(make_plan()).split(sys.executable)[0] + f"{sys.executable} -c 'import os; print(*os.environ)'"
    names = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout.split()
    assert not set(BLINDING) & set(names) and set(FIXED_ENVIRONMENT) <= set(names)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_shell_command_gives_the_servers_environment(make_plan, monkeypatch, host):
    for name, value in {**BLINDING, **dict.fromkeys([*SECRETS, "VLLM_API_KEY"], "a-secret"), **HARMLESS}.items():
        monkeypatch.setenv(name, value)
    planned = make_plan(host=host)
    line = plan.as_shell(planned)
    assert "a-secret" not in line
    shown = f"{line.split(sys.executable)[0]}{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    # Passed explicitly: readline adds variables to the environment that a child inherits otherwise.
    printed = json.loads(completed(["sh", "-c", shown], 20, env=dict(os.environ)).stdout)
    changed = {name for name, _ in printed.items() ^ plan.child_environment(planned).items()}
    assert changed <= {"PWD", "OLDPWD", "SHLVL", "_"}, changed  # what shells set
    assert ("VLLM_API_KEY" in printed) == (host == "0.0.0.0")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://localhost:9/", "http://[::1]:9/"])
@pytest.mark.parametrize("client", ["urllib", "requests"])
def test_requests_to_loopback_bypass_the_users_proxy(make_plan, monkeypatch, url, client):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    asks = {
        "urllib": "from urllib.parse import urlsplit; from urllib.request import proxy_bypass;"
        "print(bool(proxy_bypass(urlsplit(sys.argv[1]).netloc)))",
        "requests": "from requests.utils import get_environ_proxies; print(get_environ_proxies(sys.argv[1]) == {})",
    }
    command = [sys.executable, "-c", f"import sys; {asks[client]}", url]
    assert completed(command, 20, env=plan.child_environment(make_plan())).stdout == "True\n"


def test_no_module_is_imported_from_the_run_folder(tmp_path):
    """A run folder may be downloaded from elsewhere."""
    (tmp_path / "psutil.py").write_text("raise SystemExit(99)")
    command = [sys.executable, "-m", "vllm_launch.supervisor", "log", "1"]
    for environment, loads in ((os.environ, True), (os.environ | FIXED_ENVIRONMENT, False)):
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert (process.returncode == 99) is loads
