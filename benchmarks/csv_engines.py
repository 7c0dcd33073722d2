"""Which reader of CSV gives every row of a table of notes: `tables.rows`, DuckDB, Polars, the standard library's csv.

Generates valid tables whose notes have lines that look like rows (as many commas, quotes, empty lines), and broken
ones, and compares what each reader gives with what was written. For example::

    python benchmarks/csv_engines.py --directory csv_engines --files 60
"""

import argparse
import collections
import csv
import gzip
import random
from pathlib import Path

LINES = (
    "alert, oriented",
    "no distress",
    "Lungs clear, no wheeze, no rales",
    "",
    "Abdomen: soft, nt, nd, bs",
    'said "ok", left',
    '"quoted", x',
    "a,b,c,d,e,f,g,h,i,j,k",
    "1,2",
)
BROKEN = {
    "a row cut short": lambda rows: rows[: len(rows) // 2] + ["7\n"] + rows[len(rows) // 2 :],
    "a row too long": lambda rows: rows[: len(rows) // 2] + ["7,x,y" + ",z" * 20 + "\n"] + rows[len(rows) // 2 :],
    "a quote that never closes": lambda rows: [*rows, '7,"never closed\n', "8,x\n"],
}


def ours(path, columns):
    """Yield the cells of some columns by `tables.rows`."""
    from jaxlora.data import tables

    for _, row in tables.rows(path, columns):
        yield tuple(row[column] for column in columns)


def duckdb(path, columns):
    """Yield the cells of some columns by DuckDB, told what there is to know of the file."""
    import duckdb

    with duckdb.connect(config={"memory_limit": "1GB"}) as connection:
        options = "header=true, all_varchar=true, delim=',', quote='\"', escape='\"', nullstr='', strict_mode=true"
        names = ", ".join(f'"{column}"' for column in columns)
        table = connection.sql(f"SELECT {names} FROM read_csv(?, {options})", params=[str(path)])
        for batch in table.to_arrow_reader(1024):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def polars(path, columns):
    """Yield the cells of some columns by Polars."""
    import polars

    for frame in polars.scan_csv(path, infer_schema=False).select(columns).collect_batches(chunk_size=1024):
        yield from frame.iter_rows()


def standard(path, columns):
    """Yield the cells of some columns by the standard library."""
    csv.field_size_limit(2**26)
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield tuple(row[column] or None for column in columns)


ENGINES = {"ours": ours, "duckdb": duckdb, "polars": polars, "csv": standard}


def written(path, seed):
    """Write a table of about 40 MB; return its rows as they stand in the file."""
    rng = random.Random(seed)
    width, lines = rng.choice((2, 3, 4, 5, 11)), rng.sample(LINES, rng.randrange(2, 6))
    length = rng.choice((30, 400, 5000))
    notes = ["\n".join(rng.choice(lines) for _ in range(length)) for _ in range(50)]
    notes = ['"' + note.replace('"', '""') + '"' for note in notes]
    header = ",".join(["id", "text", *(f"c{i}" for i in range(width - 2))]) + "\n"
    count = 40_000_000 // sum(map(len, notes)) * 50
    rows = [",".join([str(i), notes[i % 50], *["x"] * (width - 2)]) + "\n" for i in range(max(count, 50))]
    path.write_text(header + "".join(rows), encoding="utf-8", newline="")
    return header, rows


def outcome(engine, path, expected):
    """Return what an engine makes of a file: every row, or what else."""
    seen, right = 0, True
    try:
        for row in engine(path, ("id", "text")):
            right = right and seen < len(expected) and row == expected[seen]
            seen += 1
    except Exception:  # every engine has errors of its own
        return "refused" if right else "refused after wrong rows"
    return "every row" if right and seen == len(expected) else "wrong rows, without a word"


def main():
    """Compare the engines on valid and on broken files; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--files", type=int, default=60)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    path = options.directory / "notes.csv"
    valid = {name: collections.Counter() for name in ENGINES}
    for seed in range(options.files):
        written(path, seed)
        expected = list(standard(path, ("id", "text")))
        for name, engine in ENGINES.items():
            valid[name][outcome(engine, path, expected)] += 1
    for name, counts in valid.items():
        print(f"{name:<8}{options.files} valid files: " + ", ".join(f"{what} {n}" for what, n in counts.most_common()))
    for what, spoil in BROKEN.items():
        header, rows = written(path, 0)
        path.write_text(header + "".join(spoil(rows)), encoding="utf-8", newline="")
        found = {name: outcome(engine, path, []) for name, engine in ENGINES.items()}
        told = ", ".join(f"{name} {'refuses' if 'refused' in how else 'accepts'}" for name, how in found.items())
        print(f"{what}: {told}", flush=True)
    path.unlink()


if __name__ == "__main__":
    main()
