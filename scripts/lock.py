"""Reduce a lock to our platforms, with the hashes of their wheels: lock.py NAME.txt PYLOCK "MACHINE..."

NAME.txt and PYLOCK are uv's universal resolution: the requirements with their markers, and the files.
"""

import sys
import tomllib
from functools import cache
from pathlib import Path

from check_machine import GLIBC, PYTHONS
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

NEWEST_GLIBC = 60  # pip takes the newest build that a machine can load, so the hashes go up to glibc 2.60


def main(path: str, pylock: str, machines: str) -> None:
    """Rewrite the lock at `path`; exit with a line for each package without a wheel for one of the platforms."""
    packages = tomllib.loads(Path(pylock).read_text())["packages"]
    wheels = {(canonicalize_name(p["name"]), p["version"]): p.get("wheels", []) for p in packages}
    platforms = [(minor, machine) for minor in PYTHONS for machine in machines.split()]
    systems = machines.replace(" ", " and ")
    lines = [
        f"# Made by scripts/lock.sh. Linux {systems}, Python 3.{PYTHONS[0]} to 3.{PYTHONS[-1]}.\n",
        "# Install with: pip install --no-deps --require-hashes -r FILE\n",
    ]
    missing = []
    for requirement in requirements(Path(path).read_text()):
        users = [platform for platform in platforms if holds(requirement, *platform)]
        if not users:
            continue
        version = next(iter(requirement.specifier)).version
        hashes: set[str] = set()
        for platform in users:
            usable = wheels_for(wheels[canonicalize_name(requirement.name), version], *platform)
            if not any(oldest <= GLIBC[platform[1]] for oldest in usable.values()):
                missing.append(f"{requirement.name} {version} has no wheel for Python 3.{platform[0]}, {platform[1]}")
            hashes |= usable.keys()
        marker = f" ; {requirement.marker}".replace('"', "'") if len(users) < len(platforms) else ""
        pin = f"{requirement.name}=={version}{marker}"
        lines.append(" \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in sorted(hashes))]) + "\n")
    if missing:
        sys.exit("\n".join(missing))
    Path(path).write_text("".join(lines))


def requirements(text: str) -> list[Requirement]:
    """Parse the requirements of a lock, without hashes and comments."""
    lines = (line.split(" \\")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "--hash"))]


def holds(requirement: Requirement, minor: int, machine: str) -> bool:
    """Whether the requirement's marker holds for Python 3.`minor` on a Linux `machine`."""
    environment = {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.0",
        "platform_machine": machine,
        "extra": "",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def wheels_for(files: list[dict], minor: int, machine: str) -> dict[str, int]:
    """Map the sha256 of each wheel for Python 3.`minor` on a Linux `machine` to the oldest glibc (2.x) for it."""
    accepted = tags(minor, machine)
    usable = {}
    for file in files:
        name = file["url"].rsplit("/", 1)[1].replace("%2B", "+")
        glibcs = [accepted[tag] for tag in parse_wheel_filename(name)[3] if tag in accepted]
        if glibcs:
            usable[file["hashes"]["sha256"]] = min(glibcs)
    return usable


@cache
def tags(minor: int, machine: str) -> dict[Tag, int]:
    """Map each wheel tag that such a Python accepts to the oldest glibc (2.x) that the tag runs on."""
    old = {f"manylinux{name}_{machine}": glibc for name, glibc in (("1", 5), ("2010", 12), ("2014", 17))}
    old[f"linux_{machine}"] = 0
    platforms = {f"manylinux_2_{glibc}_{machine}": glibc for glibc in range(5, NEWEST_GLIBC + 1)} | old
    accepted = [
        *cpython_tags((3, minor), platforms=list(platforms)),
        *compatible_tags((3, minor), f"cp3{minor}", list(platforms)),
    ]
    return {tag: platforms.get(tag.platform, 0) for tag in accepted}


if __name__ == "__main__":
    main(*sys.argv[1:])
