"""Several corpora as one: so many notes of each, as often as their weights say."""

from collections.abc import Sequence

import numpy as np

from jaxlora.data.tokens import TokenizedNotes
from jaxlora.errors import UserError

_MOST = 1000  # times that an epoch may see a note


def mix(corpora: Sequence[TokenizedNotes], weights: Sequence[float], seed: int) -> TokenizedNotes:
    """Returns the notes of several tokenized corpora, to be packed and shuffled as one.

    A weight says how often an epoch sees a note of its corpus: 1 is once, 0.25 a quarter of the notes, chosen by the
    seed and the same in every epoch, 2.5 all notes twice and half of them a third time (Me-LLaMA mixes 15:1:4).

    Args:
      corpora: without labels.
      weights: one for each, above 0 and up to 1,000.
      seed: of the choice.

    Raises:
      UserError: a weight is not above 0 or too large, or the weights leave no note.
    """
    parts = []
    for number, (corpus, weight) in enumerate(zip(corpora, weights, strict=True)):
        if not weight > 0:
            raise UserError(f"config.data.mix: the weight {weight} of a corpus is not above 0; leave it out instead")
        if weight > _MOST:
            raise UserError(f"config.data.mix: the weight {weight} of a corpus is above {_MOST:,}; give a smaller one")
        rng = np.random.default_rng((seed, number))
        count = len(corpus.ids)
        whole, rest = divmod(weight, 1)
        chosen = np.sort(rng.permutation(count)[: round(rest * count)])
        parts += [corpus] * int(whole)
        parts += [_subset(corpus, chosen)] if len(chosen) else []
    if not parts:
        raise UserError("config.data.mix: the weights leave no note of any corpus; give larger ones")
    first = np.cumsum([0] + [len(part.ids) for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    return TokenizedNotes(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.notes + start for part, start in zip(parts, first[:-1], strict=True)]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.patients for part in parts]),
        None,
    )


def _subset(corpus: TokenizedNotes, chosen: np.ndarray) -> TokenizedNotes:
    """Returns some notes of a corpus; `chosen` is their numbers in rising order."""
    place = np.full(len(corpus.ids), -1)
    place[chosen] = np.arange(len(chosen))
    pieces = np.flatnonzero(place[corpus.notes] >= 0)
    lengths = corpus.lengths[pieces]
    return TokenizedNotes(
        corpus.tokens[np.repeat(place[corpus.notes] >= 0, corpus.lengths)],
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        place[corpus.notes[pieces]],
        corpus.ids[chosen],
        corpus.patients[chosen],
        None,
    )
