"""Fixtures that several folders of tests share."""

import contextlib
import csv
import dataclasses
import itertools
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

# The programs are tiny: compiling them costs more than running them, and XLA's optimizations, its fusions by way of
# MLIR and the splitting of a program into parts cost four times as much as what is left.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
QUICK += " --xla_cpu_parallel_codegen_split_count=1 --xla_force_host_platform_device_count="
# One device, so that the bits do not depend on how many cores a machine has.
os.environ.setdefault("XLA_FLAGS", f"{QUICK}1")

from jaxlora import cli  # noqa: E402
from jaxlora.data import synthetic  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public test material beside the repository, or a skip where it is absent."""
    folder = Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the public test material is not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests of a session share are compiled once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compilations")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session")
def pretended() -> Callable[[int], dict[str, str]]:
    """The environment of a process that pretends to have so many devices: `pretended(count)`."""
    root = str(Path(__file__).parents[1])
    return lambda count: os.environ | {"XLA_FLAGS": f"{QUICK}{count}", "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}


@pytest.fixture(scope="session")
def small_base(tmp_path_factory) -> Path:
    """A real, small, random LLaMA with its tokenizer, in Hugging Face layout: 2 layers, grouped queries, tied."""
    from flax import nnx

    from jaxlora.data.tokens import train_tokenizer
    from jaxlora.interop import huggingface
    from jaxlora.models.llama import Llama
    from jaxlora.models.llama_shape import LlamaConfig

    folder = tmp_path_factory.mktemp("small_base")
    train_tokenizer(synthetic.plain_english(2000, 0), folder, 400)
    shape = LlamaConfig(vocab=400, embed=32, mlp=64, layers=2, heads=4, kv_heads=2, head_dim=8, tied=True)
    huggingface.save(folder, Llama(shape, rngs=nnx.Rngs(0)))
    return folder


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory) -> Path:
    """A small, random BERT with its vocabulary, in Hugging Face layout and without torch: 2 layers, uncased."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("small_bert")
    common = Counter(re.findall(r"[a-z]+", " ".join(synthetic.plain_english(300, 0)).lower())).most_common(250)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = dict.fromkeys([*letters, *(f"##{x}" for x in letters if x.isalnum()), *(word for word, _ in common)])
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    sizes = {"vocab_size": len(vocab), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64, "type_vocab_size": 2, "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(sizes))
    rng = np.random.default_rng(0)

    def linear(name, features_in, features_out):
        weight = rng.normal(scale=features_in**-0.5, size=(features_out, features_in))
        return {f"{name}.weight": weight, f"{name}.bias": rng.normal(scale=0.1, size=features_out)}

    def norm(name):
        return {f"{name}.LayerNorm.weight": 1 + rng.normal(scale=0.1, size=32), f"{name}.LayerNorm.bias": np.zeros(32)}

    rows = {"word": len(vocab), "position": 64, "token_type": 2}
    tensors = {f"embeddings.{name}_embeddings.weight": rng.normal(size=(n, 32)) for name, n in rows.items()}
    tensors |= norm("embeddings") | linear("pooler.dense", 32, 32)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("query", "key", "value"):
            tensors |= linear(f"{layer}.attention.self.{part}", 32, 32)
        tensors |= linear(f"{layer}.attention.output.dense", 32, 32) | norm(f"{layer}.attention.output")
        tensors |= linear(f"{layer}.intermediate.dense", 32, 48) | linear(f"{layer}.output.dense", 48, 32)
        tensors |= norm(f"{layer}.output")
    tensors = {f"bert.{name}": value.astype(np.float32) for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def random_llama() -> Callable:
    """Makes a tiny LLaMA of random weights, the adapters' B not zero, without compiling anything:
    `random_llama(specs, labels, seed, **fields of LlamaConfig)`."""
    import jax
    import numpy as np
    from flax import nnx

    from jaxlora.models.llama import Llama
    from jaxlora.models.llama_shape import LlamaConfig
    from jaxlora.train.mesh import make_mesh, shardings

    tiny = dict(vocab=32, embed=16, mlp=24, layers=1, heads=4, kv_heads=2, head_dim=4)

    def make(specs=None, labels=0, seed=0, **fields):
        shape, rng = LlamaConfig(**{**tiny, **fields}), np.random.default_rng(seed)
        abstract = nnx.eval_shape(lambda: Llama(shape, specs, labels, rngs=nnx.Rngs(0)))
        definition, state = nnx.split(abstract)
        placed, leaves = shardings(make_mesh(1, 1), state), []
        for path, leaf in nnx.to_flat_state(state):
            fan_in = 1 if path[0] == "embedding" else leaf.shape[-2] if len(leaf.shape) > 1 else 1
            value = rng.normal(size=leaf.shape) * fan_in**-0.5
            value = 1 + 0.1 * value if path[-1] == "scale" else value
            leaves.append((path, leaf.replace(jax.device_put(value.astype(leaf.dtype), placed[path]))))
        return nnx.merge(definition, nnx.from_flat_state(leaves))

    return make


@pytest.fixture(scope="session")
def random_adapter() -> Callable:
    """Makes an adapter of random weights for a model's shape: `random_adapter(shape, spec, labels, seed, belongs)`."""
    import numpy as np
    from flax import nnx

    from jaxlora.interop import peft
    from jaxlora.models.llama import Llama

    def make(shape, spec, labels=0, seed=0, belongs=()):
        abstract = nnx.eval_shape(lambda: Llama(shape, {"clinical": spec}, labels, rngs=nnx.Rngs(0)))
        rng = np.random.default_rng(seed)
        values = {}
        for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
            if path[0] == "head" or "adapters" in path:
                values[path] = rng.normal(size=leaf.shape, scale=0.3).astype(np.float32)
            if path[-1] == "magnitude":
                values[path] = 1 + np.abs(values[path])
        found = peft.from_parameters(values, "clinical", spec, dict(belongs), shape)
        return dataclasses.replace(found, head=values.get(("head", "kernel")))

    return make


@pytest.fixture(scope="session")
def packed_batch() -> dict:
    """Two packed rows of three notes for `random_llama`, of two classes."""
    import numpy as np

    return {
        "tokens": np.random.default_rng(0).integers(1, 32, (2, 16)),
        "segments": np.repeat([[1, 2], [1, 0]], 8, axis=1),
        "positions": np.tile(np.arange(8), (2, 2)),
        "notes": np.asarray([[1, 2], [3, 0]]),
        "labels": np.asarray([[0, 1], [1, 0]]),
    }


@pytest.fixture(scope="session")
def numbered_notes() -> Callable:
    """Makes tokenized notes of the given lengths; each token is `100 * note + place`, so that it tells where it is
    from: `numbered_notes(lengths, labels)`."""
    import numpy as np

    from jaxlora.data.tokens import TokenizedNotes

    def make(lengths, labels=None):
        tokens = [np.arange(n) + 100 * i for i, n in enumerate(lengths)]
        names = np.asarray([f"note {i}" for i in range(len(lengths))])
        return TokenizedNotes(
            np.concatenate(tokens), np.cumsum([0, *lengths]), np.arange(len(lengths)), names, names, labels
        )

    return make


@dataclasses.dataclass(frozen=True)
class Small:
    """Runs of `configs/table.py` on sixty notes and the small base, in seconds.

    Attributes:
      folder: where everything lies. notes: the table. sentinels: a word of every note's text, and the beginnings of
        every raw id and of every raw patient.
    """

    folder: Path
    base: Path
    sentinels: tuple[str, str, str] = ("Zq7xWv9KpR", "Rw5Zx", "Pt7Kq")

    @property
    def notes(self) -> Path:
        return self.folder / "notes.csv"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def clinical(self) -> Path:
        return self.folder / "clinical"

    @property
    def downstream(self) -> Path:
        return self.folder / "downstream"

    def flags(self, step: str) -> list[str]:
        """The config of a step: `clinical`, or a row; the downstream adapter of the latter has dropout."""
        config = Path(__file__).parents[1] / "configs" / "table.py"
        fields = {"path": self.notes, "base": self.base, "data.dir": self.data, "clinical": self.clinical}
        fields |= {"data.length": 64, "batch_size": 4, "epochs": 2, "evaluations": 3, "learning_rate": 0.01}
        fields |= {"split.validation": 0.2, "split.test": 0.3}
        if step.endswith("downstream"):
            fields["adapters.downstream.dropout"] = 0.1
        return [f"--config={config}:{step}", *(f"--config.{name}={value}" for name, value in fields.items())]

    @staticmethod
    def run(verb: str, *arguments) -> int:
        """The command line, in this process; returns its exit status."""
        before = sys.argv
        try:
            return cli.main(["jaxlora", verb, *map(str, arguments)])
        finally:
            sys.argv = before

    @staticmethod
    def environment() -> dict[str, str]:
        """The environment of a process that need not compile what this one has compiled."""
        import jax

        cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
        return os.environ | cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="session")
def small(small_base, tmp_path_factory) -> Small:
    """Sixty notes of thirty patients, prepared."""
    small = Small(tmp_path_factory.mktemp("small"), small_base)
    documents = synthetic.plain_english(400, 1)
    text, id, patient = small.sentinels
    with small.notes.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "patient", "text", "label", "several", "death"])
        for i, document in zip(range(60), documents, strict=False):
            sentence = document.split(". ")[0]
            labels = ("good", "fair", "poor")[i % 3], ("a", "a,b", "", "b")[i % 4], ("no", "yes")[i % 2]
            writer.writerow([f"{id}{i}", f"{patient}{i // 2}", f"{sentence}, {text}.", *labels])
    assert small.run("prepare", *small.flags("clinical"), f"--workdir={small.data}") == 0
    return small


@pytest.fixture(scope="session")
def trained(small) -> Small:
    """The two steps, trained and evaluated; tests that change a run copy its folder."""
    for step, workdir in (("clinical", small.clinical), ("frozen_downstream", small.downstream)):
        assert small.run("train", *small.flags(step), f"--workdir={workdir}") == 0
        assert small.run("evaluate", f"--workdir={workdir}") == 0
    return small


PATCHED = """
import os, resource, signal, sys
from jaxlora import cli
from jaxlora.train import update
from jaxlora.train.checkpoint import Checkpoints

def after(function, number, action):
    calls = []
    def patched(*arguments, **named):
        result = function(*arguments, **named)
        calls.append(True)
        if len(calls) == number:
            action()
        return result
    return patched

def at_update(number, action):
    real = update.make_train_step
    update.make_train_step = lambda *arguments: after(real(*arguments), number, action)

def at_save(number, action):
    Checkpoints.save = after(Checkpoints.save, number, action)

send = lambda number: os.kill(os.getpid(), number)
{patch}
sys.exit(cli.main(["jaxlora", *sys.argv[1:]]))
"""


@pytest.fixture(scope="session")
def patched() -> Callable[..., list[str]]:
    """The command line as a process of its own in which something happens: `patched(code, verb, *arguments)`, with
    `at_update(number, action)`, `at_save(number, action)` and `send(signal)` at the code's hand."""
    return lambda code, *arguments: [sys.executable, "-c", PATCHED.replace("{patch}", code), *map(str, arguments)]


@pytest.fixture
def around_calls(monkeypatch) -> Callable:
    """Within `with around_calls(module, made, around)`, each call of a function that `module.made` makes (a step of
    training, or of prediction) becomes `around(number, call)`, where `call()` is what was called."""

    @contextlib.contextmanager
    def changed(module, made, around):
        real = getattr(module, made)

        def make(*arguments):
            function, numbers = real(*arguments), itertools.count(1)
            return lambda *values: around(next(numbers), lambda: function(*values))

        with monkeypatch.context() as patch:
            patch.setattr(module, made, make)
            yield

    return changed


@pytest.fixture
def sigterm_at(around_calls) -> Callable:
    """Within `with sigterm_at(module, made, number)`, this process gets SIGTERM right before that call."""

    def signalled(module, made, number):
        def around(at, call):
            if at == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return call()

        return around_calls(module, made, around)

    return signalled


@pytest.fixture
def refused(small, capfd) -> Callable[..., str]:
    """Runs a command that must end with status 2 and one line on standard error; returns the line."""

    def refused(verb, *arguments):
        capfd.readouterr()
        status = small.run(verb, *arguments)
        written = re.split(r"[\r\n]", capfd.readouterr().err)
        lines = [line for line in written if line.strip("\x1b[A ") and not re.search(r"\d+%\|", line)]  # progress bars
        assert status == 2 and len(lines) == 1 and lines[0].startswith("jaxlora: "), lines
        return lines[0]

    return refused


@pytest.fixture(scope="session")
def stored() -> Callable:
    """Reads what a run's checkpoint holds: by item (model, optimizer, data) and name."""
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    def read(workdir, step=None):
        with ocp.training.Checkpointer(Path(workdir) / "checkpoints") as checkpoints:
            step = step or checkpoints.latest.step
            forms = checkpoints.checkpointables_metadata(step).metadata
            empty = {
                item: {name: np.empty(x.shape, x.dtype) if hasattr(x, "shape") else 0 for name, x in form.items()}
                for item, form in forms.items()
            }
            return checkpoints.load_checkpointables(step, empty)

    return read
