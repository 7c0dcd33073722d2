"""Writes tests/goldens/peft: adapters that PEFT makes for tiny models, and what it computes with them in float32:
logits, the gradients of a loss, and of some the logits of the model that they are merged into.

    .venv/bin/python -m tests.parity.make_peft_goldens

Needs the extra `parity`. A base is its config.json, the shapes of its tensors and a seed. A gradient is its norm and
its product with a random vector of the base's seed.
"""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from tests.goldens.weights import make_weights

GOLDENS = Path(__file__).parents[1] / "goldens" / "peft"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
BASES = {"Llama": CONFIG, "Qwen2": {**CONFIG, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}}
PATTERNS = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 3}
PATTERNS["rank_pattern"] = {"q_proj": 2, "model.layers.1.self_attn.v_proj": 4}
PATTERNS["alpha_pattern"] = {"down_proj": 3, "model.layers.0.self_attn.q_proj": 9}
# An option's seed is its place: new ones come last, and the others stay what they are.
OPTIONS = {
    "plain": {},
    "all_linear": {"target_modules": "all-linear"},
    "patterns": PATTERNS,
    "rslora": {"use_rslora": True, "r": 4},
    "dora": {"use_dora": True, "target_modules": ["v_proj", "o_proj", "up_proj"]},
    "layers": {"layers_to_transform": [1], "target_modules": ["k_proj", "gate_proj"]},
    "seq_cls": {"task_type": "SEQ_CLS"},
    "regex": {"target_modules": r".*\.0\.(self_attn\.q|mlp\.down)_proj|model\.layers\.1\..*o_proj"},
    "pissa": {"init_lora_weights": "pissa", "target_modules": ["q_proj", "v_proj", "gate_proj"]},
    "dora_seq_cls": {"task_type": "SEQ_CLS", "use_dora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "qwen2_seq_cls": {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj"]},
}
ON_QWEN2 = ("qwen2_seq_cls",)
MERGED = ("patterns", "dora", "qwen2_seq_cls")
SEED, CLASSES = 0, 3
NOTES = [np.random.RandomState(SEED + i).randint(1, 32, length).tolist() for i, length in enumerate((8, 5))]
LABELS = [2, 0]
LEAVES = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude"}


def base_model(family: str, task: str) -> tuple[transformers.PreTrainedModel, dict[str, list[int]]]:
    """(the base with its seeded weights, the shapes of its tensors)."""
    config = getattr(transformers, f"{family}Config")(**BASES[family], num_labels=CLASSES)
    shapes = getattr(transformers, f"{family}ForCausalLM")(config).state_dict()
    shapes = {name: list(x.shape) for name, x in sorted(shapes.items())}
    kind = "CausalLM" if task == "CAUSAL_LM" else "SequenceClassification"
    model = getattr(transformers, f"{family}For{kind}")(config).eval()
    weights = {name: torch.tensor(x) for name, x in make_weights(shapes, SEED).items()}
    found = model.load_state_dict(weights, strict=False)
    assert set(found.missing_keys) <= {"score.weight"} and set(found.unexpected_keys) <= {"lm_head.weight"}
    return model, shapes


def golden(option: str, fields: dict, seed: int) -> dict:
    """Writes an adapter; returns what PEFT computes with it."""
    family = "Qwen2" if option in ON_QWEN2 else "Llama"
    fields = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 5, **copy.deepcopy(fields)}
    torch.manual_seed(seed)
    model = peft.get_peft_model(base_model(family, fields["task_type"])[0], peft.LoraConfig(**fields)).eval()
    with tempfile.TemporaryDirectory() as initial:
        more = keep_start(model, initial) if fields.get("init_lora_weights") == "pissa" else {}
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "magnitude" in name:
                    weight.mul_(1 + 0.5 * torch.rand_like(weight))
                elif "lora_" in name or "modules_to_save" in name:
                    weight.add_(0.3 * torch.randn_like(weight))
        given = {"base": family, "logits": logits(model)}
        model.save_pretrained(GOLDENS / option, **more)
    (GOLDENS / option / "README.md").unlink()
    path = GOLDENS / option / "adapter_config.json"
    written = json.loads(path.read_text())
    if isinstance(written["target_modules"], list):  # of a set, so in another order every time
        written["target_modules"].sort()
    path.write_text(json.dumps(written, indent=2) + "\n")
    # Read again: a PiSSA adapter is written as the plain one of twice the rank that it is, and has its gradients.
    base = base_model(family, fields["task_type"])[0]
    model = peft.PeftModel.from_pretrained(base, GOLDENS / option, is_trainable=True).eval()
    given["loss"], given["gradients"] = gradients(model)
    if option in MERGED:
        given["merged"] = logits(model.merge_and_unload())
    return given


def keep_start(model: peft.PeftModel, folder: str) -> dict[str, str]:
    """Saves what a PiSSA adapter starts from, as PEFT's guide says; returns what makes it plain when it is saved."""
    config = model.peft_config["default"]
    start, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(folder)
    config.init_lora_weights = start
    return {"path_initial_model_for_weight_conversion": folder}


def logits(model: torch.nn.Module) -> list[list[float]]:
    """Of every token of the first note, or of each note where there is a head."""
    with torch.no_grad():
        found = [model(torch.tensor([note])).logits[0] for note in NOTES]
    found = found[0] if found[0].ndim == 2 else torch.stack(found)
    return [[rounded(x) for x in row] for row in found.tolist()]


def gradients(model: peft.PeftModel) -> tuple[float, dict[str, list[float]]]:
    """(the mean loss over next tokens or notes, by layer and leaf, or "head": the two numbers of its gradient)."""
    found = [model(torch.tensor([note])).logits[0] for note in NOTES]
    if found[0].ndim == 2:
        found, wanted = [rows[:-1] for rows in found], [token for note in NOTES for token in note[1:]]
        loss = torch.nn.functional.cross_entropy(torch.cat(found), torch.tensor(wanted))
    else:
        loss = torch.nn.functional.cross_entropy(torch.stack(found), torch.tensor(LABELS))
    loss.backward()
    numbers = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            module, _, leaf = name.removeprefix("base_model.model.").partition(".lora_")
            key = f"{module}.{LEAVES['lora_' + leaf.split('.')[0]]}" if leaf else "head"
            gradient = weight.grad.numpy().T.astype(np.float64).ravel()  # transposed: as it lies in jaxlora
            direction = np.random.RandomState(SEED).randn(gradient.size)
            numbers[key] = [rounded(np.linalg.norm(gradient)), rounded(gradient @ direction)]
    return rounded(loss.item()), numbers


def rounded(x: float) -> float:
    return float(f"{x:.7g}")


def lines(values: dict) -> str:
    """JSON, an entry a line."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()) + "\n}"


if __name__ == "__main__":
    shutil.rmtree(GOLDENS, ignore_errors=True)
    options = {option: golden(option, fields, seed) for seed, (option, fields) in enumerate(OPTIONS.items())}
    bases = {
        family: {"config": config, "shapes": base_model(family, "CAUSAL_LM")[1], "seed": SEED}
        for family, config in BASES.items()
    }
    parts = {"notes": json.dumps(NOTES), "labels": json.dumps(LABELS), "bases": lines(bases), "options": lines(options)}
    body = ",\n".join(f"{json.dumps(name)}: {part}" for name, part in parts.items())
    (GOLDENS / "values.json").write_text("{\n" + body + "\n}\n")
    size = sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file())
    print(f"{GOLDENS}: {size:,} bytes, peft {peft.__version__}, transformers {transformers.__version__}")
