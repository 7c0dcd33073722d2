"""What is odd about discharge summaries, one quirk a function, and what the recipe must make of each.

A quirk writes the summaries of one admission and says by itself how each mode must take them: the answer key is made
of these statements and of nothing that reads a note.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from jaxlora.data.synthetic.notes import tier
from jaxlora.data.synthetic.summaries import NO_REPORT, NO_SUMMARY, NOTHING, REQUIRED, Fate, Summaries

# Wording of death by section; the exam and the medication lose it, any other section costs the note its place in `mor`.
_DEATH = {
    "Chief Complaint": "pt expired",
    "History of Present Illness": "The patient\nhad died before the family came.",
    "Past Medical History": "time of death was noted by EMS",
    "Medications on Admission": "Patient deceased.",
    "Allergies": "pt has passed away",
    "Physical Exam": "Pt expired.",
    "Family History": "she was pronounced expired",
    "Social History": "She expired at home with hospice.",
}
_REMOVED = ("Medications on Admission", "Physical Exam")


def plain(s: Summaries) -> None:
    """Writes one report and nothing else."""
    s.report()


def _with_addendum(s: Summaries) -> None:
    s.report()
    s.addendum()


def _addendum_alone(s: Summaries) -> None:
    s.addendum()
    s.both(NO_REPORT)


def _two_reports(s: Summaries) -> None:
    s.report(days=-1)
    s.report()


def _same_text_again(s: Summaries) -> None:
    note = s.report()
    s.drop("the same text again")
    s.notes.append(replace(note, day=note.day + timedelta(days=1)))


def _same_text_in_the_next_stay(s: Summaries) -> None:
    s.report()
    s.drop("the same text again")
    s.both(NO_SUMMARY)
    s.carried = True


def _flagged(s: Summaries) -> None:
    s.report(error=True)
    s.correct = Fate(NO_SUMMARY)


def _flagged_beside_another(s: Summaries) -> None:
    s.report(_telling(s.said(), "History of Present Illness"), days=-1, error=True)
    s.report()
    # The headings are found in the first of the joined texts, which only paper mode reads.
    s.paper = Fate(tells=True)


def _no_summary(s: Summaries) -> None:
    s.both(NO_SUMMARY)


def _empty_text(s: Summaries) -> None:
    s.write("Report", "")
    s.drop("no text")
    s.both(NO_SUMMARY)


def _garbage(s: Summaries) -> None:
    s.write("Report", f'[** **] ,,, "" ;; see note {s.number}\n')
    s.number += 1
    s.both(NOTHING)


def _nothing_to_say(s: Summaries) -> None:
    s.report({heading: text for heading, text in s.said().items() if heading not in REQUIRED})
    s.both(NOTHING)


def _abbreviated_headings(s: Summaries) -> None:
    short = dict(zip(REQUIRED, ("CC", "HPI", "PMH"), strict=True))
    s.report(style=lambda heading: short.get(heading, heading))
    s.both(NOTHING)


def _one_abbreviated_heading(s: Summaries) -> None:
    s.report(style=lambda heading: "HPI" if heading == REQUIRED[1] else heading)


def _ends_in_its_only_complaint(s: Summaries) -> None:
    said = s.said()
    without = {heading: text for heading, text in said.items() if heading not in REQUIRED}
    s.report(without | {"Chief Complaint": said["Chief Complaint"]})
    s.paper = Fate(NOTHING)


def _ends_in_medication(s: Summaries) -> None:
    s.report(_ending_in("Medications on Admission", s.said()))


def _ends_telling(s: Summaries) -> None:
    s.report(_ending_in("Social History", _telling(s.said(), "Social History")))
    s.correct = Fate(tells=True)


def _empty_section(s: Summaries) -> None:
    s.report(s.said() | {"Family History": "\n", "Allergies": "\n"})


def _heading_after_an_empty_one(s: Summaries) -> None:
    s.report(s.said() | {"Past Medical History": ""})


def _lower_case_headings(s: Summaries) -> None:
    s.report(style=str.lower)


def _upper_case_headings(s: Summaries) -> None:
    s.report(style=str.upper)


def _text_beside_headings(s: Summaries) -> None:
    s.report({heading: f" {text}" for heading, text in s.said().items()})


def _carriage_returns(s: Summaries) -> None:
    note = s.report()
    s.notes[-1] = replace(note, text=note.text.replace("\n", "\r\n"))


def _sixty_thousand_characters(s: Summaries) -> None:
    said, course = s.said(), []
    while sum(len(part) for part in course) < 60_000:
        course.append(s.source.paragraphs(s.rng, "hospital", tier(s.stay), 7))
    s.report(said | {"Brief Hospital Course": "\n".join(course)})


def _many_tags(s: Summaries) -> None:
    said = s.said()
    said["Social History"] += " " + " ".join(f"[**{tag}**]" for tag in _TAGS)
    said["Past Medical History"] = f"[** **] {said['Past Medical History']} [**2151-7-16**]"
    s.report(said)


def _quotes_and_commas(s: Summaries) -> None:
    said = s.said()
    said["History of Present Illness"] += '\nPer family, "he was "fine", then, suddenly, not," in [**Month/Day/Year**].'
    s.report(said)


def _tells_twice_in_the_exam(s: Summaries) -> None:
    said = s.said()
    said["Physical Exam"] += " Pt expired. Patient expired."
    s.report(said)
    s.both(tells=True)


def _tells_in(heading: str) -> Callable[[Summaries], None]:
    def quirk(s: Summaries) -> None:
        s.report(_telling(s.said(), heading))
        s.both(tells=heading not in _REMOVED)

    return quirk


def _telling(said: dict[str, str], heading: str) -> dict[str, str]:
    return said | {heading: f"{said[heading]} {_DEATH[heading]}"}


def _ending_in(heading: str, said: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in said.items() if name != heading} | {heading: said[heading]}


def _without_admission(s: Summaries) -> None:
    s.report()
    _clinic_letter(s, days=-90)
    s.drop("no admission", admission=None)


def _unknown_admission(s: Summaries) -> None:
    s.report()
    _clinic_letter(s, days=30)
    s.drop("an admission that ADMISSIONS lacks", admission=s.unused)


def _clinic_letter(s: Summaries, days: int) -> None:
    s.write(
        "Report", f"Chief Complaint:\ndyspnea\n\nSeen in clinic by [**Doctor Last Name 4**], job {s.number}.\n", days
    )
    s.number += 1


_TAGS = (
    "First Name (Titles) 123|Last Name (un) 42|Known lastname 7|Hospital1 18|Hospital Ward Name 2021|"
    "Age over 90 |Telephone/Fax (1) 5555|Pager number 9|Street Address(2) 88|Location (un) 86|State 350|"
    "Country 9|University/College 21|Company 12|Medical Record Number 77|Social Security Number 1|Job Number 3|"
    "MD Number(1) 4|Dictator Info 5|Holiday 6|Month (only) 7|Year (4 digits) 8|5-/2150|Date range (1) 10|"
    "E-mail address 11|URL 12|Attending Info 13|CC Contact Info 14|Doctor Last Name 15|"
    "Initials (NamePattern4) 16|Name (NI) 17|Name Initial (MD) 18|Numeric Identifier 19|PO Box 20"
).split("|")

# How many in a thousand patients have each, at their first stay; other stays are plain.
QUIRKS: dict[Callable[[Summaries], None], float] = {
    _with_addendum: 30, _addendum_alone: 3, _two_reports: 15, _same_text_again: 10, _same_text_in_the_next_stay: 5,
    _flagged: 4, _flagged_beside_another: 3, _no_summary: 20, _empty_text: 2, _garbage: 1, _nothing_to_say: 8,
    _abbreviated_headings: 5, _one_abbreviated_heading: 10, _ends_in_its_only_complaint: 5, _ends_in_medication: 10,
    _ends_telling: 3, _empty_section: 20, _heading_after_an_empty_one: 5, _lower_case_headings: 20,
    _upper_case_headings: 20, _text_beside_headings: 20, _carriage_returns: 10, _sixty_thousand_characters: 0.2,
    _many_tags: 10, _quotes_and_commas: 10, _tells_twice_in_the_exam: 1, _without_admission: 5, _unknown_admission: 2,
    **{_tells_in(heading): 1.0 for heading in _DEATH},
}  # fmt: skip
# What MIMIC-IV has not: a column ISERROR.
MIMIC3_ONLY = (_flagged, _flagged_beside_another)
NEEDS_NEXT = (_same_text_in_the_next_stay,)
