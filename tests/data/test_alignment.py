"""Spans of characters to tokens, beside an oracle that walks the bytes of the pieces."""

import itertools
import json
import re

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from jaxlora.data import alignment
from jaxlora.data.tokens import Tokenizer, tokenize
from jaxlora.errors import UserError
from jaxlora.eval.spans import entities

WORDS = "the patient took aspirin 81mg кашель жар λόγος β-blocker 5µg ≥38.5°C 😷 (pain), e\u0301 was seen today".split()
BLANKS = [" ", " ", " ", "  ", "\n", "\r\n\t", "\u00a0"]


@pytest.fixture(scope="module", params=["trained here", "of a real model"])
def folder(request, small_base):
    if request.param == "trained here":
        return small_base
    return request.getfixturevalue("shared_data") / "tinyllama260k" / "hf"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(folder)


def written(rng, count=30) -> tuple[str, np.ndarray]:
    """A note of words in several alphabets, and entities of one to four of them, some side by side."""
    text, places = "", []
    for word in rng.choice(WORDS, count):
        text += str(rng.choice(BLANKS)) if text else ""
        places.append((len(text), len(text) + len(word)))
        text += word
    found, at = [], 0
    while at < count:
        size = int(rng.integers(1, 5))
        if rng.random() < 0.5 and at + size <= count:
            found.append((places[at][0], places[at + size - 1][1], int(rng.integers(3))))
        at += size
    return text, np.asarray(found, np.int64).reshape(-1, 3)


def example(text, label, name="a"):
    return {"id": name, "patient": name, "text": text, "label": label}


def read(tokenizer, examples, length, long_notes, kind):
    return tokenize(examples, tokenizer, length, long_notes, lambda _: None, kind)


def oracle(folder, text, marked) -> list[int]:
    """The tag of every piece but BOS: its characters by counting bytes, its entity by looking at each of them."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    of_byte = [0] + [i for i, character in enumerate(text) for _ in character.encode()]  # the blank before the text
    tags, at, before = [], 0, None
    for piece in pieces.encode(text, out_type=str):
        code = re.fullmatch("<0x(..)>", piece)
        size = 1 if code else len(piece.replace("▁", " ").encode())
        characters = sorted(set(of_byte[at : at + size]))
        at += size
        solid = [i for i in characters if not text[i].isspace()] or characters[:1]
        inside = [n for i in solid for n, (start, end, _) in enumerate(marked) if start <= i < end]
        owner = inside[0] if inside else None
        tags.append(0 if owner is None else 1 + 2 * marked[owner][2] + (owner == before))
        before = owner
    assert at == len(of_byte)
    return tags


@pytest.mark.parametrize("seed", range(5))
def test_tags_are_those_of_an_oracle_over_bytes(tokenizer, folder, seed):
    rng = np.random.default_rng(seed)
    examples = [example(*written(rng)) for _ in range(10)]
    notes = read(tokenizer, examples, 1000, "truncate", "tokens")
    for number, (one, (start, end)) in enumerate(zip(examples, itertools.pairwise(notes.offsets), strict=True)):
        assert notes.labels[start] == -1 and notes.tokens[start] == tokenizer.bos
        assert notes.labels[start + 1 : end].tolist() == oracle(folder, one["text"], one["label"]), number


@pytest.mark.parametrize(("length", "long_notes"), [(16, "chunk"), (7, "chunk"), (1000, "truncate")])
def test_entities_come_back_from_their_tags_in_characters(tokenizer, length, long_notes):
    rng = np.random.default_rng(9)
    examples = [example(*written(rng)) for _ in range(20)]
    notes = read(tokenizer, examples, length, long_notes, "tokens")
    found = entities(notes.labels, np.repeat(notes.notes, notes.lengths), notes.spans)
    expected = [(number, *row) for number, one in enumerate(examples) for row in one["label"].tolist()]
    assert found.tolist() == [list(row) for row in expected] and len(expected) > 50


@pytest.mark.parametrize("kind", ["prepended blank", "byte-level, no BOS"])
def test_entities_come_back_from_other_kinds_of_tokenizer(small_base, tmp_path, kind):
    if kind == "prepended blank":  # Llama 2's own tokenizer.json
        Tokenizer(small_base)._tokenizer.save_pretrained(tmp_path)
        said = json.loads((tmp_path / "tokenizer.json").read_text())
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        said |= {"pre_tokenizer": None, "normalizer": json.loads(normalizers.Sequence(steps).__getstate__())}
        (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    else:
        fast = Fast(models.BPE())
        fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        fast.train_from_iterator(WORDS * 5, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
        fast.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    rng = np.random.default_rng(9)
    examples = [example(*written(rng)) for _ in range(10)]
    tokenizer = Tokenizer(tmp_path)
    notes = read(tokenizer, examples, 16, "chunk", "tokens")
    assert (notes.labels < 0).sum() == (0 if tokenizer.bos is None else len(notes.lengths))
    found = entities(notes.labels, np.repeat(notes.notes, notes.lengths), notes.spans)
    assert found.tolist() == [[n, *row] for n, one in enumerate(examples) for row in one["label"].tolist()]


def test_what_is_cut_off_has_no_tag(tokenizer):
    text, marked = written(np.random.default_rng(2))
    whole = read(tokenizer, [example(text, marked)], 1000, "truncate", "tokens")
    cut = read(tokenizer, [example(text, marked)], 20, "truncate", "tokens")
    assert cut.labels.tolist() == whole.labels[:20].tolist() and len(whole.labels) > 40


def test_of_entities_that_overlap_the_first_and_longest_is_told():
    spans = np.asarray([[0, 2], [2, 4], [4, 6], [6, 8]])
    marked = np.asarray([[0, 2, 0], [0, 6, 1], [4, 8, 2]])
    assert alignment.tags(spans, marked, 8).tolist() == [3, 4, 4, 0]


def test_a_token_belongs_to_the_first_entity_that_it_touches():
    spans = np.asarray([[0, 4], [4, 8]])
    assert alignment.tags(spans, np.asarray([[3, 4, 0], [4, 5, 0]]), 8).tolist() == [1, 1]
    assert alignment.tags(spans, np.asarray([[1, 2, 0], [2, 6, 1]]), 8).tolist() == [1, 3]
    assert alignment.tags(spans, np.zeros((0, 3), np.int64), 8).tolist() == [0, 0]


def test_blanks_are_trimmed_from_tokens():
    text = " a\n\n b"
    spans = np.asarray([[0, 2], [2, 3], [2, 5], [3, 6], [0, 0], [6, 6]])
    assert alignment.trim(text, spans).tolist() == [[1, 2], [2, 2], [2, 2], [5, 6], [0, 0], [6, 6]]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("count", "prefix", "length"), [(100, 1, 16), (17, 1, 16), (16, 1, 16), (40, 7, 14), (1, 1, 8)]
)
def test_chunks_hold_every_token(count, prefix, length, overlap):
    cut = alignment.cuts(count, prefix, length, "chunk", overlap)
    assert sorted({i for start, end in cut for i in range(start, end)}) == list(range(prefix, count))
    assert all(prefix + end - start <= length for start, end in cut) and cut[-1][1] == count
    room = length - prefix
    for (_, end), (start, _) in itertools.pairwise(cut):
        assert end - start == (room - room // 2 if overlap else 0)


QUESTION, CONTEXT = (
    "What was given?",
    "the patient was seen today. " * 6 + "он принял aspirin 81mg. " + "he went home. " * 6,
)


def asked(answers, question=QUESTION, context=CONTEXT):
    begin = len(question) + 1
    rows = [(begin, begin + len(context))]
    rows += [(begin + context.index(answer), begin + context.index(answer) + len(answer)) for answer in answers]
    return example(f"{question}\n{context}", np.asarray(rows))


def told(tokenizer, one, notes, piece) -> str:
    """The text from the first to the last token of a piece's answer."""
    spans, (first, last) = notes.spans[notes.offsets[piece] : notes.offsets[piece + 1]], notes.labels[piece]
    return one["text"][spans[first, 0] : spans[last, 1]]


@pytest.mark.parametrize("answer", ["он принял aspirin", "aspirin 81mg", "the patient was", "went home"])
def test_answers_are_told_by_their_first_and_last_token(tokenizer, answer):
    one = asked([answer])
    notes = read(tokenizer, [one], 1000, "truncate", "span")
    assert len(notes.labels) == 1 and told(tokenizer, one, notes, 0) == answer


def test_no_answer_is_the_first_token(tokenizer):
    notes = read(tokenizer, [asked([])], 1000, "truncate", "span")
    assert notes.labels.tolist() == [[0, 0]] and notes.tokens[0] == tokenizer.bos


def test_chunks_repeat_the_question_and_one_of_them_has_the_answer(tokenizer):
    one, length = asked(["aspirin 81mg"]), 64
    notes, question = read(tokenizer, [one], length, "chunk", "span"), len(tokenizer.encode([QUESTION + "\n"])[0])
    assert len(notes.labels) > 3 and notes.lengths.max() <= length
    answered = notes.labels.any(axis=1)
    assert 1 <= answered.sum() < len(answered)
    for piece, (start, end) in enumerate(itertools.pairwise(notes.offsets)):
        assert notes.tokens[start : start + question].tolist() == notes.tokens[:question].tolist()
        held = one["text"][notes.spans[start + question, 0] : notes.spans[end - 1, 1]]
        assert answered[piece] == ("aspirin 81mg" in held)
        assert not answered[piece] or told(tokenizer, one, notes, piece) == "aspirin 81mg"


def test_a_question_that_leaves_no_room_is_an_error(tokenizer):
    one = asked([], question="Was a drug given? " * 20)
    with pytest.raises(UserError, match="^config.data.length is 64, and a question takes .* of it; double it"):
        read(tokenizer, [one], 64, "chunk", "span")
    notes = read(tokenizer, [one], 64, "truncate", "span")
    assert notes.lengths.tolist() == [64] and notes.labels.tolist() == [[0, 0]]
