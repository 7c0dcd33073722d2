"""The datasets of MIMIC by their TFDS names: `mimic3_admission/mor`, `mimic4_admission/los`, `clinical_corpus/mimic4`.

To import this module is to register them, so that plain Python can open, or make, what `jaxlora prepare` makes:

    import tensorflow_datasets as tfds
    import jaxlora.data.datasets
    tfds.data_source("mimic3_admission/mor", split="train", data_dir="data/mimic")
    tables = tfds.download.DownloadConfig(manual_dir="MIMIC_DIR")
    tfds.builder("mimic3_admission/mor", data_dir="data/mimic").download_and_prepare(download_config=tables)

The latter makes one dataset, with the default config and in this process; `prepare` makes all, on every core.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from jaxlora.config import default
from jaxlora.data import corpus, tasks
from jaxlora.data.builders import VERSION, NotesBuilder, NotesConfig, Work
from jaxlora.data.examples import MODES, Task, load_key, named, split_of, unnamed
from jaxlora.data.mimic import Release
from jaxlora.data.mimic3 import Mimic3
from jaxlora.data.mimic4 import Mimic4
from jaxlora.data.notes import AdmissionNote, admission_notes


@dataclass
class Recipes:
    """What `prepare` can make of one release: the tables are read when the first dataset that needs them is made.

    Attributes:
      release: the tables. config: `mode`, `split`, `core_splits`, `beep`, `gem` and `corpus` are read.
      key: of the identifiers. workers: processes that write.
      flow: by dataset, and by builder for what its datasets share: what was counted and left out.
    """

    release: Release
    config: object
    key: bytes
    workers: int = 1
    flow: dict[str, Counter[str]] = field(default_factory=dict)

    @cached_property
    def cohort(self) -> tasks.Cohort:
        """The admissions of the release."""
        return tasks.cohort(self.release, self.config, self.key)

    @cached_property
    def notes(self) -> list[AdmissionNote]:
        """The admission notes that the tasks share."""
        flow = self.flow[named(self.admissions.name, self.config.mode)] = Counter()
        return admission_notes(self.release, self.cohort.admissions, self.config.mode, flow)

    @property
    def admissions(self) -> type[NotesBuilder]:
        """The builder of the tasks of this release."""
        return {"mimic3": Mimic3Admission, "mimic4": Mimic4Admission}[self.release.name]

    def works(self) -> Iterator[tuple[type[NotesBuilder], str, Callable[[], Work]]]:
        """Yields builder, name and maker of every dataset that can be made of the release."""
        mode, last = self.config.mode, "pmv"  # of few patients: where there is none to test on, all the others are made
        made = {name: partial(self.task, name) for name in tasks.available(self.release, self.config)}
        for name in made:
            if name != last:
                yield self.admissions, named(name, mode), made[name]
        yield ClinicalCorpus, named(self.release.name, mode), self.corpus
        if last in made:
            yield self.admissions, named(last, mode), made[last]

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yields the name of every dataset that cannot be made of the release, and what it needs."""
        for name in tasks.TASKS[self.release.name]:
            lacking = tasks.missing(self.release, self.config, name)
            if lacking:
                yield f"{self.admissions.name}/{named(name, self.config.mode)}", lacking

    def task(self, name: str) -> Work:
        """Returns one outcome task, by its name in `tasks.TASKS`."""
        notes, flow = self.notes, Counter()
        task, examples = tasks.make(self.cohort, name, notes, flow)
        self.flow[f"{self.admissions.name}/{task.name}"] = flow
        return Work(task, examples, workers=self.workers)

    def corpus(self) -> Work:
        """Returns the corpus of step 1: every note, split like the tasks, unless by note.

        Splitting by patient keeps the notes of test patients out of language-model training; the paper splits by note.
        """
        mode, split = self.config.mode, self.config.split
        recipe = corpus.recipe(self.config.corpus, mode)
        place = self.cohort.split_of
        if recipe.by_note:
            validation, test = corpus.PUBLISHED_SHARES if mode == "paper" else (split.validation, split.test)
            place = partial(split_of, validation=validation, test=test, seed=split.seed)
        task = Task(named(self.release.name, mode), "lm")
        flow = self.flow[f"{ClinicalCorpus.name}/{task.name}"] = Counter()
        examples = corpus.notes(self.release, recipe, place, flow)
        return Work(task, examples, corpus.Finish(recipe, self.key), self.workers)


def recipes(config, key: bytes, workers: int) -> list[Recipes]:
    """Returns the recipes of every release that a config names."""
    releases = [Mimic3(config.mimic3)] if config.mimic3 else []
    releases += [Mimic4(config.mimic4, config.mimic4_note)] if config.mimic4 else []
    return [Recipes(release, config, key, workers) for release in releases]


def _configs(kinds: dict[str, str]) -> list[NotesConfig]:
    return [
        NotesConfig(name=named(name, mode), version=VERSION, kind=kind)
        for mode in MODES
        for name, kind in kinds.items()
    ]


def _outcomes(release: str) -> list[NotesConfig]:
    return _configs({name: outcome.kind for name, outcome in tasks.TASKS[release].items()})


class _FromTables(NotesBuilder, skip_registration=True):
    """A builder that knows the tables its datasets are made of."""

    def read(self, tables: Path) -> Work:
        """Returns the dataset of this builder's config, made of the tables in a folder."""
        config = default()
        name, config.mode = unnamed(self.builder_config.name)
        release = name if self.name == ClinicalCorpus.name else self.name.removesuffix("_admission")
        config[release] = str(tables)
        made = recipes(config, load_key(self._data_dir_root), workers=1)[0]
        return made.corpus() if self.name == ClinicalCorpus.name else made.task(name)


class Mimic3Admission(_FromTables):
    """The outcome tasks of MIMIC-III v1.4."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "The tables of physionet.org/content/mimiciii/1.4 as they are, .csv.gz or .csv."
    BUILDER_CONFIGS = _outcomes("mimic3")


class Mimic4Admission(_FromTables):
    """The outcome tasks of MIMIC-IV 2.2 or 3.x, with MIMIC-IV-Note 2.2."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "hosp/ and icu/ of mimiciv and note/ of mimic-iv-note, both of physionet.org."
    BUILDER_CONFIGS = _outcomes("mimic4")


class ClinicalCorpus(_FromTables):
    """The notes of a release, to learn the language of."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "The tables of MIMIC-III, or of MIMIC-IV and MIMIC-IV-Note, in one folder."
    BUILDER_CONFIGS = _configs({"mimic3": "lm", "mimic4": "lm"})
