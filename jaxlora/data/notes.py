"""Admission notes: what a discharge summary says that was known at admission.

The recipe of CORe (van Aken et al., EACL 2021), which defines the outcome tasks of Clinical LLaMA-LoRA. Mode "paper"
is that recipe. Mode "correct" mends two of its habits: a section at the very end of a summary is kept (theirs needs a
heading after it), and notes that physicians flagged as errors are dropped. In both, a line that ends as on Windows is a
line; CORe would find no section in such a summary.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from jaxlora.data.mimic import Admission, Release, Summary

# The heading searched for in the summary (anywhere, first match), and the one written in the admission note.
SECTIONS = {
    "chief complaint:": "CHIEF COMPLAINT",
    "present illness:": "PRESENT ILLNESS",
    "medical history:": "MEDICAL HISTORY",
    "medications on admission:": "MEDICATION ON ADMISSION",
    "allergies:": "ALLERGIES",
    "physical exam:": "PHYSICAL EXAM",
    "family history:": "FAMILY HISTORY",
    "social history:": "SOCIAL HISTORY",
}
_REQUIRED = ("CHIEF COMPLAINT", "PRESENT ILLNESS", "MEDICAL HISTORY")
# A section ends at a blank line before something like a heading: one line's start up to a colon, with no digit, dot,
# backslash, bar or parenthesis.
_NEXT_HEADING = re.compile(r"\n\n[^()\\|\d.\n]+?:")
_LOWER = {ord(capital): capital.lower() for capital in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


@dataclass(frozen=True, slots=True)
class AdmissionNote:
    """The admission part of the discharge summary of one admission, by raw identifiers."""

    admission: str
    patient: str
    text: str


def admission_notes(
    release: Release, admissions: Mapping[str, Admission], mode: str, flow: Counter[str]
) -> list[AdmissionNote]:
    """Returns one note for every admission with a usable discharge summary.

    The summaries are read once and held compressed, each text once: 59,652 of them are 600 MB as they are.

    Args:
      release: the tables.
      admissions: of `release.admissions()`.
      mode: "correct", which returns the notes by the date of their first summary, or "paper", by admission, as CORe.
      flow: counts every note and admission that is left out, by reason.

    Raises:
      UserError: a table is missing or malformed.
    """
    summaries, texts = _summaries(release, admissions, mode, flow)
    summaries.sort(key=lambda summary: summary[0])
    last = {digest: i for i, (*_, digest) in enumerate(summaries)}
    parts: dict[str, list[bytes]] = {}
    reported = set()
    for i, (_, admission, report, digest) in enumerate(summaries):
        if last[digest] != i:
            flow["notes: the same text again"] += 1
            continue
        parts.setdefault(admission, []).append(digest)
        if report:
            reported.add(admission)

    result = []
    for admission, digests in parts.items():
        joined = "\n\n".join(zlib.decompress(texts.pop(digest)).decode() for digest in digests).strip()
        if admission not in reported:
            flow["admissions: an addendum without its report"] += 1
            continue
        text = admission_part(joined, mode)
        if text is None:
            flow["admissions: neither complaint nor illness nor history"] += 1
            continue
        result.append(AdmissionNote(admission, admissions[admission].patient, text))
    flow["admissions: kept"] = len(result)
    if mode == "paper":
        result.sort(key=lambda note: (len(note.admission), note.admission))
    return result


def admission_part(summary: str, mode: str = "correct") -> str | None:
    """Returns the eight admission sections of a discharge summary, or None when the three first are all empty.

    Every heading is written even when its section is empty; line breaks inside a section become blanks.

    Args:
      summary: its text, with `\\n` for line breaks.
      mode: "correct", or "paper": a section that no heading follows is lost, and a backslash before an n, which is
        how CORe encodes line breaks, is one.
    """
    if mode == "paper":
        summary = summary.replace("\\n", "\n")
    lowered = summary.lower()
    if len(lowered) != len(summary):  # a few letters of other alphabets are two in lower case
        lowered = summary.translate(_LOWER)
    bodies = {}
    for heading, title in SECTIONS.items():
        start = lowered.find(heading)
        body = _body(summary, start + len(heading), mode) if start >= 0 else ""
        bodies[title] = body.replace("\n", " ").strip()
    if not any(bodies[title] for title in _REQUIRED):
        return None
    return "\n\n".join(f"{title}: {body}" for title, body in bodies.items())


def _body(summary: str, start: int, mode: str) -> str:
    """Returns a section from behind its heading: one character at least, so that an empty one takes in the next."""
    end = _NEXT_HEADING.search(summary, start + 1)
    if end:
        return summary[start : end.start()]
    return "" if mode == "paper" else summary[start:]


def _summaries(release: Release, admissions: Mapping[str, Admission], mode: str, flow: Counter[str]):
    """Returns (order, admission, whether a report, digest of the text) of every usable summary, and texts by digest."""
    summaries: list[tuple[tuple, str, bool, bytes]] = []
    texts: dict[bytes, bytes] = {}
    for summary in release.summaries():
        flow["notes: read"] += 1
        reason = _unusable(summary, admissions, mode)
        if reason:
            flow[f"notes: {reason}"] += 1
            continue
        text = summary.text.replace("\r\n", "\n").encode()
        digest = hashlib.blake2b(text, digest_size=16).digest()
        if digest not in texts:
            texts[digest] = zlib.compress(text, 1)
        summaries.append((summary.order, summary.admission, summary.kind == "report", digest))
    return summaries, texts


def _unusable(summary: Summary, admissions: Mapping[str, Admission], mode: str) -> str | None:
    if not summary.kind:
        return "not a discharge summary"
    if summary.error and mode == "correct":
        return "flagged as an error"
    if not summary.text or mode == "correct" and not summary.text.strip():
        return "no text"
    if summary.admission is None:
        return "no admission"
    if summary.admission not in admissions:
        return "an admission that ADMISSIONS lacks"
    return "a newborn's" if admissions[summary.admission].newborn else None
