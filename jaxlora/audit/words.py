"""Notes as counts of their words, and the wording that tells a death."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from jaxlora.data.deid import normalised

# What a summary says once the outcome is known, in the words that `deid.normalised` leaves; CORe's filter of September
# 2021 has some of these.
OUTCOME_WORDS = {
    "expired": ("expired",),
    "patient expired": tuple(f"{who}{had} expired" for who in ("patient", "pt") for had in ("", " had", " has")),
    "deceased": ("deceased",),
    "died": ("died",),
    "passed away": ("passed away",),
    "time of death": ("time of death",),
    "death": ("death",),
    "autopsy": ("autopsy",),
    "comfort measures": ("comfort measures",),
    "cmo": ("cmo",),
    "hospice": ("hospice",),
}

CARE = ("comfort measures", "cmo", "hospice")  # of these, what may well be known at admission


@dataclass(frozen=True)
class Words:
    """The words of some notes; what is counted is letters only, without digits and de-identification marks.

    Attributes:
      names: `[words]`, in lower case, two letters or more, sorted. counts: int32 `[notes, words]`, sparse.
      outcome: bool `[notes, outcome words]`, which of `OUTCOME_WORDS` a note has. lengths: int64 `[notes]`, in words.
    """

    names: np.ndarray
    counts: sparse.csr_matrix
    outcome: np.ndarray
    lengths: np.ndarray


def count(texts: Iterable[str]) -> Words:
    """Counts the words of notes, each read once and none kept."""
    outcome, lengths = [], []

    def split(text: str) -> list[str]:
        text = normalised(text)
        words = text.split()
        between = f" {text} "
        outcome.append([any(f" {phrase} " in between for phrase in of) for of in OUTCOME_WORDS.values()])
        lengths.append(len(words))
        return words

    counter = CountVectorizer(analyzer=split, dtype=np.int32)
    try:
        counts = counter.fit_transform(texts)
        names = counter.get_feature_names_out()
    except ValueError:  # scikit-learn refuses notes without any word
        counts, names = sparse.csr_matrix((len(lengths), 0), dtype=np.int32), np.empty(0, object)
    kept = np.flatnonzero([len(name) > 1 for name in names])
    outcome = np.asarray(outcome, bool).reshape(-1, len(OUTCOME_WORDS))
    return Words(names[kept], counts[:, kept], outcome, np.asarray(lengths, np.int64))
