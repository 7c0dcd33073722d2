"""Prepared datasets: TFDS builders that write array_record, and the random-access reading of what they wrote.

`data_dir/clinical_notes/<name>/1.0.0` is an ordinary TFDS directory (`tfds.builder_from_directory` opens it), in the
order the examples came, with the task in its metadata. TensorFlow is never imported.
"""

import contextlib
import io
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.json_format import ParseError
from tqdm import tqdm

from jaxlora.data.examples import SPLITS, Example, Task
from jaxlora.errors import UserError, nearest

VERSION = "1.0.0"


class ClinicalNotes(tfds.core.GeneratorBasedBuilder):
    """Notes with keyed identifiers and, but for "lm", a label: an index, or the indices of a multilabel example."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # where TFDS would look for checksums of downloads, by a package that it does not declare

    def __init__(self, *, task: Task, examples: dict[str, Iterator[Example]], **kwargs: Any):
        self._task = task
        self._examples = examples
        super().__init__(config=tfds.core.BuilderConfig(name=task.name, version=VERSION), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"id": np.str_, "patient": np.str_, "text": tfds.features.Text()}
        if self._task.kind == "multilabel":
            features["label"] = tfds.features.Tensor(shape=(None,), dtype=np.int64)
        elif self._task.kind != "lm":
            features["label"] = tfds.features.Scalar(dtype=np.int64)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clinical notes under keyed identifiers, split by patient.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(kind=self._task.kind, labels=list(self._task.labels)),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self._examples}

    def _generate_examples(self, split: str):
        for number, example in enumerate(self._examples[split]):
            record = asdict(example)
            del record["split"]
            if self._task.kind == "lm":
                del record["label"]
            elif self._task.kind == "multilabel":
                record["label"] = np.asarray(example.label, np.int64)
            yield number, record


def build(out_dir: str | Path, task: Task, examples: Iterable[Example]) -> None:
    """Writes one dataset, or replaces it; when this fails, whatever was there before stays as it was.

    Args:
      out_dir: the folder of prepared datasets.
      task: its name becomes the name of the dataset.
      examples: iterated over once for every split, so a list or a `Stream`, not a generator.

    Raises:
      UserError: the name cannot be a folder's, or the train split (or the test split of a labelled task) is empty.
    """
    if not task.name.replace("-", "").replace(".", "").isidentifier() or task.name.startswith("."):
        raise UserError(f"datasets.{task.name}: use letters, digits, '_', '-' and '.' in the name of a dataset")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    splits = {split: _stream(examples, split) for split in SPLITS}
    for split in ("train",) if task.kind == "lm" else ("train", "test"):
        if splits[split] is None:
            raise UserError(f"dataset {task.name}: the {split} split has no rows; add patients or change their split")
    splits = {
        split: tqdm(stream, desc=f"{task.name} {split}", unit=" notes", disable=None, leave=False)
        for split, stream in splits.items()
        if stream is not None
    }
    staging = Path(tempfile.mkdtemp(prefix=f".{task.name}.", dir=out_dir))
    try:
        with _quiet():
            builder = ClinicalNotes(task=task, examples=splits, data_dir=staging, file_format="array_record")
            builder.download_and_prepare()
        _replace(_folder(out_dir, task.name), _folder(staging, task.name), staging / "previous")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _stream(examples: Iterable[Example], split: str) -> Iterator[Example] | None:
    """Returns the examples of one split, or None when it has none."""
    stream = (example for example in examples if example.split == split)
    first = next(stream, None)
    return None if first is None else itertools.chain([first], stream)


def _replace(target: Path, new: Path, aside: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        new.rename(target)
        return
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise


@contextlib.contextmanager
def _quiet():
    """Silences what TFDS says about every dataset that is not one of its own."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset: its task, and the number of examples in each of its splits."""

    task: Task
    splits: dict[str, int]
    _builder: tfds.core.DatasetBuilder

    def split(self, name: str) -> "Split":
        """Returns one split for random access.

        Raises:
          UserError: the dataset has no such split.
        """
        if name not in self.splits:
            raise UserError(f"dataset {self.task.name}: no split {name!r}{nearest(name, self.splits)}")
        return Split(self.task, self._builder.as_data_source(split=name))


@dataclass(frozen=True)
class Split:
    """The examples of one split: `split[i]` is a dictionary of id, patient, text and label."""

    task: Task
    _source: Any

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._source[index]
        except (RuntimeError, ValueError):
            raise _corrupt(self.task.name) from None
        example = {name: record[name].decode() for name in ("id", "patient", "text")}
        if self.task.kind == "lm":
            label = None
        elif self.task.kind == "multilabel":
            label = np.asarray(record["label"], np.int64)
        else:
            label = int(record["label"])
        return example | {"label": label}


def load(data_dir: str | Path, name: str) -> Prepared:
    """Opens a dataset that `build` wrote.

    Raises:
      UserError: no such dataset is prepared, or its files are damaged.
    """
    root = Path(data_dir) / ClinicalNotes.name
    present = [path.parents[1].name for path in root.glob(f"*/{VERSION}/dataset_info.json")]
    if name not in present:
        raise UserError(
            f"{data_dir}: dataset {name!r} is not prepared{nearest(name, present)}; run `jaxlora prepare` to make it"
        )
    try:
        builder = tfds.builder_from_directory(_folder(data_dir, name) / VERSION)
        task = Task(name, builder.info.metadata["kind"], tuple(builder.info.metadata["labels"]))
        for split in builder.info.splits.values():
            for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
                if ArrayRecordReader(str(path)).num_records() != length:
                    raise _corrupt(name)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, ParseError):
        raise _corrupt(name) from None
    return Prepared(task, {split: info.num_examples for split, info in builder.info.splits.items()}, builder)


def _folder(data_dir: str | Path, name: str) -> Path:
    return Path(data_dir) / ClinicalNotes.name / name


def _corrupt(name: str) -> UserError:
    return UserError(f"dataset {name}: its files are damaged or cut short; run `jaxlora prepare` again")
