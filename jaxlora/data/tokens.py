"""Notes to token ids: the tokenizer of a Hugging Face directory, and a split's notes as one flat array."""

import array
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxlora import files
from jaxlora.data import alignment
from jaxlora.data.examples import ANNOTATED
from jaxlora.data.groups import Groups, encoded
from jaxlora.errors import UserError

_BATCH = 256


class Tokenizer:
    """Encodes text as its model does: a LLaMA one BOS, then the pieces, no EOS (docs/paper.md); Qwen2 no BOS;
    a BERT [CLS], which is its BOS, the pieces, and [SEP].

    A `tokenizer.json` is read as it is, and not as the class that tokenizer_config.json names would make it anew. With
    a SentencePiece `tokenizer.model` alone, transformers 5's automatic choice drops the leading-space piece, so the
    LLaMA class is named here. PMC-LLaMA and MedLLaMA name no special tokens, or empty ones; there they are the
    SentencePiece model's own, <s> and </s>. A BERT's `vocab.txt` is read in lower case unless tokenizer_config.json
    says otherwise, as transformers does, so the cased Bio+ClinicalBERT too, which comes without that file.

    Attributes:
      bos, eos: ids, or None.
      last: the id that every piece of a note ends with, [SEP]; or None.
      vocab: number of pieces.
      longest: tokens that a piece has at most, since the model has no more positions; 0 is any number.
      fingerprint: of the tokenizer's file, BOS and EOS.

    Raises:
      UserError: the directory holds none of these files, or the file is damaged.
    """

    def __init__(self, directory: str | Path):
        import sentencepiece
        from transformers import LlamaTokenizer, PreTrainedTokenizerFast

        directory = Path(directory)
        kinds = [directory / name for name in ("vocab.txt", "tokenizer.json", "tokenizer.model")]
        path = next((file for file in kinds if file.exists()), None)
        if path is None:
            raise UserError(f"config.base: {directory} has no tokenizer.json, no tokenizer.model and no vocab.txt")
        if not path.stat().st_size:  # SentencePiece reads it as a model without pieces
            raise UserError(f"{path} is empty; copy it again")
        model, named = _json(directory / "config.json"), _json(directory / "tokenizer_config.json")
        kind, repairs = PreTrainedTokenizerFast, {}
        try:
            if path.name == "tokenizer.model":
                # Read apart: LlamaTokenizer takes a model that is cut short between two pieces.
                pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
                kind, repairs = LlamaTokenizer, _repairs(named, pieces)
            if path.name == "vocab.txt":
                self._tokenizer = _wordpiece(path, named)
            else:
                self._tokenizer = kind.from_pretrained(directory, local_files_only=True, **repairs)
        except Exception as error:  # the reader of either format raises whatever its parser raises
            raise UserError(f"{path} is not a readable tokenizer ({type(error).__name__}); copy it again") from None
        # A call of transformers builds a BatchEncoding of Python lists, which takes as long as the tokenizing. What it
        # sets before each call is set here once; a tokenizer.json may bring a truncation and a padding of its own.
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        # Of a directory without tokenizer_config.json; Qwen2 names a BOS in config.json that it does not use.
        unnamed = {} if named or model.get("model_type") == "qwen2" else model
        self.bos = self._special("bos_token", "<s>", unnamed)
        self.eos = self._special("eos_token", "</s>", unnamed)
        self.last, self.longest = None, 0
        if type(self._backend.model).__name__ == "WordPiece":
            self.bos, self.eos = self._backend.token_to_id("[CLS]"), self._backend.token_to_id("[SEP]")
            if self.bos is None or self.eos is None:
                raise UserError(f"{path} has no [CLS] or no [SEP], as every BERT's has; copy it again")
            longest = str(model.get("max_position_embeddings", 512))
            self.last, self.longest = self.eos, int(longest) if longest.isdigit() else 0
        limit = str(model.get("vocab_size"))
        self.vocab, self._limit = len(self._tokenizer), int(limit) if limit.isdigit() else 0
        lower = f" {getattr(self._backend.normalizer, 'lowercase', '')}" if self.last is not None else ""
        special = f"{self.bos} {self.eos}{lower}".encode()
        self.fingerprint = hashlib.sha256(path.read_bytes() + special).hexdigest()[:16]
        self._where = f"config.base: {directory}"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, as `ids` has them; a note that spells "</s>" has its characters, and no EOS.

        Raises:
          UserError: a piece that the model has no embedding of.
        """
        return [self.ids(encoding).tolist() for encoding in self.encodings(texts)]

    def encodings(self, texts: Sequence[str], with_spans: bool = False) -> list:
        """Returns the encodings of the Rust tokenizer, made on every core and without Python's lock, for `ids` and, if
        `with_spans`, for `spans`."""
        call = self._backend.encode_batch if with_spans else self._backend.encode_batch_fast
        return call(list(texts), add_special_tokens=False)

    def ids(self, encoding) -> np.ndarray:
        """Returns the ids of an encoding, BOS first and `last` at the end, uint32.

        Raises:
          UserError: a piece that the model has no embedding of.
        """
        ids = encoding.ids if self.bos is None else [self.bos, *encoding.ids]
        ids = ids if self.last is None else [*ids, self.last]
        row = np.frombuffer(array.array("I", ids), np.uint32)  # twice as fast as numpy takes a list
        if self._limit and len(row) and row.max() >= self._limit:
            raise UserError(
                f"{self._where} has a tokenizer of more pieces than the model's {self._limit}; copy it again"
            )
        return row

    def spans(self, encoding) -> np.ndarray:
        """Returns int64 `[tokens, 2]`: start and end of what each token was made of, in characters of the text (not in
        bytes), BOS and `last` at (0, 0). The bytes of one character all have that character."""
        before, after = ([] if token is None else [(0, 0)] for token in (self.bos, self.last))
        return np.asarray([*before, *encoding.offsets, *after], np.int64).reshape(-1, 2)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of some ids, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def _special(self, role: str, usual: str, model: dict) -> int | None:
        """The id of a special token: the one that the tokenizer names, else `usual` where that is a special token, else
        the one that `model`, its config.json, has."""
        name = getattr(self._tokenizer, role)
        if name:
            return self._tokenizer.get_vocab().get(name)
        found = model.get(f"{role}_id")
        found = found[0] if isinstance(found, list) and found else found
        return self._tokenizer.get_added_vocab().get(usual, found if isinstance(found, int) and found >= 0 else None)


def _json(path: Path) -> dict:
    return files.read_json_object(path, "copy it again") if path.exists() else {}


def _wordpiece(path: Path, named: dict):
    """The tokenizer of a vocab.txt, as tokenizer_config.json has it, and else as BERT's is by default."""
    from transformers import BertTokenizer

    words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    told = {name: named[name] for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars") if name in named}
    vocab = {word: number for number, word in enumerate(words)}
    if not {"[CLS]", "[SEP]", "[UNK]"} <= vocab.keys():
        raise ValueError  # transformers would make up what is missing, under ids that the model has for others
    return BertTokenizer(vocab=vocab, **told)


def _repairs(named: dict, pieces) -> dict[str, str]:
    """The special tokens that tokenizer_config.json leaves empty, as the SentencePiece model has them."""
    own = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id(), "unk_token": pieces.unk_id()}
    found = {}
    for role, number in own.items():
        token = named.get(role)
        if not (token.get("content") if isinstance(token, dict) else token) and number >= 0:
            found[role] = pieces.id_to_piece(number)
    return found


def train_tokenizer(texts: Sequence[str], directory: str | Path, vocab: int) -> None:
    """Trains a SentencePiece tokenizer of LLaMA's kind (BPE, digits apart, unknown characters as bytes) on `texts`, and
    writes `DIRECTORY/tokenizer.model`; <unk>, <s> and </s> are 0, 1 and 2."""
    import sentencepiece

    Path(directory).mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(Path(directory) / "tokenizer"),
        vocab_size=vocab,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )


@dataclasses.dataclass(frozen=True)
class TokenizedNotes:
    """The notes of one split as token ids, in pieces of at most `length` tokens.

    Attributes:
      tokens: `[total]`, all pieces one after another.
      offsets: `[pieces + 1]`, where each piece starts.
      notes: `[pieces]`, the note each piece is of.
      ids, patients: keyed ids, by note.
      labels: by note: `[notes]` int for one label, a list of index arrays for several, None for none. Of kind "tokens":
        `[total]`, the BIO tag of each token, -1 for BOS and [SEP]. Of kind "span": `[pieces, 2]`, the first and the
        last token of the answer in its piece, twice 0 where the piece has none.
      kind: "tokens", "span", or "" for notes with labels of their own.
      spans: `[total, 2]`, the characters of its note that each token holds; of the two kinds only.
      source: where the notes were read, by number; of the two kinds only.
      groups: by attribute, the names of its categories and the number of each note's, as `groups.encoded` gives them.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    notes: np.ndarray
    ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray | list[np.ndarray] | None
    kind: str = ""
    spans: np.ndarray | None = None
    source: Sequence[dict] | None = None
    groups: Groups = dataclasses.field(default_factory=dict)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """Which notes these are, in which order and pieces."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(self.offsets.tobytes())
        return digest.hexdigest()[:16]


def tokenize(
    source: Sequence[dict],
    tokenizer: Tokenizer,
    length: int,
    long_notes: str,
    progress: Callable[[int], None],
    kind: str = "",
) -> TokenizedNotes:
    """Tokenizes a split of a prepared dataset, whole, into memory (two or four bytes a token).

    Args:
      source: the split, as `builders.load(...).split(...)` gives it.
      length: tokens a piece has at most, BOS and [SEP] included; a tokenizer's `longest` holds too.
      long_notes: "truncate" keeps a note's first piece; "chunk" cuts it into pieces, each with BOS and [SEP]. The
        chunks of a "span" note each repeat its question, and overlap by half.
      progress: called with the number of notes done after each batch.
      kind: of the task; "tokens" and "span" align the labels, which are spans of characters, with the tokens.

    Raises:
      UserError: `long_notes` is neither, a question fills half of a chunk, or a piece has no room for a word.
    """
    if long_notes not in ("truncate", "chunk"):
        raise UserError(f"config.data.long_notes is {long_notes!r}; give 'truncate' or 'chunk'")
    dtype = np.uint16 if tokenizer.vocab <= 2**16 else np.uint32
    bos, last = (0 if token is None else 1 for token in (tokenizer.bos, tokenizer.last))
    room = min(length, tokenizer.longest or length) - last
    if room < 2:
        raise UserError(f"config.data.length is {length}, [CLS] and [SEP] included; give 3 or more")
    pieces, notes, ids, patients, labels, spans, groups = [], [], [], [], [], [], []
    for batch, encodings in _batches(source, functools.partial(tokenizer.encodings, with_spans=kind in ANNOTATED)):
        for number, (example, encoding) in enumerate(zip(batch, encodings, strict=True), len(ids)):
            row = tokenizer.ids(encoding).astype(dtype)
            inner = len(row) - last
            if kind in ANNOTATED:
                places = alignment.trim(example["text"], tokenizer.spans(encoding))
                for indices, label in _aligned(kind, example, places[:inner], bos, room, long_notes):
                    if last:
                        indices = np.append(indices, inner)
                        label = np.append(label, alignment.IGNORED) if kind == "tokens" else label
                    pieces.append(row[indices])
                    spans.append(places[indices].astype(np.int32))
                    labels.append(label)
                    notes.append(number)
            else:
                for begin, end in alignment.cuts(inner, bos, room, long_notes):
                    pieces.append(np.concatenate([row[:bos], row[begin:end], row[inner:]]))
                    notes.append(number)
                labels.append(example.get("label"))
        ids += [example["id"] for example in batch]
        patients += [example["patient"] for example in batch]
        groups += [example.get("groups", {}) for example in batch]
        progress(len(batch))
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
    by_note = tokens, offsets, np.asarray(notes), np.asarray(ids), np.asarray(patients)
    if kind in ANNOTATED:
        labels = np.concatenate(labels) if kind == "tokens" else np.stack(labels)
        return TokenizedNotes(*by_note, labels, kind, np.concatenate(spans), source)
    if labels and labels[0] is None:
        labels = None
    elif labels and np.ndim(labels[0]) == 0:
        labels = np.asarray(labels, np.int64)
    return TokenizedNotes(*by_note, labels, groups=encoded(groups))


def _batches(source: Sequence[dict], encode: Callable[[list[str]], list]) -> Iterator[tuple[list[dict], list]]:
    """Yields the notes in batches, with what `encode` makes of their texts; it works on the next batch meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for start in range(0, len(source), _BATCH):
            places = range(start, min(start + _BATCH, len(source)))
            # A list of rows has no such method; the split of a dataset gives many examples quicker than each.
            batch = source.__getitems__(places) if hasattr(source, "__getitems__") else [source[i] for i in places]
            coming = batch, pool.submit(encode, [example["text"] for example in batch])
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()


def _aligned(
    kind: str, example: dict, spans: np.ndarray, bos: int, length: int, long_notes: str
) -> list[alignment.Piece]:
    if kind == "tokens":
        return alignment.tagged_pieces(example["label"], spans, len(example["text"]), bos, length, long_notes)
    return alignment.answered_pieces(example["label"], spans, bos, length, long_notes)
