"""The one file between a model and its evaluation: what was predicted for each note, and the truth."""

import dataclasses
import io
import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxlora import files
from jaxlora.errors import UserError

# What numpy raises of a file that is no longer what was written.
DAMAGE = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def _none() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for the notes of one split; what a kind of task does not have is empty.

    Attributes:
      kind: "lm", "binary", "multiclass", "multilabel", "tokens" or "span".
      names: names of the head's outputs, in index order: of the labels, or of the BIO tags.
      ids, patients: keyed ids, `[notes]`.
      labels: int `[notes]`, or 0/1 `[notes, labels]` for several; empty for "lm" and for notes without labels. Of
        "tokens" the true tag of each token, `[tokens]`; of "span" 0/1, whether there is an answer.
      logits: float32 `[notes, labels]`; empty for "lm". Of "tokens" the log-probability of each chosen tag, `[tokens]`;
        of "span" by how much the best answer is above none, `[notes]`.
      nll: `[notes]`, the negative log-likelihood of each note's tokens; base_nll: without any adapter.
      tokens: `[notes]`, how many tokens were predicted.
      chosen: of "tokens" the tag chosen for each token, `[tokens]`.
      found, truth: int `[spans, 4]`, the predicted and the annotated entities or answers: number of the note, first
        character, end, number of the type. Offsets only: no text is kept.
      scores: of "span" float32 `[notes, 2]`, exact match and token F1.
      train_positives: of "multilabel" int `[labels]`, in how many training notes each label is; empty if not known.
      groups: by attribute, such as "sex": the names of its categories, and int `[notes]`, the number of each note's
        category, -1 where it is not known; {} where the dataset has none.
    """

    kind: str
    names: tuple[str, ...]
    ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray = dataclasses.field(default_factory=_none)
    logits: np.ndarray = dataclasses.field(default_factory=_none)
    nll: np.ndarray = dataclasses.field(default_factory=_none)
    base_nll: np.ndarray = dataclasses.field(default_factory=_none)
    tokens: np.ndarray = dataclasses.field(default_factory=_none)
    chosen: np.ndarray = dataclasses.field(default_factory=_none)
    found: np.ndarray = dataclasses.field(default_factory=_none)
    truth: np.ndarray = dataclasses.field(default_factory=_none)
    scores: np.ndarray = dataclasses.field(default_factory=_none)
    train_positives: np.ndarray = dataclasses.field(default_factory=_none)
    groups: dict[str, tuple[tuple[str, ...], np.ndarray]] = dataclasses.field(default_factory=dict)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file (`.npz`), atomically and for its owner's eyes only."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        categories = {attribute: names for attribute, (names, _) in self.groups.items()}
        arrays["groups"] = np.asarray([codes for _, codes in self.groups.values()], np.int16)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, about=np.asarray(json.dumps([self.kind, self.names, categories])), **arrays)
        files.write(path, buffer.getvalue())


def load(path: str | Path) -> Predictions:
    """Reads a predictions file; one from before there were groups or counts of the training notes has none.

    Raises:
      UserError: no such file, or a damaged one.
    """
    _check_there(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            kind, names, *categories = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in file.files if name not in ("about", "groups")}
            groups = {}
            if categories:
                pairs = zip(categories[0].items(), file["groups"], strict=True)
                groups = {attribute: (tuple(of), codes) for (attribute, of), codes in pairs}
    except DAMAGE:
        raise UserError(_damaged(path)) from None
    return Predictions(kind, tuple(names), **arrays, groups=groups)


def checksums(path: str | Path) -> list[tuple[str, int]]:
    """Returns the checksum of every array of a predictions file, without reading the arrays: what the file holds.

    Raises:
      UserError: no such file, or a damaged one.
    """
    _check_there(path)
    try:
        with zipfile.ZipFile(path) as file:
            return [(member.filename, member.CRC) for member in file.infolist()]
    except DAMAGE:
        raise UserError(_damaged(path)) from None


def _check_there(path: str | Path) -> None:
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; run `jaxlora evaluate` on that workdir first")


def _damaged(path: str | Path) -> str:
    return f"{path} is damaged; run `jaxlora evaluate` on that workdir again"
