"""Validated data: the base class of every model, and the numeric types that they share."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Forbid unknown keys and numbers that are not finite; immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(Strict):
    """Data of result files. RETIRED: fields of older files, which no code reads any more."""

    RETIRED: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_retired(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if key not in cls.RETIRED} if isinstance(data, dict) else data
