"""Certificates for tests."""

from datetime import datetime

from vllm_launch.certificate import CHECKS, Certificate, Check, Key, Status

KEY = Key(
    gpu="NVIDIA H200",
    capability="9.0",
    driver="580.159",
    torch="2.11.0",
    vllm="0.26.0",
    flashinfer="0.6.14 0123456789ab",
    fp8_sinks="0.1.0",
    sources="a" * 64,
)


def sample(key=KEY, created="2026-11-30T01:00:00Z", decoder="lowp", **verdicts):
    """A certificate whose checks passed, but for those in `verdicts`."""
    checks = [Check(name=name, verdict=verdicts.get(name, "passed"), detail="some cases") for name in CHECKS]
    return Certificate(
        key=key,
        created=datetime.fromisoformat(created),
        seconds=93.5,
        read_ceiling_bytes_per_s=4.46e12,
        checks=checks,
        timings=[],
        decoder=decoder,
    )


def certified(decoder) -> Status:
    """The status of a valid certificate of KEY that names `decoder`."""
    return Status(state="valid", reason=f"decoder {decoder}", path=None, certificate=sample(decoder=decoder))
