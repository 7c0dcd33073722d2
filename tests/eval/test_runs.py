"""What the evaluated runs under a folder are called."""

import json

import pytest

from jaxlora.config import adapter, default, prefix
from jaxlora.errors import UserError
from jaxlora.eval.runs import title
from jaxlora.rows import ROWS, TFIDF, set_row


def config_of(row, base="", targets=("q_proj", "v_proj")):
    config = default()
    set_row(config, row, targets)
    config.base = str(base)
    return json.loads(config.to_json_best_effort())


@pytest.fixture
def bert(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"type_vocab_size": 2}))  # as the old ones are
    return tmp_path


def test_a_row_is_titled_by_what_its_base_is(bert, tmp_path):
    names = {"head_only": "BERT (head only)", "lora": "BERT + LoRA", "full": "BERT (full fine-tuning)"}
    assert {row: title(config_of(row, bert)) for row in names} == names
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    assert {row: title(config_of(row, tmp_path)) for row in ROWS} == {name: row.title for name, row in ROWS.items()}


def test_a_base_that_is_elsewhere_is_told_by_the_layers_of_its_adapter():
    assert title(config_of("lora", "elsewhere", ("query", "value"))) == "BERT + LoRA"
    assert title(config_of("lora", "elsewhere")) == "LLaMA + LoRA"
    assert title(config_of("head_only", "elsewhere")) == "base (head only)"


def test_an_adapter_is_called_by_its_technique():
    config = config_of("lora")
    config["adapters"]["downstream"] = json.loads(prefix(4).to_json())
    assert title(config) == "base + prefix tuning"
    config["adapters"] = {"clinical": adapter(8, 16).to_dict(), **config["adapters"]}
    config["active"] = ["clinical", "downstream"]
    assert title(config) == ROWS["frozen_downstream"].title


def test_words_alone():
    assert title({"adapters": {}, "active": [], "trainable": []}) == TFIDF.title == "TF-IDF + logistic regression"


def test_a_damaged_base_is_named(bert):
    (bert / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        title(config_of("lora", bert))
