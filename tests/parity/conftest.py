"""Bases of transformers, adapters of PEFT, and the same run here and there; torch is imported where it is needed."""

import copy
import functools
import shutil
import warnings
from collections.abc import Callable

import pytest

CLASSES = 3
LENGTHS = (12, 7, 3)
LEAVES = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude"}


@pytest.fixture(scope="session")
def bases(small_base, tmp_path_factory) -> Callable:
    """A random model of each family, with a tokenizer: its folder and the model, `bases(family, task)`."""
    import torch
    import transformers

    @functools.cache
    def make(family="Llama", task="CausalLM"):
        folder = tmp_path_factory.mktemp("base")
        sizes = dict(vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=3, initializer_range=0.15)
        sizes |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0)
        config = getattr(transformers, f"{family}Config")(**sizes, tie_word_embeddings=False, num_labels=CLASSES)
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}For{task}")(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(0.0, 0.3)
        model.save_pretrained(folder)
        if task != "CausalLM":  # what belongs to the base lies in a folder of its own
            (folder / "model.safetensors").unlink()
            causal = make(family)[1]
            model.model.load_state_dict(causal.model.state_dict())
            return make(family)[0], model
        shutil.copyfile(small_base / "tokenizer.model", folder / "tokenizer.model")
        return folder, model

    return make


@pytest.fixture(scope="session")
def batch() -> Callable:
    """Three notes padded on a side, as the model's packed rows, each with a label: `batch(side)`."""
    import numpy as np

    random_tokens = np.random.default_rng(0).integers(3, 400, (len(LENGTHS), max(LENGTHS)))

    def make(side):
        real = np.arange(max(LENGTHS)) < np.asarray(LENGTHS)[:, None]
        real = real if side == "right" else real[:, ::-1]
        positions = np.where(real, np.cumsum(real, axis=1) - 1, 0)
        notes = np.arange(1, len(LENGTHS) + 1)[:, None]
        tokens, labels = np.where(real, random_tokens, 0), np.asarray([[2], [0], [1]])
        rows = {"tokens": tokens, "segments": real, "positions": positions, "notes": notes, "labels": labels}
        return {name: np.asarray(value, np.int32) for name, value in rows.items()}

    return make


@pytest.fixture(scope="session")
def inputs() -> Callable:
    """The rows of a batch for torch: `inputs(rows)`."""
    import torch

    named = {"input_ids": "tokens", "attention_mask": "segments", "position_ids": "positions"}
    return lambda rows: {name: torch.tensor(rows[ours], dtype=torch.long) for name, ours in named.items()}


@pytest.fixture(scope="session")
def train_a_little() -> Callable:
    """Changes every parameter of PEFT's model that training would change: `train_a_little(model)`."""
    import torch

    def train_a_little(model):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "magnitude" in name:
                    weight.mul_(1 + 0.5 * torch.rand_like(weight))
                elif "lora_" in name or "modules_to_save" in name:
                    weight.add_(0.1 * torch.randn_like(weight))

    return train_a_little


@pytest.fixture(scope="session")
def made_by_peft(train_a_little) -> Callable:
    """PEFT's model of a copy of the base, trained a little: `made_by_peft(base, trained, **fields of LoraConfig)`."""
    import torch
    from peft import LoraConfig, get_peft_model

    def make(base, trained=True, **fields):
        kind = "SEQ_CLS" if hasattr(base, "score") else "CAUSAL_LM"
        torch.manual_seed(1)
        model = get_peft_model(copy.deepcopy(base), LoraConfig(task_type=kind, **{"r": 4, "lora_alpha": 6, **fields}))
        if trained:
            train_a_little(model)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def load_in_peft() -> Callable:
    """PEFT's model of a directory, which it must take without a word about keys:
    `load_in_peft(directory, base, **more)`."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    def load(directory, base, **more):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model = PeftModel.from_pretrained(copy.deepcopy(base), directory, **more)
        written = load_file(directory / "adapter_model.safetensors")
        taken = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" asks the hub
        assert set(written) == set(taken)
        assert all(torch.equal(written[name], taken[name]) for name in written)
        return model.eval()

    return load


@pytest.fixture(scope="session")
def theirs(batch, inputs) -> Callable:
    """Logits in torch of all real positions, or of the notes: `theirs(model, side)`."""
    import torch

    def run(model, side="right"):
        rows = batch(side)
        with torch.no_grad():
            logits = model(**inputs(rows)).logits.numpy()
        return logits if logits.ndim == 2 else logits[rows["segments"] > 0]

    return run


@pytest.fixture(scope="session")
def logits(batch) -> Callable:
    """The same logits here: `logits(model, side)`."""
    import jax
    import numpy as np
    from flax import nnx

    @functools.partial(jax.jit, static_argnums=0)
    def run(definition, state, rows):
        model = nnx.merge(definition, state)
        hidden = model(rows["tokens"], rows["segments"], rows["positions"], ("clinical",))
        return model.head(hidden, rows["segments"], 1)[:, 0] if hasattr(model, "head") else model.logits(hidden)

    def logits(model, side="right"):
        rows = batch(side)
        found = np.asarray(run(*nnx.split(model), rows))
        return found if found.ndim == 2 else found[rows["segments"] > 0]

    return logits


@pytest.fixture(scope="session")
def assembled() -> Callable:
    """The model of a run with one adapter, "clinical": `assembled(folder, spec, labels, fresh)`."""
    from jaxlora.config import default
    from jaxlora.models.techniques import spec_json
    from jaxlora.train.assemble import assemble
    from jaxlora.train.mesh import make_mesh

    def make(folder, spec, labels=0, fresh=True):
        config = default()
        config.base, config.active = str(folder), ("clinical",)
        config.adapters["clinical"] = {**spec_json(spec), "workdir": ""}
        return assemble(config, labels, make_mesh(1, 1), fresh)

    return make


@pytest.fixture(scope="session")
def with_values() -> Callable:
    """The model with the parameters that `values` gives by path; it has no others of the adapter:
    `with_values(model, values)`."""
    import jax.numpy as jnp
    from flax import nnx

    from jaxlora import partition

    def put(model, values):
        state = nnx.to_flat_state(nnx.state(model))
        added = {path for path, _ in state if partition.partition_of(path) != "base"}
        assert added == set(values)
        assert all(leaf.shape == values[path].shape for path, leaf in state if path in added)
        leaves = [(path, leaf.replace(jnp.asarray(values[path]))) for path, leaf in state if path in added]
        nnx.update(model, nnx.from_flat_state(leaves))
        return model

    return put


@pytest.fixture(scope="session")
def read(assembled, with_values) -> Callable:
    """(the adapter of a PEFT directory, the model with it): `read(adapter_folder, folder)`."""
    from jaxlora.interop import peft
    from jaxlora.interop.llama_config import read_config

    def read(adapter_folder, folder):
        found = peft.read(adapter_folder, read_config(folder))
        labels = 0 if found.head is None else found.head.shape[1]
        model = assembled(folder, found.spec, labels, fresh=False)
        return found, with_values(model, peft.to_parameters(found, "clinical"))

    return read


@pytest.fixture(scope="session")
def named() -> Callable:
    """(full name of the layer and leaf, or "head", and the parameter) of all that PEFT trains: `named(model)`."""

    def named(model):
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                module, _, leaf = name.removeprefix("base_model.model.").partition(".lora_")
                yield f"{module}.{LEAVES['lora_' + leaf.split('.')[0]]}" if leaf else "head", weight

    return named


@pytest.fixture(scope="session")
def delta_weights() -> Callable:
    """What an adapter adds to each layer that it is in, `[in, out]`, by full name: `delta_weights(model, name)`."""
    import torch

    def delta_weights(model, name):
        layers = model.base_model.model.named_modules()
        with torch.no_grad():
            return {
                module: layer.get_delta_weight(name).numpy().T
                for module, layer in layers
                if name in getattr(layer, "lora_A", ())
            }

    return delta_weights
