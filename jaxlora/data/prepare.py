"""`jaxlora prepare`: every dataset that a config names, from its tables to array_record."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxlora import files
from jaxlora.data import builders, corpus, datasets, flow, generic, native
from jaxlora.data.builders import ClinicalNotes, NotesBuilder, Work
from jaxlora.data.examples import MODES, SPLITS, check_shares, load_key, named, unnamed
from jaxlora.errors import UserError, one_of
from jaxlora.workers import cores


@files.private()
def prepare(config, out_dir: str | Path) -> None:
    """Builds the datasets of `config.datasets` and, from `config.mimic3` and `config.mimic4`, tasks and a corpus each.

    A dataset that is there and would come out the same is left alone, so that a run that was stopped goes on where it
    stopped. Files are readable by their owner only. The key of the identifiers, `id.key`, is kept when datasets are
    prepared again, so that ids stay the same; `flow.md` and `flow.json` count what was left out and why.

    Args:
      config: the fields of `config.default` that `prepare` reads.
      out_dir: the folder of prepared datasets.

    Raises:
      UserError: nothing is to be prepared, or a table is wrong; what was prepared before stays as it was.
    """
    if not (config.datasets or config.mimic3 or config.mimic4):
        raise UserError(
            "neither datasets nor mimic3 nor mimic4 is set; name your tables in datasets, or a folder of MIMIC"
        )
    check_shares(config.split)
    one_of("config.mode", config.mode, MODES)
    corpus.recipe(config.corpus, config.mode)  # what is wrong with it is said before hours of work
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with files.locked(Path(out_dir) / ".lock", "another `jaxlora prepare` is writing there; wait for it to end"):
        flow.read(out_dir)  # a damaged one is told before anything is replaced
        key = load_key(out_dir)
        for name, dataset in config.datasets.items():
            _own(config, out_dir, name, dataset, key)
        for made in datasets.recipes(config, key, workers=cores()):
            _release(made, out_dir)


def _own(config, out_dir: str | Path, name: str, dataset, key: bytes) -> None:
    described = dataset.to_dict()
    paths = [table["path"] for table in described["tables"].values()] if "tables" in described else []
    paths += [described[split] for split in SPLITS if described.get(split)]
    source = _source(out_dir, paths, name, described, config.split.to_dict(), key.hex())
    if not _present(out_dir, name, source):
        read = native.read if "format" in dataset else generic.read
        work = Work(*read(name, dataset, config.split, key), workers=cores(), source=source)
        flow.add(out_dir, {name: _build(out_dir, ClinicalNotes, work)})


def _release(made: datasets.Recipes, out_dir: str | Path) -> None:
    config, release = made.config, made.release.name
    folders = [config.mimic3] if release == "mimic3" else [config.mimic4, config.mimic4_note]
    # One of the tables may stand for the folder that they lie in.
    folders = [os.path.dirname(path) if os.path.isfile(path) else path for path in folders]
    common = (config.mode, config.split.to_dict(), made.key.hex())
    lists = [config.core_splits, config.beep, config.gem, config.gem_procedures]
    of_tasks = _source(out_dir, [*folders, *lists], *common)
    of_corpus = _source(out_dir, [*folders, *lists, config.corpus.exclude], config.corpus.to_dict(), *common)
    for builder, name, make in made.works():
        full = f"{builder.name}/{name}"
        source = of_corpus if builder is datasets.ClinicalCorpus else of_tasks
        if not _present(out_dir, full, source):
            work = make()
            work.source = source
            made.flow[full].update(_build(out_dir, builder, work))
            flow.add(out_dir, made.flow)
    for name, lacking in made.missing():
        print(f"{name}: not made; it needs {lacking}")


def _present(out_dir: str | Path, name: str, source: str) -> bool:
    """Returns whether a dataset is there, and its flow, that `source` would make once more, and says so."""
    told = flow.read(out_dir)
    shared = named(name.partition("/")[0], unnamed(name)[1])  # of the outcome tasks of a release
    if name not in told or ("_admission/" in name and shared not in told):
        return False
    if builders.source_of(out_dir, name) != source:
        return False
    print(f"{name}: unchanged")
    return True


def _build(out_dir: str | Path, builder: type[NotesBuilder], work: Work) -> dict[str, int]:
    """Builds one dataset, prints what it is, and returns what was counted while it was written."""
    builders.build(out_dir, work, builder)
    task, full = work.task, builders.short(builder.name, work.task.name)
    splits = builders.load(out_dir, full).splits
    sizes = ", ".join(f"{size:,} {split}" for split, size in splits.items())
    print(f"{full}: {task.kind}, {sizes}" + (f", {len(task.labels)} labels" if task.labels else ""))
    return dict(work.dropped) | {f"examples: {split}": size for split, size in splits.items()}


def _source(out_dir: str | Path, paths: Iterable[str], *parts) -> str:
    """Returns a digest of the files under some paths (by name, size and time), of `parts`, and of the recipes here.

    What lies in `out_dir` is left out, which may lie among the tables.
    """
    digest, own = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()), Path(out_dir).resolve()
    for path in sorted({found for root in paths if root for found in _files(Path(root))}):
        if own not in path.resolve().parents:
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    """Yields a file, or the files under a folder, links followed."""
    if root.is_file():
        yield root
    for folder, _, names in os.walk(root, followlinks=True):
        yield from (Path(folder) / name for name in names if (Path(folder) / name).is_file())
