"""The certificate of a GPU: its key, its states, and what it never overwrites."""

import json
from datetime import UTC, datetime

import pytest

from flashinfer_patches import engine, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.state import Status as PatchStatus
from kernels_tests.vllm_launch.certificates import KEY, sample
from kernels_tests.vllm_launch.machines import H200, RTX, about, on_gpu
from vllm_launch import certificate, machine, software
from vllm_launch.certificate import CHECKS, Key, decoder, load, path_of, read, save


@pytest.fixture
def current(monkeypatch, tmp_path):
    """A machine whose key is KEY, with an empty state folder; returns a function that changes parts of the key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def change(**parts):
        monkeypatch.setattr(certificate, "current_key", lambda: KEY.model_copy(update=parts))

    change()
    return change


def test_without_a_gpu_there_is_none():
    assert (read().state, read().path, decoder()) == ("none", None, None)


def test_none(current):
    status = read()
    assert (status.state, status.certificate, decoder()) == ("none", None, None)
    assert not status.path.parent.exists(), "reading writes nothing"


@pytest.mark.parametrize("winner", ["lowp", "flashinfer", "stock"])
def test_valid(current, winner):
    written = sample(decoder=winner)
    assert save(written) == path_of(KEY) == read().path
    assert (read().state, read().certificate, decoder()) == ("valid", written, winner)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("verdict", "state"), [("failed", "failed"), ("not run", "incomplete")])
def test_a_check_that_did_not_pass_decides(current, name, verdict, state):
    save(sample(**{name: verdict}))
    assert (read().state, decoder()) == (state, None)
    assert read().reason.startswith(f"{name}: ")


def test_failed_counts_more_than_not_run(current):
    save(sample(decode="failed", gate="not run"))
    assert read().state == "failed"


@pytest.mark.parametrize("part", [name for name in Key.model_fields if name != "gpu"])
def test_stale_names_the_part_that_differs(current, part):
    save(sample())
    current(**{part: "b" * 64})
    status = read()
    assert (status.state, decoder()) == ("stale", None)
    assert status.reason.startswith(f"{part} was ") and ";" not in status.reason


def test_a_package_that_is_gone_makes_it_stale(current):
    save(sample())
    current(flashinfer=None, vllm="0.33.0")
    assert read().reason == "vllm was 0.26.0, is 0.33.0; flashinfer was 0.6.14 0123456789ab, is not installed"


def test_a_certificate_of_another_gpu_is_none(current):
    save(sample())
    current(gpu="NVIDIA GB10")
    assert read().state == "none"


def test_stale_against_the_newest(current):
    save(sample(KEY.model_copy(update={"driver": "1"}), created="2026-11-01T00:00:00Z"))
    save(sample(KEY.model_copy(update={"driver": "2"}), created="2026-11-02T00:00:00Z"))
    assert read().reason == "driver was 2, is 580.159"


def test_each_environment_has_its_certificate(current):
    save(sample())
    save(sample(KEY.model_copy(update={"vllm": "0.33.0"}), decoder="flashinfer"))
    assert decoder() == "lowp"
    current(vllm="0.33.0")
    assert decoder() == "flashinfer"


def test_a_copy_from_another_machine_is_stale(current):
    copied = save(sample(KEY.model_copy(update={"driver": "1"})))
    copied.rename(path_of(KEY))
    assert (read().state, decoder()) == ("stale", None)


def test_every_edited_byte_shows(current):
    path = save(sample())
    content = path.read_bytes()
    for index in range(0, len(content), 7):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        assert (read().state, decoder()) == ("edited", None), index
    path.write_bytes(content + b"\n")
    assert read().state == "edited"
    path.write_bytes(content)
    assert read().state == "valid"


def test_an_edit_with_valid_content_shows(current):
    path = save(sample(decoder="stock"))
    content = json.loads(path.read_text())
    content["certificate"]["decoder"] = "lowp"
    path.write_text(json.dumps(content, indent=1) + "\n")
    assert read().state == "edited"


@pytest.mark.parametrize("content", [b"", b"notes of a user", b"{}"])
def test_a_foreign_file_is_not_overwritten(current, content):
    path_of(KEY).parent.mkdir(parents=True)
    path_of(KEY).write_bytes(content)
    with pytest.raises(Problem) as refused:
        save(sample())
    assert refused.value.kind == "file" and path_of(KEY).read_bytes() == content
    assert read().state == "edited"


def test_a_link_is_not_followed(current, tmp_path):
    target = save(sample()).rename(tmp_path / "elsewhere.json")
    path_of(KEY).symlink_to(target)
    assert (read().state, decoder()) == ("edited", None)
    with pytest.raises(Problem):
        save(sample())
    assert load(target) == sample()


def test_our_own_is_replaced(current):
    save(sample(gate="failed"))
    save(sample())
    assert read().state == "valid" and [path.name for path in path_of(KEY).parent.iterdir()] == [path_of(KEY).name]


def test_a_folder_that_cannot_be_written(current, tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(Problem) as refused:
        save(sample())
    assert refused.value.kind == "disk"


@pytest.mark.parametrize("value", ["", "relative/state"])
def test_without_a_state_home_the_folder_is_in_the_users_home(monkeypatch, tmp_path, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", value)
    assert certificate.folder() == tmp_path / ".local" / "state" / "fp8-sinks"


# ---- the key


def test_the_key_of_this_environment(monkeypatch, tmp_path):
    versions = {"torch": "2.11.0", "vllm": "0.26.0", "fp8-sinks": "0.1.0"}
    patched = PatchStatus(
        target=tmp_path, version="0.6.14", state="clean", files={}, patch_set=None, fingerprint="0123456789ab"
    )
    monkeypatch.setattr(machine, "detect", lambda device: {"gpu": H200}[device])
    monkeypatch.setattr(machine, "capability_and_cuda", lambda: ("9.0", (13, 0)))
    monkeypatch.setattr(software, "version", versions.get)
    monkeypatch.setattr(package, "installed", lambda: tmp_path)
    monkeypatch.setattr(engine, "status", lambda: patched)
    key = certificate.current_key()
    assert key.model_copy(update={"sources": KEY.sources}) == KEY
    monkeypatch.setattr(package, "installed", lambda: None)
    assert certificate.current_key().flashinfer is None


def test_the_sources_are_those_of_kernels_and_backend():
    names = {f"{path.parent.name}/{path.name}" for path in certificate.source_files()}
    kernels = {f"{room}/kernel.cu" for room in ("sink_decode", "cache_write", "cache_read")}
    assert kernels | {"jit/compiler.py", "paged/call.py", "formats/table.py", "attention/__init__.py"} <= names


def test_the_digest_of_sources_sees_content_and_names(tmp_path):
    first, second = tmp_path / "a.cu", tmp_path / "b.cu"
    first.write_text("x")
    second.write_text("y")
    digest = certificate.sources_digest([first, second])
    assert digest == certificate.sources_digest([first, second])
    second.write_text("z")
    changed = certificate.sources_digest([first, second])
    second.rename(tmp_path / "c.cu")
    assert len({digest, changed, certificate.sources_digest([first, tmp_path / "c.cu"])}) == 3


# ---- the doctor


@pytest.mark.parametrize(
    ("gpu", "state", "expected"),
    [
        (RTX, "valid", "ok"),
        (RTX, "none", "warning"),
        (RTX, "stale", "warning"),
        (RTX, "edited", "warning"),
        (RTX, "failed", "warning"),
        (RTX, "incomplete", "warning"),
        (H200, "none", "ok"),
        (H200, "failed", "warning"),
    ],
)
def test_the_doctor_shows_the_state_and_the_command(gpu, state, expected):
    written = sample().model_copy(update={"created": datetime(2026, 11, 30, tzinfo=UTC)})
    status = certificate.Status(state=state, reason="some reason", path=None, certificate=written)
    (finding,) = about(on_gpu(gpu, "0.33", "12.0", certificate=status), "certificate")
    assert (finding.status, finding.value["state"]) == (expected, state)
    assert "some reason" in finding.message
    assert finding.remedy is None or finding.remedy.endswith("run: fp8-sinks certify")


def test_the_doctor_says_nothing_of_it_without_a_gpu():
    assert about(on_gpu(), "certificate") == []
