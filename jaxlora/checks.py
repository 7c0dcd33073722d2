"""What can be checked of a config before there is data or a model."""

import json

from ml_collections import ConfigDict

from jaxlora.config import field_of, wrong_field
from jaxlora.errors import UserError, one_of
from jaxlora.train.logs import wandb_module

_LEAST = {"data.length": 2, "epochs": 1, "loss_chunk": 1, "paper_accumulate": 1, "keep.last": 1, "keep.best": 0}


def check_fields(config: ConfigDict) -> None:
    """Checks what needs no data.

    Raises:
      UserError: a field is not set, or out of range.
    """
    wrong = wrong_field(json.loads(config.to_json_best_effort()))
    if wrong:
        raise UserError(f"config.{wrong}; `jaxlora/config.py` has every field")
    for field in ("base", "data.dir", "data.name"):
        if not field_of(config, field):
            raise UserError(f"config.{field} is not set; give it with --config.{field}=")
    check_ranges(config)
    for part in config.data.mix:
        if not (isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[0], str)):
            raise UserError(
                "config.data.mix: not pairs of a corpus and its weight; give \"(('clinical_corpus/mimic3', 0.5),)\""
            )
    if config.wandb:
        wandb_module()
    one_of("config.select", config.select, ("best", "last"))


def check_ranges(config: ConfigDict) -> None:
    """Checks the numbers of a config that can be too small or too large.

    Raises:
      UserError: one is.
    """
    for field, least in _LEAST.items():
        if field_of(config, field) < least:
            raise UserError(f"config.{field} is {field_of(config, field)}; it must be {least} or more")
    if not 0 <= config.warmup <= 1:
        raise UserError(f"config.warmup is {config.warmup}; it is a share of the updates, from 0 to 1")
