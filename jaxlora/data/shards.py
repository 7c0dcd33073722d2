"""Examples to array_record shards: several at a time, in order, and going on where a killed run stopped.

Examples are cut into chunks of about `CHUNK` characters. A chunk becomes one shard of every split it has examples of,
and then a note that it is done, which is all that a resumed run needs to pass it over. So the shards do not depend on
how many processes wrote them, nor on how often they were interrupted.
"""

import collections
import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from jaxlora import files
from jaxlora.data.examples import OUTCOMES, Example
from jaxlora.errors import UserError

CHUNK = 32 * 2**20  # characters: large enough for a bucket, and enough shards for the hosts of a pod
_TEXTS = ("id", "patient", "text")
_OPTIONS = "group_size:1,zstd:1"  # one record a read; half as fast again as the default level, and as small on notes

_SHAPES = {"multilabel": (None,), "tokens": (None, 3), "span": (None, 2)}  # of labels that are no single number

Finish = Callable[[Example], Example | str]


@dataclasses.dataclass(frozen=True)
class Written:
    """What a folder of shards holds: the examples of every shard by split, and the examples left out by reason."""

    lengths: dict[str, list[int]]
    dropped: collections.Counter[str]


def features(kind: str) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of a task's examples: "lm" has no label, the others as `examples.Task` says. Those of
    whole notes have `groups`, as a JSON object."""
    found = {"id": np.str_, "patient": np.str_, "text": tfds.features.Text()}
    if kind in _SHAPES:
        found["label"] = tfds.features.Tensor(shape=_SHAPES[kind], dtype=np.int64)
    elif kind != "lm":
        found["label"] = tfds.features.Scalar(dtype=np.int64)
    if kind in OUTCOMES:
        found["groups"] = np.str_
    return tfds.features.FeaturesDict(found)


def write(
    folder: Path,
    kind: str,
    examples: Iterable[Example],
    finish: Finish | None = None,
    workers: int = 1,
) -> Written:
    """Writes examples to `folder/SPLIT-CHUNK`, in their order.

    Args:
      folder: new, or what an earlier call with the same arguments left behind.
      kind: of the task.
      finish: called where an example is written, for work worth sharing out; gives the example as it is to be written,
        or why it is left out. To go to another process it is a function of a module or a dataclass.
      workers: processes; they start when the examples turn out to fill more than one chunk.
    """
    done: list[dict | Future] = []
    pool = None
    try:
        for number, chunk in enumerate(_chunks(examples)):
            arguments = (folder, number, kind, chunk, finish)
            if (folder / _note(number)).exists():
                done.append(json.loads((folder / _note(number)).read_text(encoding="utf-8")))
            elif workers == 1 or (number == 0 and _characters(chunk) < CHUNK):
                done.append(_write_chunk(*arguments))
            else:
                pool = pool or ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
                waiting = [part for part in done if isinstance(part, Future)]
                if len(waiting) > workers:  # so many chunks are in memory, and no more
                    waiting[-workers - 1].result()
                done.append(pool.submit(_write_chunk, *arguments))
        results = [part.result() if isinstance(part, Future) else part for part in done]
    except BrokenProcessPool:
        raise UserError(
            f"{folder}: a process that wrote there was killed, perhaps for want of memory; run it again, it goes on"
        ) from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    lengths: dict[str, list[int]] = {}
    dropped: collections.Counter[str] = collections.Counter()
    for result in results:
        dropped.update(result["dropped"])
        for split, count in result["splits"].items():
            lengths.setdefault(split, []).append(count)
    return Written(lengths, dropped)


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    chunk, size = [], 0
    for example in examples:
        chunk.append(example)
        size += len(example.text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _characters(chunk: list[Example]) -> int:
    return sum(len(example.text) for example in chunk)


def _note(number: int) -> str:
    return f"done-{number:05d}.json"


def _write_chunk(folder: Path, number: int, kind: str, chunk: list[Example], finish: Finish | None) -> dict:
    writers: dict[str, ArrayRecordWriter] = {}
    splits: dict[str, int] = {}
    dropped: collections.Counter[str] = collections.Counter()
    try:
        for example in chunk:
            result = finish(example) if finish else example
            if isinstance(result, str):
                dropped[result] += 1
                continue
            if result.split not in writers:
                writers[result.split] = ArrayRecordWriter(str(folder / f"{result.split}-{number:05d}"), _OPTIONS)
            writers[result.split].write(serialized(result, kind))
            splits[result.split] = splits.get(result.split, 0) + 1
        for writer in writers.values():
            writer.close()
    except RuntimeError:  # which is how the writer says it
        raise UserError(f"{folder}: the shards cannot be written; see whether the disk is full") from None
    result = {"splits": splits, "dropped": dict(dropped)}
    files.write_json(folder / _note(number), result)
    return result


def serialized(example: Example, kind: str) -> bytes:
    """Returns an example as TFDS stores it, a tf.train.Example, in a quarter of the time that TFDS's own general
    serializer takes, and the same bytes in every process."""
    record = tf_example_pb2.Example()
    fields = record.features.feature
    for name in _TEXTS:
        fields[name].bytes_list.value.append(getattr(example, name).encode())
    if kind != "lm":
        fields["label"].int64_list.value.extend(np.asarray(example.label, np.int64).flat)
    if kind in OUTCOMES:
        fields["groups"].bytes_list.value.append(json.dumps(dict(example.groups), sort_keys=True).encode())
    return record.SerializeToString(deterministic=True)


def parsed(record: bytes, kind: str) -> dict[str, Any]:
    """Returns id, patient, text, label and groups of what `serialized` gave; the label is None, a number or an int64
    array. Groups are {} where there are none, as in every dataset from before they were written.

    Raises:
      DecodeError: these are no such bytes.
    """
    fields = tf_example_pb2.Example.FromString(record).features.feature
    example = {name: fields[name].bytes_list.value[0].decode() for name in _TEXTS}
    example["groups"] = json.loads(fields["groups"].bytes_list.value[0]) if "groups" in fields else {}
    if kind == "lm":
        return example | {"label": None}
    label = fields["label"].int64_list.value
    if kind not in _SHAPES:
        return example | {"label": label[0]}
    return example | {"label": np.asarray(label, np.int64).reshape(-1, *_SHAPES[kind][1:])}
