"""Objectives: each a configuration, its module, and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.objectives.align import Align
from trainer.objectives.avid import Avid
from trainer.objectives.barlow import Barlow
from trainer.objectives.caption import Caption
from trainer.objectives.cma import Cma
from trainer.objectives.codebook import Codebook
from trainer.objectives.generated import Generated
from trainer.objectives.infonce import InfoNce
from trainer.objectives.inter_margin import InterMargin
from trainer.objectives.itm import Itm
from trainer.objectives.kd_kl import KdKl
from trainer.objectives.mlm import Mlm
from trainer.objectives.moco import Moco
from trainer.objectives.mrm import Mrm
from trainer.objectives.ranking import Ranking
from trainer.objectives.regression import Regression
from trainer.objectives.siglip import SigLip
from trainer.objectives.simclr_smooth import SimClrSmooth
from trainer.objectives.triplet_max import TripletMax
from trainer.objectives.triplet_sum import TripletSum
from trainer.objectives.word_patch import WordPatch
from trainer.objectives.word_region import WordRegion

Objective = Annotated[
    KdKl
    | Ranking
    | InfoNce
    | Itm
    | Barlow
    | SigLip
    | SimClrSmooth
    | TripletMax
    | TripletSum
    | Avid
    | Cma
    | Mlm
    | Mrm
    | Regression
    | WordPatch
    | Align
    | Codebook
    | Moco
    | InterMargin
    | WordRegion
    | Generated
    | Caption,
    Field(discriminator="kind"),
]
