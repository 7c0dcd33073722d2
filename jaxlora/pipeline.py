"""The verbs `train`, `evaluate` and `predict`: where data, model, training and evaluation meet."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files, partition
from jaxlora.config import check_ranges, field_of, virtual_tokens, wrong_field
from jaxlora.data import builders, examples, tables
from jaxlora.data.examples import ANNOTATED, OUTCOMES, Task
from jaxlora.data.loader import Batches
from jaxlora.data.mixture import mix
from jaxlora.data.tokens import TokenizedNotes, Tokenizer, tokenize
from jaxlora.errors import UserError, one_of
from jaxlora.eval import calibration, metrics, scaling, thresholds
from jaxlora.eval.features import Features, can_keep
from jaxlora.eval.predict import make_predict_step, predict
from jaxlora.eval.predictions import load
from jaxlora.interop.huggingface import read_shape
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.techniques import Spec, spec_json
from jaxlora.plan.refusal import check_fits
from jaxlora.restore import RestoredRun
from jaxlora.train import checkpoint
from jaxlora.train.assemble import adapter_specs, assemble
from jaxlora.train.devices import lay_out, share_cores
from jaxlora.train.logs import wandb_module
from jaxlora.train.loop import fit
from jaxlora.train.mesh import check_batch, own_rows, start_distributed
from jaxlora.train.objective import Objective, balanced_weights
from jaxlora.train.run import Training


def train_run(config: ConfigDict, workdir: str, allow_base_mismatch: bool = False, profile: bool = False) -> bool:
    """Trains one row: `WORKDIR/config.json`, `checkpoints/`, `log.jsonl`, `tensorboard/`; resumes what is there.

    Args:
      allow_base_mismatch: starts from adapters that were trained on another base.
      profile: traces a few updates into `WORKDIR/profile`.

    Returns:
      What `fit` does: whether the run is complete.

    Raises:
      UserError: a field of the config that is missing or wrong, or one that differs from the run to be resumed.
    """
    start_distributed()
    check_fields(config)
    for field in ("sweep", "search.method"):
        if field_of(config, field):
            raise UserError(
                f"config.{field} is set, which `train` does not read; run `jaxlora sweep`, or give --config.{field}="
            )
    share_cores(config.base)
    resumed = checkpoint.exists(workdir)
    if resumed:
        checkpoint.check_same_run(workdir, config)
    prepared = open_dataset(config)
    task, labels = prepared.task, len(prepared.task.outputs)
    told = print if jax.process_index() == 0 else lambda _: None
    mesh = lay_out(config, labels, config.trainable, report=told)
    check_batch(mesh, config.batch_size, config.accumulate)
    check_fits(config, labels, mesh)
    shape = read_shape(config.base)
    specs = adapter_specs(config, shape.layers, shape.modules)
    tokenizer = Tokenizer(config.base)
    notes, held_out = read_notes(config, prepared, tokenizer)
    belongs = checkpoint.belongs_to(config.base, tokenizer)
    # A checkpoint holds every adapter, the earlier runs' too: those runs are not needed any more.
    model = assemble(config, labels, mesh, not resumed, {} if allow_base_mismatch else belongs, report=told)
    told(partition.table(model, config.active, config.trainable))

    objective = Objective(task.kind, tuple(config.active), class_weights(config, task, notes), config.loss_chunk)
    own, virtual = own_rows(mesh, config.batch_size), virtual_tokens(config)
    batches = Batches(notes, config.data.length, config.batch_size, labels, config.epochs, config.seed, own, virtual)
    trained = partition.trainable_partitions(model, config.trainable)
    for name, spec in specs.items():
        if isinstance(spec, AdaLoraSpec) and f"adapter/{name}" in trained:
            spec.check_updates(len(batches), f"config.adapters.{name}")
    keeps = can_keep(config, task.kind, model.config.drops_out)
    features = Features(nnx.graphdef(model), objective, mesh) if keeps else None
    validate = None
    if held_out is not None:
        in_order = Batches(held_out, config.data.length, config.batch_size, seed=None, own=own, virtual=virtual)
        step = make_predict_step(nnx.graphdef(model), objective, mesh)
        validate = validation(step, in_order, task, mesh, features)
    metadata = {**belongs, **describe(specs, task, notes)}
    if jax.process_index() == 0:
        checkpoint.write_config(workdir, config)
    training = Training(workdir, config, model, batches, validate, metadata)
    return fit(training, objective, mesh, allow_base_mismatch, features.of if features else None, profile)


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
    notes = _tokenized(config, prepared, "train", tokenizer)
    if config.data.mix:
        notes = _mixed(config, prepared.task, notes, tokenizer)
    held_out = _tokenized(config, prepared, "validation", tokenizer) if prepared.splits.get("validation") else None
    return notes, held_out


def class_weights(config: ConfigDict, task: Task, notes: TokenizedNotes) -> tuple[float, ...]:
    """Returns the weight of each class in the loss, or () for none."""
    weighs = config.class_weights and task.kind in ("binary", "multiclass")
    return balanced_weights(notes.labels, len(task.outputs)) if weighs else ()


def describe(specs: Mapping[str, Spec], task: Task, notes: TokenizedNotes) -> dict[str, Any]:
    """Returns what a run's checkpoints say of it, beside its base and tokenizer."""
    return {
        "adapters": {name: spec_json(spec) for name, spec in specs.items()},
        "kind": task.kind,
        "labels": list(task.outputs),
        "training set": notes.fingerprint,
    }


def validation(
    step: Callable, batches: Batches, task: Task, mesh: Mesh, features: Features | None = None
) -> Callable[[nnx.State, Callable[[], None]], tuple[float, dict[str, float]]]:
    """Returns what `fit` calls to validate: the model's whole state to a score, larger for better, and metrics.

    Args:
      step: of `make_predict_step`.
      features: where they can be kept, they are made at the first validation and serve those after it.
    """

    def validate(state: nnx.State, check: Callable[[], None]) -> tuple[float, dict[str, float]]:
        nonlocal batches, features
        if features:
            batches, features = features.of(batches, state, check), None
        predictions = predict(step, state, batches, task.kind, task.outputs, mesh, check)
        if not np.isfinite(predictions.logits).all():
            return float("nan"), {}
        if task.kind in OUTCOMES:
            truth, scores = metrics.one_vs_rest(predictions)
            if not len(metrics.scorable(truth)):  # notes of one class alone cannot be ranked
                return 0.0, {}
            area = metrics.auroc(truth, scores)
            return area, {"auroc": area, "auprc": metrics.auprc(truth, scores)}
        values = metrics.evaluate(predictions)
        if task.kind == "lm":
            return -values["perplexity"], {"perplexity": values["perplexity"]}
        if np.isnan(values["f1"]):  # no entity, neither annotated nor predicted
            return 0.0, {}
        names = ("f1", "precision", "recall") if task.kind == "tokens" else ("f1", "exact")
        return values["f1"], {name: values[name] for name in names}

    return validate


def evaluate_run(
    workdir: str, split: str = "test", base: str = "", allow_base_mismatch: bool = False
) -> dict[str, float]:
    """Predicts a split with a trained run, saves `predictions-SPLIT.npz`, and `metrics-SPLIT.json` from that file.

    Where the validation split was evaluated before another one, there are the figures after scaling by it too, and
    those at the thresholds that are best on it.

    Args:
      base: where the base lies now, if not where it was trained.
      allow_base_mismatch: takes a base that the run was not trained with.

    Returns:
      The metrics.

    Raises:
      UserError: `workdir` is no trained run, its base or tokenizer has changed, or the dataset has no such split.
    """
    share_cores(base or checkpoint.read_config(workdir).base)
    run = RestoredRun(workdir, base, allow_base_mismatch)
    prepared = builders.load(run.config.data.dir, run.config.data.name)
    if (prepared.task.kind, prepared.task.outputs) != (run.kind, run.labels):
        raise UserError(f"dataset {prepared.task.name}: {workdir} was trained with other labels; prepare it as it was")
    notes = _tokenized(run.config, prepared, split, run.tokenizer)
    predictions = run.predict(notes)
    values = metrics.evaluate(predictions)
    if run.kind in OUTCOMES:
        values |= calibration.evaluate(predictions)
        fitted_on = Path(workdir) / "predictions-validation.npz"
        if split != "validation" and fitted_on.exists():
            fitted = load(fitted_on)
            values |= scaling.evaluate(predictions, fitted) | thresholds.evaluate(fitted, predictions)
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
    share_cores(base or checkpoint.read_config(workdir).base)
    run = RestoredRun(workdir, base, allow_base_mismatch)
    if run.kind == "lm":
        raise UserError(f"--workdir: {workdir} is a language-model run and has no head; give a downstream run")
    if run.kind in ANNOTATED:
        raise UserError(f"--workdir: {workdir} marks parts of notes, which have no score each; take `jaxlora evaluate`")
    first = jax.process_index() == 0  # it alone writes, the table as well as a new key
    key = examples.load_key(workdir) if first else b""
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
    if first:
        files.write(output, text.getvalue())
    return len(rows)


def _tokenized(config: ConfigDict, prepared: builders.Prepared, split: str, tokenizer: Tokenizer) -> TokenizedNotes:
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
        corpora.append(_tokenized(config, other, "train", tokenizer))
        weights.append(weight)
    mixed = mix(corpora, weights, config.seed)
    if jax.process_index() == 0:
        for name, corpus, weight in zip(names, corpora, weights, strict=True):
            print(f"{name}: {len(corpus.tokens):,} tokens, weight {weight:g}")
    return mixed


def check_fields(config: ConfigDict) -> None:
    """Checks what needs no data.

    Raises:
      UserError: a field is not set, or out of range.
    """
    wrong = wrong_field(json.loads(config.to_json_best_effort()))
    if wrong:
        raise UserError(f"config.{wrong}; `jaxlora/config.py` has every field")
    for field in ("base", "data.dir", "data.name"):
        if not field_of(config, field):
            raise UserError(f"config.{field} is not set; give it with --config.{field}=")
    check_ranges(config)
    for part in config.data.mix:
        if not (isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[0], str)):
            raise UserError(
                "config.data.mix: not pairs of a corpus and its weight; give \"(('clinical_corpus/mimic3', 0.5),)\""
            )
    if config.wandb:
        wandb_module()
    one_of("config.select", config.select, ("best", "last"))
