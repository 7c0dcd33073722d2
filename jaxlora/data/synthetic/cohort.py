"""Generated patients: who, when, how ill, and what a discharge summary says of them.

Every admission has a latent severity that is never written down. It chooses the wording of the note (how it began,
how the patient looks, what was found), and the outcome is drawn from it: death from a logistic model, length of stay
from a log-normal one. So outcomes can be learnt from the wording, and cannot be known from it.
"""

import math
import random
import re
import textwrap
from dataclasses import dataclass
from datetime import datetime, timedelta

from jaxlora.data.synthetic import words


@dataclass(frozen=True)
class Stay:
    """One admission before it is written: who, when, how ill, and the words that are filled into its notes."""

    patient: int
    admission: int
    admitted: datetime
    discharged: datetime
    newborn: bool
    died: bool
    severity: float
    diagnoses: tuple[str, ...]
    procedures: tuple[str, ...]
    facts: dict[str, str]


def stays(
    rng: random.Random,
    patient: int,
    admission: int,
    sex: str,
    age: int,
    newborn: bool,
    at_least: int = 1,
    weights: tuple[int, int, int] = (80, 15, 5),
) -> list[Stay]:
    """Returns the admissions of one patient, in order: up to three, the last one where the patient dies.

    Args:
      rng: drawn from.
      patient, admission: the SUBJECT_ID, and the HADM_ID of the first admission; the next ones follow it.
      sex, age: of the patient, "M" or "F", in years.
      newborn: whether the one admission is a birth.
      at_least: so many admissions, whatever is drawn.
      weights: of one, two and three admissions.
    """
    admitted = datetime(2100 + rng.randrange(95), rng.randint(1, 12), rng.randint(1, 28), rng.randrange(24), 15)
    count = 1 if newborn else rng.choices((1, 2, 3), weights)[0]
    result = []
    for number in range(max(count, at_least)):
        stay = _stay(rng, patient, admission + number, admitted, sex, age, newborn)
        result.append(stay)
        if stay.died:
            break
        admitted = stay.discharged + timedelta(days=rng.randint(20, 400))
    return result


def _stay(rng, patient: int, admission: int, admitted: datetime, sex: str, age: int, newborn: bool) -> Stay:
    severity = rng.gauss(0, 1) - 2 * newborn
    died = rng.random() < 1 / (1 + math.exp(1.9 - 2.7 * severity))
    days = math.exp(2.2 + 0.9 * severity + rng.gauss(0, 0.25))
    complaints, code, procedures, findings = rng.choice(words.PROBLEMS)
    past = rng.sample(words.COMORBIDITIES, rng.randint(1, 3))
    if severity + rng.gauss(0, 0.8) > 1:
        past[0] = rng.choice(words.SEVERE_COMORBIDITIES)
    diagnoses = [code, *(code for code, _, _ in past)]
    if severity + rng.gauss(0, 0.5) > 0.6:
        diagnoses += rng.sample(words.SEVERE_CODES, 2)
    if complaints[0] == "s/p fall":
        diagnoses.append(rng.choice(("E8889", "E8859")))

    def tiered(tiers):
        """The alternatives that fit the severity, give or take."""
        felt = severity + rng.gauss(0, 0.35)
        tier = tiers[(felt > -0.3) + (felt > 0.7)]
        return tier if isinstance(tier, str) else rng.choice(tier)

    facts = {
        "age": str(age),
        "sex": sex,
        "past": ", ".join(rng.choice(names) for _, names, _ in past),
        "medications": ", ".join(rng.choice(drugs) for _, _, drugs in past),
        "complaint": rng.choice(complaints),
        "finding": tiered(findings),
        "course": tiered(words.COURSE),
        "appearance": tiered(words.APPEARANCE),
        "lungs": tiered(words.LUNGS),
        "oxygen": tiered(words.OXYGEN),
        "baseline": tiered(words.BASELINE),
        "abdomen": rng.choice(words.ABDOMEN),
        "heart": rng.choice(words.HEART),
        "hr": str(round(86 + 13 * severity + rng.gauss(0, 11))),
        "bp": f"{round(126 - 13 * severity + rng.gauss(0, 14))}/{round(68 - 6 * severity + rng.gauss(0, 8))}",
        "sat": str(min(100, round(96 - 2 * severity + rng.gauss(0, 2)))),
    }
    kept = procedures[: 1 + (severity > -0.3) + (severity > 0.7)] if rng.random() < 0.9 else ()
    left = admitted + timedelta(hours=round(24 * days))
    return Stay(patient, admission, admitted, left, newborn, died, severity, tuple(diagnoses), kept, facts)


def sections(rng: random.Random, stay: Stay, tells: float = 0) -> dict[str, str]:
    """Returns what a discharge summary says under each of its headings.

    Args:
      rng: drawn from.
      stay: of the summary.
      tells: how often the exam, and how often the story, of a patient who died says so.
    """
    story = f"{rng.choice(words.OPENINGS)} {{course}} {{Finding}}. Pt {{denies}} {{negative}}."
    exam = rng.choice(
        (
            "VS: HR {hr} BP {bp} sat {sat}% {oxygen}. {appearance}. {heart}. {lungs}.",
            "{appearance}. P {hr}, {bp}, {sat}% on {oxygen}. Lungs: {lungs}. CV: {heart}.",
            "Gen: {appearance}. Resp: {lungs}, {sat}% {oxygen}. HR {hr}, BP {bp}. {abdomen}.",
        )
    )
    # What the filter of the mortality task is for: wording of death in the admission part.
    if stay.died and rng.random() < tells:
        exam += " Pt expired."
    if stay.died and rng.random() < tells:
        story += " Pt expired in the ICU."
    ending = "Pt expired on the ward." if stay.died else "Discharged in stable condition."
    templates = {
        "Allergies": rng.choice(words.DRUG_ALLERGIES),
        "Attending": f"[**First Name3 (LF) {rng.randrange(99)}**]",
        "Chief Complaint": "{complaint}",
        "Major Surgical or Invasive Procedure": "see below" if stay.procedures else "None",
        "History of Present Illness": story,
        "Past Medical History": "{past}",
        "Social History": "{baseline}. " + rng.choice(words.HABITS) + ".",
        "Family History": rng.choice(words.RELATIVES),
        "Physical Exam": exam,
        "Brief Hospital Course": rng.choice(words.HOSPITAL_COURSES) + " " + ending,
        "Medications on Admission": "{medications}",
        "Discharge Medications": "1. {medications}" if not stay.died else "None",
        "Discharge Disposition": "Expired" if stay.died else rng.choice(("Home", "Extended Care")),
    }
    facts = stay.facts | {"Finding": stay.facts["finding"][0].upper() + stay.facts["finding"][1:]}
    return {heading: fill(rng, template, words.WORDS, facts) for heading, template in templates.items()}


def header(stay: Stay) -> list[str]:
    """Returns the paragraphs that a discharge summary opens with."""
    dates = f"Admission Date: [**{stay.admitted:%Y-%m-%d}**]     Discharge Date: [**{stay.discharged:%Y-%m-%d}**]"
    return [dates, f"Date of Birth: [**2080-1-1**]     Sex: {stay.facts['sex']}", "Service: MEDICINE"]


def summary(stay: Stay, said: dict[str, str]) -> str:
    """Returns the text of a discharge summary that says `said` under its headings, in lines of up to 78 characters."""
    body = [f"{heading}:\n" + textwrap.fill(text, 78) for heading, text in said.items()]
    return "\n\n".join(header(stay) + body) + "\n"


def fill(rng: random.Random, template: str, choices: dict[str, list[str]], facts: dict[str, str]) -> str:
    """Fills every `{slot}` with its fact, which may have slots of its own, or else with one of its choices."""

    def filled(match: re.Match) -> str:
        slot = match[1]
        return fill(rng, facts[slot], choices, {}) if slot in facts else rng.choice(choices[slot])

    return re.sub(r"\{(\w+)\}", filled, template)
