"""What a check of the doctor returns."""

from enum import StrEnum

from pydantic import JsonValue, model_validator

from flashinfer_patches.strict import Strict


class Status(StrEnum):
    """From harmless to fatal, in this order: a warning does not keep a server from running, an error does."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(Strict):
    """The result of one check. remedy: what to do now, set exactly if the status is not ok. value: the same as data."""

    topic: str
    status: Status
    message: str
    remedy: str | None = None
    value: JsonValue = None

    @model_validator(mode="after")
    def _remedy_unless_ok(self):
        if (self.remedy is None) != (self.status == Status.OK):
            raise ValueError(f"{self.topic}: status {self.status} with remedy {self.remedy!r}")
        return self


def ok(topic: str, message: str, value: JsonValue = None) -> Finding:
    return Finding(topic=topic, status=Status.OK, message=message, value=value)


def warning(topic: str, message: str, remedy: str, value: JsonValue = None) -> Finding:
    return Finding(topic=topic, status=Status.WARNING, message=message, remedy=remedy, value=value)


def error(topic: str, message: str, remedy: str, value: JsonValue = None) -> Finding:
    return Finding(topic=topic, status=Status.ERROR, message=message, remedy=remedy, value=value)


def worst(findings: list[Finding]) -> Status:
    """The most severe status of `findings`."""
    return max((finding.status for finding in findings), key=list(Status).index)
