"""Does a note give its outcome away? Simple models of its words, and words that should not be there.

A bag of words (TF-IDF, then one logistic regression a label) reads every note of the train split and is scored on the
test split, beside the length of the note alone and the prevalence. A model that is to be believed beats all three; a
bag of words that is nearly perfect has usually found the outcome itself, and its heaviest words say where.

`LEAK?` is said of a dataset with one outcome a note when, in its train notes and again in its test notes,
  * the presence of one word separates a class from the others with an AUROC of 0.8 or more; or
  * one word gives a class of fewer than half of the notes away: at least 80 % of the notes with it belong to the class;
    for a word of `OUTCOME_WORDS` but not of `CARE`, ten times the odds of all notes are enough;
or when such a word is among the heaviest of a class. Of the train notes the lower ends of Wilson's 95 % intervals are
taken, so that a few notes prove nothing: 80 % takes 16 of 16. It is a question, for what a word says may have been
known at admission, as what `CARE` says often was.

A note with several labels may well name the diagnoses that it is labelled with. So words that separate one of many
labels with an AUROC of 0.95 or more are told, without the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from jaxlora.audit.words import CARE, OUTCOME_WORDS, Words
from jaxlora.data.examples import Task
from jaxlora.eval import metrics

MOST_LABELS = 50
TOP = 10
_RAREST = 3  # train notes that a word of the model has at the least
_SEPARATES, _NAMES = 0.8, 0.95
_GIVES_AWAY, _TIMES_THE_ODDS = 0.8, 10
_REASONS = 5  # told of each list of words


@dataclass(frozen=True)
class Sample:
    """Notes of one split: their rows in a `Words`, keyed patients, and 0/1 `truth` `[notes, labels]`."""

    rows: np.ndarray
    patients: np.ndarray
    truth: np.ndarray


@dataclass
class Leakage:
    """What the words of one dataset tell.

    Attributes:
      scores: {"words" | "length" | "prevalence": {"auroc", "auprc"}}, macro over `labels`.
      top: for every label, (word, weight) by falling weight, none rarer than the smallest count.
      outcome: for every outcome word of the test notes, the label it speaks for most and by how much; not for several
        labels a note, which are not an outcome. A count of the notes of fewer patients than the smallest count is
        "<20" or its like there, and what it could be found out from is None.
      one_class: whether the train or the test notes do not differ in any label, so that none can be told.
      reasons: why `LEAK?` is said; empty when it is not. naming: the words that name one of many labels.
    """

    kind: str
    labels: tuple[str, ...]
    of_labels: int
    train: int
    test: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    top: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    outcome: list[dict] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    naming: list[str] = field(default_factory=list)
    one_class: bool = False


def truth(task: Task, labels: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Returns 0/1 `[notes, labels]`; a binary task has both of its classes."""
    if task.kind != "multilabel":
        return np.eye(len(task.labels), dtype=np.uint8)[labels]
    result = np.zeros((len(labels), len(task.labels)), np.uint8)
    for row, chosen in zip(result, labels, strict=True):
        row[chosen] = 1
    return result


def probe(task: Task, words: Words, train: Sample, test: Sample, smallest: int) -> Leakage:
    """Returns what the words of a dataset tell of its labels.

    Args:
      task: binary, multiclass or multilabel; of several labels only the most frequent ones of the train split, at most
        `MOST_LABELS`, are looked at.
      smallest: the number of train patients whose notes have a word, below which the word is not told: a word that few
        notes share could be a name. And of test patients, below which their notes are not counted.
    """
    frequent = np.argsort(-train.truth.sum(axis=0, dtype=np.int64), kind="stable")[:MOST_LABELS]
    chosen = frequent if task.kind == "multilabel" else np.arange(len(task.labels))
    names = tuple(task.labels[i] for i in chosen)
    scored = chosen[1:] if task.kind == "binary" else chosen  # its other class is the same question
    used = np.flatnonzero(np.bincount(words.counts[train.rows].indices, minlength=len(words.names)) >= _RAREST)
    found = Leakage(task.kind, names, len(task.labels), len(train.rows), len(test.rows))
    seen, held = train.truth[:, scored], test.truth[:, scored]
    weights, scores = _bag_of_words(task.name, words.counts[:, used], train.rows, test.rows, seen)
    found.scores = {
        "words": _score(held, scores),
        "length": _score(held, _by_length(words.lengths, train.rows, test.rows, seen)),
        "prevalence": _score(held, np.tile(seen.mean(axis=0), (len(held), 1))),
    }
    if task.kind == "binary":
        weights = np.stack([-weights[0], weights[0]])
    spread = _patients(words.counts[train.rows][:, used], train.patients)
    outcome = np.isin(words.names[used], list(OUTCOME_WORDS))
    tellable = (spread >= smallest) | outcome
    heaviest: list[str] = []
    for name, row in zip(names, weights, strict=True):
        heavy = [i for i in np.argsort(-row, kind="stable") if row[i] > 0]
        found.top[name] = [(str(words.names[used[i]]), float(row[i])) for i in heavy if tellable[i]][:TOP]
        told = [words.names[used[i]] for i in heavy[:TOP] if outcome[i] and words.names[used[i]] not in CARE]
        heaviest += [f"'{word}' is among the heaviest words of {name}" for word in told]
    truths = train.truth[:, chosen], test.truth[:, chosen]
    found.one_class = not all(len(metrics.scorable(of)) for of in truths)
    vocabulary = [(words.counts[sample.rows][:, used] > 0).tocsc() for sample in (train, test)]
    if task.kind == "multilabel":
        told = [present[:, np.flatnonzero(tellable)] for present in vocabulary]
        found.naming = _separating(words.names[used[tellable]], names, told, truths, _NAMES)
    else:
        terms = np.where(tellable, words.names[used], "a rare word")
        listed = [words.outcome[sample.rows] for sample in (train, test)]
        found.outcome = _outcome_words(listed[1], truths[1], names, test.patients, smallest)
        found.reasons = heaviest + _questions(names, terms, vocabulary, listed, truths)
    return found


def _questions(names: tuple[str, ...], terms: np.ndarray, vocabulary, listed, truths) -> list[str]:
    """Returns why `LEAK?` is said of one outcome a note: for the outcome words, and for any word."""
    share = truths[0].mean(axis=0)
    odds = _TIMES_THE_ODDS * share / np.maximum(1 - share, 1e-9)
    told = np.minimum(odds / (1 + odds), _GIVES_AWAY)
    least = np.where(np.isin(list(OUTCOME_WORDS), CARE)[:, None], _GIVES_AWAY, told)
    reasons = _separating(list(OUTCOME_WORDS), names, listed, truths, _SEPARATES)
    reasons += _giving_away(list(OUTCOME_WORDS), names, listed, truths, least)
    reasons += _separating(terms, names, vocabulary, truths, _SEPARATES)
    reasons += _giving_away(terms, names, vocabulary, truths, np.full(len(names), _GIVES_AWAY))
    return list(dict.fromkeys(reasons))


def _bag_of_words(name: str, counts: sparse.csr_matrix, train: np.ndarray, test: np.ndarray, truth: np.ndarray):
    """Returns the weights `[labels, words]` and the scores of the test notes `[notes, labels]`."""
    tfidf = TfidfTransformer(sublinear_tf=True).fit(counts[train])
    seen, held = tfidf.transform(counts[train]), tfidf.transform(counts[test])
    weights, scores = np.zeros((truth.shape[1], counts.shape[1])), np.zeros((len(test), truth.shape[1]))
    if not counts.shape[1]:
        return weights, scores
    labels = metrics.scorable(truth)
    for label in tqdm(labels, desc=f"{name}: bag of words", unit=" labels", disable=None, leave=False, delay=2):
        model = LogisticRegression(max_iter=300).fit(seen, truth[:, label])
        weights[label], scores[:, label] = model.coef_[0], model.decision_function(held)
    return weights, scores


def _by_length(lengths: np.ndarray, train: np.ndarray, test: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns scores `[test notes, labels]` from the logarithm of the length and its square."""
    logs = np.log1p(lengths.astype(np.float64))
    z = (logs - logs[train].mean()) / max(logs[train].std(), 1e-9)
    features = np.stack([z, z**2], axis=1)
    scores = np.zeros((len(test), truth.shape[1]))
    for label in metrics.scorable(truth):
        scores[:, label] = LogisticRegression().fit(features[train], truth[:, label]).decision_function(features[test])
    return scores


def _score(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {"auroc": metrics.auroc(truth, scores), "auprc": metrics.auprc(truth, scores)}


def _patients(counts: sparse.csr_matrix, patients: np.ndarray) -> np.ndarray:
    """Returns in how many patients' notes each word stands, `[words]`."""
    _, of = np.unique(patients, return_inverse=True)
    belongs = sparse.csr_matrix((np.ones(len(of), np.int32), (of, np.arange(len(of)))))
    return np.bincount((belongs @ counts).indices, minlength=counts.shape[1])


def _outcome_words(
    present: np.ndarray, truth: np.ndarray, names: tuple[str, ...], patients: np.ndarray, smallest: int
) -> list[dict]:
    """Returns for every outcome word of the test notes the class that it speaks for most, and in which notes it is."""
    areas = presence_auroc(present, truth)
    result = []
    for number, word in enumerate(OUTCOME_WORDS):
        has = present[:, number]
        if not has.any() or np.isnan(areas[number]).all():
            continue
        best = int(np.nanargmax(areas[number]))
        label = truth[:, best] == 1
        notes = {"with_label": has & label, "of_label": label, "without_label": has & ~label, "of_others": ~label}
        counts = {name: _counted(of, patients, smallest) for name, of in notes.items()}
        # The other class, with all test notes, and either figure would give a count of few away.
        for name, other in (("of_label", "of_others"), ("of_others", "of_label")):
            counts[other] = None if isinstance(counts[name], str) and counts[other] else counts[other]
        hidden = any(not isinstance(count, int) for count in counts.values())
        figures = {"auroc": float(areas[number, best]), "odds_ratio": odds_ratio(has, label)}
        figures = dict.fromkeys(figures) if hidden else figures
        result.append({"word": word, "label": names[best]} | counts | figures)
    return result


def _counted(notes: np.ndarray, patients: np.ndarray, smallest: int) -> int | str:
    """Returns how many notes are chosen, or "<20" where they are of some patients, but fewer than 20."""
    of = len(np.unique(patients[notes]))
    return f"<{smallest}" if 0 < of < smallest else int(notes.sum())


def presence_auroc(present, truth: np.ndarray) -> np.ndarray:
    """Returns the AUROC of the presence of words for labels: the mean of sensitivity and specificity.

    Args:
      present: 0/1 `[notes, words]`, dense or sparse. truth: 0/1 `[notes, labels]`.

    Returns:
      float64 `[words, labels]`; NaN for a label without positives or without negatives.
    """
    positives = truth.sum(axis=0, dtype=np.int64)
    negatives = len(truth) - positives
    both = np.asarray(present.T.astype(np.int64) @ truth.astype(np.int64))
    total = np.asarray(present.sum(axis=0)).reshape(-1, 1).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (both / positives + 1 - (total - both) / negatives) / 2


def odds_ratio(present: np.ndarray, label: np.ndarray) -> float:
    """Returns the odds ratio of two bool arrays `[notes]`, half a note added to each of the four counts."""
    a, b, c, d = ((present == x) & (label == y) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0)))
    return float((a.sum() + 0.5) * (d.sum() + 0.5) / ((b.sum() + 0.5) * (c.sum() + 0.5)))


def wilson(successes: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns the lower end of Wilson's 95 % interval of shares; 0 for shares of nothing."""
    z2, total = 1.959964**2, np.maximum(total, 1e-9)
    share = successes / total
    half = np.sqrt(z2 * share * (1 - share) / total + (z2 / total) ** 2 / 4)
    return np.maximum((share + z2 / total / 2 - half) / (1 + z2 / total), 0)


def _separating(terms: Sequence[str], names: tuple[str, ...], present, truths, least: float) -> list[str]:
    """Returns the words whose presence, or absence, separates a label in the train and in the test notes.

    Args:
      present: 0/1 `[notes, words]` of the train and of the test notes. truths: 0/1 `[notes, labels]` of both.
      least: the AUROC.
    """
    area = presence_auroc(present[1], truths[1])
    area = np.nan_to_num(np.maximum(area, 1 - area))
    which = np.minimum(area, _proven_auroc(present[0], truths[0])) >= least
    return _told(terms, names, area, which, "'{word}' alone separates {label}: AUROC {value:.2f}")


def _proven_auroc(present, truth: np.ndarray) -> np.ndarray:
    """Returns the AUROC, `[words, labels]`, of the presence or the absence of words, of the lower ends of Wilson's
    intervals of sensitivity and specificity."""
    positives = truth.sum(axis=0, dtype=np.int64)
    negatives = len(truth) - positives
    both = np.asarray(present.T.astype(np.int64) @ truth.astype(np.int64))
    other = np.asarray(present.sum(axis=0)).reshape(-1, 1) - both
    here = wilson(both, positives) + wilson(negatives - other, negatives)
    absent = wilson(positives - both, positives) + wilson(other, negatives)
    return np.maximum(here, absent) / 2


def _giving_away(terms: Sequence[str], names: tuple[str, ...], present, truths, least: np.ndarray) -> list[str]:
    """Returns the words whose notes have a label, as `_separating` does; `least` is a share,
    for each label or for each word and label."""
    shares = _shares_of_label(present, truths)
    return _told(
        terms,
        names,
        shares,
        (shares >= least) & (shares > 0),
        "'{word}' gives {label} away: it holds in {value:.0%} at least",
    )


def _told(terms: Sequence[str], names: tuple[str, ...], values: np.ndarray, which: np.ndarray, text: str) -> list[str]:
    places = sorted(zip(*np.nonzero(which), strict=True), key=lambda place: -values[place])
    return [text.format(word=terms[w], label=names[c], value=values[w, c]) for w, c in places[:_REASONS]]


def _shares_of_label(present, truths) -> np.ndarray:
    """Returns what share of a word's notes has a label, `[words, labels]`: what the train notes prove or the test notes
    show, whichever is less; 0 for a label that half of the train notes have."""
    shares = []
    for words, truth, share in zip(present, truths, (wilson, lambda a, b: a / np.maximum(b, 1)), strict=True):
        both = np.asarray(words.T.astype(np.int64) @ truth.astype(np.int64))
        shares.append(share(both, np.asarray(words.sum(axis=0)).reshape(-1, 1)))
    return np.where(truths[0].mean(axis=0) < 0.5, np.minimum(*shares), 0)
