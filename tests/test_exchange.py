"""Adapters and models in and out through the command line."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxlora.files import new_directory
from jaxlora.interop import huggingface
from jaxlora.interop.llama_config import read_config
from jaxlora.interop.tensors import model_files
from jaxlora.restore import RestoredRun


def logits(run: RestoredRun, rows, head=True):
    """Of the last position of every row, `rows` being (tokens, segments, positions)."""
    definition, state = nnx.split(run.model)
    active = tuple(run.config.active)

    @jax.jit
    def compute(state, tokens, segments, positions):
        model = nnx.merge(definition, state)
        hidden = model(tokens, segments, positions, active)
        return model.head(hidden, segments, 1)[:, 0] if head else model.logits(hidden)

    return np.asarray(compute(state, *rows))


def padded(notes, length, left=False):
    """(tokens, segments, positions) of one note a row."""
    rows = []
    for ids in notes:
        room = (length - len(ids), 0) if left else (0, length - len(ids))
        rows.append([np.pad(x, room).astype(np.int32) for x in (ids, np.ones(len(ids)), np.arange(len(ids)))])
    return [np.stack(x) for x in zip(*rows, strict=True)]


NOTES = padded([list(range(3, 40)), [5, 9, 7]], 40)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The downstream run's two adapters as one PEFT directory, and the merged model."""
    folder = tmp_path_factory.mktemp("exported")
    assert trained.run("export-adapter", f"--workdir={trained.downstream}", f"--output={folder / 'adapter'}") == 0
    assert trained.run("export-model", f"--workdir={trained.downstream}", f"--output={folder / 'model'}") == 0
    return folder


def imported(trained, adapter, workdir, *flags) -> RestoredRun:
    arguments = [f"--adapter={adapter}", f"--base={trained.base}", f"--workdir={workdir}", *flags]
    assert trained.run("import-adapter", *arguments) == 0
    return RestoredRun(str(workdir))


@pytest.mark.parametrize("name, labels", [("causal-r4", 0), ("seqcls-r8", 4)])
def test_an_adapter_of_peft_gives_the_logits_of_peft(small, shared_data, tmp_path, capsys, name, labels):
    folder = shared_data / "tinyllama260k"
    flags = [f"--adapter={folder / f'peft-{name}'}", f"--base={folder / 'hf'}", f"--workdir={tmp_path / 'run'}"]
    assert small.run("import-adapter", *flags, "--name=downstream") == 0
    assert f"workdir='{tmp_path / 'run'}'" in capsys.readouterr().out
    golden = json.loads((folder / f"golden_peft_{name.split('-')[0]}.json").read_text())
    run = RestoredRun(str(tmp_path / "run"))
    assert (run.kind, len(run.labels)) == ("multiclass" if labels else "lm", labels)
    if not labels:
        ids = golden["ids"]
        found = logits(run, padded([ids], 48), head=False)[0, len(ids) - 1]
        np.testing.assert_allclose(found, golden["last_logits"], atol=1e-4)
    for left, wanted in [(False, "logits_right_padded"), (True, "logits_left_padded")] if labels else []:
        notes = padded([golden["ids"], golden["short"]], 48, left)
        np.testing.assert_allclose(logits(run, notes), golden[wanted], atol=1e-4)


def test_two_adapters_become_one_with_the_same_logits(trained, exported, tmp_path):
    config = json.loads((exported / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["task_type"], config["modules_to_save"]) == (24, "SEQ_CLS", ["score"])
    one = imported(trained, exported / "adapter", tmp_path / "one")
    two = RestoredRun(str(trained.downstream))
    assert (one.kind, one.labels) == (two.kind, two.labels)
    np.testing.assert_allclose(logits(one, NOTES), logits(two, NOTES), atol=1e-5)


def test_one_adapter_comes_back_byte_for_byte(trained, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert trained.run("export-adapter", f"--workdir={trained.clinical}", f"--output={first}") == 0
    imported(trained, first, tmp_path / "run")
    assert trained.run("export-adapter", f"--workdir={tmp_path / 'run'}", f"--output={second}") == 0
    assert sorted(path.name for path in first.iterdir()) == [
        *("adapter_config.json", "adapter_model.safetensors", "jaxlora.json")
    ]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_an_adapter_says_what_it_belongs_to_and_not_where(trained, exported):
    belongs = json.loads((exported / "adapter" / "jaxlora.json").read_text())
    assert belongs["labels"] == ["fair", "good", "poor"] and belongs["kind"] == "multiclass"
    assert set(belongs) == {"base", "kind", "labels", "tokenizer"}
    text = (exported / "adapter" / "adapter_config.json").read_text()
    assert str(trained.base.parent) not in text and trained.base.name in text


def test_a_named_adapter_goes_without_the_head(trained, tmp_path, capsys):
    flags = [f"--workdir={trained.downstream}", f"--output={tmp_path / 'a'}", "--adapters=clinical"]
    assert trained.run("export-adapter", *flags) == 0
    assert capsys.readouterr().out == "clinical: rank 16\n"
    assert not any("score" in name for name in load_file(tmp_path / "a" / "adapter_model.safetensors"))


def test_a_compressed_adapter_tells_its_error(trained, tmp_path, capsys):
    flags = [f"--workdir={trained.downstream}", f"--output={tmp_path / 'a'}", "--combine=svd", "--rank=2"]
    assert trained.run("export-adapter", *flags, "--weights=1,0.5") == 0
    told = capsys.readouterr().out
    assert told.startswith("clinical + downstream: rank 2, a head of 3 labels, reconstruction error ")
    assert 0.01 < float(told.split()[-1]) < 1


def test_the_merged_model_is_the_run(trained, exported, tmp_path, capsys):
    flags = [f"--workdir={trained.downstream}", f"--output={tmp_path / 'again'}"]
    assert trained.run("export-model", *flags) == 0
    told = capsys.readouterr().out.split()
    assert told[:3] == ["largest", "logit", "difference"] and float(told[3]) < 1e-4
    config = json.loads((exported / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "fair", "1": "good", "2": "poor"} and config["pad_token_id"] == 2
    assert (exported / "model" / "tokenizer.model").read_bytes() == (trained.base / "tokenizer.model").read_bytes()
    source, base = model_files(exported / "model"), model_files(trained.base)
    assert set(source.names) == {*base.names, "score.weight"}
    touched = "model.layers.1.self_attn.q_proj.weight"
    assert (source.read(touched) != base.read(touched)).any()
    np.testing.assert_array_equal(
        source.read("model.layers.1.mlp.up_proj.weight"), base.read("model.layers.1.mlp.up_proj.weight")
    )


def test_the_merged_language_model_is_a_base_again(trained, tmp_path, capsys):
    assert trained.run("export-model", f"--workdir={trained.clinical}", f"--output={tmp_path / 'model'}") == 0
    assert read_config(tmp_path / "model") == read_config(trained.base)
    flags = ["--prompt=the", "--new-tokens=12"]
    capsys.readouterr()
    assert trained.run("generate", f"--base={tmp_path / 'model'}", *flags) == 0
    assert trained.run("generate", f"--workdir={trained.clinical}", *flags) == 0
    assert trained.run("generate", f"--base={trained.base}", *flags) == 0
    merged, run, base = capsys.readouterr().out.strip("\n").split("\n")
    assert merged == run != base


def test_step_2_starts_from_an_imported_adapter(trained, tmp_path):
    assert trained.run("export-adapter", f"--workdir={trained.clinical}", f"--output={tmp_path / 'a'}") == 0
    imported(trained, tmp_path / "a", tmp_path / "clinical")
    flags = [f"--config.clinical={tmp_path / 'clinical'}", f"--workdir={tmp_path / 'run'}"]
    assert trained.run("train", *trained.flags("frozen_downstream"), *flags) == 0
    found, wanted = (
        json.loads((run / "log.jsonl").read_text().splitlines()[0]) for run in (tmp_path / "run", trained.downstream)
    )
    assert found["loss"] == wanted["loss"]


def test_an_imported_head_scores_notes(trained, exported, tmp_path):
    imported(trained, exported / "adapter", tmp_path / "run")
    table = tmp_path / "new.csv"
    table.write_text("id,text\n1,he is well\n2,she is poorly\n")
    scores = []
    for workdir in (tmp_path / "run", trained.downstream):
        flags = [f"--workdir={workdir}", f"--input={table}", f"--output={tmp_path / 'scores.csv'}"]
        assert trained.run("predict", *flags) == 0
        scores.append([row[2:] for row in csv.reader((tmp_path / "scores.csv").open())])
    assert scores[0][0] == scores[1][0] == ["fair", "good", "poor"]
    np.testing.assert_allclose(*(np.asarray(s[1:], float) for s in scores), atol=1e-5)


@pytest.fixture
def other_base(trained, tmp_path):
    """The base with one weight changed."""
    folder = shutil.copytree(trained.base, tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1.0
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_another_base_is_refused_until_it_is_allowed(trained, exported, other_base, tmp_path, refused):
    adapter = [f"--adapter={exported / 'adapter'}", f"--base={other_base}", f"--workdir={tmp_path / 'run'}"]
    assert "belongs to another base; give that one, or --allow-base-mismatch" in refused("import-adapter", *adapter)
    assert trained.run("import-adapter", *adapter, "--allow-base-mismatch") == 0
    copy = shutil.copytree(trained.downstream, tmp_path / "copy")
    run = [f"--workdir={copy}", f"--base={other_base}"]
    assert "was trained with another base" in refused("evaluate", *run)
    assert trained.run("evaluate", *run, "--allow-base-mismatch") == 0
    step = [*trained.flags("frozen_downstream"), f"--config.base={other_base}", f"--workdir={tmp_path / 'step'}"]
    assert "was trained on another base than config.base" in refused("train", *step)
    assert trained.run("train", *step, "--allow-base-mismatch") == 0


@pytest.mark.parametrize(
    "verb, flags, message",
    [
        (
            "import-adapter",
            ["--adapter=/nowhere", "--base={base}", "--workdir={new}"],
            "no /nowhere/adapter_config.json",
        ),
        ("import-adapter", ["--adapter={a}", "--base={base}", "--workdir={new}", "--name=a.b"], "--name is 'a.b'"),
        ("import-adapter", ["--adapter={a}", "--base={base}", "--workdir={run}"], "holds a run already; give a new"),
        ("import-adapter", ["--adapter={a}", "--base=/nowhere", "--workdir={new}"], "no /nowhere/config.json"),
        ("export-adapter", ["--workdir={run}", "--output={a}"], "exists; give a new folder"),
        ("export-adapter", ["--workdir={run}", "--output={new}", "--adapters=clincal"], "did you mean 'clinical'?"),
        ("export-adapter", ["--workdir={run}", "--output={new}", "--combine=sum"], "--combine: no 'sum'"),
        ("export-adapter", ["--workdir={run}", "--output={new}", "--combine=svd"], "--rank is 0; --combine=svd needs"),
        (
            "export-adapter",
            ["--workdir={run}", "--output={new}", "--rank=2"],
            "--rank is 2, which --combine=cat has no use for",
        ),
        ("export-adapter", ["--workdir={run}", "--output={new}", "--weights=nan,1"], "nan, 1.0 must be finite"),
        ("export-adapter", ["--workdir={run}", "--output={new}", "--combine=linear"], "needs equal ranks"),
        ("export-adapter", ["--workdir={run}", "--output={new}", "--weights=1"], "1 weights for 2 adapters"),
        ("export-adapter", ["--workdir={run}", "--output={new}", "--weights=a,b"], "--weights: 'a,b' are no numbers"),
        ("export-model", ["--workdir={run}", "--output={a}"], "exists; give a new folder"),
        ("export-model", ["--workdir={new}", "--output={new}"], "has no config.json"),
        ("generate", ["--workdir={run}", "--input={table}", "--output={new}"], "column 'text', row 2: no text"),
        ("generate", ["--workdir={run}", "--prompt=a", "--config=configs/table.py"], "--config and --workdir are both"),
        ("generate", ["--workdir={run}", "--prompt=a", "--new-tokens=0"], "--new-tokens is 0"),
        ("generate", ["--workdir={run}", "--prompt=a", "--temperature=nan"], "--temperature is nan"),
        ("generate", ["--workdir={run}", "--prompt=a", "--temperature=-1"], "--temperature is -1.0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(trained, exported, tmp_path, refused, verb, flags, message):
    (tmp_path / "table.csv").write_text('text\nwell\n" "\n')
    places = {"a": exported / "adapter", "base": trained.base, "run": trained.downstream, "new": tmp_path / "new"}
    line = refused(verb, *(flag.format(**places, table=tmp_path / "table.csv") for flag in flags))
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_table_of_texts_is_gone_on_with(trained, tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n7,the patient\n8,the\n9,a long walk in the morning\n")
    flags = [f"--input={tmp_path / 'in.csv'}", f"--output={tmp_path / 'out.csv'}", "--new-tokens=5"]
    assert trained.run("generate", f"--workdir={trained.clinical}", *flags) == 0
    rows = list(csv.reader((tmp_path / "out.csv").open()))
    assert [row[0] for row in rows] == ["row", "1", "2", "3"] and all(row[1] for row in rows)
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600
    assert trained.run("generate", f"--workdir={trained.clinical}", "--prompt=the", "--new-tokens=5") == 0


def test_a_folder_that_fails_half_way_is_not_there(tmp_path):
    with pytest.raises(ZeroDivisionError), new_directory(str(tmp_path / "new")) as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained_base(trained, tmp_path_factory):
    """A language-model run that trained the base too."""
    workdir = tmp_path_factory.mktemp("trained_base") / "run"
    flags = ["--config.trainable=clinical,base", "--config.epochs=1", f"--workdir={workdir}"]
    assert trained.run("train", *trained.flags("clinical"), *flags) == 0
    return workdir


def test_a_run_that_trained_its_base_is_no_adapter(trained_base, tmp_path, refused):
    line = refused("export-adapter", f"--workdir={trained_base}", f"--output={tmp_path / 'out'}")
    assert "trained its base, which no adapter holds; take export-model" in line and not list(tmp_path.iterdir())


def test_a_base_that_was_trained_is_written_with_its_adapter(trained, trained_base, tmp_path, capsys, stored):
    assert trained.run("export-model", f"--workdir={trained_base}", f"--output={tmp_path / 'model'}") == 0
    assert float(capsys.readouterr().out.split("largest logit difference ")[1].split()[0]) < 1e-4
    found, before = model_files(tmp_path / "model"), model_files(trained.base)
    assert set(found.names) == set(before.names) and {found.dtype(name) for name in found.names} == {"F32"}
    model = stored(trained_base)["model"]  # an update after the best checkpoint would show in every weight
    np.testing.assert_array_equal(found.read("model.layers.1.mlp.up_proj.weight").T, model["blocks/up_proj/kernel"][1])
    assert not np.array_equal(found.read("model.norm.weight"), before.read("model.norm.weight"))


def test_step_2_does_not_start_from_a_run_that_trained_its_base(trained, trained_base, tmp_path, refused):
    flags = [f"--config.clinical={trained_base}", f"--workdir={tmp_path / 'run'}"]
    assert "trained its base, which no adapter holds" in refused("train", *trained.flags("frozen_downstream"), *flags)


def test_a_base_trained_under_a_head_is_no_language_model(trained, tmp_path, refused):
    flags = ["--config.trainable=base,head", "--config.epochs=1", f"--workdir={tmp_path / 'run'}"]
    assert trained.run("train", *trained.flags("head_only"), *flags) == 0
    assert "trained its base under a head" in refused("generate", f"--workdir={tmp_path / 'run'}", "--prompt=a")
    assert trained.run("export-model", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'model'}") == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["num_labels"] == 3


def test_an_adapter_of_another_shape_is_refused_whatever_is_allowed(trained, tmp_path, random_llama, refused):
    huggingface.save(tmp_path / "base", random_llama(vocab=400, embed=32, layers=1))
    shutil.copy(trained.base / "tokenizer.model", tmp_path / "base")
    flags = [*trained.flags("frozen_downstream"), f"--config.base={tmp_path / 'base'}", "--allow-base-mismatch"]
    assert "give the base that it was trained with" in refused("train", *flags, f"--workdir={tmp_path / 'run'}")


def test_a_run_that_trained_its_base_generates(trained, trained_base, capsys):
    assert trained.run("generate", f"--workdir={trained_base}", "--prompt=the", "--new-tokens=3") == 0
    assert capsys.readouterr().out


def test_a_base_of_another_shape_is_told_from_a_damaged_checkpoint(trained, tmp_path, random_llama, refused):
    huggingface.save(tmp_path, random_llama(vocab=400, embed=16, layers=2))
    shutil.copy(trained.base / "tokenizer.model", tmp_path)
    flags = [f"--workdir={trained.clinical}", f"--base={tmp_path}", "--allow-base-mismatch", "--prompt=a"]
    assert "give the base that it was trained with" in refused("generate", *flags)


def test_a_merge_that_overflows_is_refused(trained, tmp_path, refused):
    base, adapter = shutil.copytree(trained.base, tmp_path / "half"), tmp_path / "adapter"
    tensors = {name: x.astype(np.float16) for name, x in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors")
    assert trained.run("export-adapter", f"--workdir={trained.clinical}", f"--output={adapter}") == 0
    large = {name: 1e4 * x for name, x in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(large, adapter / "adapter_model.safetensors")
    flags = [f"--adapter={adapter}", f"--base={base}", f"--workdir={tmp_path / 'run'}", "--allow-base-mismatch"]
    assert trained.run("import-adapter", *flags) == 0
    flags = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]
    line = refused("export-model", *flags)
    assert "q_proj.weight' with the adapters overflows float16" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "half", "run"]


def test_a_regression_is_refused(trained, exported, tmp_path, refused):
    adapter = shutil.copytree(exported / "adapter", tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.score.weight"
    save_file({**tensors, name: tensors[name][:1]}, adapter / "adapter_model.safetensors")
    (adapter / "jaxlora.json").unlink()
    flags = [f"--adapter={adapter}", f"--base={trained.base}", f"--workdir={tmp_path / 'run'}"]
    assert "a head of one label is a regression" in refused("import-adapter", *flags)


def test_an_export_does_not_tell_where_the_base_lies(trained, tmp_path):
    hub = tmp_path / "models--meta-llama--Llama-2-7b-hf" / "snapshots" / "0123abc"
    shutil.copytree(trained.base, hub)
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/jane/llama"}))
    assert huggingface.public_name(hub) == "meta-llama/Llama-2-7b-hf"
    flags = [f"--workdir={trained.clinical}", f"--base={hub}", f"--output={tmp_path / 'out'}"]
    assert trained.run("export-model", *flags) == 0
    assert "jane" not in (tmp_path / "out" / "config.json").read_text()
