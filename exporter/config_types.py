"""Types that configuration sections share: durations, ratios, sizes, names."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from vllm_opsctl.exporter.units import parse_duration, parse_ratio, parse_size

Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=366 * 86400)]
Ratio = Annotated[float, BeforeValidator(parse_ratio)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


def _slug(text: str) -> str:
    if not text:
        raise ValueError("empty; give it a name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*", text):
        raise ValueError(
            f"{text!r} has characters that labels should not have; use a-z, 0-9, - _ . :"
        )
    return text


Slug = Annotated[str, AfterValidator(_slug)]


class Strict(BaseModel):
    """A section: unknown keys are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
