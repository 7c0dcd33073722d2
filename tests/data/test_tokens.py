"""Notes to token ids: what SentencePiece says, one BOS, and no token lost."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxlora.data.tokens import Tokenizer, tokenize, train_tokenizer
from jaxlora.errors import UserError

ODD = [
    "",
    "a",
    "\n",
    "CHIEF COMPLAINT:\n\n\tchest pain\r\n",
    "two  spaces,   three, trailing  ",
    "120/80 mmHg, 5µg, ≥38.5°C",
    "кашель и жар",
    "β-blocker, λόγος",
    "😷 no\u00a0break e\u0301",
    "[**2101-1-1**] ___",
    "\x00",
    "says <s> and </s> and <unk>",
]


@pytest.fixture(scope="module")
def tokenizer(small_base):
    return Tokenizer(small_base)


@pytest.fixture(scope="module")
def pieces(small_base):
    return sentencepiece.SentencePieceProcessor(model_file=str(small_base / "tokenizer.model"))


@pytest.mark.parametrize("text", ODD)
def test_ids_are_one_bos_and_those_of_sentencepiece(tokenizer, pieces, text):
    assert tokenizer.encode([text]) == [[1, *pieces.encode(text)]]


def test_first_space_of_a_note_is_the_one_that_sentencepiece_adds(tokenizer):
    """As transformers has it since LLaMA's `legacy=False`."""
    assert tokenizer.encode([" chest pain"]) == tokenizer.encode(["chest pain"])


def test_texts_do_not_depend_on_their_neighbours(tokenizer):
    assert tokenizer.encode(ODD) == [tokenizer.encode([text])[0] for text in ODD]


def test_ids_of_a_real_model(shared_data):
    golden = json.loads((shared_data / "tinyllama260k" / "golden_base.json").read_text())
    tokenizer = Tokenizer(shared_data / "tinyllama260k" / "hf")
    assert tokenizer.encode([golden["text"]]) == [golden["ids"]]
    assert (tokenizer.bos, tokenizer.vocab) == (1, 512)


def test_tokenizer_json_is_read_as_it_is(tokenizer, tmp_path):
    tokenizer._tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists() and not (tmp_path / "tokenizer.model").exists()
    assert Tokenizer(tmp_path).encode(ODD) == tokenizer.encode(ODD)


def test_a_tokenizer_json_that_cuts_and_pads_does_neither_here(tokenizer, tmp_path):
    tokenizer._tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    cutting = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": cutting, "padding": padding}))
    assert Tokenizer(tmp_path).encode(ODD) == tokenizer.encode(ODD)


EMPTY = {"__type": "AddedToken", "content": "", "lstrip": False, "normalized": True, "rstrip": False}


@pytest.mark.parametrize("named", ["", None, EMPTY], ids=["empty", "null", "an empty added token"])
def test_special_tokens_left_empty_are_the_models_own(tokenizer, small_base, tmp_path, named):
    """The directories of PMC-LLaMA and MedLLaMA; transformers itself does not get through them."""
    shutil.copy(small_base / "tokenizer.model", tmp_path)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), named)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text(json.dumps({**special, "tokenizer_class": "LlamaTokenizer"}))
    repaired = Tokenizer(tmp_path)
    assert (repaired.bos, repaired.eos) == (tokenizer.bos, tokenizer.eos) == (1, 2)
    assert repaired.encode(ODD) == tokenizer.encode(ODD)


def byte_level(folder, special, **named) -> Tokenizer:
    """A byte-level tokenizer.json of the kind of Llama 3 and Qwen2."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    fast.train_from_iterator(["chest pain and pain of the chest"] * 3, trainer)
    fast.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return Tokenizer(folder)


def test_a_byte_level_tokenizer_names_its_own_bos(tmp_path):
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    found = byte_level(tmp_path, special, bos_token=special[0], eos_token=special[1])
    assert (found.bos, found.eos) == (0, 1)
    for text, ids in zip(ODD, found.encode(ODD), strict=True):
        assert ids[0] == 0 and found.decode(ids) == text


def test_a_tokenizer_without_bos_begins_with_the_text(tmp_path):
    found = byte_level(tmp_path, ["<|endoftext|>"], eos_token="<|endoftext|>")
    assert (found.bos, found.eos) == (None, 0)
    source = [{"id": "a", "patient": "b", "text": "chest pain of the chest"}]
    whole = found.encode([source[0]["text"]])[0]
    notes = tokenize(source, found, 3, "chunk", lambda _: None)
    np.testing.assert_array_equal(notes.tokens, whole)
    assert list(notes.lengths[:-1]) == [3] * (len(notes.lengths) - 1)


def test_without_a_name_bos_is_that_of_the_models_config(tmp_path):
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    named = byte_level(tmp_path, special, bos_token=special[0], eos_token=special[1])
    (tmp_path / "tokenizer_config.json").unlink()
    unnamed = Tokenizer(tmp_path)
    assert (unnamed.bos, unnamed.eos) == (None, None) and unnamed.fingerprint != named.fingerprint
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 5]}))
    found = Tokenizer(tmp_path)
    assert (found.bos, found.eos) == (0, 1) and found.fingerprint == named.fingerprint
    assert found.encode(ODD) == named.encode(ODD)


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "LlamaTokenizer"])
def test_tokenizer_json_is_not_made_anew_by_the_class_that_is_named(tmp_path, kind):
    named = byte_level(tmp_path, ["<|endoftext|>"], eos_token="<|endoftext|>", tokenizer_class=kind)
    text = "chest pain 120/80 the chest"
    assert named.encode([text]) == [Fast.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids]


def test_spans_are_of_characters_whatever_their_bytes(tokenizer):
    """What SentencePiece tells in bytes: a character in several pieces belongs to each of them."""
    for text, encoding in zip(ODD, tokenizer.encodings(ODD, with_spans=True), strict=True):
        ids, spans = tokenizer.ids(encoding), tokenizer.spans(encoding)
        assert ids.tolist() == tokenizer.encode([text])[0] and spans.shape == (len(ids), 2)
        assert spans[0].tolist() == [0, 0] and (not text or spans[-1, 1] == len(text))
        said = "".join(text[a:b] for a, b in dict.fromkeys(map(tuple, spans[1:].tolist())))
        # The blank that is put before a text tells of the text's first character.
        assert said == text or said.removeprefix(text[:1]) == text


def test_a_piece_that_the_model_has_not_is_an_error(small_base, tmp_path):
    shutil.copy(small_base / "tokenizer.model", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    with pytest.raises(UserError, match="has a tokenizer of more pieces than the model's 300; copy it again"):
        Tokenizer(tmp_path).encode(["chest pain in the morning"])


@pytest.mark.parametrize("config", [{"bos_token_id": -1}, {"bos_token_id": 0, "model_type": "qwen2"}])
def test_a_bos_that_the_model_does_not_use_is_not_taken(tmp_path, config):
    byte_level(tmp_path, ["<|endoftext|>"])
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": "300"}))
    assert Tokenizer(tmp_path).bos is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_damaged_tokenizer_config_is_named(tokenizer, small_base, tmp_path, name):
    if name == "tokenizer.json":
        tokenizer._tokenizer.save_pretrained(tmp_path)
    else:
        shutil.copy(small_base / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=f"^{tmp_path}/tokenizer_config.json is not a JSON object; copy it again$"):
        Tokenizer(tmp_path)


def test_decoding_leaves_special_tokens_out(tokenizer):
    assert tokenizer.decode([1, *tokenizer.encode(["chest pain"])[0], 2]) == "chest pain"


def test_fingerprint_is_of_the_file(tokenizer, small_base, tmp_path):
    shutil.copy(small_base / "tokenizer.model", tmp_path)
    assert Tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    train_tokenizer(["other words for another vocabulary"], tmp_path, 285)
    assert Tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


def test_missing_tokenizer_is_an_error(tmp_path):
    with pytest.raises(
        UserError, match=f"^config.base: {tmp_path} has no tokenizer.json, no tokenizer.model and no vocab.txt$"
    ):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 100])
def test_damaged_tokenizer_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path / name} ") as error:
        Tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_tokenizer_model_is_an_error(small_base, tmp_path):
    whole = (small_base / "tokenizer.model").read_bytes()
    for cut in range(40, len(whole), 97):  # some of them lie between two pieces
        (tmp_path / "tokenizer.model").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="tokenizer.model is not a readable tokenizer .*; copy it again$"):
            Tokenizer(tmp_path)


TEXTS = ["chest pain", "", "the patient was seen today " * 9, "no fever\n" * 30]
SOURCE = [{"text": t, "id": f"n{i}", "patient": f"p{i % 2}", "label": i} for i, t in enumerate(TEXTS)]


def read(tokenizer, long_notes, length=16, source=SOURCE):
    return tokenize(source, tokenizer, length, long_notes, lambda _: None)


def pieces_of(notes) -> list[list[int]]:
    return [notes.tokens[a:b].tolist() for a, b in zip(notes.offsets, notes.offsets[1:], strict=False)]


def test_truncation_keeps_the_first_tokens_of_each_note(tokenizer):
    notes = read(tokenizer, "truncate")
    assert pieces_of(notes) == [row[:16] for row in tokenizer.encode(TEXTS)]
    np.testing.assert_array_equal(notes.notes, range(4))


@pytest.mark.parametrize("length", [2, 16, 1000])
def test_chunks_keep_every_token_and_begin_with_bos(tokenizer, length):
    notes = read(tokenizer, "chunk", length)
    found = [[] for _ in TEXTS]
    for note, piece in zip(notes.notes, pieces_of(notes), strict=True):
        assert piece[0] == tokenizer.bos and len(piece) <= length
        found[note] += piece[1:]
    assert found == [row[1:] for row in tokenizer.encode(TEXTS)]
    np.testing.assert_array_equal(notes.lengths, [len(piece) for piece in pieces_of(notes)])


def test_ids_patients_and_labels_stay_by_note(tokenizer):
    done = []
    notes = tokenize(SOURCE * 100, tokenizer, 16, "chunk", done.append)  # more than one batch
    assert notes.ids.tolist() == ["n0", "n1", "n2", "n3"] * 100
    assert notes.patients.tolist() == ["p0", "p1", "p0", "p1"] * 100
    np.testing.assert_array_equal(notes.labels, [0, 1, 2, 3] * 100)
    assert sum(done) == 400 and len(done) > 1
    np.testing.assert_array_equal(np.unique(notes.notes), range(400))


def test_several_labels_stay_lists_and_none_is_none(tokenizer):
    several = [{**row, "label": np.arange(row["label"])} for row in SOURCE]
    assert [x.tolist() for x in read(tokenizer, "truncate", source=several).labels] == [[], [0], [0, 1], [0, 1, 2]]
    bare = [{name: row[name] for name in ("text", "id", "patient")} for row in SOURCE]
    assert read(tokenizer, "truncate", source=bare).labels is None


def test_empty_split_has_no_piece(tokenizer):
    notes = read(tokenizer, "truncate", source=[])
    assert len(notes.tokens) == len(notes.lengths) == len(notes.ids) == 0


def test_unknown_way_with_long_notes_is_an_error(tokenizer):
    with pytest.raises(UserError, match="^config.data.long_notes is 'split'; give 'truncate' or 'chunk'$"):
        read(tokenizer, "split")


def test_trained_tokenizer_is_of_llamas_kind(tokenizer, pieces):
    assert len(pieces) == tokenizer.vocab == 400
    assert [pieces.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert tokenizer.bos == 1
    words = [pieces.id_to_piece(i) for i in range(259, 400)]
    assert not any(any(c.isdigit() for c in word.strip("▁")) and len(word.strip("▁")) > 1 for word in words)
    assert pieces.decode(pieces.encode("β 2  x")) == "β 2  x"  # unknown characters as bytes, spaces kept


CLINICAL = ["", "The OLD boat, 120/80!", "was [SEP] ###", "Élan µg 38.5°C\n\tpond", "zzz кашель 😷", "rain " * 99]


@pytest.mark.parametrize("lower", [True, False, None])
def test_ids_of_a_bert_are_those_of_transformers(small_bert, tmp_path, lower):
    """None is a directory that does not say; a special token that a note spells is left to the next test."""
    from transformers import BertTokenizer

    shutil.copytree(small_bert, tmp_path, dirs_exist_ok=True)
    if lower is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    tokenizer, theirs = Tokenizer(tmp_path), BertTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos, tokenizer.last, tokenizer.longest) == (theirs.cls_token_id, theirs.sep_token_id, 64)
    texts = [text for text in CLINICAL if "[SEP]" not in text]
    assert tokenizer.encode(texts) == theirs(texts)["input_ids"]
    rows = [{"id": str(i), "patient": "", "text": text} for i, text in enumerate(texts)]
    for length in (3, 16, 500):
        notes = tokenize(rows, tokenizer, length, "truncate", lambda _: None)
        pieces = [piece.tolist() for piece in np.split(notes.tokens, notes.offsets[1:-1])]
        assert pieces == theirs(texts, truncation=True, max_length=min(length, 64))["input_ids"]


def test_case_is_part_of_a_berts_fingerprint(small_bert, tmp_path):
    shutil.copytree(small_bert, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer(tmp_path).fingerprint != Tokenizer(small_bert).fingerprint


def test_a_tokenizer_json_of_a_bert_gives_the_same(small_bert, tmp_path):
    tokenizer = Tokenizer(small_bert)
    tokenizer._tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    shutil.copyfile(small_bert / "config.json", tmp_path / "config.json")
    other = Tokenizer(tmp_path)
    assert other.encode(CLINICAL) == tokenizer.encode(CLINICAL) and other.longest == 64


def test_special_tokens_that_a_note_spells_are_words_of_it(small_bert):
    (row,) = Tokenizer(small_bert).encode(["was [SEP] and"])
    words = (small_bert / "vocab.txt").read_text().split("\n")
    assert [words[i] for i in row][:3] == ["[CLS]", "was", "["] and row.count(words.index("[SEP]")) == 1


@pytest.mark.parametrize("long_notes", ["truncate", "chunk"])
def test_every_piece_of_a_bert_begins_and_ends_as_it_should(small_bert, long_notes):
    tokenizer = Tokenizer(small_bert)
    text = "the old boat was at the pond by the mill " * 6
    starts = [i for i in range(len(text)) if text.startswith("pond", i)]
    example = {"id": "1", "patient": "1", "text": text, "label": np.asarray([[i, i + 4, 0] for i in starts])}
    notes = tokenize([example], tokenizer, 16, long_notes, lambda _: None, "tokens")
    words = []
    for start, end in zip(notes.offsets, notes.offsets[1:], strict=False):
        assert end - start <= 16 and notes.tokens[start] == tokenizer.bos and notes.tokens[end - 1] == tokenizer.last
        assert notes.labels[start] == notes.labels[end - 1] == -1 and (notes.labels[start + 1 : end - 1] >= 0).all()
        words += [text[a:b] for a, b in notes.spans[start + 1 : end - 1]]
    begun = np.flatnonzero(notes.labels == 1)
    assert [text[a:b] for a, b in notes.spans[begun]] == ["pond"] * len(begun) and len(begun)
    assert words == text.split()[: len(words)] and (long_notes == "truncate") == (len(words) == 14)


def test_a_vocabulary_without_its_marks_is_an_error(small_bert, tmp_path):
    shutil.copytree(small_bert, tmp_path, dirs_exist_ok=True)
    kept = [word for word in (small_bert / "vocab.txt").read_text().split("\n") if word != "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join(kept))
    with pytest.raises(UserError, match="vocab.txt is not a readable tokenizer"):
        Tokenizer(tmp_path)
