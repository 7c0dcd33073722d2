"""Preparing MIMIC of full size: time and memory, beside the published way and the engines one could have chosen.

The tables are generated (`jaxlora synthesize`) under ``--directory`` and kept there: MIMIC-III of full size, a
twentieth of it, and MIMIC-IV of ``--patients4``. Every measurement is a fresh process; its memory is the most that it
and its processes hold together, sampled ten times a second. pandas, DuckDB and Polars are measured where they are
installed (`pip install -e .[bench]`).
For example::

    python benchmarks/data.py --directory bench_data
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

FULL, SAMPLE = 46_520, 46_520 // 20


def engine(path, which):
    """Read the notes row by row, as `tables.rows` must: identifier, category and text. Return the characters."""
    from csv_engines import ENGINES

    return sum(len(text or "") for _, _, text in ENGINES[which](path, ("HADM_ID", "CATEGORY", "TEXT")))


def tasks(folder, out):
    """Make admission notes and the outcome tasks; return the number of notes."""
    from jaxlora.config import default
    from jaxlora.data import builders, datasets
    from jaxlora.workers import cores

    config = default()
    config.mimic3 = folder
    made = datasets.recipes(config, bytes(32), workers=cores())[0]
    for builder, _, make in made.works():
        if builder is not datasets.ClinicalCorpus:
            work = make()
            builders.build(out, work, builder)
    return len(made.notes)


def corpus(folder, out, release):
    """Make the corpus of a release; return the characters read, and the notes and shards written."""
    from jaxlora.config import default
    from jaxlora.data import builders, datasets
    from jaxlora.workers import cores

    config = default()
    config[release] = folder
    made = datasets.recipes(config, bytes(32), workers=cores())[0]
    work, read, examples = made.corpus(), 0, None

    def counted():
        nonlocal read
        for example in examples:
            read += len(example.text)
            yield example

    examples, work.examples = work.examples, counted()
    builders.build(out, work, datasets.ClinicalCorpus)
    sizes = builders.load(out, f"clinical_corpus/{work.task.name}").splits
    return {"characters": read, "notes": sum(sizes.values())}


def tokenizing(out, release, directory):
    """Tokenize the test split with `tokens.tokenize`, and the same texts with the Rust tokenizer alone, three times.

    The tokenizer is one of LLaMA's kind, trained on the notes, whose words do not give more than 5,000 pieces.
    """
    from jaxlora.data import builders
    from jaxlora.data.tokens import Tokenizer, tokenize, train_tokenizer

    split = builders.load(out, f"clinical_corpus/{release}").split("test")
    rows = split.__getitems__(range(min(len(split), 20_000)))
    texts = [row["text"] for row in rows]
    train_tokenizer([part for text in texts[:2000] for part in text.split("\n")], directory, 5000)
    tokenizer, times = Tokenizer(directory), {"ours": [], "rust": []}
    for _ in range(3):
        start = time.perf_counter()
        notes = tokenize(rows, tokenizer, 512, "chunk", lambda _: None)
        times["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for at in range(0, len(texts), 256):
            tokenizer._backend.encode_batch_fast(texts[at : at + 256], add_special_tokens=False)
        times["rust"].append(time.perf_counter() - start)
    found = {"characters": sum(map(len, texts)), "tokens": len(notes.tokens)}
    return found | {name: sorted(of)[1] for name, of in times.items()}


def published(folder):
    """Do what the published scripts do: the whole table in pandas, then eight regular expressions over its notes."""
    import pandas

    def table(name):
        return pandas.read_csv(next(Path(folder).glob(f"{name}.csv*")))

    admissions, notes = table("ADMISSIONS"), table("NOTEEVENTS")
    admissions = admissions[admissions.ADMISSION_TYPE != "NEWBORN"]
    notes = notes[
        notes.HADM_ID.isin(admissions.HADM_ID) & notes.TEXT.notnull() & (notes.CATEGORY == "Discharge summary")
    ]
    notes = notes.sort_values("CHARTDATE").drop_duplicates("TEXT", keep="last")
    reports = notes[notes.DESCRIPTION == "Report"].groupby("HADM_ID").agg("last")
    text = notes.groupby("HADM_ID").TEXT.agg(lambda parts: "\n\n".join(parts)).loc[reports.index].str.strip()
    encoded, sections = text.str.replace("\n", "\\n", regex=False), {}
    for heading in ("chief complaint", "present illness", "medical history", "medications on admission", "allergies",
                    "physical exam", "family history", "social history"):  # fmt: skip
        found = encoded.str.extract(rf"(?i){heading}:(.+?)\\n\\n[^(\\|\d|\.)]+?:")[0]
        sections[heading] = found.str.replace("\\n", " ", regex=False).str.strip().fillna("")
    frame = pandas.DataFrame(sections)
    kept = frame[(frame["chief complaint"] != "") | (frame["present illness"] != "") | (frame["medical history"] != "")]
    labels = [table(name).groupby("HADM_ID").ICD9_CODE.agg(list) for name in ("DIAGNOSES_ICD", "PROCEDURES_ICD")]
    return min(len(kept), *(len(kept.join(codes)) for codes in labels))


def resident(process):
    """Return the bytes that a process and its descendants hold now."""
    children, total = {}, 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append((int(status.parent.name), int(fields[21])))
        if int(status.parent.name) == process:
            total = int(fields[21])
    queue = [process]
    while queue:
        for child, pages in children.get(queue.pop(), []):
            total += pages
            queue.append(child)
    return total * os.sysconf("SC_PAGE_SIZE")


def measured(function, *arguments):
    """Call one of the functions above in a process of its own; return seconds, peak bytes and result."""
    command = [sys.executable, __file__, "--call", json.dumps([function, *arguments])]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def watch():
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.stdout.read()
    watcher.join()
    if process.returncode:
        sys.exit(f"{function} failed")
    return time.perf_counter() - start, peak, json.loads(output.splitlines()[-1])


def line(what, seconds, peak, more=""):
    """Print one measurement."""
    print(f"{what:<52}{seconds:8.1f} s {peak / 2**20:8,.0f} MiB  {more}", flush=True)


def main():
    """Generate what is missing, measure everything, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--patients", type=int, default=FULL, help="of the large MIMIC-III")
    parser.add_argument("--patients4", type=int, default=20_000, help="of MIMIC-IV")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        name, *arguments = json.loads(options.call)
        print(json.dumps(globals()[name](*arguments)))
        return
    from jaxlora.data.synthetic import synthesize

    full, sample, fourth = (options.directory / name for name in ("mimic3", "mimic3_sample", "mimic4"))
    sizes = {full: ("mimic3", options.patients), sample: ("mimic3", max(options.patients // 20, 1))}
    for folder, (tables, patients) in {**sizes, fourth: ("mimic4", options.patients4)}.items():
        if not folder.exists():
            start = time.perf_counter()
            synthesize(tables, folder, patients, seed=0, notes="full")
            print(f"generated {folder.name}: {patients:,} patients in {time.perf_counter() - start:.0f} s", flush=True)
        rows = json.loads((folder / "answers.json").read_text())["tables"]
        print(f"{folder.name}: " + ", ".join(f"{name} {count:,}" for name, count in rows.items()), flush=True)

    notes = str(next(full.glob("NOTEEVENTS.csv*")))
    for which in ("ours", "duckdb", "polars", "csv"):
        if which in ("ours", "csv") or importlib.util.find_spec(which):
            seconds, peak, characters = measured("engine", notes, which)
            line(f"reading NOTEEVENTS: {which}", seconds, peak, f"{characters / seconds / 1e6:.0f} MB/s")
    out = options.directory / "prepared"
    seconds, peak, count = measured("tasks", str(full), str(out))
    line("MIMIC-III: admission notes and the tasks", seconds, peak, f"{count:,} notes")
    for release, folder in (("mimic3", full), ("mimic4", fourth)):
        seconds, peak, made = measured("corpus", str(folder), str(out), release)
        speed = f"{made['notes']:,} notes, {made['characters'] / seconds / 1e6:.0f} MB/s"
        line(f"{release}: the corpus of step 1", seconds, peak, speed)
    seconds, peak, made = measured("tokenizing", str(out), "mimic4", str(options.directory / "tokenizer"))
    ours, rust = (made["characters"] / made[name] / 1e6 for name in ("ours", "rust"))
    length = made["characters"] / made["tokens"]
    speed = f"{ours:.1f} MB/s, the Rust tokenizer alone {rust:.1f}; {length:.1f} characters a token"
    line("tokenizing 20,000 notes", seconds, peak, speed)
    seconds, peak, count = measured("tasks", str(sample), str(out / "sample"))
    line("a twentieth of MIMIC-III: notes and tasks", seconds, peak, f"{count:,} notes")
    if importlib.util.find_spec("pandas"):
        seconds, peak, count = measured("published", str(sample))
        line("... its notes the published way (pandas)", seconds, peak, f"{count:,} notes")


if __name__ == "__main__":
    main()
