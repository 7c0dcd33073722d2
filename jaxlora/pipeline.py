"""The verbs `train`, `evaluate` and `predict`: where data, model, training and evaluation meet."""

import csv
import io
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files, partition
from jaxlora.data import builders, examples, tables
from jaxlora.data.examples import ANNOTATED, Task
from jaxlora.data.loader import Batches
from jaxlora.data.mixture import mix
from jaxlora.data.tokens import TokenizedNotes, Tokenizer, tokenize
from jaxlora.errors import UserError, one_of
from jaxlora.eval import metrics
from jaxlora.eval.predict import make_predict_step, predict
from jaxlora.interop.llama_config import read_config
from jaxlora.restore import RestoredRun
from jaxlora.train import checkpoint
from jaxlora.train.assemble import adapter_specs, assemble
from jaxlora.train.loop import fit
from jaxlora.train.mesh import make_mesh, start_distributed
from jaxlora.train.objective import Objective, balanced_weights


def train_run(config: ConfigDict, workdir: str, allow_base_mismatch: bool = False) -> None:
    """Trains one row: `WORKDIR/config.json`, `checkpoints/`, `log.jsonl`, `tensorboard/`; resumes what is there.

    Args:
      allow_base_mismatch: starts from adapters that were trained on another base.

    Raises:
      UserError: a field of the config that is missing or wrong, or one that differs from the run to be resumed.
    """
    start_distributed()
    _check_fields(config)
    resumed = checkpoint.exists(workdir)
    if resumed:
        checkpoint.check_same_run(workdir, config)
    prepared = builders.load(config.data.dir, config.data.name)
    task, labels = prepared.task, len(prepared.task.outputs)
    if task.kind not in ("lm", *ANNOTATED) and config.data.long_notes == "chunk":
        raise UserError(
            "config.data.long_notes = 'chunk' is for notes without labels; an outcome reads 'truncate'd notes"
        )
    mesh = make_mesh(config.mesh.fsdp, config.mesh.tensor)
    if config.batch_size < 1 or config.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(
            f"config.batch_size is {config.batch_size}; it must be a multiple of the {mesh.shape['data']} data by "
            f"{mesh.shape['fsdp']} fsdp devices"
        )
    specs = adapter_specs(config, read_config(config.base).layers)
    tokenizer = Tokenizer(config.base)
    notes = _tokenized(config, prepared, "train", tokenizer)
    if config.data.mix:
        notes = _mixed(config, task, notes, tokenizer)
    held_out = _tokenized(config, prepared, "validation", tokenizer) if prepared.splits.get("validation") else None
    belongs = checkpoint.belongs_to(config.base, tokenizer)
    # A checkpoint holds every adapter, the earlier runs' too: those runs are not needed any more.
    model = assemble(config, labels, mesh, not resumed, {} if allow_base_mismatch else belongs)
    print(partition.table(model, config.active, config.trainable))

    weights = ()
    if config.class_weights and task.kind in ("binary", "multiclass"):
        weights = balanced_weights(notes.labels, labels)
    objective = Objective(task.kind, tuple(config.active), weights, config.loss_chunk)
    batches = Batches(notes, config.data.length, config.batch_size, labels, config.epochs, config.seed)
    validate = None
    if held_out is not None:
        in_order = Batches(held_out, config.data.length, config.batch_size, seed=None)
        validate = _validation(nnx.graphdef(model), objective, in_order, task, mesh)
    metadata = {
        **belongs,
        "adapters": {name: checkpoint.spec_json(spec) for name, spec in specs.items()},
        "kind": task.kind,
        "labels": list(task.outputs),
        "training set": notes.fingerprint,
    }
    if jax.process_index() == 0:
        checkpoint.write_config(workdir, config)
    fit(config, workdir, model, objective, batches, validate, metadata, mesh, allow_base_mismatch)


def _validation(
    definition: nnx.GraphDef, objective: Objective, batches: Batches, task: Task, mesh: Mesh
) -> Callable[[nnx.State], tuple[float, dict[str, float]]]:
    """Returns what `fit` calls to validate: the model's whole state to a score, larger for better, and metrics."""
    step = make_predict_step(definition, objective, mesh)

    def validate(state: nnx.State) -> tuple[float, dict[str, float]]:
        predictions = predict(step, state, batches, task.kind, task.outputs, mesh)
        if not np.isfinite(predictions.logits).all():
            return float("nan"), {}
        values = metrics.evaluate(predictions)
        if task.kind == "lm":
            return -values["perplexity"], {"perplexity": values["perplexity"]}
        if task.kind in ANNOTATED:
            if np.isnan(values["f1"]):  # no entity, neither annotated nor predicted
                return 0.0, {}
            names = ("f1", "precision", "recall") if task.kind == "tokens" else ("f1", "exact")
            return values["f1"], {name: values[name] for name in names}
        if not values["labels_scored"]:  # notes of one class alone cannot be ranked
            return 0.0, {}
        return values["auroc"], {name: values[name] for name in ("auroc", "auprc")}

    return validate


def evaluate_run(
    workdir: str, split: str = "test", base: str = "", allow_base_mismatch: bool = False
) -> dict[str, float]:
    """Predicts a split with a trained run, saves `predictions-SPLIT.npz`, and `metrics-SPLIT.json` from that file.

    Args:
      base: where the base lies now, if not where it was trained.
      allow_base_mismatch: takes a base that the run was not trained with.

    Returns:
      The metrics.

    Raises:
      UserError: `workdir` is no trained run, its base or tokenizer has changed, or the dataset has no such split.
    """
    run = RestoredRun(workdir, base, allow_base_mismatch)
    prepared = builders.load(run.config.data.dir, run.config.data.name)
    if (prepared.task.kind, prepared.task.outputs) != (run.kind, run.labels):
        raise UserError(f"dataset {prepared.task.name}: {workdir} was trained with other labels; prepare it as it was")
    notes = _tokenized(run.config, prepared, split, run.tokenizer)
    predictions = run.predict(notes)
    values = metrics.evaluate(predictions)
    if jax.process_index() == 0:
        predictions.save(epath.Path(workdir) / f"predictions-{split}.npz")
        files.write_json(epath.Path(workdir) / f"metrics-{split}.json", values)
    return values


def predict_run(
    workdir: str,
    table: str,
    output: str,
    id_column: str,
    text_column: str,
    base: str = "",
    allow_base_mismatch: bool = False,
) -> int:
    """Scores the notes of a table with a trained classification run.

    Writes a CSV: `row` (of the table), `id` (keyed, with the key in `WORKDIR/id.key`), and the probability of each
    label.

    Args:
      table: a CSV, JSON-lines or Parquet file. output: the CSV to write.
      base, allow_base_mismatch: as in `evaluate_run`.

    Returns:
      How many notes were scored.

    Raises:
      UserError: a missing column, a note without text, or a run that has no head.
    """
    run = RestoredRun(workdir, base, allow_base_mismatch)
    if run.kind == "lm":
        raise UserError(f"--workdir: {workdir} is a language-model run and has no head; give a downstream run")
    if run.kind in ANNOTATED:
        raise UserError(f"--workdir: {workdir} marks parts of notes, which have no score each; take `jaxlora evaluate`")
    key = examples.load_key(workdir)
    rows = []
    for number, cells in tables.rows(table, (id_column, text_column)):
        for column, what in ((id_column, "id"), (text_column, "text")):
            if not isinstance(cells[column], str) or not cells[column].strip():
                raise UserError(f"{tables.where(table, column, number)}: no {what}; remove the row or fill it")
        rows.append({"id": examples.keyed(key, cells[id_column]), "patient": "", "text": cells[text_column]})
    logits = run.predict(tokenize(rows, run.tokenizer, run.config.data.length, "truncate", lambda _: None)).logits
    scores = 1 / (1 + np.exp(-logits)) if run.kind == "multilabel" else metrics.softmax(logits)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["row", "id", *run.labels])
    for number, (row, values) in enumerate(zip(rows, scores, strict=True), 1):
        writer.writerow([number, row["id"], *(f"{value:.6f}" for value in values)])
    files.write(output, text.getvalue())
    return len(rows)


def _tokenized(config: ConfigDict, prepared: builders.Prepared, split: str, tokenizer: Tokenizer) -> TokenizedNotes:
    source = prepared.split(split)
    with tqdm(total=len(source), desc=f"tokenizing {split}", unit="note", leave=False) as bar:
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
        corpora.append(_tokenized(config, other, "train", tokenizer))
        weights.append(weight)
    mixed = mix(corpora, weights, config.seed)
    for name, corpus, weight in zip(names, corpora, weights, strict=True):
        print(f"{name}: {len(corpus.tokens):,} tokens, weight {weight:g}")
    return mixed


def _check_fields(config: ConfigDict) -> None:
    for field in ("base", "data.dir", "data.name"):
        if not _get(config, field):
            raise UserError(f"config.{field} is not set; give it with --config.{field}=")
    for field, least in (("data.length", 2), ("epochs", 1), ("loss_chunk", 1)):
        if _get(config, field) < least:
            raise UserError(f"config.{field} is {_get(config, field)}; it must be {least} or more")
    for part in config.data.mix:
        if not (isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[0], str)):
            raise UserError(
                "config.data.mix: not pairs of a corpus and its weight; give \"(('clinical_corpus/mimic3', 0.5),)\""
            )
    one_of("config.select", config.select, ("best", "last"))


def _get(config: ConfigDict, field: str) -> str:
    for name in field.split("."):
        config = config[name]
    return config
