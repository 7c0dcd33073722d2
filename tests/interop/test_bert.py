"""BERT directories: old and new names, weights of PyTorch and of Flax, a missing pooler, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx, serialization
from safetensors.numpy import load_file, save_file

from jaxlora.config import default
from jaxlora.interop import bert, huggingface
from jaxlora.models.bases import build
from jaxlora.models.bert import BertConfig
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh, shardings

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(small_bert, tmp_path):
    """A copy to damage."""
    return shutil.copytree(small_bert, tmp_path / "base")


def load(folder):
    """The base's values by path."""
    abstract = nnx.eval_shape(lambda: build(huggingface.read_shape(folder), {}, 2, rngs=nnx.Rngs(0)))
    placed = shardings(make_mesh(1, 1), nnx.state(abstract))
    placed = {path: sharding for path, sharding in placed.items() if path[0] != "head"}
    state = huggingface.load_base(folder, abstract, placed)
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def rewrite(folder, function):
    save_file(function(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def set_fields(folder, **fields):
    raw = {**json.loads((folder / "config.json").read_text()), **fields}
    (folder / "config.json").write_text(json.dumps({name: x for name, x in raw.items() if x is not None}))


def test_each_tensor_goes_to_its_place(folder):
    tensors, found = load_file(folder / WEIGHTS), load(folder)
    np.testing.assert_array_equal(found["embedding", "position"], tensors["bert.embeddings.position_embeddings.weight"])
    np.testing.assert_array_equal(found["pooler", "kernel"].T, tensors["bert.pooler.dense.weight"])
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        np.testing.assert_array_equal(
            found["blocks", "intermediate", "kernel"][i].T, tensors[f"{layer}.intermediate.dense.weight"]
        )
        np.testing.assert_array_equal(
            found["blocks", "attention_norm", "scale"][i], tensors[f"{layer}.attention.output.LayerNorm.weight"]
        )
    assert sum(x.size for x in found.values()) == sum(x.size for x in tensors.values())


def old(tensors):
    """As the first clinical BERTs have them: no prefix, the norms' old names, and more than an encoder."""
    renamed = {}
    for name, value in tensors.items():
        name = name.removeprefix("bert.").replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
        renamed[name] = value
    extra = {"cls.predictions.bias": np.zeros(4, np.float32), "classifier.weight": np.zeros((2, 32), np.float32)}
    return renamed | extra | {"embeddings.position_ids": np.arange(64)[None]}


def test_old_names_give_the_same(folder):
    wanted = load(folder)
    rewrite(folder, old)
    set_fields(folder, model_type=None)
    found = load(folder)
    assert found.keys() == wanted.keys()
    assert all((found[path] == wanted[path]).all() for path in wanted)


def test_a_missing_pooler_is_the_same_fresh_one_every_time(folder, small_bert):
    rewrite(folder, lambda tensors: {name: x for name, x in tensors.items() if "pooler" not in name})
    assert huggingface.lacks_pooler(folder) and not huggingface.lacks_pooler(small_bert)
    one, other = load(folder), load(folder)
    np.testing.assert_array_equal(one["pooler", "kernel"], other["pooler", "kernel"])
    assert 0.015 < one["pooler", "kernel"].std() < 0.025 and not one["pooler", "bias"].any()


def test_the_fingerprint_is_of_shape_and_weights(folder, small_bert):
    before = huggingface.fingerprint(folder)
    assert before == huggingface.fingerprint(small_bert)
    rewrite(folder, lambda tensors: tensors | {"bert.pooler.dense.bias": np.ones(32, np.float32)})
    assert huggingface.fingerprint(folder) != before


def test_what_an_encoder_adds_of_its_own_is_left_out_and_told(folder, small_bert, monkeypatch):
    """UmlsBERT has embeddings of semantic types, and the heads of its pretraining, which nobody misses."""
    types = {"bert.embeddings.tui_type_embeddings.weight": np.ones((45, 32), np.float32)}
    rewrite(folder, lambda tensors: tensors | types | {"cls.predictions.bias": np.zeros(4, np.float32)})
    assert huggingface.left_out(folder) == list(types) and huggingface.left_out(small_bert) == []
    found, wanted = load(folder), load(small_bert)
    assert all((found[path] == wanted[path]).all() for path in wanted)
    assert huggingface.fingerprint(folder) == huggingface.fingerprint(small_bert)
    told, config = [], default()
    config.base, config.trainable = str(folder), ("head",)
    assemble(config, 2, make_mesh(1, 1), report=told.append)
    assert told == ["base has tensors that no BERT has, left out: bert.embeddings.tui_type_embeddings.weight"]


def flax_tree(tensors):
    """The tensors as transformers' FlaxBertModel writes them: nested, kernels transposed, the norms' scales."""
    tree = {}
    for name, value in tensors.items():
        *above, leaf = name.removeprefix("bert.").split(".")
        if leaf == "weight":
            leaf = "scale" if above[-1] == "LayerNorm" else "embedding" if "embeddings" in above[-1] else "kernel"
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[leaf] = value.T if leaf == "kernel" else value
    return tree


@pytest.mark.parametrize("pretrained", [False, True])
def test_weights_of_flax_alone_are_read(folder, small_bert, pretrained):
    """As CORe and Bio+ClinicalBERT also have them; of a model for pretraining, below `bert` and beside its heads."""
    tree = flax_tree(load_file(folder / WEIGHTS))
    tree = {"bert": tree, "cls": {"predictions": {"bias": np.zeros(4, np.float32)}}} if pretrained else tree
    (folder / WEIGHTS).unlink()
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    found, wanted = load(folder), load(small_bert)
    assert all((found[path] == wanted[path]).all() for path in wanted)
    assert huggingface.left_out(folder) == [] and not huggingface.lacks_pooler(folder)
    assert huggingface.base_parameters(folder) == sum(x.size for x in wanted.values())
    before = huggingface.fingerprint(folder)
    assert before == huggingface.fingerprint(small_bert)
    (tree["bert"] if pretrained else tree)["pooler"]["dense"]["bias"] = np.ones(32, np.float32)
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    assert huggingface.fingerprint(folder) != before


def test_weights_of_flax_in_64_bits_are_refused_by_name(folder, refused):
    tree = flax_tree(load_file(folder / WEIGHTS))
    tree["pooler"]["dense"]["bias"] = np.ones(32)
    (folder / WEIGHTS).unlink()
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    assert "flax_model.msgpack: tensor 'pooler.dense.bias' is stored as float64; convert it to" in refused(
        lambda: load(folder)
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.msgpack"])
@pytest.mark.parametrize("content", [b"not weights", b"", b"PK\x03\x04 and no archive"], ids=["text", "empty", "cut"])
def test_damaged_weights_are_one_line(folder, name, content, refused):
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(content)
    line = refused(lambda: load(folder))
    assert f"{folder / name} is not a readable file of weights" in line and "download it again" in line


def test_a_tensor_too_many_or_too_few_is_an_error(folder, refused):
    rewrite(folder, lambda tensors: tensors | {"bert.encoder.layer.2.output.dense.bias": np.zeros(32, np.float32)})
    assert "tensor 'encoder.layer.2.output.dense.bias' has no place in the model" in refused(lambda: load(folder))
    rewrite(folder, lambda tensors: {name: x for name, x in tensors.items() if "layer.1.attention" not in name})
    assert "has no tensor 'encoder.layer.1.attention" in refused(lambda: load(folder))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not supported"),
        ({"vocab_size": None}, "has no field 'vocab_size'; it is not the config.json of a BERT"),
        ({"hidden_size": 30}, "a size is no number or impossible"),
        ({"hidden_dropout_prob": "much"}, "a size is no number or impossible"),
    ],
)
def test_a_config_that_is_not_computed_is_an_error(folder, refused, fields, message):
    set_fields(folder, **fields)
    line = refused(lambda: bert.read_config(folder))
    assert str(folder / "config.json") in line and message in line


def test_what_a_config_leaves_out_is_as_in_transformers(folder):
    assert bert.read_config(folder) == BertConfig(
        vocab=json.loads((folder / "config.json").read_text())["vocab_size"],
        embed=32,
        mlp=48,
        layers=2,
        heads=4,
        positions=64,
    )
    set_fields(folder, hidden_dropout_prob=0.2, classifier_dropout=0.3, layer_norm_eps=1e-5)
    found = bert.read_config(folder)
    assert (found.dropout, found.head_dropout, found.epsilon) == (0.2, 0.3, 1e-5)


def test_a_large_base_is_loaded_as_a_small_one_is(folder, monkeypatch):
    """Tensor by tensor into the stacks on the devices, and not by way of the host."""
    wanted = load(folder)
    monkeypatch.setattr("jaxlora.interop.place._SMALL", 0)
    found = load(folder)
    assert all((found[path] == wanted[path]).all() for path in wanted)
