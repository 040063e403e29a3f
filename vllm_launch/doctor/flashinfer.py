"""The doctor's checks of FlashInfer: version, patch state, and prebuilt kernels that hide a patch."""

from flashinfer_patches.state import Status
from vllm_launch.doctor.checks import SETUP, pinned
from vllm_launch.doctor.facts import Failure
from vllm_launch.doctor.finding import Finding, error, ok, warning

# The FlashInfer releases whose sources were read: fa2 and fa3 accept `sinks=` and ignore it.
DROPS_SINKS = ("0.6.14", "0.7.2.post1")
# What to do about a FlashInfer that is neither stock nor patched.
PATCH_REMEDIES = {
    "partial": "finish it: fp8-sinks patch apply, or take it out: fp8-sinks patch revert",
    "edited": "see which files: fp8-sinks patch status; to have the release again: pip install --force-reinstall"
    " --no-deps flashinfer-python, of the version that vLLM asks for",
}


def installation(
    packages: dict[str, str], pins: dict[str, str], backend: str | None, patch: Status | Failure | None
) -> Finding:
    """Check FlashInfer's version and patch state, and report whether vLLM's backend uses the patched path."""
    version = packages.get("flashinfer-python")
    if version is None:
        if backend == "FLASHINFER":
            return error("FlashInfer", "not installed; vLLM decodes with it here", SETUP)
        return ok("FlashInfer", "not installed; not needed here")
    if isinstance(patch, Failure):
        return error("FlashInfer", f"{version}: {patch.message}", patch.remedy)
    state = patch.state if patch else "clean"
    if state in PATCH_REMEDIES:
        value = {"version": version, "patch": state}
        return error("FlashInfer", f"{version}, patch state: {state}", PATCH_REMEDIES[state], value)
    drops_sinks = version in DROPS_SINKS and state not in ("applied", "superseded")
    if state == "applied":
        message = (
            f"{version}, patched ({patch.patch_set}): its fa2 decode and prefill apply sinks, with an FP8 KV cache"
            " too, for programs that call FlashInfer themselves"
        )
    elif state == "superseded":
        message = f"{version}, has the changes of our patch series already"
    elif drops_sinks:
        message = (
            f"{version}, not patched: its fa2 and fa3 decode takes sinks= and drops it silently,"
            " for programs that call FlashInfer themselves"
        )
    else:
        message = f"{version}, not patched"
    if backend and (state == "applied" or version in DROPS_SINKS):
        message += f"; vLLM's own choice here ({backend}) does not use that path"
    details = {"patch": state, "drops_sinks": drops_sinks}
    return pinned("FlashInfer", "flashinfer-python", version, message, pins, details)


def prebuilt_kernels(packages: dict[str, str], patch: Status | Failure | None) -> Finding:
    """Check for prebuilt FlashInfer kernels, which are loaded in place of patched sources: an error if patched."""
    version = packages.get("flashinfer-jit-cache")
    if version is None:
        return ok("prebuilt kernels", "none that would hide a patch")
    patched = isinstance(patch, Status) and patch.state in ("applied", "partial")
    return (error if patched else warning)(
        "prebuilt kernels",
        f"flashinfer-jit-cache {version}: FlashInfer loads its kernels before any patched source",
        "to use a patched FlashInfer: pip uninstall flashinfer-jit-cache",
        {"flashinfer-jit-cache": version},
    )
