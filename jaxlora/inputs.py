"""What a run reads: the dataset of its config, tokenized."""

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora.data import builders
from jaxlora.data.examples import ANNOTATED, Task
from jaxlora.data.mixture import mix
from jaxlora.data.tokens import TokenizedNotes, Tokenizer, tokenize
from jaxlora.errors import UserError
from jaxlora.terminal import tell
from jaxlora.train.objective import balanced_weights


def open_dataset(config: ConfigDict) -> builders.Prepared:
    """Returns the dataset of a config.

    Raises:
      UserError: there is no such dataset, or its notes may not be read as `config.data.long_notes` says.
    """
    prepared = builders.load(config.data.dir, config.data.name)
    if prepared.task.kind not in ("lm", *ANNOTATED) and config.data.long_notes == "chunk":
        raise UserError(
            "config.data.long_notes = 'chunk' is for notes without labels; an outcome reads 'truncate'd notes"
        )
    return prepared


def read_notes(
    config: ConfigDict, prepared: builders.Prepared, tokenizer: Tokenizer
) -> tuple[TokenizedNotes, TokenizedNotes | None]:
    """Returns the training notes of a run, and the validation notes where there are any."""
    notes = read_split(config, prepared, "train", tokenizer)
    if config.data.mix:
        notes = _mixed(config, prepared.task, notes, tokenizer)
    held_out = read_split(config, prepared, "validation", tokenizer) if prepared.splits.get("validation") else None
    return notes, held_out


def read_split(config: ConfigDict, prepared: builders.Prepared, split: str, tokenizer: Tokenizer) -> TokenizedNotes:
    """Returns the notes of one split as tokens."""
    source = prepared.split(split)
    hidden = jax.process_index() > 0
    with tqdm(total=len(source), desc=f"tokenizing {split}", unit="note", leave=False, disable=hidden) as bar:
        kind = prepared.task.kind
        return tokenize(source, tokenizer, config.data.length, config.data.long_notes, bar.update, kind)


def _mixed(config: ConfigDict, task: Task, notes: TokenizedNotes, tokenizer: Tokenizer) -> TokenizedNotes:
    """Returns the notes with those of the other corpora of `config.data.mix`, and prints how many tokens are whose."""
    names, corpora, weights = [task.name], [notes], [1.0]
    for name, weight in config.data.mix:
        other = builders.load(config.data.dir, name)
        if other.task.kind != "lm" or task.kind != "lm":
            raise UserError(f"config.data.mix: {name} or {task.name} is no corpus; only notes without labels are mixed")
        names.append(name)
        corpora.append(read_split(config, other, "train", tokenizer))
        weights.append(weight)
    mixed = mix(corpora, weights, config.seed)
    for name, corpus, weight in zip(names, corpora, weights, strict=True):
        tell(f"{name}: {len(corpus.tokens):,} tokens, weight {weight:g}")
    return mixed


def class_weights(config: ConfigDict, task: Task, notes: TokenizedNotes) -> tuple[float, ...]:
    """Returns the weight of each class in the loss, or () for none."""
    weighs = config.class_weights and task.kind in ("binary", "multiclass")
    return balanced_weights(notes.labels, len(task.outputs)) if weighs else ()
