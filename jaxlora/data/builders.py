"""Prepared datasets: TFDS builders that write array_record, and the random-access reading of what they wrote.

`data_dir/BUILDER/NAME/1.0.0` is an ordinary TFDS directory (`tfds.builder_from_directory` opens it), in the order the
examples came, with the task in its metadata. TensorFlow is never imported.
"""

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tqdm import tqdm

from jaxlora import files
from jaxlora.data import shards
from jaxlora.data.examples import SPLITS, Example, Task
from jaxlora.errors import UserError, nearest

VERSION = "1.0.0"
_READ = 1000  # notes at a time, whose text is in memory


@dataclass
class Work:
    """What is to be written as one dataset.

    Attributes:
      task, examples: the dataset; the examples are read once.
      finish, workers: as in `shards.write`.
      source: what the dataset is made of, in a few characters. Shards that a killed run of the same source left behind
        are not written again; "" starts anew.
      dropped: counts, once it is written, the examples that `finish` left out, by reason.
    """

    task: Task
    examples: Iterable[Example]
    finish: shards.Finish | None = None
    workers: int = 1
    source: str = ""
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class NotesConfig(tfds.core.BuilderConfig):
    """One dataset of a builder, and the kind of its task."""

    kind: str = "lm"


class NotesBuilder(FileReaderBuilder, skip_registration=True):
    """Notes with keyed identifiers and, but for "lm", a label; `examples.Task` says what the label of a kind is.

    Args:
      work: what to write; None asks `read` for it, or only opens what is there.
      folder: where its shards are kept until all are there; None for a place beside them.
    """

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # where TFDS would look for checksums of downloads, by a package that it does not declare

    def __init__(self, *, work: Work | None = None, folder: Path | None = None, **kwargs: Any):
        self._work, self._folder = work, folder
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def read(self, tables: Path) -> Work:
        """Returns what to write, from the tables in a folder: the `manual_dir` of TFDS.

        Raises:
          UserError: this builder has no tables that it knows.
        """
        raise UserError(f"{self.name}: made from your own tables; name them in a config and run `jaxlora prepare`")

    @files.private()
    def download_and_prepare(self, **kwargs: Any) -> None:
        """Writes the dataset as TFDS does, readable by its owner only."""
        super().download_and_prepare(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clinical notes under keyed identifiers.",
            features=shards.features(self.builder_config.kind),
            metadata=tfds.core.MetadataDict(kind=self.builder_config.kind, labels=[], source=""),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        work = self._work or self.read(Path(dl_manager.manual_dir))
        folder = self._folder or Path(self.data_path) / "shards"
        folder.mkdir(exist_ok=True)
        label = short(self.name, work.task.name)
        shown = tqdm(work.examples, desc=label, unit=" notes", disable=None, leave=False)
        written = shards.write(folder, work.task.kind, shown, work.finish, work.workers)
        for split in ("train",) if work.task.kind == "lm" else ("train", "test"):
            if split not in written.lengths:
                raise UserError(f"dataset {label}: the {split} split has no rows; add patients or change their split")
        infos = [self._take(folder, split, written.lengths) for split in SPLITS if split in written.lengths]
        shutil.rmtree(folder)
        self.info.set_splits(tfds.core.splits.SplitDict(infos))
        self.info.metadata.update(kind=work.task.kind, labels=list(work.task.labels), source=work.source)
        work.dropped.update(written.dropped)

    def _take(self, folder: Path, split: str, lengths: dict[str, list[int]]) -> tfds.core.SplitInfo:
        """Moves the shards of a split to where TFDS looks for them."""
        template, size = self._get_filename_template(split), 0
        for number, path in enumerate(sorted(folder.glob(f"{split}-*"))):
            size += path.stat().st_size
            path.rename(template.sharded_filepath(shard_index=number, num_shards=len(lengths[split])))
        return tfds.core.SplitInfo(split, lengths[split], size, template)


class ClinicalNotes(NotesBuilder):
    """The datasets of your own tables: `clinical_notes/NAME`."""


def build(out_dir: str | Path, work: Work, builder: type[NotesBuilder] = ClinicalNotes) -> None:
    """Writes one dataset, or replaces it; when this fails, whatever was there before stays as it was.

    Args:
      out_dir: the folder of prepared datasets.
      work: the name of its task becomes the name of the dataset.
      builder: whose dataset it is.

    Raises:
      UserError: the name cannot be a folder's, or the train split (or the test split of a labelled task) is empty.
    """
    name, source = work.task.name, work.source
    if not name.replace("-", "").replace(".", "").isidentifier() or name.startswith("."):
        raise UserError(f"datasets.{name}: use letters, digits, '_', '-' and '.' in the name of a dataset")
    staging = Path(out_dir) / f".{builder.name}.{name}"
    _start(staging, source)
    config = builder.builder_configs.get(name) or NotesConfig(name=name, version=VERSION, kind=work.task.kind)
    try:
        with _quiet():
            made = builder(work=work, folder=staging / "shards", config=config, data_dir=staging / "data")
            made.download_and_prepare()
        place = Path(builder.name) / name
        _replace(Path(out_dir) / place, staging / "data" / place, staging / "previous")
        shutil.rmtree(staging)
    except BaseException:
        if not source:  # else what is done is done, and the next run of this source goes on from here
            shutil.rmtree(staging)
        raise


def source_of(data_dir: str | Path, name: str) -> str | None:
    """Returns the `Work.source` of a prepared dataset, or None where there is none that is whole."""
    try:
        return load(data_dir, name).source
    except UserError:
        return None


def _start(staging: Path, source: str) -> None:
    """Empties `staging`, unless it is of this very source."""
    told = staging / "source"
    if staging.exists() and not (source and told.exists() and told.read_text(encoding="utf-8") == source):
        shutil.rmtree(staging)
    if not staging.exists():
        files.write(told, source)
    shutil.rmtree(staging / "data", ignore_errors=True)  # what TFDS had begun to put together


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
    """A prepared dataset: its task, the number of examples in each of its splits, and what it was made of."""

    task: Task
    splits: dict[str, int]
    source: str
    _builder: tfds.core.DatasetBuilder

    def split(self, name: str) -> "Split":
        """Returns one split for random access.

        Raises:
          UserError: the dataset has no such split.
        """
        if name not in self.splits:
            raise UserError(f"dataset {self.task.name}: no split {name!r}{nearest(name, self.splits)}")
        return Split(self.task, self._builder.as_data_source(split=name))

    def positives(self, name: str) -> np.ndarray:
        """Returns in how many notes of a split each label of a "multilabel" task is, int64 `[labels]`.

        Raises:
          UserError: what `split` raises.
        """
        source, counts = self.split(name), np.zeros(len(self.task.labels), np.int64)
        for start in range(0, len(source), _READ):
            for row in source.__getitems__(range(start, min(start + _READ, len(source)))):
                counts[row["label"]] += 1
        return counts


@dataclass(frozen=True)
class Split:
    """The examples of one split: `split[i]` is a dictionary of id, patient, text, label and groups."""

    task: Task
    _source: Any

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns several examples, in half of the time that they take one by one."""
        try:
            return [shards.parsed(record, self.task.kind) for record in self._source.data_source.__getitems__(indices)]
        except (RuntimeError, ValueError, DecodeError, LookupError):
            raise _corrupt(self.task.name) from None


def names(data_dir: str | Path) -> list[str]:
    """Returns the names of the prepared datasets of a folder, as `load` takes them, sorted."""
    found = sorted(Path(data_dir).glob(f"*/*/{VERSION}/dataset_info.json"))
    return [short(path.parents[2].name, path.parents[1].name) for path in found]


def load(data_dir: str | Path, name: str) -> Prepared:
    """Opens a dataset that `build` wrote.

    Args:
      name: BUILDER/NAME, such as "mimic3_admission/mor"; one of your own tables is its name alone.

    Raises:
      UserError: no such dataset is prepared, or its files are damaged.
    """
    present = names(data_dir)
    if name not in present:
        raise UserError(
            f"{data_dir}: dataset {name!r} is not prepared{nearest(name, present)}; run `jaxlora prepare` to make it"
        )
    try:
        place = name if "/" in name else f"{ClinicalNotes.name}/{name}"
        builder = tfds.builder_from_directory(Path(data_dir) / place / VERSION)
        metadata = builder.info.metadata
        task, source = Task(name, metadata["kind"], tuple(metadata["labels"])), metadata["source"]
        for split in builder.info.splits.values():
            for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
                if ArrayRecordReader(str(path)).num_records() != length:
                    raise _corrupt(name)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, ParseError):
        raise _corrupt(name) from None
    return Prepared(task, {split: info.num_examples for split, info in builder.info.splits.items()}, source, builder)


def short(builder: str, name: str) -> str:
    """Returns the name by which `load` opens a dataset: BUILDER/NAME, and NAME for your own tables."""
    return name if builder == ClinicalNotes.name else f"{builder}/{name}"


def _corrupt(name: str) -> UserError:
    return UserError(f"dataset {name}: its files are damaged or cut short; run `jaxlora prepare` again")
