"""The verbs `import-adapter`, `export-adapter` and `export-model`: adapters in from PEFT, adapters and models out."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxlora import files
from jaxlora.config import default
from jaxlora.data.examples import ANNOTATED, OUTCOMES
from jaxlora.data.tokens import Tokenizer
from jaxlora.errors import UserError, nearest
from jaxlora.interop import huggingface, merge, peft, peft_config, peft_prompts
from jaxlora.interop.combine import combine
from jaxlora.interop.llama_config import read_config
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.llama import Llama
from jaxlora.models.lora_spec import BERT_MODULES, LoraSpec
from jaxlora.models.prompt_spec import PromptFamily
from jaxlora.models.techniques import described, spec_json, spec_of
from jaxlora.partition import partition_of
from jaxlora.restore import RestoredRun
from jaxlora.train import checkpoint, run_config
from jaxlora.train.assemble import load_base
from jaxlora.train.belonging import belongs_to
from jaxlora.train.mesh import shardings

_OF_HEAD = ("kind", "labels")


def import_adapter(directory: str, base: str, name: str, workdir: str, allow_base_mismatch: bool = False) -> str:
    """Makes a run of a PEFT adapter: `WORKDIR/config.json` and `checkpoints/`, as training leaves them.

    Args:
      directory: with adapter_config.json and adapter_model.safetensors.
      base: the Hugging Face directory of its base. name: what the adapter is called here.
      allow_base_mismatch: takes an adapter that says it belongs to another base or tokenizer.

    Returns:
      The adapter's description for a config; a comment behind it where virtual tokens came without their network.

    Raises:
      UserError: what `peft.read` raises, a workdir that is in use, or another base.
    """
    if not name.isidentifier() or name in ("base", "head"):
        raise UserError(f"--name is {name!r}; give a word of letters, digits and _, such as clinical")
    if checkpoint.exists(workdir):
        raise UserError(f"--workdir: {workdir} holds a run already; give a new folder")
    adapter = peft.read(directory, read_config(base))
    belongs = belongs_to(base, Tokenizer(base))
    for what, value in belongs.items():
        if adapter.belongs.get(what, value) != value and not allow_base_mismatch:
            raise UserError(f"--base: {directory} belongs to another {what}; give that one, or --allow-base-mismatch")
    kind, labels = _kind_and_labels(directory, adapter)
    config = default()
    config.base, config.select = base, "last"
    config.adapters[name] = ConfigDict({**spec_json(adapter.spec), "workdir": ""})
    config.active = (name,)
    config.trainable = (name,) if adapter.head is None else (name, "head")
    run_config.write(workdir, config)
    values = sorted(peft.to_parameters(adapter, name).items())
    state = nnx.from_flat_state([(path, nnx.Param(jnp.asarray(value))) for path, value in values])
    specs = {name: spec_json(adapter.spec)}
    metadata = {**belongs, "adapters": specs, "kind": kind, "labels": labels, "training set": "of a PEFT adapter"}
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state, {}, {}, 0.0, metadata)
    line = f"config.adapters.{name} = {described(adapter.spec, workdir=workdir)}"
    made_by = peft_prompts.network(peft_config.raw_config(directory)[1])
    return f"{line}  # what {made_by} made, which PEFT does not save" if made_by else line


def _kind_and_labels(directory: str, adapter: peft.Adapter) -> tuple[str, list[str]]:
    """What the head predicts; PEFT keeps neither, so a head that was not exported from here has numbered labels."""
    if adapter.head is None:
        return "lm", []
    count = adapter.head.shape[1]
    kind = adapter.belongs.get("kind", "multiclass")
    labels = adapter.belongs.get("labels", [f"LABEL_{i}" for i in range(count)])
    named = isinstance(labels, list) and len(labels) == count and all(isinstance(x, str) for x in labels)
    if kind not in OUTCOMES or not named:
        raise UserError(f"{directory}/jaxlora.json does not fit the head of {count} labels; copy it again")
    if count == 1 and not adapter.belongs:
        raise UserError(f"{directory}: a head of one label is a regression, which no task here is; take one of classes")
    return kind, labels


def export_adapter(
    workdir: str,
    output: str,
    names: Sequence[str] = (),
    combination: str = "cat",
    weights=(),
    rank: int = 0,
    base: str = "",
) -> str:
    """Writes adapters of a run as one PEFT directory.

    Args:
      names: of the adapters; () is all active ones. With all of them goes the head, which was trained on their sum.
      combination: how several LoRAs become one (see `interop/combine.py`), with `weights` (() is 1 each) and the `rank`
        of "svd".
      base: where the base lies, if no longer where the run had it; for adapters of virtual tokens and the like.

    Returns:
      What was written, in words.

    Raises:
      UserError: no run, no such adapter, several that are not all LoRAs, an output that exists, or what `combine`
        raises.
    """
    adapters, head, trained = _adapters(workdir, names, base)
    if trained:
        raise UserError(
            f"--workdir: {workdir} trained its base, which no adapter holds; take export-model, which writes the whole"
        )
    if not adapters:
        raise UserError(f"--workdir: {workdir} has no active adapter to export")
    if rank and combination != "svd":
        raise UserError(
            f"--rank is {rank}, which --combine={combination} has no use for; give --combine=svd, or no rank"
        )
    weights = tuple(weights) or (1.0,) * len(adapters)
    if len(weights) != len(adapters):
        raise UserError(f"--weights: {len(weights)} weights for {len(adapters)} adapters ({', '.join(adapters)})")
    result, error = next(iter(adapters.values())), 0.0
    if len(adapters) > 1 or combination != "cat" or set(weights) != {1.0}:
        _check_loras(adapters)
        result, error = combine(list(adapters.values()), weights, combination, rank)
    what = f"{' + '.join(adapters)}: {_described(result)}"
    if head is not None and not peft.keeps_head(result.spec):
        what, head = f"{what}, without the head, which PEFT does not save with it", None
        unheaded = {name: value for name, value in result.belongs.items() if name not in _OF_HEAD}
        result = dataclasses.replace(result, belongs=unheaded)
    with files.new_directory(output) as folder:
        public = huggingface.public_name(run_config.read(workdir).base)
        peft.write(folder, dataclasses.replace(result, head=head), public)
    what += "" if head is None else f", a head of {head.shape[1]} labels"
    return f"{what}, reconstruction error {error:.2e}" if len(adapters) > 1 or error else what


def _check_loras(adapters: Mapping[str, peft.Adapter]) -> None:
    for name, adapter in adapters.items():
        if not isinstance(adapter.spec, LoraSpec):
            merged = ", or take export-model" if isinstance(adapter.spec, Ia3Spec) else ""
            raise UserError(
                f"--adapters: {name} is of technique {spec_json(adapter.spec)['technique']!r}, and LoRAs alone are "
                f"combined; export them one by one, as with --adapters={name}{merged}"
            )


def _described(adapter: peft.Adapter) -> str:
    """A LoRA by its ranks, others as a line of a config has them."""
    if type(adapter.spec) is not LoraSpec:
        return described(adapter.spec)
    ranks = sorted({size.rank for size in adapter.spec.sizes(adapter.layers).values()})
    return f"rank {', '.join(map(str, ranks))}"


def export_model(workdir: str, output: str, base: str = "", allow_base_mismatch: bool = False) -> str:
    """Writes the base with a run's active adapters merged in as a Hugging Face directory, and computes with both.

    The base is the run's own where it trained it, as in full fine-tuning.

    They are merged into the weights as the base's files have them, in a run with a quantised base too: its codes would
    have to be quantised anew, or written at full size with their error.

    Args:
      base, allow_base_mismatch: as in `pipeline.evaluate_run`.

    Returns:
      The largest difference between the logits of the run and of the written model, in words.

    Raises:
      UserError: no run, another base, an adapter that no weight can hold, or an output that exists.
    """
    adapters, head, trained = _adapters(workdir, (), base)
    for name, adapter in adapters.items():
        if isinstance(adapter.spec, PromptFamily):
            raise UserError(
                f"--workdir: adapter {name!r} of {workdir} is of technique {adapter.spec.technique!r}, which changes "
                "no weight to merge it into; take export-adapter, or `evaluate`, `predict` and `generate` with the run"
            )
    run = RestoredRun(workdir, base, allow_base_mismatch)
    if run.kind in ANNOTATED:
        raise UserError(f"--workdir: {workdir} marks parts of notes, which no merged model does; take export-adapter")
    shape, labels = dataclasses.replace(run.model.config, quantize=""), run.labels
    tokens = np.random.default_rng(0).integers(0, shape.vocab, (8, 64), np.int32)
    wanted = _logits(run.model, tokens, tuple(run.config.active))
    del run.model  # there may be no room for both
    with files.new_directory(output) as folder:
        of_head = head, run.kind, labels, run.tokenizer.eos
        merge.write_merged(folder, run.config.base, list(adapters.values()), *of_head, trained)
        abstract = nnx.eval_shape(lambda: Llama(shape, {}, len(labels), rngs=nnx.Rngs(0)))
        definition, state = nnx.split(abstract)
        placed = shardings(run.mesh, state, run.config.mesh.rules)
        written = nnx.merge(definition, load_base(str(folder), abstract, placed))
        found = _logits(written, tokens, ())
    difference = np.abs(found - wanted).max()
    result = f"largest logit difference {difference:.2e} (largest logit {np.abs(wanted).max():.2f})"
    if run.config.quantize:
        result += f": the run's base is in {run.config.quantize}, the written model's weights are the original ones"
    return result


def _adapters(
    workdir: str, names: Sequence[str], base: str
) -> tuple[dict[str, peft.Adapter], np.ndarray | None, dict[str, np.ndarray]]:
    """The adapters of a run by name, the active ones or those named; the run's head where it goes with them; and the
    tensors of its base, by their names in a model's files, where it trained it."""
    config = run_config.read(workdir)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        step = checkpoints.choose(config.select)
        metadata, values = checkpoints.metadata(step), checkpoints.load_numpy(step)
    if any(part in BERT_MODULES for path in values for part in path):
        raise UserError(
            f"--workdir: {workdir} is of a BERT, which is not exported; `evaluate` and `predict` take the run as it is"
        )
    names = list(names) or sorted(config.active)
    for name in names:
        if name not in metadata["adapters"]:
            raise UserError(f"--adapters: {workdir} has no adapter {name!r}{nearest(name, metadata['adapters'])}")
    head = values.get(("head", "kernel")) if set(names) == set(config.active) else None
    head = None if metadata["kind"] in ANNOTATED else head  # PEFT and transformers classify whole texts in this form
    belongs = {what: metadata[what] for what in ("base", "tokenizer", *(() if head is None else _OF_HEAD))}
    specs = {name: spec_of(metadata["adapters"][name]) for name in names}
    trained = huggingface.to_tensors({path: value for path, value in values.items() if partition_of(path) == "base"})
    told = any(isinstance(spec, PromptFamily) for spec in specs.values())
    shape = read_config(base or config.base) if told else None
    adapters = {name: peft.from_parameters(values, name, spec, belongs, shape) for name, spec in specs.items()}
    return adapters, head, trained


def _logits(model: Llama, tokens: np.ndarray, active: tuple[str, ...]) -> np.ndarray:
    definition, state = nnx.split(model)

    @jax.jit
    def run(state):
        model = nnx.merge(definition, state)
        segments, positions = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = model(tokens, segments, positions, active)
        return model.head(hidden, segments, 1) if hasattr(model, "head") else model.logits(hidden)

    return np.asarray(run(state))
