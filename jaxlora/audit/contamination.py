"""How much of each test note a step-1 corpus holds: shared 13-grams, whatever the de-identification did to them.

MIMIC-IV covers part of the years of MIMIC-III, so a corpus of its notes can hold the very summaries that the tasks of
MIMIC-III are tested on, under other identifiers and other marks. The overlap of a test note is the share of its
distinct 13-grams that some note of the corpus has; above one half it counts as contaminated. The 13-grams of a test
note are those between its blank lines and marks: an admission note is put together of sections that lie apart in the
summary, and what stands in place of a name differs between releases. (Those of the corpus run over both.)

A note of the corpus that alone has more than half of a test note is one to exclude. One that shares less, such as a
template, is kept, so the overlap after the exclusion is not nothing; it says how formulaic the notes are.

The 13-grams of the test notes are kept in memory, and the corpus streams past them.
"""

import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxlora.audit.grams import batches, grams
from jaxlora.data import builders
from jaxlora.data.deid import note_hash, passages
from jaxlora.workers import cores

LIMIT = 0.5
_BLOCK = 5_000  # notes of the corpus that a process takes at a time
_ALONE = 20_000  # notes of a corpus that is not worth more than one process
_PAIRS = 2**22  # places compared at a time


@dataclass(frozen=True)
class Index:
    """The distinct 13-grams of the test notes and which notes have them; the notes ordered by how many they have.

    Attributes:
      hashes: uint64 `[grams]`, ascending. offsets: int64 `[grams + 1]`, where each gram's notes start in `notes`.
      notes: int64 `[places]`, for each gram the notes that have it, ascending. sizes: int64 `[notes]`, ascending.
      order: int64 `[notes]`, the place of each of these notes in the list that the index was made of.
    """

    hashes: np.ndarray
    offsets: np.ndarray
    notes: np.ndarray
    sizes: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Found:
    """What a corpus shares with the test notes.

    Attributes:
      overlap: float64 `[test notes]`, the share of each one's 13-grams; NaN for a note that has none.
      alone: bool `[test notes]`, whether a single note of the corpus has more than half of it.
      exclude: the hashes (`note_hash`) of those notes of the corpus, sorted. notes: how many the corpus has.
    """

    overlap: np.ndarray
    alone: np.ndarray
    exclude: tuple[str, ...]
    notes: int


def index(texts: Iterator[str]) -> Index:
    """Returns the index of the test notes, read once."""
    hashes, notes, count = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
    for batch in batches(texts):
        pieces = [passages(text) for text in batch]
        these, piece = grams([passage for of_note in pieces for passage in of_note])
        hashes.append(these)
        notes.append(np.repeat(np.arange(count, count + len(batch)), [len(of_note) for of_note in pieces])[piece])
        count += len(batch)
    distinct, gram = np.unique(np.concatenate(hashes), return_inverse=True)
    places = np.unique(gram * max(count, 1) + np.concatenate(notes))
    gram, note = np.divmod(places, max(count, 1))
    sizes = np.bincount(note, minlength=count)
    order = np.argsort(sizes, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    places = np.sort(gram * max(count, 1) + rank[note])
    gram, note = np.divmod(places, max(count, 1))
    offsets = np.searchsorted(gram, np.arange(len(distinct) + 1))
    return Index(distinct, offsets, note, sizes[order], order)


def scan(data_dir: str | Path, corpus: str, tests: Index, split: str = "train", workers: int | None = None) -> Found:
    """Streams one split of a corpus past the test notes.

    Args:
      data_dir: the folder of prepared datasets. corpus: the name of the dataset in it.
      workers: processes; None takes one for each core, or one for a small corpus. The result does not depend on it.
    """
    total = builders.load(data_dir, corpus).splits[split]
    blocks = [(start, min(start + _BLOCK, total)) for start in range(0, total, _BLOCK)]
    if workers is None:
        workers = 1 if total <= _ALONE else cores()
    arguments = (str(data_dir), corpus, split, tests)
    bar = tqdm(total=total, desc=f"{corpus}: overlap with the test notes", unit=" notes", disable=None, leave=False)
    seen, alone = np.zeros(len(tests.hashes), bool), np.zeros(len(tests.sizes), bool)
    exclude: set[str] = set()
    with bar:
        for (start, stop), (grams_seen, held, hashes) in zip(blocks, _results(arguments, blocks, workers), strict=True):
            seen[grams_seen] = True
            alone[held] = True
            exclude.update(hashes)
            bar.update(stop - start)
    return Found(_shares(tests, seen), _in_order(tests, alone), tuple(sorted(exclude)), total)


def _results(arguments: tuple, blocks: Sequence[tuple[int, int]], workers: int) -> Iterator[tuple]:
    if workers < 2 or len(blocks) < 2:
        scanner = _Scanner(*arguments)
        yield from map(scanner.block, blocks)
        return
    # Fresh processes: a fork would copy whatever threads the libraries of this one hold.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start, initargs=arguments) as pool:
        waiting = [pool.submit(_block, block) for block in blocks]
        try:
            for result in waiting:
                yield result.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start(*arguments) -> None:
    global _scanner
    _scanner = _Scanner(*arguments)


def _block(block: tuple[int, int]) -> tuple:
    return _scanner.block(block)


class _Scanner:
    """One process's reading of a corpus."""

    def __init__(self, data_dir: str, corpus: str, split: str, tests: Index):
        self.source, self.tests = builders.load(data_dir, corpus).split(split), tests
        # Most 13-grams of a corpus are in no test note; one look at this table, of at least 16 places a gram, tells so.
        bits = max(16, min(28, (16 * len(tests.hashes)).bit_length()))
        self.mask = np.uint64((1 << bits) - 1)
        self.known = np.zeros(1 << bits, bool)
        self.known[tests.hashes & self.mask] = True

    def block(self, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Returns the grams seen, the test notes that a single note holds, and the hashes of such notes."""
        seen, alone = np.zeros(len(self.tests.hashes), bool), np.zeros(len(self.tests.sizes), bool)
        exclude = []
        for texts in batches(record["text"] for record in self.source.__getitems__(range(*block))):
            note, gram = self._matches(texts)
            seen[gram] = True
            for number, tests in self._held(note, gram, len(texts)):
                alone[tests] = True
                exclude.append(note_hash(texts[number]))
        return np.flatnonzero(seen), np.flatnonzero(alone), exclude

    def _matches(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct (note of the batch, gram of the index) pairs, by note."""
        hashes, note = grams(texts)
        likely = self.known[hashes & self.mask]
        hashes, note = hashes[likely], note[likely]
        place = np.searchsorted(self.tests.hashes, hashes)
        place[place == len(self.tests.hashes)] = 0
        same = self.tests.hashes[place] == hashes if len(self.tests.hashes) else np.zeros(0, bool)
        pairs = np.unique(note[same] * len(self.tests.hashes) + place[same])
        return np.divmod(pairs, max(len(self.tests.hashes), 1))

    def _held(self, note: np.ndarray, gram: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the notes of a batch that have more than half of a test note's grams, and which test notes these are.

        A note that shares m grams with all test notes together cannot have half of one with 2 m grams or more. The
        test notes are numbered by their size, so the ones that are left are the first few of each gram's list.
        """
        if not len(note):
            return
        shared = np.bincount(note, minlength=count)
        limit = np.searchsorted(self.tests.sizes, np.ceil(shared / LIMIT))
        total = len(self.tests.sizes)
        places = np.cumsum(self._candidates(gram, limit[note]))
        ends = np.searchsorted(note, np.arange(count), side="right")
        for first, last in _portions(ends, places):
            rows = slice(ends[first - 1] if first else 0, ends[last - 1])
            tests, of = self._expanded(gram[rows], limit[note[rows]], note[rows] - first)
            counts = np.bincount(of * total + tests, minlength=(last - first) * total).reshape(-1, total)
            held = counts > LIMIT * self.tests.sizes
            for number in np.flatnonzero(held.any(axis=1)):
                yield first + int(number), np.flatnonzero(held[number])

    def _candidates(self, gram: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """Returns how many of each gram's test notes have a number below the limit, by bisection of all at once."""
        low, high = self.tests.offsets[gram].copy(), self.tests.offsets[gram + 1].copy()
        start = low.copy()
        while (open := low < high).any():
            middle = (low + high) // 2
            below = self.tests.notes[np.minimum(middle, len(self.tests.notes) - 1)] < limit
            low = np.where(open & below, middle + 1, low)
            high = np.where(open & ~below, middle, high)
        return low - start

    def _expanded(self, gram: np.ndarray, limit: np.ndarray, note: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns every (test note below the limit, note) pair that shares a gram, once for every gram."""
        counts = self._candidates(gram, limit)
        starts = self.tests.offsets[gram] - np.concatenate([[0], np.cumsum(counts)[:-1]])
        places = np.repeat(starts, counts) + np.arange(counts.sum())
        return self.tests.notes[places], np.repeat(note, counts)


def _portions(ends: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields ranges of notes that together have a bounded number of places, one note at least."""
    upto = np.concatenate([[0], places])[ends]
    first = 0
    while first < len(ends):
        done = upto[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(upto, done + _PAIRS, side="right")))
        last = min(last, first + 256)
        if upto[last - 1] > done:
            yield first, last
        first = last


def _shares(tests: Index, seen: np.ndarray) -> np.ndarray:
    gram = np.repeat(np.arange(len(tests.hashes)), np.diff(tests.offsets))
    counts = np.bincount(tests.notes, weights=seen[gram], minlength=len(tests.sizes))
    return _in_order(tests, np.where(tests.sizes > 0, counts / np.maximum(tests.sizes, 1), np.nan))


def _in_order(tests: Index, values: np.ndarray) -> np.ndarray:
    result = np.empty_like(values)
    result[tests.order] = values
    return result


def held_out_notes(data_dir: str | Path, names: Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
    """Returns the distinct test notes of several datasets, and for each dataset which of them are its own.

    Returns:
      (texts, places): int64 `[test notes of the dataset]`, in its order.
    """
    numbers: dict[str, int] = {}
    places = []
    for name in names:
        split = builders.load(data_dir, name).split("test")
        texts = (split[i]["text"] for i in range(len(split)))
        places.append(np.asarray([numbers.setdefault(text, len(numbers)) for text in texts], np.int64))
    return list(itertools.chain(numbers)), places
