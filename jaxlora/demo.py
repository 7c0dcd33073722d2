"""`jaxlora demo`: the whole idea on a generated cohort, through the same code as a real run.

Nothing is downloaded. The notes are generated (`jaxlora.data.synthetic`), the small base is pretrained here on plain
English unless `config.base` names one, and every figure of the report is measured.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files, pipeline, rows
from jaxlora.config import adapter, dataset, table
from jaxlora.data import synthetic, tables, tokens
from jaxlora.data.prepare import prepare
from jaxlora.eval.report import report
from jaxlora.interop import huggingface
from jaxlora.models.llama import Llama, LlamaConfig


def demo(config: ConfigDict, workdir: str) -> None:
    """Runs the two steps and the rows of `config.demo` into `WORKDIR`; what is finished already is not run again.

    Args:
      config: of `configs/demo.py`; its `demo` part says how large everything is.
    """
    start, folder, sizes = time.monotonic(), Path(workdir), config.demo
    jax.config.update("jax_compilation_cache_dir", str((folder / "compilation_cache").absolute()))
    if not config.base:
        config.base = _make_base(config, folder / "base")
    _stage("a cohort of generated patients")
    synthetic.write_mimic3(folder / "cohort", sizes.patients, config.seed)
    config.mimic3 = str(folder / "cohort")
    prepare(config, folder / "data")
    config.data.dir = str(folder / "data")

    _stage("step 1: a clinical LoRA on the notes")
    clinical = _part(config, sizes.clinical, "notes")
    clinical.data.long_notes = "chunk"
    clinical.adapters.clinical = adapter(rank=16, alpha=32, targets=sizes.targets)
    clinical.active = clinical.trainable = ("clinical",)
    _run(clinical, folder / "clinical")
    runs = []
    for task in sizes.tasks:
        for name in sizes.rows:
            downstream = _part(config, sizes.downstream, task)
            rows.set_row(downstream, name, sizes.targets)
            if "clinical" in downstream.adapters:
                downstream.adapters.clinical.workdir = str(folder / "clinical")
            runs.append((downstream, folder / task / name))
    _stage(f"step 2: {len(runs)} runs, {len(sizes.rows)} rows of {len(sizes.tasks)} tasks")
    _run_all(runs)
    print(report(folder, time.monotonic() - start))


def _make_base(config: ConfigDict, folder: Path) -> str:
    """Makes a small LLaMA that knows plain English and no medicine: tokenizer, random weights, pretraining, export."""
    _stage("a small LLaMA, pretrained on plain English")
    sizes = config.demo.base
    # A LLaMA has met the words of medicine. The notes of other patients give this one their words, never a sentence.
    synthetic.write_mimic3(folder / "others", sizes.others, config.seed + 1)
    others = [cells["TEXT"] for _, cells in tables.rows(folder / "others" / "NOTEEVENTS.csv", ("TEXT",))]
    documents = synthetic.plain_english(sizes.sentences, config.seed)
    documents += synthetic.dictionary_english(others, sizes.times, config.seed)
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
    pipeline.train_run(pretraining, str(folder / "pretraining"))
    shutil.copy(random / "tokenizer.model", pretrained / "tokenizer.model")
    huggingface.save(pretrained, pipeline.restore_model(str(folder / "pretraining")))
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
    pipeline.train_run(config, str(folder))
    return pipeline.evaluate_run(str(folder))


def _run_all(runs: list[tuple[ConfigDict, Path]]) -> None:
    """Runs all of them: on a CPU two at a time, since one keeps one core busy; an accelerator serves one process."""
    if jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        for config, folder in runs:
            _stage(f"{folder.parent.name}, {folder.name}")
            _run(config, folder)
        return
    cores, spawn = sorted(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
    halves = spawn.SimpleQueue()
    for half in (cores[::2], cores[1::2]):
        halves.put(half)
    start = (jax.config.jax_compilation_cache_dir, halves)
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=_start_worker, initargs=start) as pool:
        pending = {pool.submit(_run, config, folder): folder for config, folder in runs}
        with tqdm(total=len(runs), desc="rows", unit="run") as bar:
            for done in as_completed(pending):
                folder = pending[done]
                bar.write(f"{folder.parent.name}, {folder.name}: AUROC {done.result()['auroc']:.3f}")
                bar.update()


def _start_worker(cache: str, halves: multiprocessing.SimpleQueue) -> None:
    """Gives a worker cores of its own, for two XLA programs on the same cores run at a fraction of their speed; and
    keeps its bars and tables off the terminal that two workers share."""
    os.sched_setaffinity(0, halves.get())
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the worker lives


def _stage(title: str) -> None:
    print(f"\n== {title}", flush=True)
