"""The bootstrap replicates of finished runs, of which the intervals, averages and comparisons of a table are made.

They lie beside the predictions that they are of, so that a table of many runs draws no patient twice, and are worked
out again where the predictions, the metric or the number of draws is another.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlora import files
from jaxlora.errors import UserError
from jaxlora.eval import predictions, uncertainty
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.uncertainty import Sampled

FILE = "replicates.npz"


class Replicates(NamedTuple):
    """Of one run: its metric, as a share or a perplexity, the kind of its predictions, and a digest of the notes,
    their patients and the truth, which two runs must have in common to be compared."""

    sampled: Sampled
    kind: str
    notes: str


def metric_of(kind: str, mode: str) -> str:
    """Returns the metric that the paper has: of several classes the one-vs-one AUROC; of several labels, in `mode`
    "paper", by a softmax over them; of a language model its perplexity."""
    of_labels = "auroc_paper" if mode == "paper" else "auroc"
    return {"lm": "perplexity", "multiclass": "auroc_ovo", "multilabel": of_labels}.get(kind, "auroc")


def of_run(folder: str | Path, mode: str, resamples: int) -> Replicates:
    """Returns the replicates of an evaluated run from its folder, made and kept there where they are missing.

    Args:
      mode: of its config. resamples: how often the patients are drawn.

    Raises:
      UserError: its predictions or replicates are missing or damaged.
    """
    source, path = Path(folder) / "predictions-test.npz", Path(folder) / FILE
    made_of = json.dumps([mode, resamples, predictions.checksums(source)])
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as file:
                name, kind, notes, of = json.loads(str(file["about"]))
                if of == made_of:
                    return Replicates(Sampled(name, float(file["value"]), file["draws"]), kind, notes)
        except predictions.DAMAGE:
            raise UserError(f"{path} is damaged; delete it, and the same command makes it again") from None
    p = predictions.load(source)
    found = Replicates(uncertainty.sampled(p, metric_of(p.kind, mode), resamples), p.kind, _digest(p))
    about, buffer = json.dumps([found.sampled.name, found.kind, found.notes, made_of]), io.BytesIO()
    np.savez(buffer, about=np.asarray(about), value=np.asarray(found.sampled.value), draws=found.sampled.draws)
    files.write(path, buffer.getvalue())
    return found


def of_same_notes(folders: Sequence[str | Path], mode: str, resamples: int) -> list[Replicates]:
    """Returns the replicates of runs that are averaged or compared, as `of_run` does.

    Raises:
      UserError: what `of_run` raises, or two were evaluated on other notes.
    """
    found = [of_run(folder, mode, resamples) for folder in folders]
    for folder, of in zip(folders, found, strict=True):
        if of.notes != found[0].notes:
            raise UserError(
                f"{folders[0]} and {folder} were evaluated on other notes and cannot be compared; delete the one that "
                "is out of date and give the command again"
            )
    return found


def _digest(p: Predictions) -> str:
    """Returns a digest of the notes, whose they are and what is true of them, in whatever order."""
    order = np.argsort(p.ids, kind="stable")
    truth = p.tokens if p.kind == "lm" else p.labels
    digest = hashlib.blake2b(json.dumps([p.kind, p.names, truth.shape]).encode(), digest_size=16)
    for array in (p.ids, p.patients, truth):
        digest.update(np.ascontiguousarray(array[order]).tobytes())
    return digest.hexdigest()
