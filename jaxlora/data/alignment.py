"""Characters to tokens: annotated spans of a text as a tag for every token, or as the two ends of an answer.

Tags are BIO: 0 is outside, `1 + 2 t` begins an entity of type t and `2 + 2 t` goes on with it, as in `Task.outputs`.
Whitespace that a tokenizer puts into a token ("▁pain", "Ġpain") belongs to no entity: a token's span is what is left
of it, so that a decoded entity begins and ends where the annotator's did.
"""

import numpy as np

from jaxlora.errors import UserError

IGNORED = -1


def trim(text: str, spans: np.ndarray) -> np.ndarray:
    """Returns the spans without whitespace at their ends; one of whitespace alone becomes empty, where it began.

    Args:
      spans: int `[tokens, 2]`, start and end of each token in `text`.
    """
    blank = np.fromiter((character.isspace() for character in text), bool, len(text))
    places = np.arange(len(text))
    following = np.minimum.accumulate(np.where(blank, len(text), places)[::-1])[::-1]
    before = np.maximum.accumulate(np.where(blank, 0, places + 1))
    start = np.append(following, len(text))[spans[:, 0]]
    end = np.insert(before, 0, 0)[spans[:, 1]]
    empty = start >= end
    return np.stack([np.where(empty, spans[:, 0], start), np.where(empty, spans[:, 0], end)], axis=1)


def tags(spans: np.ndarray, entities: np.ndarray, length: int) -> np.ndarray:
    """Returns the BIO tag of every token, int64 `[tokens]`.

    A token that holds characters of an entity and others belongs to the entity; of two entities in a token, to the
    first. Of entities that overlap, BIO can tell one: the one that begins first, of those the longest.

    Args:
      spans: `[tokens, 2]`, of `trim`.
      entities: `[entities, 3]`: start, end, type.
      length: characters of the text.
    """
    owner = np.full(length + 1, -1)
    for number in np.lexsort((-entities[:, 1], entities[:, 0])):
        start, end = entities[number, :2]
        if (owner[start:end] < 0).all():
            owner[start:end] = number
    places = np.where(owner < 0, length, np.arange(length + 1))
    first = np.minimum.accumulate(places[::-1])[::-1][spans[:, 0]]  # the first character of an entity from there on
    inside = first < np.maximum(spans[:, 1], spans[:, 0] + 1)  # whitespace within an entity goes on with it
    of_token = np.where(inside, owner[np.minimum(first, length)], -1)
    goes_on = np.insert(of_token[1:] == of_token[:-1], 0, False)[: len(of_token)]
    kinds = entities[np.maximum(of_token, 0), 2] if len(entities) else np.zeros(len(spans), np.int64)
    return np.where(of_token < 0, 0, 1 + 2 * kinds + goes_on)


def token_range(spans: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """Returns the first and the last token that hold characters of `start:end`, or None where none does."""
    (found,) = np.nonzero((spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 0] < spans[:, 1]))
    return (int(found[0]), int(found[-1])) if len(found) else None


def cuts(count: int, prefix: int, length: int, long_notes: str, overlap: bool = False) -> list[tuple[int, int]]:
    """Returns where a note of `count` tokens is cut: (start, end) of each piece, to be read after the first `prefix`
    tokens, which every piece repeats.

    Args:
      prefix: BOS, or BOS and a question.
      length: tokens a piece has at most, the prefix included.
      long_notes: "truncate" gives the first piece only, "chunk" all.
      overlap: each piece begins in the middle of the one before, so that what is shorter than half a piece is whole
        in one of them.
    """
    room = length - prefix
    found = [(min(prefix, count), min(count, length))]
    while long_notes == "chunk" and found[-1][1] < count:
        start = found[-1][0] + (max(1, room // 2) if overlap else room)
        found.append((start, min(start + room, count)))
    return found


Piece = tuple[np.ndarray, np.ndarray]


def tagged_pieces(
    entities: np.ndarray, spans: np.ndarray, characters: int, bos: int, length: int, long_notes: str
) -> list[Piece]:
    """Returns the pieces of a note with entities: which of its tokens each holds, and their tags.

    BOS has the tag `IGNORED`, which the loss leaves out, as it does padding. The published code gave both the tag O
    and trained on them, which rewards a model for the many positions that are empty.

    Args:
      entities: `[entities, 3]`: start, end, type. spans: `[tokens, 2]`, of `trim`. characters: of the text.
      bos: 1 if the first token is BOS, else 0.
      length, long_notes: as in `cuts`.
    """
    of_note = np.append(np.full(bos, IGNORED), tags(spans[bos:], entities, characters))
    found = []
    for start, end in cuts(len(spans), bos, length, long_notes):
        indices = np.append(np.arange(bos), np.arange(start, end))
        found.append((indices, of_note[indices]))
    return found


def answered_pieces(regions: np.ndarray, spans: np.ndarray, bos: int, length: int, long_notes: str) -> list[Piece]:
    """Returns the pieces of a question and its context: which tokens each holds, and the first and the last of the
    first answer, counted in the piece.

    A piece without the whole answer answers with its first token, BOS: "no answer", as SQuAD 2 does with CLS. In a
    model that looks back only, BOS knows nothing of the text; its score is a threshold that training sets.

    Args:
      regions: `[1 + answers, 2]`: start and end of the context, then of each answer. spans, bos: as in `tagged_pieces`.
      length, long_notes: as in `cuts`; the chunks each repeat the question and overlap by half.

    Raises:
      UserError: the question leaves a chunk no room.
    """
    context = int(regions[0, 0])
    prefix = bos + int((spans[bos:, 1] <= context).sum())
    if long_notes == "chunk" and prefix > length // 2 and len(spans) > length:
        raise UserError(
            f"config.data.length is {length}, and a question takes {prefix} of it; double it, or truncate long notes"
        )
    prefix = min(prefix, length)
    answer = token_range(spans, *regions[1].tolist()) if len(regions) > 1 else None
    found = []
    for start, end in cuts(len(spans), prefix, length, long_notes, overlap=True):
        indices = np.append(np.arange(prefix), np.arange(start, end))
        here = answer is not None and start <= answer[0] and answer[1] < end
        label = np.asarray(answer) - start + prefix if here else np.zeros(2, np.int64)
        found.append((indices, label))
    return found
