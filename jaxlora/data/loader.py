"""Tokenized notes to packed batches.

Several notes share a row; a row carries segment numbers and positions, and attention never crosses a segment. Which
notes share a row is planned before the run from the lengths alone, by best fit in a shuffled order. So the number of
updates is known exactly, a row can be made by its number, the batches are the same on any number of hosts, and the
state of the iterator is one integer.

Where adapters have virtual tokens (`jaxlora.models.prompts`), they are in front of every note, -1, -2, ... in `tokens`,
and positions count them; a row is longer by as many, so that a note of full length fits still.
"""

import dataclasses
from collections.abc import Iterable

import grain
import numpy as np

from jaxlora.data.examples import ANNOTATED
from jaxlora.data.tokens import TokenizedNotes


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which pieces share which row.

    Attributes:
      pieces: `[pieces]`, piece numbers, those of one row side by side.
      rows: `[rows + 1]`, where each row starts in `pieces`.
    """

    pieces: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows) - 1


def max_segments(length: int) -> int:
    """Returns how many notes a row of `length` tokens holds at most: one for every 16 tokens, as few notes are shorter
    and pooling costs as much for an absent segment as for a present one."""
    return max(1, length // 16)


def row_length(length: int, virtual: int = 0) -> int:
    """Returns how many positions a row has whose notes are of at most `length` tokens, behind `virtual` ones.

    Where `length` is a multiple of 128, as the kernels of attention like it, so is the row.
    """
    if not virtual:
        return length
    return -(-(length + virtual) // 128) * 128 if length % 128 == 0 else length + virtual


def pack(lengths: np.ndarray, length: int, rng: np.random.Generator | None) -> Plan:
    """Packs pieces into rows by best fit: each goes where it leaves the least room.

    Args:
      lengths: `[pieces]`, tokens of each piece, none above `length`.
      length: tokens a row holds.
      rng: shuffles the pieces before and the rows after; None keeps the order, for evaluation.
    """
    limit = max_segments(length)
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit r is set where some row has room for exactly r more tokens
    for piece in order.tolist():
        need = int(lengths[piece])
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            rows[row].append(piece)
        else:
            room, row = length, len(rows)
            rows.append([piece])
        left = room - need
        if left and len(rows[row]) < limit:
            by_room[left].append(row)
            rooms |= 1 << left
    if rng is not None:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Plan(np.asarray([piece for row in rows for piece in row], np.int64), starts)


class PackedRows:
    """Packed rows by number, as Grain's random-access source.

    A row is a dict of int32 arrays: `tokens`, `segments`, `positions` `[length]` and `notes` `[max_segments]`, the
    note of each segment plus one, 0 where there is none. `length` is that of the row, with `virtual` tokens a note.

    With `labelled`, those whose labels are aligned with their tokens have `labels` too: of kind "tokens" `[length]`, -1
    for padding; of kind "span" `[max_segments, 2]`, places in the row, -1 for absent segments.
    """

    def __init__(self, notes: TokenizedNotes, plans: list[Plan], length: int, labelled: bool = False, virtual: int = 0):
        self.data, self.plans, self.length = notes, plans, length
        self.virtual = -1 - np.arange(virtual)
        self.labelled = labelled and notes.kind in ANNOTATED
        self.starts = np.concatenate([[0], np.cumsum([len(plan) for plan in plans])])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def pieces(self, index: int) -> np.ndarray:
        """Returns the numbers of the pieces in a row, in their order."""
        epoch = int(np.searchsorted(self.starts, index, side="right")) - 1
        plan, row = self.plans[epoch], index - self.starts[epoch]
        return plan.pieces[plan.rows[row] : plan.rows[row + 1]]

    def notes(self, index: int) -> np.ndarray:
        """Returns the `notes` of a row alone."""
        notes, found = np.zeros(max_segments(self.length), np.int32), self.data.notes[self.pieces(index)] + 1
        notes[: len(found)] = found
        return notes

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens, segments, positions = (np.zeros(self.length, np.int32) for _ in range(3))
        notes = self.notes(index)
        of_tokens = self.data.kind == "tokens"
        labels = np.full(self.length if of_tokens else (len(notes), 2), -1, np.int32)
        at = 0
        for number, piece in enumerate(self.pieces(index)):
            ids = self.data.tokens[self.data.offsets[piece] : self.data.offsets[piece + 1]]
            first, at = at, at + len(self.virtual)
            here, whole = slice(at, at + len(ids)), slice(first, at + len(ids))
            tokens[first:at], tokens[here] = self.virtual, ids
            segments[whole], positions[whole] = number + 1, np.arange(at + len(ids) - first)
            if self.labelled and of_tokens:
                labels[here] = self.data.labels[self.data.offsets[piece] : self.data.offsets[piece + 1]]
            elif self.labelled:
                labels[number] = at + self.data.labels[piece]
            at += len(ids)
        row = {"tokens": tokens, "segments": segments, "positions": positions, "notes": notes}
        return row | {"labels": labels} if self.labelled else row


class Batches:
    """The batches of a run: packed rows and their labels.

    Args:
      notes: the tokenized split.
      length: tokens a row holds, virtual ones apart. batch_size: rows a batch holds, over all hosts.
      labels: number of labels; 0 for the language-model loss.
      epochs: how often the notes are seen, each time shuffled and packed anew; the last rows that fill no batch are
        dropped.
      seed: of the shuffling; None keeps the order and fills the last batch up with empty rows, for evaluation.
      own: the rows of a batch that are built, those that lie on this host's devices; None builds all. Of the others
        `notes` alone are there, the rest is as in an empty row.
      virtual: how many virtual tokens are in front of every note.
    """

    def __init__(
        self,
        notes: TokenizedNotes,
        length: int,
        batch_size: int,
        labels: int = 0,
        epochs: int = 1,
        seed: int | None = 0,
        own: Iterable[int] | None = None,
        virtual: int = 0,
    ):
        rngs = [None if seed is None else np.random.default_rng((seed, epoch)) for epoch in range(epochs)]
        self.notes, self.labels, self.batch_size = notes, labels, batch_size
        self.length, self.virtual = length, virtual
        self.own = range(batch_size) if own is None else own
        positions = row_length(length, virtual)
        plans = [pack(notes.lengths + virtual, positions, rng) for rng in rngs]
        self.rows = PackedRows(notes, plans, positions, bool(labels), virtual)
        self.partial = seed is None or len(self.rows) < batch_size
        full, rest = divmod(len(self.rows), batch_size)
        self.count = full + bool(self.partial and rest)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> grain.DatasetIterator:
        """Returns a Grain iterator over the batches; its state says how far it is."""
        dataset = grain.MapDataset.range(self.count).map(self._batch)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    def lengths(self, number: int) -> np.ndarray:
        """Returns how many tokens each piece of a batch has, virtual ones apart, over all hosts."""
        return np.concatenate([self.notes.lengths[self.rows.pieces(index)] for index in self._indices(number)])

    def _indices(self, number: int) -> range:
        """The numbers of the rows of a batch."""
        return range(number * self.batch_size, min((number + 1) * self.batch_size, len(self.rows)))

    def _notes(self, indices: range) -> np.ndarray:
        """The `notes` of a batch, `[batch, max_segments]`, over all hosts."""
        notes = np.zeros((self.batch_size, max_segments(self.rows.length)), np.int32)
        notes[: len(indices)] = [self.rows.notes(index) for index in indices]
        return notes

    def _rows(self, indices: range) -> dict[str, np.ndarray]:
        empty = {name: np.full_like(x, -1 if name == "labels" else 0) for name, x in self.rows[indices[0]].items()}
        batch = {name: np.broadcast_to(x, (self.batch_size, *x.shape)).copy() for name, x in empty.items()}
        batch["notes"] = self._notes(indices)
        for row in self.own:
            if row < len(indices):
                for name, values in self.rows[indices[row]].items():
                    batch[name][row] = values
        return batch

    def _batch(self, number: int) -> dict[str, np.ndarray]:
        batch = self._rows(self._indices(number))
        if self.labels and "labels" not in batch:
            batch["labels"] = self._labels(batch["notes"])
        return batch

    def _labels(self, notes: np.ndarray) -> np.ndarray:
        if isinstance(self.notes.labels, np.ndarray):
            return np.where(notes > 0, self.notes.labels[np.maximum(notes, 1) - 1], 0).astype(np.int32)
        hot = np.zeros((*notes.shape, self.labels), np.float32)
        for place in zip(*np.nonzero(notes), strict=True):
            hot[place][self.notes.labels[notes[place] - 1]] = 1.0
        return hot
