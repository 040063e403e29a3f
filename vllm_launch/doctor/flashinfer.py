"""The doctor's checks of FlashInfer: version, patch state, and prebuilt kernels that would hide a patch."""

from flashinfer_patches.state import Status
from vllm_launch.doctor.checks import Finding, pinned
from vllm_launch.doctor.facts import Trouble

# The FlashInfer releases whose sources were read: fa2 and fa3 take `sinks=` and leave it out of the answer.
DROPS_SINKS = ("0.6.14", "0.7.2.post1")
# What to do about a FlashInfer that is neither stock nor patched.
PATCH_REMEDIES = {
    "partial": "finish it: fp8-sinks patch apply, or take it out: fp8-sinks patch revert",
    "edited": "see which files: fp8-sinks patch status; to have the release again: pip install --force-reinstall"
    " --no-deps flashinfer-python, of the version that vLLM asks for",
}


def flashinfer(
    packages: dict[str, str], pins: dict[str, str], backend: str | None, patch: Status | Trouble | None
) -> Finding:
    """FlashInfer's version and patch state, and who uses the path that the patch is about."""
    version = packages.get("flashinfer-python")
    if version is None:
        if backend == "FLASHINFER":
            return Finding(
                topic="FlashInfer",
                status="error",
                what="not installed; vLLM decodes with it here",
                remedy="run: make setup",
            )
        return Finding(topic="FlashInfer", status="ok", what="not installed; not needed here")
    if isinstance(patch, Trouble):
        return Finding(topic="FlashInfer", status="error", what=f"{version}: {patch.what}", remedy=patch.remedy)
    state = patch.state if patch else "clean"
    if state in PATCH_REMEDIES:
        remedy = PATCH_REMEDIES[state]
        return Finding(topic="FlashInfer", status="error", what=f"{version}, patch state: {state}", remedy=remedy)
    if state == "applied":
        what = f"{version}, patched ({patch.patch_set}): its fa2 decode and prefill apply sinks, with an FP8 KV cache"
        what += " too, for those who call FlashInfer themselves"
    elif state == "superseded":
        what = f"{version}, holds the changes of our patch series already"
    else:
        what = f"{version}, not patched"
        if version in DROPS_SINKS:
            what += ": its fa2 and fa3 decode takes sinks= and drops it silently,"
            what += " for those who call FlashInfer themselves"
    if backend and (state == "applied" or version in DROPS_SINKS):
        what += f"; vLLM's own choice here ({backend}) does not use that path"
    return pinned("FlashInfer", "flashinfer-python", version, what, pins)


def prebuilt_kernels(packages: dict[str, str], patch: Status | Trouble | None) -> Finding:
    """Whether prebuilt FlashInfer kernels would be loaded in place of patched sources: an error where there are any."""
    patched = isinstance(patch, Status) and patch.state in ("applied", "partial")
    version = packages.get("flashinfer-jit-cache")
    if version is None:
        return Finding(topic="prebuilt kernels", status="ok", what="none that would hide a patch")
    return Finding(
        topic="prebuilt kernels",
        status="error" if patched else "warning",
        what=f"flashinfer-jit-cache {version}: FlashInfer loads its kernels before any patched source",
        remedy="to use a patched FlashInfer: pip uninstall flashinfer-jit-cache",
        value={"flashinfer-jit-cache": version},
    )
