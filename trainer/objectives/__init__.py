"""Objectives: each a configuration, its module, and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.objectives.infonce import InfoNce
from trainer.objectives.itm import Itm
from trainer.objectives.kd_kl import KdKl
from trainer.objectives.ranking import Ranking

Objective = Annotated[KdKl | Ranking | InfoNce | Itm, Field(discriminator="kind")]
