"""What a dataset is made of: a task and its examples, split by patient, known by keyed identifiers only."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from etils import epath

from jaxlora import files
from jaxlora.errors import UserError

OUTCOMES = ("binary", "multiclass", "multilabel")  # kinds that predict something of a whole note
ANNOTATED = ("tokens", "span")  # kinds that predict parts of a note
KINDS = ("lm", *OUTCOMES)
SPLITS = ("train", "validation", "test")
MODES = ("correct", "paper")
KEY_FILE = "id.key"


@dataclass(frozen=True)
class Task:
    """What is to be learned: a kind of `KINDS` or `ANNOTATED`, and the label names in index order (none for "lm" and
    "span")."""

    name: str
    kind: str
    labels: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the columns of the head are: the labels, the BIO tags of each label, or the two ends of an answer."""
        if self.kind == "tokens":
            return ("O", *(f"{place}-{label}" for label in self.labels for place in "BI"))
        return ("start", "end") if self.kind == "span" else self.labels


@dataclass(frozen=True)
class Example:
    """One note: keyed `id` and `patient`, and a label: an index, several indices for "multilabel", None for "lm".

    Of "tokens" it is int64 `[entities, 3]`: first character, end, index. Of "span", a question and its context in one
    text, it is int64 `[1 + answers, 2]`: first character and end of the context, then of each true answer, if any.
    `groups` has the coarse category of the patient by attribute, such as the age band, where it is known.
    """

    id: str
    patient: str
    text: str
    label: None | int | tuple[int, ...] | np.ndarray
    split: str
    groups: Mapping[str, str] = field(default_factory=dict)


def named(name: str, mode: str) -> str:
    """Returns the name of a dataset in one of the `MODES`: in "paper" it ends in `_paper`."""
    return name if mode == "correct" else f"{name}_{mode}"


def unnamed(name: str) -> tuple[str, str]:
    """Returns what `named` was given."""
    plain = name.removesuffix("_paper")
    return plain, "correct" if plain == name else "paper"


def split_of(raw: str, validation: float, test: float, seed: int) -> str:
    """Returns the split of a patient, the same on every machine and in every dataset.

    Args:
      raw: the identifier of the patient; or of a note, where notes are split.
      validation, test: shares of the patients. seed: of the division.
    """
    digest = hashlib.sha256(f"{seed}:{raw}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"


def check_shares(split) -> None:
    """Raises UserError unless the shares of `config.split` are in [0, 1) and leave patients to train on."""
    if split.validation < 0 or split.test < 0 or split.validation + split.test >= 1:
        raise UserError("split: validation and test must be shares from 0 that sum to less than 1")


def load_key(folder: str | Path) -> bytes:
    """Returns the secret that identifiers are keyed with, made at the first call and kept in `folder/id.key`.

    Raises:
      UserError: the file is there but does not hold 32 bytes in hexadecimal.
    """
    path = epath.Path(folder) / KEY_FILE
    if not path.exists():
        files.write(path, secrets.token_hex(32) + "\n")
    text = path.read_bytes().decode(errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise UserError(f"{path}: not 64 hexadecimal digits; restore it, or delete it to give every note a new id")
    return bytes.fromhex(text)


def keyed(key: bytes, raw: str) -> str:
    """Returns 16 hexadecimal digits that stand for a raw identifier and cannot be turned back without the key."""
    return hmac.new(key, raw.encode(), hashlib.sha256).hexdigest()[:16]
