"""A small LLaMA that knows plain English and no medicine: the base of what runs without a download."""

import json
import shutil
from pathlib import Path

from flax import nnx
from ml_collections import ConfigDict

from jaxlora import files, pipeline
from jaxlora.config import dataset, table
from jaxlora.data import synthetic, tables, tokens
from jaxlora.data.notes import admission_part
from jaxlora.data.prepare import prepare
from jaxlora.errors import UserError
from jaxlora.interop import huggingface
from jaxlora.models.llama import Llama
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.restore import RestoredRun


def make_base(config: ConfigDict, folder: Path) -> str:
    """Makes a small LLaMA in `FOLDER/pretrained`: tokenizer, random weights, pretraining, export.

    Args:
      config: of the run that needs it; `config.demo.base` says how large everything is.

    Returns:
      Its Hugging Face directory.

    Raises:
      UserError: SIGTERM stopped the pretraining.
    """
    print("\n== a small LLaMA, pretrained on plain English", flush=True)
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
    pretraining = part_of(config, sizes, "english")
    pretraining.base = str(random)
    pretraining.datasets.english = dataset("lm", documents=table(str(english), text="text", id="id"))
    prepare(pretraining, folder / "data")
    pretraining.data.dir = str(folder / "data")
    pretraining.trainable = ("base",)
    train(pretraining, str(folder / "pretraining"))
    shutil.copy(random / "tokenizer.model", pretrained / "tokenizer.model")
    huggingface.save(pretrained, RestoredRun(str(folder / "pretraining")).model)
    return str(pretrained)


def part_of(config: ConfigDict, sizes: ConfigDict, name: str) -> ConfigDict:
    """Returns the config of one run at the small scale.

    Args:
      config: of all of them, with its part `demo`. sizes: the run's own learning rate, epochs and batch size.
      name: of its dataset.
    """
    part = config.copy_and_resolve_references()
    part.unlock()
    del part.demo
    part.data.name = name
    part.learning_rate, part.epochs, part.batch_size = sizes.learning_rate, sizes.epochs, sizes.batch_size
    return part


def train(config: ConfigDict, folder: str) -> None:
    """Trains a run to its end.

    Raises:
      UserError: SIGTERM stopped it.
    """
    if not pipeline.train_run(config, folder):
        raise UserError("stopped by SIGTERM; the same command goes on from there")
