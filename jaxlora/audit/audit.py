"""`jaxlora audit`: what prepared datasets give away, in audit.md, audit.json and figures."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxlora import files
from jaxlora.audit import contamination, figures, leakage, markdown, patients, words
from jaxlora.audit.contents import Part, names, records, survey
from jaxlora.data import builders, mimic, tables
from jaxlora.data.corpus import excluded
from jaxlora.data.examples import KEY_FILE, keyed, load_key
from jaxlora.errors import UserError

MOST_TRAIN_NOTES = 50_000  # read by the bag of words of a dataset; what is beyond changes it little
EXCLUDE_FILE = "exclude.txt"


@files.private()
def audit(config, workdir: str | Path, smallest: int = 20, workers: int | None = None) -> str:
    """Audits the prepared datasets of a folder, those of one mode and your own tables'.

    What is not there is skipped, and the report says so.

    Writes `audit.md`, `audit.json` and `figures/audit-*.png` into the folder, and `exclude.txt` where there is a
    corpus: the hashes of its notes that hold more than half of a test note, and those that `config.corpus.exclude` has.
    No note, no identifier, and no word that the notes of few patients have, is in any of them but for the hashes.

    Args:
      config: `mode` is read, and `mimic3`, whose ICUSTAYS tells the patients that MIMIC-IV cannot have.
      workdir: the folder that `prepare` wrote.
      smallest: how many patients' notes have a word that is told, at the least.
      workers: processes that read a corpus; None takes one for each core.

    Returns:
      The Markdown.

    Raises:
      UserError: nothing is prepared there, or a file is damaged.
    """
    folder = Path(workdir)
    parts = survey(folder, config.mode)
    if not parts:
        raise UserError(f"--workdir: {folder} holds no prepared dataset; give the folder that `prepare` wrote")
    found = {
        "smallest": smallest,
        "leakage": _leakage(folder, parts, smallest),
        "contamination": _contamination(config, folder, parts, workers),
        "patients_in_two_splits": [dataclasses.asdict(s) for s in patients.in_two_splits(parts)],
    }
    overlaps = found["contamination"].pop("overlaps")
    files.write_json(folder / "audit.json", found)
    made = figures.draw(folder / "figures", found["leakage"], overlaps)
    text = markdown.report(found)
    pictures = "\n".join(f"![{path.stem}](figures/{path.name})" for path in made)
    files.write(folder / "audit.md", f"{text}\n{pictures}\n")
    return text


def _leakage(folder: Path, parts: Sequence[Part], smallest: int) -> dict[str, dict]:
    labelled = {(part.dataset, part.split): part for part in parts if part.labels is not None}
    datasets = [name for name, split in labelled if split == "train" and (name, "test") in labelled]
    result = {}
    for builder in dict.fromkeys(name.rpartition("/")[0] for name in datasets):
        of_builder = [name for name in datasets if name.rpartition("/")[0] == builder]
        chosen = {(name, split): _chosen(labelled[name, split]) for name in of_builder for split in ("train", "test")}
        rows: dict[tuple[str, str], list[int]] = {}
        counted = words.count(_distinct(folder, chosen, rows))
        for name in of_builder:
            task = builders.load(folder, name).task
            samples = []
            for split in ("train", "test"):
                part, kept = labelled[name, split], chosen[name, split]
                truth = leakage.truth(task, [part.labels[i] for i in kept])
                samples.append(leakage.Sample(np.asarray(rows[name, split], np.int64), part.patients[kept], truth))
            result[name] = dataclasses.asdict(leakage.probe(task, counted, *samples, smallest))
    return result


def _chosen(part: Part) -> np.ndarray:
    """Returns which notes of a split to read: all, or of a long train split those of the first keyed identifiers,
    which are random and the same in every dataset of an admission."""
    if part.split == "test" or len(part.ids) <= MOST_TRAIN_NOTES:
        return np.arange(len(part.ids))
    return np.sort(np.argsort(part.ids, kind="stable")[:MOST_TRAIN_NOTES])


def _distinct(folder: Path, chosen: dict[tuple[str, str], np.ndarray], rows: dict[tuple[str, str], list[int]]):
    """Yields each text of some datasets once, and tells in `rows` which one every note has."""
    numbers: dict[bytes, int] = {}
    for (name, split), kept in chosen.items():
        of_split = rows.setdefault((name, split), [])
        for record in records(builders.load(folder, name), name, split, kept):
            digest = hashlib.blake2b(record["text"].encode(), digest_size=16).digest()
            new = digest not in numbers
            of_split.append(numbers.setdefault(digest, len(numbers)))
            if new:
                yield record["text"]


def _contamination(config, folder: Path, parts: Sequence[Part], workers: int | None) -> dict:
    kinds = {name: builders.load(folder, name).task.kind for name in names(folder, config.mode)}
    corpora = [part.dataset for part in parts if kinds[part.dataset] == "lm" and part.split == "train"]
    tests = [part for part in parts if kinds[part.dataset] != "lm" and part.split == "test"]
    result = {"skipped": "", "carevue": "", "rows": [], "excluded": None, "overlaps": {}}
    if not corpora or not tests:
        result["skipped"] = "no clinical corpus is prepared" if not corpora else "no dataset has a test split"
        return result
    carevue, result["carevue"] = _carevue(config, folder)
    # The tasks of a release share their notes: the one with the most stands for all in the report.
    widest: dict[str, str] = {}
    for part in sorted(tests, key=lambda part: len(part.ids)):
        widest[part.dataset.partition("/")[0]] = part.dataset
    texts, places = contamination.held_out_notes(folder, [part.dataset for part in tests])
    index = contamination.index(iter(texts))
    del texts
    exclude = set(excluded(config.corpus.exclude))  # the corpus was made without them, and is to stay so
    for corpus in corpora:
        found = contamination.scan(folder, corpus, index, workers=workers)
        exclude.update(found.exclude)
        for part, of_part in zip(tests, places, strict=True):
            if part.dataset not in widest.values():
                continue
            overlap, alone = found.overlap[of_part], found.alone[of_part]
            result["overlaps"].setdefault(corpus, {})[part.dataset] = overlap[~np.isnan(overlap)]
            for stratum, members in _strata(part, carevue):
                row = {"corpus": corpus, "notes_of_corpus": found.notes, "dataset": part.dataset, "stratum": stratum}
                result["rows"].append(row | _summary(overlap[members], alone[members]))
    result["excluded"] = len(exclude)
    files.write(folder / EXCLUDE_FILE, "".join(f"{digest}\n" for digest in sorted(exclude)))
    return result


def _carevue(config, folder: Path) -> tuple[np.ndarray | None, str]:
    """Returns the keyed patients of MIMIC-III all of whose ICU stays are CareVue's, which end before MIMIC-IV begins,
    or None and why they are not known."""
    if not config.mimic3:
        return None, "config.mimic3 is not set"
    if not (folder / KEY_FILE).exists():
        return None, f"the folder has no {KEY_FILE}"
    path = mimic.search(config.mimic3, "ICUSTAYS", "mimic3")
    if path is None:
        return None, "the MIMIC-III table ICUSTAYS is not there"
    only: dict[str, bool] = {}
    for _, row in tables.rows(path, ("SUBJECT_ID", "DBSOURCE")):
        if row["SUBJECT_ID"]:
            patient = mimic.identifier(row["SUBJECT_ID"])
            only[patient] = only.get(patient, True) and (row["DBSOURCE"] or "").strip().lower() == "carevue"
    key = load_key(folder)
    return np.asarray([keyed(key, f"patient:{patient}") for patient, all_of in only.items() if all_of], "S16"), ""


def _strata(part: Part, carevue: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
    yield "all", np.ones(len(part.ids), bool)
    if carevue is not None and part.dataset.startswith("mimic3_"):
        members = np.isin(part.patients, carevue)
        yield "CareVue only", members
        yield "the others", ~members


def _summary(overlap: np.ndarray, alone: np.ndarray) -> dict:
    judged = overlap[~np.isnan(overlap)]
    result = {"notes": len(overlap), "too_short": len(overlap) - len(judged)}
    if not len(judged):
        return result | {"contaminated": None, "held_by_one": None, "quantiles": None}
    return result | {
        "contaminated": float((judged > contamination.LIMIT).mean()),
        "held_by_one": float(alone[~np.isnan(overlap)].mean()),
        "quantiles": {str(q): float(np.quantile(judged, q)) for q in (0.1, 0.5, 0.9, 0.99)},
    }
