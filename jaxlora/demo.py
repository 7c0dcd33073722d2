"""`jaxlora demo`: the whole idea on a generated cohort, through the same code as a real run.

Nothing is downloaded. The notes are generated (`jaxlora.data.synthetic`), the small base is pretrained here on plain
English unless `config.base` names one, and every figure of the report is measured.
"""

import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import pipeline, rows, workers
from jaxlora.config import adapter
from jaxlora.data import synthetic, tasks, tokens
from jaxlora.data.prepare import prepare
from jaxlora.errors import UserError, one_of
from jaxlora.eval.report import report
from jaxlora.interop.llama_config import read_config
from jaxlora.small_base import make_base, part_of, train


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
    clinical = part_of(config, sizes.clinical, "clinical_corpus/mimic3")
    clinical.data.long_notes = "chunk"
    clinical.adapters.clinical = adapter(rank=16, alpha=32, targets=sizes.targets)
    clinical.active = clinical.trainable = ("clinical",)
    _run(clinical, folder / "clinical")
    jobs = {}
    for task in sizes.tasks:
        for name in sizes.rows:
            downstream = part_of(config, sizes.downstream, f"mimic3_admission/{task}")
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


def _run(config: ConfigDict, folder: Path) -> dict[str, float]:
    train(config, str(folder))
    return pipeline.evaluate_run(str(folder))


def _stage(title: str) -> None:
    print(f"\n== {title}", flush=True)
