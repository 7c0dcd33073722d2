"""`jaxlora demo`: the whole idea on a generated cohort, through the same code as a real run.

Nothing is downloaded. The notes are generated (`jaxlora.data.synthetic`), the small base is pretrained here on plain
English unless `config.base` names one, and every figure of the report is measured.
"""

import json
import shutil
import time
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files, pipeline, rows, workers
from jaxlora.config import adapter, dataset, table
from jaxlora.data import synthetic, tables, tasks, tokens
from jaxlora.data.notes import admission_part
from jaxlora.data.prepare import prepare
from jaxlora.errors import UserError, one_of
from jaxlora.eval.report import report
from jaxlora.interop import huggingface
from jaxlora.interop.llama_config import read_config
from jaxlora.models.llama import Llama, LlamaConfig
from jaxlora.restore import RestoredRun


def demo(config: ConfigDict, workdir: str) -> None:
    """Runs the two steps and the rows of `config.demo` into `WORKDIR`; a trained run is not trained again.

    Args:
      config: of `configs/demo.py`; its `demo` part says how large everything is.

    Raises:
      UserError: a row, a task or a base that does not exist, before anything is made.
    """
    if "demo" not in config:
        raise UserError("--config has no part `demo`; give configs/demo.py")
    start, folder, sizes = time.monotonic(), Path(workdir), config.demo
    for name in sizes.rows:
        one_of("config.demo.rows", name, rows.ROWS)
    for name in sizes.tasks:
        one_of("config.demo.tasks", name, tasks.TASKS["mimic3"])
    if config.base:
        tokens.Tokenizer(config.base)
        read_config(config.base)
    jax.config.update("jax_compilation_cache_dir", str((folder / "compilation_cache").absolute()))
    if not config.base:
        config.base = make_base(config, folder / "base")
    _stage("a cohort of generated patients")
    synthetic.write_mimic3(folder / "cohort", sizes.patients, config.seed)
    config.mimic3 = str(folder / "cohort")
    prepare(config, folder / "data")
    config.data.dir = str(folder / "data")

    _stage("step 1: a clinical LoRA on the notes")
    clinical = _part(config, sizes.clinical, "clinical_corpus/mimic3")
    clinical.data.long_notes = "chunk"
    clinical.adapters.clinical = adapter(rank=16, alpha=32, targets=sizes.targets)
    clinical.active = clinical.trainable = ("clinical",)
    _run(clinical, folder / "clinical")
    jobs = {}
    for task in sizes.tasks:
        for name in sizes.rows:
            downstream = _part(config, sizes.downstream, f"mimic3_admission/{task}")
            rows.set_row(downstream, name, sizes.targets)
            if "clinical" in downstream.adapters:
                downstream.adapters.clinical.workdir = str(folder / "clinical")
            jobs[f"{task}, {rows.ROWS[name].title}"] = (downstream, folder / task / name)
    _stage(f"step 2: {len(jobs)} runs, {len(sizes.rows)} rows of {len(sizes.tasks)} tasks")
    with tqdm(total=len(jobs), desc="rows", unit="run") as bar:
        for name, values in workers.run_all(_run, jobs):
            bar.write(f"{name}: AUROC {values['auroc']:.3f}")
            bar.update()
    print(report(folder, time.monotonic() - start))


def make_base(config: ConfigDict, folder: Path) -> str:
    """Makes a small LLaMA that knows plain English and no medicine: tokenizer, random weights, pretraining, export."""
    _stage("a small LLaMA, pretrained on plain English")
    sizes = config.demo.base
    # A LLaMA has met the words of medicine. The notes of other patients give this one their words, never a sentence.
    synthetic.write_mimic3(folder / "others", sizes.others, config.seed + 1)
    others = [cells["TEXT"] for _, cells in tables.rows(folder / "others" / "NOTEEVENTS.csv", ("TEXT",))]
    others += [part for text in others if (part := admission_part(text))]  # its headings are in capitals
    documents = synthetic.plain_english(sizes.sentences, config.seed)
    documents += synthetic.lists_of_words(others, sizes.times, config.seed)
    english, random, pretrained = folder / "english.jsonl", folder / "random", folder / "pretrained"
    pretrained.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(documents)]
    files.write(english, "\n".join(lines) + "\n")
    tokens.train_tokenizer(documents, random, sizes.vocab)
    shape = LlamaConfig(
        vocab=sizes.vocab,
        embed=sizes.embed,
        mlp=sizes.mlp,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.embed // sizes.heads,
        tied=True,
    )
    huggingface.save(random, Llama(shape, rngs=nnx.Rngs(config.seed)))
    pretraining = _part(config, sizes, "english")
    pretraining.base = str(random)
    pretraining.datasets.english = dataset("lm", documents=table(str(english), text="text", id="id"))
    prepare(pretraining, folder / "data")
    pretraining.data.dir = str(folder / "data")
    pretraining.trainable = ("base",)
    _train(pretraining, str(folder / "pretraining"))
    shutil.copy(random / "tokenizer.model", pretrained / "tokenizer.model")
    huggingface.save(pretrained, RestoredRun(str(folder / "pretraining")).model)
    return str(pretrained)


def _part(config: ConfigDict, sizes: ConfigDict, name: str) -> ConfigDict:
    """Returns the config of one run of the demo."""
    part = config.copy_and_resolve_references()
    part.unlock()
    del part.demo
    part.data.name = name
    part.learning_rate, part.epochs, part.batch_size = sizes.learning_rate, sizes.epochs, sizes.batch_size
    return part


def _run(config: ConfigDict, folder: Path) -> dict[str, float]:
    _train(config, str(folder))
    return pipeline.evaluate_run(str(folder))


def _train(config: ConfigDict, folder: str) -> None:
    if not pipeline.train_run(config, folder):
        raise UserError("stopped by SIGTERM; the same command goes on from there")


def _stage(title: str) -> None:
    print(f"\n== {title}", flush=True)
