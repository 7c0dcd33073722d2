"""The verbs `train`, `evaluate` and `predict`: where data, model, training and evaluation meet."""

import csv
import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from jaxlora import files, partition
from jaxlora.checks import check_fields
from jaxlora.config import field_of, virtual_tokens
from jaxlora.data import builders, examples, tables
from jaxlora.data.examples import ANNOTATED
from jaxlora.data.loader import Batches
from jaxlora.data.tokens import Tokenizer, tokenize
from jaxlora.errors import UserError
from jaxlora.eval import metrics
from jaxlora.eval.evaluate import evaluate
from jaxlora.eval.features import Features, can_keep
from jaxlora.eval.predict import make_predict_step
from jaxlora.eval.predictions import load
from jaxlora.eval.validation import validation
from jaxlora.inputs import class_weights, open_dataset, read_notes, read_split
from jaxlora.interop.huggingface import read_shape
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.plan.refusal import check_fits
from jaxlora.restore import RestoredRun
from jaxlora.terminal import tell
from jaxlora.train import checkpoint, run_config
from jaxlora.train.assemble import adapter_specs, assemble
from jaxlora.train.belonging import belongs_to, describe
from jaxlora.train.devices import lay_out, share_cores
from jaxlora.train.loop import fit
from jaxlora.train.mesh import check_batch, own_rows, start_distributed
from jaxlora.train.objective import Objective
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
        run_config.check_same(workdir, config)
    prepared = open_dataset(config)
    task, labels = prepared.task, len(prepared.task.outputs)
    mesh = lay_out(config, labels, config.trainable, report=tell)
    check_batch(mesh, config.batch_size, config.accumulate)
    check_fits(config, labels, mesh)
    shape = read_shape(config.base)
    specs = adapter_specs(config, shape.layers, shape.modules)
    tokenizer = Tokenizer(config.base)
    notes, held_out = read_notes(config, prepared, tokenizer)
    belongs = belongs_to(config.base, tokenizer)
    # A checkpoint holds every adapter, the earlier runs' too: those runs are not needed any more.
    model = assemble(config, labels, mesh, not resumed, {} if allow_base_mismatch else belongs, report=tell)
    tell(partition.table(model, config.active, config.trainable))

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
        run_config.write(workdir, config)
    training = Training(workdir, config, model, batches, validate, metadata)
    return fit(training, objective, mesh, allow_base_mismatch, features.of if features else None, profile)


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
    share_cores(base or run_config.read(workdir).base)
    run = RestoredRun(workdir, base, allow_base_mismatch)
    prepared = builders.load(run.config.data.dir, run.config.data.name)
    if (prepared.task.kind, prepared.task.outputs) != (run.kind, run.labels):
        raise UserError(f"dataset {prepared.task.name}: {workdir} was trained with other labels; prepare it as it was")
    notes = read_split(run.config, prepared, split, run.tokenizer)
    predictions = run.predict(notes)
    if run.kind == "multilabel":
        predictions = dataclasses.replace(predictions, train_positives=prepared.positives("train"))
    fitted_on = Path(workdir) / "predictions-validation.npz"
    fitted = load(fitted_on) if split != "validation" and fitted_on.exists() else None
    values = evaluate(predictions, fitted)
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
    share_cores(base or run_config.read(workdir).base)
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
