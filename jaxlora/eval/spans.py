"""Predicted positions to spans of characters: entities from BIO tags, answers from the scores of their ends.

A span is a row (note, start, end, type), in characters of the note; an answer is of type 0. Text is looked at here, to
score answers as SQuAD 2 does, and goes no further: what is kept is offsets and scores.
"""

import re
import string
from collections import Counter

import numpy as np

from jaxlora.data.tokens import TokenizedNotes

LONGEST_ANSWER = 30  # tokens, as in SQuAD's own scripts


def entities(tags: np.ndarray, notes: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Returns the entities that BIO tags tell, int64 `[entities, 4]`: note, first character, end, type.

    An I that goes on with nothing of its type begins an entity, as in CoNLL. An entity goes on over the end of a chunk.

    Args:
      tags: `[tokens]`, as in `data.alignment`; a negative one (BOS) is skipped.
      notes: `[tokens]`, the note of each token. spans: `[tokens, 2]`, its characters; empty where they are blank.
    """
    real = tags >= 0
    tags, notes, spans = tags[real], notes[real], spans[real]
    types, inside = (tags - 1) // 2, tags > 0
    same = np.zeros(len(tags), bool)
    same[1:] = (types[1:] == types[:-1]) & inside[:-1] & (notes[1:] == notes[:-1])
    begins = inside & ((tags % 2 == 1) | ~same)
    number = np.cumsum(begins) - 1
    shown = inside & (spans[:, 0] < spans[:, 1])  # a blank token at an end is not part of the entity
    of_entity, first = np.unique(number[shown], return_index=True)
    last = len(number[shown]) - 1 - np.unique(number[shown][::-1], return_index=True)[1]
    starts, ends = spans[shown][first, 0], spans[shown][last, 1]
    heads = np.flatnonzero(begins)[of_entity]
    return np.stack([notes[heads], starts, ends, types[heads]], axis=1).astype(np.int64)


def annotated(notes: TokenizedNotes) -> np.ndarray:
    """Returns the annotators' spans of a split, `[spans, 4]`, those that the tokens cannot tell included."""
    found = [np.zeros((0, 4), np.int64)]
    for number in range(len(notes.ids)):
        label = np.asarray(notes.source[number]["label"], np.int64)
        rows = label.reshape(-1, 3) if notes.kind == "tokens" else np.insert(label[1:], 2, 0, axis=1)
        found.append(np.insert(rows, 0, number, axis=1))
    return np.concatenate(found)


def best_answers(notes: TokenizedNotes, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the best span of every note, over its pieces: of those that begin before they end, in the context and of
    at most `LONGEST_ANSWER` tokens, the one whose two logits sum highest.

    Args:
      logits: float32 `[total, 2]`, of every token as a first and as a last one.

    Returns:
      (spans `[notes, 2]` of characters, margins float32 `[notes]`): a margin is the best sum less that of "no answer",
      the first token, the lowest of the note's pieces. A note without a span to choose from has (0, 0) and the lowest
      margin there is; where a logit is not finite, no margin is.
    """
    count = len(notes.ids)
    chosen, best = np.zeros((count, 2), np.int64), np.full(count, -np.inf, np.float32)
    none = np.full(count, np.inf, np.float32)
    if not np.isfinite(logits).all():
        return chosen, np.full(count, np.nan, np.float32)
    contexts: dict[int, int] = {}
    for piece, note in enumerate(notes.notes.tolist()):
        here = slice(*notes.offsets[piece : piece + 2])
        spans, (start, end) = notes.spans[here], logits[here].T
        if note not in contexts:
            contexts[note] = int(notes.source[note]["label"][0][0])
        none[note] = min(none[note], start[0] + end[0])
        allowed = (spans[:, 0] >= contexts[note]) & (spans[:, 0] < spans[:, 1])
        start, end = np.where(allowed, start, -np.inf), np.where(allowed, end, -np.inf)
        for width in range(min(LONGEST_ANSWER, len(spans))):
            sums = start[: len(spans) - width] + end[width:]
            first = int(sums.argmax())
            if sums[first] > best[note]:
                best[note], chosen[note] = sums[first], (spans[first, 0], spans[first + width, 1])
    return chosen, np.maximum(best - none, np.finfo(np.float32).min)


def score_answers(notes: TokenizedNotes, chosen: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns float32 `[notes, 2]`: exact match and token F1 of each note, the best over its true answers.

    Args:
      chosen: `[notes, 2]`, the characters of the chosen answer, (0, 0) for "no answer".
      answers: `[answers, 4]`, of `annotated`.
    """
    scores = np.zeros((len(notes.ids), 2), np.float32)
    borders = np.searchsorted(answers[:, 0], np.arange(len(notes.ids) + 1))
    for number in range(len(notes.ids)):
        text = notes.source[number]["text"]
        start, end = chosen[number]
        truths = [text[a:b] for a, b in answers[borders[number] : borders[number + 1], 1:3]] or [""]
        pairs = [(normalised(text[start:end]), normalised(truth)) for truth in truths]
        scores[number] = max(float(a == b) for a, b in pairs), max(token_f1(a, b) for a, b in pairs)
    return scores


def normalised(text: str) -> str:
    """Returns the text as SQuAD compares it: in lower case, without punctuation, articles and more than one blank."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_f1(found: str, truth: str) -> float:
    """Returns the F1 of the words of two normalised answers; without a word in either it is whether both have none."""
    a, b = found.split(), truth.split()
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))
