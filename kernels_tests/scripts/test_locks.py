"""Every file that pip installs is pinned by its hash, on every platform, and every action by its commit."""

import re

import pytest

from vllm_launch.provenance import REPO

LOCKS = sorted((REPO / "locks").glob("*.txt"))
X86, ARM = "manylinux_2_28_x86_64", "manylinux_2_28_aarch64"


@pytest.fixture
def lock(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import lock

    return lock


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_hashes(path):
    lines = path.read_text().replace("\\\n", " ").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    for pin in pins:
        assert re.fullmatch(r"[\w.-]+==\S+( ; .+?)?( +--hash=sha256:[0-9a-f]{64})+", pin), pin


@pytest.mark.parametrize("path", sorted((REPO / ".github/workflows").iterdir()), ids=lambda path: path.name)
def test_every_action_is_pinned_by_commit(path):
    uses = [line.strip() for line in path.read_text().splitlines() if "uses:" in line]
    assert uses
    for line in uses:
        assert re.fullmatch(r"(- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def pylock(*packages):
    """Write uv's list of files from (name, version, file names); the hash of a file is its name."""
    text = ""
    for name, version, files in packages:
        rows = ", ".join(f'{{url = "https://x/{file}", hashes = {{sha256 = "{file}"}}}}' for file in files)
        text += f'[[packages]]\nname = "{name}"\nversion = "{version}"\nwheels = [{rows}]\n'
    return text


def written(lock, tmp_path, requirements, files, machines="x86_64 aarch64"):
    (tmp_path / "x.txt").write_text(requirements)
    (tmp_path / "pylock.toml").write_text(files)
    lock.main(str(tmp_path / "x.txt"), str(tmp_path / "pylock.toml"), machines)
    return [line for line in (tmp_path / "x.txt").read_text().splitlines() if not line.startswith("#")]


def test_a_lock_has_only_wheels_of_our_platforms(lock, tmp_path):
    files = [
        f"a-1-cp3{minor}-cp3{minor}-{system}.whl" for minor in (10, 11, 12, 13) for system in (X86, ARM, "win_amd64")
    ]
    files += ["a-1-cp311-cp311-musllinux_1_2_x86_64.whl", "a-1-cp313-cp313t-manylinux_2_28_x86_64.whl"]
    files += ["a-1-cp311-cp311-manylinux_2_39_x86_64.whl"]  # installed by pip if glibc is new enough
    lines = written(
        lock, tmp_path, "a==1 ; sys_platform != 'win32'\nw==2 ; sys_platform == 'win32'\n", pylock(("a", "1", files))
    )
    hashes = [line.strip().removesuffix(" \\").removeprefix("--hash=sha256:") for line in lines[1:]]
    assert lines[0] == "a==1 \\"
    expected = [f"a-1-cp3{minor}-cp3{minor}-{system}.whl" for minor in (11, 12, 13) for system in (X86, ARM)]
    assert hashes == sorted([*expected, files[-1]])


def test_a_marker_that_differs_between_our_platforms_stays(lock, tmp_path):
    requirements = "a==1 ; python_full_version < '3.12'\na==2 ; python_full_version >= '3.12'\n"
    files = pylock(("a", "1", ["a-1-py3-none-any.whl"]), ("a", "2", ["a-2-cp312-abi3-manylinux2014_x86_64.whl"]))
    assert written(lock, tmp_path, requirements, files, "x86_64") == [
        "a==1 ; python_full_version < '3.12' \\",
        "    --hash=sha256:a-1-py3-none-any.whl",
        "a==2 ; python_full_version >= '3.12' \\",
        "    --hash=sha256:a-2-cp312-abi3-manylinux2014_x86_64.whl",
    ]


@pytest.mark.parametrize(
    "files", [[], ["a-1-cp311-cp311-manylinux_2_28_x86_64.whl"], ["a-1-py3-none-manylinux_2_39_x86_64.whl"]]
)
def test_a_lock_without_a_wheel_for_a_platform_is_not_written(lock, tmp_path, files):
    """No wheel, none for a Python version, or only for a newer glibc than set-up requires."""
    with pytest.raises(SystemExit, match=r"a 1 has no wheel for Python 3\.12, x86_64"):
        written(lock, tmp_path, "a==1\n", pylock(("a", "1", files)), "x86_64")
    assert (tmp_path / "x.txt").read_text() == "a==1\n"


def test_a_written_lock_can_be_read(lock, tmp_path):
    lines = written(lock, tmp_path, "a==1\n", pylock(("a", "1", ["a-1-py3-none-any.whl"])))
    assert [str(requirement) for requirement in lock.requirements("\n".join(lines))] == ["a==1"]
