"""Prolonged mechanical ventilation from the tables, after Huang et al. (Clinical XLNet, 2020).

The span of ventilation in an ICU stay lasts from the start of its first period on a ventilator to the end of its
last one, whatever lies between. It reaches D days when that end, plus 6 hours, is D days after that start. Of an
admission, the ICU stay that was ventilated first counts. An admission is in the cohort when

* the patient was 18 or older,
* the span reaches 2 days,
* no diagnosis is a malignancy of lip, mouth or pharynx (ICD-9 140-149, ICD-10 C00-C14), one of four neuromuscular
  diseases (358.9, 359.0, 359.1, 358.01; G70.9, G71.2, G71.0, G70.01) or a burn of face, head or neck (941; T20),
* it is no organ donor's: neither the reason for the admission nor a diagnosis (V59; Z52) says so,

and its label is whether the span reaches 7 days. (Theirs also leaves out burns of more than 30 % of the body.)
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from jaxlora.data.mimic import Admission, Release, Ventilation

GRACE = timedelta(hours=6)
COHORT, PROLONGED = timedelta(days=2), timedelta(days=7)
EXCLUDED = {
    "9": ("14", "3589", "3590", "3591", "35801", "941"),
    "10": (*(f"C{number:02}" for number in range(15)), "G709", "G712", "G710", "G7001", "T20"),
}
DONORS = {"9": ("V59",), "10": ("Z52",)}


def labels(release: Release, admissions: Mapping[str, Admission], ids: Iterable[str], flow: Counter[str]):
    """Returns whether ventilation was prolonged, 0 or 1, for those of the admissions that are in the cohort.

    Args:
      release: the tables; its ventilation tables are there.
      admissions: of the release. ids: the admissions to label.
      flow: counts the ones outside the cohort, by the first reason of those above.

    Returns:
      {admission: 0 or 1}, in the order of `ids`.

    Raises:
      UserError: a table is missing or malformed.
    """
    spans = first_stays(release.ventilations())
    adults = release.adults(admissions)
    excluded, donors = set(), {id for id, admission in admissions.items() if admission.donor}
    for id, code, version in release.codes("diagnoses"):
        if code.startswith(EXCLUDED[version]):
            excluded.add(id)
        if code.startswith(DONORS[version]):
            donors.add(id)
    result = {}
    for id in ids:
        if id not in spans:
            flow["admissions: never on a ventilator"] += 1
        elif id not in adults:
            flow["admissions: a patient that PATIENTS lacks"] += 1
        elif not adults[id]:
            flow["admissions: younger than 18"] += 1
        elif id in excluded:
            flow["admissions: a diagnosis that the definition of PMV excludes"] += 1
        elif id in donors:
            flow["admissions: an organ donor's"] += 1
        elif not reaches(*spans[id], COHORT):
            flow["admissions: on a ventilator for less than 2 days, from first start to last end"] += 1
        else:
            result[id] = int(reaches(*spans[id], PROLONGED))
    return result


def first_stays(ventilations: Iterable[Ventilation]) -> dict[str, tuple[datetime, datetime]]:
    """Returns, by admission, first start and last end in the ICU stay that was ventilated first.

    A span that ends before it begins is passed over: it tells of no ventilation.
    """
    stays: dict[str, dict[str, tuple[datetime, datetime]]] = {}
    for found in ventilations:
        if found.end < found.start:
            continue
        of_admission = stays.setdefault(found.admission, {})
        start, end = of_admission.get(found.stay, (found.start, found.end))
        of_admission[found.stay] = min(start, found.start), max(end, found.end)
    return {admission: min(spans.values()) for admission, spans in stays.items()}


def reaches(start: datetime, end: datetime, span: timedelta) -> bool:
    """Returns whether ventilation from `start` to `end` counts as lasting `span`."""
    return end + GRACE >= start + span
