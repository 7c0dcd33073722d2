"""A whole generated release, written by blocks of patients: the same bytes whatever the number of processes.

Each block has a random generator of its own and writes its rows to part files, which are appended in order. So memory
holds a few notes a process, whatever the size, and a compressed table is a gzip file of one member a block.
"""

import contextlib
import json
import multiprocessing
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from jaxlora import files
from jaxlora.data.synthetic import answers, codes, layout, mimic3, mimic4
from jaxlora.data.synthetic.hybrid import write_hybrid
from jaxlora.data.synthetic.layout import Table
from jaxlora.data.synthetic.notes import DENSITIES, prose
from jaxlora.data.synthetic.visits import person
from jaxlora.errors import UserError, one_of
from jaxlora.workers import cores

_BLOCK = 250  # patients
_ROWS = 1_000_000  # of ROW_IDs, each block has a range of its own


@dataclass(frozen=True)
class _Release:
    columns: dict[str, str]
    write: Callable
    written_last: tuple[str, ...] = ()


_RELEASES = {
    "mimic3": _Release(layout.MIMIC3, mimic3.write, ("D_ICD_DIAGNOSES", "D_ICD_PROCEDURES")),
    "mimic4": _Release(layout.MIMIC4, mimic4.write),
}


@files.private()
def synthesize(
    tables: str,
    folder: str | Path,
    patients: int,
    seed: int,
    notes: str = "sparse",
    source: str | Path = "",
    compressed: bool = True,
    workers: int | None = None,
) -> None:
    """Writes every table of a generated release, with every quirk of the real one, and its answer key.

    The key is `answers.jsonl`, a line for each admission, and `answers.json`, the counts; both are known by
    construction. From about 70 patients on, every quirk occurs. Processes are spawned, so a script calls this below
    `if __name__ == "__main__":`.

    Args:
      tables: "mimic3", "mimic4", or "hybrid": the public demo of MIMIC-III with notes made of public visit notes.
      folder: where the tables are written; new or empty.
      patients: how many; MIMIC-III has 46,520. The hybrid has those of the demo.
      seed: of everything that is drawn.
      notes: "sparse" for about four short notes an admission, "full" for 35 as long as real ones.
      source: for the hybrid, the folder with mimiciii-demo-1.4 and clinical-visit-note-corpus.
      compressed: whether to write .csv.gz or .csv.
      workers: processes; None for one a core.

    Raises:
      UserError: an argument is none of these, the folder is not empty, or the source is missing.
    """
    one_of("--tables", tables, (*_RELEASES, "hybrid"))
    one_of("--notes", notes, DENSITIES)
    if patients < 1:
        raise UserError("--patients: fewer than 1; give a positive number")
    with files.new_directory(str(folder)) as new:
        if tables == "hybrid":
            write_hybrid(new, source, seed, compressed)
        else:
            _write(tables, new, patients, seed, notes, ".csv.gz" if compressed else ".csv", workers)


def _write(name: str, folder: Path, patients: int, seed: int, notes: str, suffix: str, workers: int | None) -> None:
    release, total = _RELEASES[name], answers.Tally()
    streamed = [table for table in release.columns if table not in release.written_last]
    for table in streamed:
        with Table(folder / (table + suffix), quoted=name == "mimic3") as file:
            file.header(release.columns[table])
    blocks = [range(start, min(start + _BLOCK, patients)) for start in range(0, patients, _BLOCK)]
    write = partial(_block, name, folder, seed, notes, suffix)
    with tqdm(total=patients, desc=name, unit="patient", disable=None) as bar:
        with contextlib.closing(_in_order(write, blocks, workers)) as tallies:
            for number, tally in enumerate(tallies):
                for file in (*(table + suffix for table in streamed), "answers.jsonl"):
                    layout.append(_part(folder, number) / file, folder / file)
                shutil.rmtree(_part(folder, number))
                total.add(tally)
                bar.update(len(blocks[number]))
    for table, kind, title in zip(release.written_last, ("diag", "proc"), ("disorder", "procedure"), strict=False):
        with Table(folder / (table + suffix), quoted=True, row_id=1) as file:
            file.header(release.columns[table])
            for number, code in enumerate(sorted(total.codes[kind])):
                if number % 100 != 50:  # a few codes in use have no title in the real tables either
                    file.add(code, *codes.titles(code, title))
            total.tables[table] = file.rows
    files.write_json(folder / "answers.json", total.summary(name))


def _in_order(write: Callable, blocks: list[range], workers: int | None) -> Iterator[answers.Tally]:
    count = min(workers or cores(), len(blocks))
    if count == 1:
        yield from map(write, range(len(blocks)), blocks)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(write, range(len(blocks)), blocks)
        finally:
            pool.shutdown(cancel_futures=True)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}"


def _block(name: str, folder: Path, seed: int, notes: str, suffix: str, number: int, patients: range) -> answers.Tally:
    """Writes the parts of one block of patients and returns what it counted."""
    release, tally, rng = _RELEASES[name], answers.Tally(), random.Random(f"{seed}:{number}")
    with contextlib.ExitStack() as stack:
        tables = {}
        for table in release.columns:
            if table not in release.written_last:
                first = 1 + number * _ROWS if name == "mimic3" else None
                path = _part(folder, number) / (table + suffix)
                tables[table] = stack.enter_context(Table(path, name == "mimic3", first))
        key = stack.enter_context((_part(folder, number) / "answers.jsonl").open("w", encoding="utf-8"))
        for patient in patients:
            made = person(rng, patient, prose(seed, notes), mimic4=name == "mimic4")
            for line in release.write(rng, made, tables, tally):
                key.write(json.dumps(line) + "\n")
        tally.tables.update({table: written.rows for table, written in tables.items()})
    return tally
