"""Small FlashInfer packages and patch series, made with the real git; and processes that kill themselves."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import flashinfer_patches

# The modules that write files: a kill in them can leave some behind.
WRITERS = tuple(
    str(Path(flashinfer_patches.__file__).with_name(f"{name}.py")) for name in ("engine", "swap", "files", "locking")
)
VERSION = "0.6.14"
DECODE, SINKS, HEADER = "flashinfer/decode.py", "flashinfer/sinks/api.py", "flashinfer/data/include/prefill.cuh"
BODY = "".join(f"line_{n} = {n}\n" for n in range(40))
CLEAN = {
    "flashinfer/__init__.py": b"",
    DECODE: BODY.encode(),
    HEADER: b"#pragma once\r\nint a;\r\n",
    "flashinfer/untouched.py": b"x = 1\n",
}
STEP = CLEAN | {DECODE: BODY.replace("line_8 = 8\n", "line_8 = 'sinks'\n").encode(), SINKS: b"def guard(): ...\n"}
APPLIED = STEP | {
    DECODE: STEP[DECODE].replace(b"line_30 = 30\n", b"line_30 = 'more'\n").replace(b"'sinks'", b"'all sinks'"),
    HEADER: b"#pragma once\r\nint a, sink;\r\n",
}
TORCH = b"from typing import Optional\n__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n"
# A later patch set for the same release: another body, another created file, the header unchanged.
NEWER = CLEAN | {DECODE: BODY.replace("line_8 = 8\n", "line_8 = 'better'\n").encode(), "flashinfer/lse.py": b"y = 2\n"}


def build_meta(version):
    return {"flashinfer/_build_meta.py": f'"""Build metadata."""\n__version__ = "{version}"\n'.encode()}


def write(folder, tree):
    for path, data in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def install(folder, tree=CLEAN, version=VERSION):
    """Install a release into `folder` as pip does: replace each of its files, leave others."""
    tree = tree | build_meta(version)
    for path in tree:
        (folder / path).unlink(missing_ok=True)
    write(folder, tree)
    return folder


def link(source, folder):
    """Install a release into `folder` as uv --link-mode symlink does: real folders, links to the files of `source`."""
    for path in [path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")]:
        new = folder / path.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.symlink_to(path)
    return folder


def wheel(folder, tree=CLEAN):
    """Write a wheel of the release into the new `folder`."""
    folder.mkdir()
    info, path = f"flashinfer_python-{VERSION}.dist-info", folder / f"flashinfer_python-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (tree | build_meta(VERSION)).items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: flashinfer-python\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def write_series(root, *trees, version=VERSION):
    """Write the series that leads from tree to tree, a patch for each step; replace an existing one."""
    folder = root / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [f"step-{number}.patch" for number in range(1, len(trees))]
    for name, before, after in zip(names, trees, trees[1:], strict=False):
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch) / "a", before)
            write(Path(scratch) / "b", after)
            command = ["git", "diff", "--no-index", "--no-prefix", "--no-renames", "a", "b"]
            process = subprocess.run(command, cwd=scratch, capture_output=True)
            assert process.returncode == 1, process.stderr
            (folder / name).write_bytes(process.stdout)
    (folder / "series").write_text("# in this order\n" + "".join(f"{name}\n" for name in names))
    first, last = trees[0], trees[-1]
    files = [
        {"path": path, "before": digest(first.get(path)), "after": digest(last[path])}
        for path in sorted(last)
        if first.get(path) != last[path]
    ]
    manifest = {"package": "flashinfer-python", "version": version, "files": files}
    (folder / "manifest").write_text(json.dumps(manifest))
    return root


def digest(data):
    return None if data is None else hashlib.sha256(data).hexdigest()


def tree(folder):
    """Map each path below `folder` to the file's bytes, None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def expected(files, version=VERSION):
    """Return the tree() of a folder that has exactly the package `files`."""
    files = files | build_meta(version)
    folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
    return dict.fromkeys(folders) | files


def package_tree(target):
    """Return the tree() of the package, without the engine's store beside it."""
    return {path: data for path, data in tree(target).items() if path.split("/")[0] == "flashinfer"}


def dies_at(line, action):
    """Run `action` in a forked process that kills itself with SIGKILL before the given line of WRITERS.

    Lines are counted as they are executed. Returns whether it was killed; an exception in it fails the test.
    """
    pid = os.fork()
    if pid == 0:
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if not frame.f_code.co_filename.startswith(WRITERS):
                return None
            if event == "line":
                count += 1
                if count >= line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        code = 1
        try:
            sys.settrace(trace)
            action()
            code = 0
        finally:
            sys.settrace(None)
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the action failed"
    return os.WIFSIGNALED(status)


def at_once(*actions):
    """Run each action in a forked process, all at once; return whether each exited with 0."""
    pids = []
    for action in actions:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                action()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitpid(pid, 0)[1] == 0 for pid in pids]
