"""Validated data: the base class of every model, and the numeric types that they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Forbid unknown keys and numbers that are not finite; immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
