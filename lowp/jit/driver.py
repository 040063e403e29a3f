"""Calls into cuda.bindings."""

import functools

REMEDY = "install NVRTC and its bindings: pip install 'cuda-bindings>=13' 'nvidia-cuda-nvrtc>=13'"


@functools.cache
def bindings(name: str):
    """Import cuda.bindings.<name>, "nvrtc" (with its library) or "driver". Raises RuntimeError where it is missing."""
    try:
        if name == "nvrtc":
            from cuda.bindings import nvrtc

            nvrtc.nvrtcVersion()
            return nvrtc
        from cuda.bindings import driver

        return driver
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"the kernel cannot be built, {name} is missing ({error}); {REMEDY}") from error


def checked(library, result):
    """Return the value of a call of cuda.bindings, or raise RuntimeError with the name of its error."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"{library.__name__.rsplit('.', 1)[-1]} answered {status.name}")
    return values[0] if values else None
