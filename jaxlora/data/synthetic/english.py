"""Generated plain English, from which a small base and its tokenizer learn a language and no medicine."""

import random
import re
from collections import Counter

from jaxlora.data.synthetic import prose


def plain_english(sentences: int, seed: int) -> list[str]:
    """Returns documents of simple English prose, of 4 to 7 sentences on one topic each.

    A base model and a tokenizer made from them know English and have never seen a clinical note.

    Args:
      sentences: how many in all.
      seed: of everything that is drawn.
    """
    rng = random.Random(seed)
    documents = []
    while sentences > 0:
        templates = prose.TOPICS[rng.choice(sorted(prose.TOPICS))]
        chosen = rng.sample(templates, min(rng.randint(4, 7), sentences))
        documents.append(_joined(rng, [_sentence(rng, template) for template in chosen]))
        sentences -= len(chosen)
    return documents


def lists_of_words(notes: list[str], times: int, seed: int) -> list[str]:
    """Returns documents that list words, in no order and in many ways: "wheezes, 98% and: stent".

    A LLaMA has met the words of medicine, and colons and line breaks, before it meets a note. These documents give a
    small one the words of `notes` that occur three times or more, and nothing of how a note is written.

    Args:
      notes: where the words come from.
      times: how often each word is listed.
      seed: of the order.
    """
    rng = random.Random(seed)
    counts = Counter(word for note in notes for word in note.split())
    words = sorted(word for word, count in counts.items() if count >= 3) * times
    rng.shuffle(words)
    breaks = (" ", " ", " ", ", ", ": ", ". ", "/", "\n", "\n", "\n\n", ":\n", ".\n\n", " and ", " - ")
    documents = []
    for start in range(0, len(words), 30):
        separated = [part for word in words[start : start + 30] for part in (word, rng.choice(breaks))]
        documents.append("".join(separated[:-1]))
    return documents


def _joined(rng: random.Random, sentences: list[str]) -> str:
    """One document: sentences on one line, on lines of their own, or in paragraphs."""
    parts = [sentences[0]]
    for sentence in sentences[1:]:
        parts += [rng.choice((" ", " ", "\n", "\n\n")), sentence]
    return "".join(parts)


def _sentence(rng: random.Random, template: str) -> str:
    def filled(match: re.Match) -> str:
        slot = match[1].removesuffix("_cap")
        word = rng.choice(prose.WORDS[slot])
        return word[0].upper() + word[1:] if match[1].endswith("_cap") else word

    return re.sub(r"\{(\w+)\}", filled, template)
