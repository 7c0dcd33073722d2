"""`jaxlora prepare`: every dataset that a config names, from its tables to array_record."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxlora import files
from jaxlora.data import builders, datasets, generic, native
from jaxlora.data.builders import ClinicalNotes, NotesBuilder, Work
from jaxlora.data.examples import MODES, SPLITS, check_shares, load_key
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
    key = load_key(out_dir)
    for name, dataset in config.datasets.items():
        _own(config, out_dir, name, dataset, key)
    for made in datasets.recipes(config, key, workers=cores()):
        _release(made, out_dir)


def _own(config, out_dir: str | Path, name: str, dataset, key: bytes) -> None:
    described = dataset.to_dict()
    paths = [table["path"] for table in described["tables"].values()] if "tables" in described else []
    paths += [described[split] for split in SPLITS if described.get(split)]
    source = _source(paths, name, described, config.split.to_dict(), key.hex())
    if _present(out_dir, ClinicalNotes, name, source):
        return
    read = native.read if "format" in dataset else generic.read
    _build(out_dir, ClinicalNotes, Work(*read(name, dataset, config.split, key), workers=cores(), source=source))


def _release(made: datasets.Recipes, out_dir: str | Path) -> None:
    config = made.config
    folders = [config.mimic3] if made.release.name == "mimic3" else [config.mimic4, config.mimic4_note]
    described = {name: config[name] for name in ("mode", "split", "corpus")}
    paths = [*folders, config.core_splits, config.beep, config.gem, config.corpus.exclude]
    source = _source(paths, str(described), made.key.hex())
    for builder, name, make in made.works():
        if _present(out_dir, builder, name, source):
            continue
        work = make()
        work.source = source
        _build(out_dir, builder, work)
        full = f"{builder.name}/{name}"
        made.flow[full].update(dict(sorted(work.dropped.items())))
        made.flow[full].update({f"examples: {s}": count for s, count in builders.load(out_dir, full).splits.items()})
        _write_flow(Path(out_dir), made.flow)


def _present(out_dir: str | Path, builder: type[NotesBuilder], name: str, source: str) -> bool:
    """Returns whether a dataset is there that `source` would make once more, and says so."""
    full = builders.short(builder.name, name)
    if builders.source_of(out_dir, full) != source:
        return False
    print(f"{full}: unchanged")
    return True


def _build(out_dir: str | Path, builder: type[NotesBuilder], work: Work) -> None:
    builders.build(out_dir, work, builder)
    task, full = work.task, builders.short(builder.name, work.task.name)
    splits = builders.load(out_dir, full).splits
    sizes = ", ".join(f"{size:,} {split}" for split, size in splits.items())
    print(f"{full}: {task.kind}, {sizes}" + (f", {len(task.labels)} labels" if task.labels else ""))


def _source(paths: Iterable[str], *parts) -> str:
    """Returns a digest of the files under some paths (by name, size and time), of `parts`, and of the recipes here."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for root in (Path(path) for path in paths if path):
        for path in [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file()):
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _write_flow(out_dir: Path, flow: dict[str, Counter[str]]) -> None:
    """Writes what was counted, over what an earlier run counted of the same datasets."""
    path = out_dir / "flow.json"
    known = files.read_json_object(path, "delete it, and prepare again") if path.exists() else {}
    known |= flow
    files.write_json(path, known)
    files.write(out_dir / "flow.md", "\n".join(_markdown(known)) + "\n")


def _markdown(flow: dict[str, dict[str, int]]) -> Iterator[str]:
    """The way of the notes and admissions, as a CONSORT diagram has it: in, out and why, what is left and where it is.

    What the datasets of a builder share stands under the builder's name.
    """
    yield "# Flow"
    for name, counts in flow.items():
        yield from ("", f"## {name}", "", "| | count |", "|---|---:|")
        places = {"read": 0, "kept": 2, **dict.fromkeys(SPLITS, 3)}
        for what, count in sorted(counts.items(), key=lambda item: places.get(item[0].partition(": ")[2], 1)):
            of, _, reason = what.partition(": ")
            out = places.get(reason, 1) == 1
            yield f"| {'&nbsp;&nbsp;− ' if out else ''}{of}: {reason} | {count:,} |"
