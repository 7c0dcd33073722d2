"""Fixtures that several folders of tests share."""

from pathlib import Path

import pytest

from jaxlora.data import synthetic


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
def small_base(tmp_path_factory) -> Path:
    """A real, small, random LLaMA with its tokenizer, in Hugging Face layout: 2 layers, grouped queries, tied."""
    from flax import nnx

    from jaxlora.data.tokens import train_tokenizer
    from jaxlora.interop import huggingface
    from jaxlora.models.llama import Llama, LlamaConfig

    folder = tmp_path_factory.mktemp("small_base")
    train_tokenizer(synthetic.plain_english(2000, 0), folder, 400)
    shape = LlamaConfig(vocab=400, embed=32, mlp=64, layers=2, heads=4, kv_heads=2, head_dim=8, tied=True)
    huggingface.save(folder, Llama(shape, rngs=nnx.Rngs(0)))
    return folder
