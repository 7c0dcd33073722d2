"""The verb `generate`: text as the base, or a run's adapters on it, would go on."""

import csv
import dataclasses
import io
import math

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files
from jaxlora.config import default, virtual_tokens
from jaxlora.data import tables
from jaxlora.data.tokens import Tokenizer
from jaxlora.errors import UserError
from jaxlora.interop.llama_config import stop_tokens
from jaxlora.models.generate import make_generate, pad_left
from jaxlora.restore import RestoredRun
from jaxlora.train.assemble import assemble
from jaxlora.train.belonging import belongs_to
from jaxlora.train.devices import lay_out
from jaxlora.train.mesh import put_batch, replicated, start_distributed

_BATCH = 16
_STEP = 64  # prompts are padded to a multiple of it, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; see `models.generate.make_generate`."""

    new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raises UserError where a value is out of range."""
        if self.new_tokens < 1:
            raise UserError(f"--new-tokens is {self.new_tokens}; it must be 1 or more")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p is {self.top_p}; it must be above 0 and at most 1")


def complete_prompt(
    prompt: str,
    sampling: Sampling,
    workdir: str = "",
    base: str = "",
    config: ConfigDict | None = None,
    allow_base_mismatch: bool = False,
) -> str:
    """Returns what follows a prompt.

    Args:
      workdir: a trained run, whose active adapters go on; "" is the base alone, or the adapters of `config`.
      base: where the base lies, if not where the run or the config says.
      config: its dtype and mesh, where there is no run; None computes in float32 on a CPU, else in bfloat16.

    Raises:
      UserError: a value out of range, or neither a run nor a base.
    """
    return _complete([prompt], sampling, workdir, base, config, allow_base_mismatch)[0]


def complete_table(
    table: str,
    output: str,
    text_column: str,
    sampling: Sampling,
    workdir: str = "",
    base: str = "",
    config: ConfigDict | None = None,
    allow_base_mismatch: bool = False,
) -> int:
    """Writes what follows each text of a table to a CSV: `row` (of the table) and `text`.

    Args:
      table: a CSV, JSON-lines or Parquet file. output: the CSV, readable by its owner only. Others: `complete_prompt`.

    Returns:
      How many texts were written.

    Raises:
      UserError: a missing column, a row without text, or as `complete_prompt`.
    """
    prompts = []
    for number, cells in tables.rows(table, (text_column,)):
        if not isinstance(cells[text_column], str) or not cells[text_column].strip():
            raise UserError(f"{tables.where(table, text_column, number)}: no text; remove the row or fill it")
        prompts.append(cells[text_column])
    texts = _complete(prompts, sampling, workdir, base, config, allow_base_mismatch)
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(["row", "text"])
    writer.writerows(enumerate(texts, 1))
    files.write(output, written.getvalue())
    return len(texts)


def _complete(prompts, sampling, workdir, base, config, allow_base_mismatch) -> list[str]:
    sampling.check()
    if workdir and config is not None:
        raise UserError("--config and --workdir are both set; a run has a config of its own")
    if workdir:
        run = RestoredRun(workdir, base, allow_base_mismatch, head=False)
        model, tokenizer, config, mesh = run.model, run.tokenizer, run.config, run.mesh
    else:
        start_distributed()
        if config is None:
            config = default()
            config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        config.base = base or config.base
        if not config.base:
            raise UserError("--base is not set; give it, or the --workdir of a run")
        tokenizer = Tokenizer(config.base)
        mesh = lay_out(config, 0)
        belongs = {} if allow_base_mismatch else belongs_to(config.base, tokenizer)
        model = assemble(config, 0, mesh, True, belongs)
    stop = {*stop_tokens(config.base), tokenizer.eos} - {None}
    definition, state = nnx.split(model)
    generate = make_generate(
        definition,
        tuple(config.active),
        sampling.new_tokens,
        tuple(sorted(stop)),
        sampling.temperature,
        sampling.top_p,
        replicated(mesh),
    )
    in_front = [-1 - i for i in range(virtual_tokens(config))]
    encoded = [in_front + list(ids) for ids in tokenizer.encode(prompts)]
    order = np.argsort([len(ids) for ids in encoded], kind="stable")  # prompts of like length go together
    texts, key = [""] * len(prompts), jax.random.key(sampling.seed)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-min(_BATCH, len(prompts)) // devices) * devices
    with tqdm(total=len(prompts), desc="generating", unit="text", leave=False) as bar:
        for start in range(0, len(order), size):
            chosen = [int(i) for i in order[start : start + size]]
            rows = [encoded[i] for i in chosen] + [encoded[chosen[0]]] * (size - len(chosen))
            tokens, lengths = pad_left(rows, -(-max(map(len, rows)) // _STEP) * _STEP)
            batch = put_batch(mesh, {"tokens": tokens, "lengths": lengths})
            made = np.asarray(generate(state, batch["tokens"], batch["lengths"], jax.random.fold_in(key, start)))
            for i, ids in zip(chosen, made, strict=False):
                ends = np.flatnonzero(np.isin(ids, list(stop)))
                texts[i] = tokenizer.decode(ids[: ends[0]] if len(ends) else ids)
            bar.update(len(chosen))
    return texts
