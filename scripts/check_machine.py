"""Check this machine before anything is installed: check_machine.py cpu|gpu VENV [MODEL]

Prints each problem and its remedy, a line each; exits with 4 if there is a problem. scripts/setup.sh runs it with the
system's Python, so it imports the standard library alone.
"""

import sys

try:
    import importlib
    import os
    import platform
    import re
    import shutil
    import subprocess
    import sysconfig
    import tempfile
    from collections.abc import Iterator
    from pathlib import Path
except ImportError as error:  # Debian's python3-minimal has a small part of the standard library
    print(f"setup: {sys.executable} lacks {error.name} of the standard library", file=sys.stderr)
    print("setup: remedy: on Debian and Ubuntu: apt-get install python3 python3-venv", file=sys.stderr)
    sys.exit(4)

ENVIRONMENT = 4  # the exit code, as in flashinfer_patches/errors.py
PYTHONS = (11, 12, 13)
# The oldest glibc (2.x) that every locked package has a wheel for; scripts/lock.py checks the locks against it.
GLIBC = {"x86_64": 31, "aarch64": 34}
GB = 10**9
# Disk space of an environment, disk space for downloads, memory of a server with the small model. For a GPU they are
# estimated from the size of its wheels, 4.3 GB.
ENVIRONMENT_BYTES = {"cpu": 22 * GB // 10, "gpu": 12 * GB}
DOWNLOAD_BYTES = {"cpu": 5 * GB // 10, "gpu": 5 * GB}
SERVER_BYTES = {"cpu": 28 * GB // 10, "gpu": 0}
# Standard library modules that distributions package separately, or that a Python built from source may lack.
MODULES = ("venv", "ensurepip", "ssl", "zlib", "bz2", "lzma", "ctypes", "sqlite3")
# Shared libraries that the wheels load but do not contain, and their packages in Debian and Ubuntu.
LIBRARIES = {"libstdc++.so.6": "libstdc++6", "libgcc_s.so.1": "libgcc-s1", "libz.so.1": "zlib1g"}
CPU_LIBRARIES = {"libnuma.so.1": "libnuma1"}
# Processor flags, as in /proc/cpuinfo, that torch, numpy and vLLM's baseline CPU kernels are compiled for.
FEATURES = {"cpu": {"avx2", "f16c"}, "gpu": {"sse4_2", "popcnt", "ssse3"}}

Problem = tuple[str, str]  # message, remedy


def problems(device: str, venv: Path, model: str) -> Iterator[Problem]:
    """Yield every problem of a set-up for `device` ("cpu" or "gpu") into `venv`.

    model: a folder or owner/name to bench afterwards; empty for a set-up alone or the embedded model.
    """
    yield from interpreter_problems()
    yield from system_problems(device)
    yield from library_problems(device)
    yield from folder_problems(device, venv)
    yield from memory_problems(device)
    if model:
        yield from model_problems(device, venv, model)


def interpreter_problems() -> Iterator[Problem]:
    """Yield a problem if the wheels do not support this Python, or if it lacks standard library modules."""
    another = "name another Python: make setup PYTHON=python3.12"
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED") or sys.maxsize < 2**32:
        yield f"{sys.executable} is not an ordinary 64-bit CPython, which the wheels are for", another
    missing = [name for name in MODULES if not importable(name)]
    if missing:
        packages = f"python3.{sys.version_info.minor} python3.{sys.version_info.minor}-venv"
        remedy = f"on Debian and Ubuntu: apt-get install {packages}; or {another}"
        yield f"{sys.executable} lacks {', '.join(missing)} of the standard library", remedy


def importable(module: str) -> bool:
    """Whether a module and the libraries that it loads can be imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def system_problems(device: str) -> Iterator[Problem]:
    """Yield a problem for each of processor, C library and lscpu that the wheels do not support."""
    machines = ("x86_64",) if device == "cpu" else ("x86_64", "aarch64")
    if platform.machine() not in machines:
        yield f"set-up for a {device} needs {' or '.join(machines)}, got {platform.machine()}", "use such a machine"
        return
    oldest = GLIBC[platform.machine()]
    if glibc() < (2, oldest):
        yield (
            f"the wheels need glibc 2.{oldest} or newer, got {libc() or 'another C library'}",
            "use a newer system",
        )
    lacking = FEATURES[device] - cpu_features() if platform.machine() == "x86_64" else set()
    if lacking:
        yield f"this processor lacks {', '.join(sorted(lacking))}, which the wheels need", "use a newer machine"
    if device == "cpu" and not runs("lscpu", "--json", "--extended=CPU,CORE,NODE", "--online"):
        remedy = "on Debian and Ubuntu: apt-get install util-linux; in a container or chroot: mount /proc and /sys"
        yield "lscpu, which vLLM runs to list the processor's cores, is missing or fails", remedy


def runs(*command: str) -> bool:
    """Whether a command exits with 0."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def libc() -> str | None:
    """Return "glibc 2.36"; None for a C library that does not report its version."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None


def glibc() -> tuple[int, int]:
    """Return (2, 36) for glibc 2.36, (0, 0) for another C library."""
    name, _, version = (libc() or "").partition(" ")
    major, minor = version.split(".")[:2] if name == "glibc" else ("0", "0")
    return int(major), int(minor)


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return the processor's flags."""
    flags = (line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return set(next(flags, "").split())


def library_problems(device: str) -> Iterator[Problem]:
    """Yield a problem if system libraries cannot be loaded."""
    if not importable("ctypes"):
        return  # reported by interpreter_problems
    packages = LIBRARIES | (CPU_LIBRARIES if device == "cpu" else {})
    missing = [name for name in packages if not loads(name)]
    if missing:
        install = "apt-get install " + " ".join(packages[name] for name in missing)
        yield f"{', '.join(missing)} cannot be loaded", f"on Debian and Ubuntu: {install}"


def loads(library: str) -> bool:
    """Whether the dynamic loader can load a shared library."""
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def folder_problems(device: str, venv: Path) -> Iterator[Problem]:
    """Yield a problem for folders that are not writable, forbid programs, are full, or whose name breaks vLLM."""
    parent = next(folder for folder in (venv, *venv.parents) if os.path.isdir(folder))
    elsewhere = "name another folder: make setup VENV=DIR"
    if os.pathsep in str(venv):
        yield f"{venv}: no environment can have '{os.pathsep}' in its path", elsewhere
    if device == "cpu" and any(map(str.isspace, str(venv))):
        # vLLM preloads the environment's OpenMP and allocator through LD_PRELOAD, which splits at spaces.
        yield (
            f"{venv}: vLLM's CPU build cannot run well from a path with a space in it",
            f"{elsewhere}, or move the checkout",
        )
    for folder, remedy in ((parent, elsewhere), (Path.cwd(), "make a clone that you can write")):
        if not os.access(folder, os.W_OK | os.X_OK):
            yield f"{folder} cannot be written", remedy
    if os.statvfs(parent).f_flag & os.ST_NOEXEC:
        yield f"{parent} is mounted noexec: no program in it can be run", elsewhere
    try:
        scratch = Path(tempfile.gettempdir())
    except FileNotFoundError:
        yield "no folder for temporary files can be written", "name one: export TMPDIR=DIR"
        scratch = parent
    if parent.stat().st_dev == scratch.stat().st_dev:
        needed = {parent: ENVIRONMENT_BYTES[device] + DOWNLOAD_BYTES[device]}
    else:
        needed = {parent: ENVIRONMENT_BYTES[device], scratch: DOWNLOAD_BYTES[device]}
    for folder, size in needed.items():
        free = shutil.disk_usage(folder).free
        if free < size:
            yield (
                f"{folder} has {free / GB:.1f} GB free, set-up needs {size / GB:.1f}",
                "free some space, or name other folders: make setup VENV=DIR TMPDIR=DIR",
            )


def memory_problems(device: str) -> Iterator[Problem]:
    """Yield a problem if a server of the small model does not fit into memory."""
    available = available_bytes()
    if available < SERVER_BYTES[device]:
        yield (
            f"{available / GB:.1f} GB of memory are available, a server needs {SERVER_BYTES[device] / GB:.1f}",
            "end other programs, or use a larger machine",
        )


def available_bytes(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the available memory, limited to that of the container."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return available if allowed == "max" else min(available, int(allowed))


def model_problems(device: str, venv: Path, model: str) -> Iterator[Problem]:
    """Yield a problem if the NVIDIA driver or the model is missing."""
    if device == "gpu" and not runs("nvidia-smi", "-L"):
        yield (
            "nvidia-smi, which comes with the NVIDIA driver, is missing or fails",
            "install or repair the driver, or bench on the CPU: make bench DEVICE=cpu",
        )
    if os.path.isdir(os.path.expanduser(model)):
        return
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        yield f"MODEL={model}: no such folder", "name an existing folder, or owner/name: make bench MODEL=DIR"
    elif not any(hub_cache().glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json")):
        yield (
            f"{model} is not in the local Hugging Face cache, {hub_cache()}",
            f"name a folder: make bench MODEL=DIR; or download it: make setup, then {venv}/bin/hf download {model}",
        )


def hub_cache() -> Path:
    """Return the folder of huggingface_hub's downloads."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(os.path.expandvars(named or os.path.join(home, "hub"))))


def main(device: str, venv: str, model: str = "") -> int:
    """Print every problem and return the exit code."""
    code = 0
    for message, remedy in problems(device, Path(venv), model):
        print(f"setup: {message}\nsetup: remedy: {remedy}", file=sys.stderr)
        code = ENVIRONMENT
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
