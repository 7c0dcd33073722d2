"""The rows of the paper's tables: a choice of adapters, of what is active, and of what is trainable."""

import dataclasses

from ml_collections import ConfigDict

from jaxlora.config import adapter
from jaxlora.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      title: as the tables print it.
      adapters: that the model has. active: that enter the forward pass. trainable: what is trained.
    """

    title: str
    adapters: tuple[str, ...]
    active: tuple[str, ...]
    trainable: tuple[str, ...]


_C, _D, _BOTH = ("clinical",), ("downstream",), ("clinical", "downstream")

ROWS = {
    "head_only": Row("LLaMA (head only)", (), (), ("head",)),
    "lora": Row("LLaMA + LoRA", _D, _D, ("downstream", "head")),
    "frozen": Row("+ Clinical (frozen)", _C, _C, ("head",)),
    "frozen_downstream": Row("+ Clinical (frozen) + Downstream", _BOTH, _BOTH, ("downstream", "head")),
    "trainable": Row("+ Clinical (trainable)", _C, _C, ("clinical", "head")),
    "trainable_downstream": Row(
        "+ Clinical (trainable) + Downstream", _BOTH, _BOTH, ("clinical", "downstream", "head")
    ),
    "full": Row("LLaMA (full fine-tuning)", (), (), ("base", "head")),
    # The published code added the downstream adapter and never activated it: these two repeat "frozen" and "trainable".
    "frozen_downstream_as_published": Row("+ Clinical (frozen) + Downstream, as published", _BOTH, _C, ("head",)),
    "trainable_downstream_as_published": Row(
        "+ Clinical (trainable) + Downstream, as published", _BOTH, _C, ("clinical", "head")
    ),
}
# The six that a table is made of; the others are run when asked for.
TABLE = tuple(name for name in ROWS if name != "full" and not name.endswith("as_published"))
# Nothing of a language model; `jaxlora.reproduce.tfidf` fits it.
TFIDF = Row("TF-IDF + logistic regression", (), (), ())


def set_row(config: ConfigDict, name: str, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> None:
    """Sets adapters, active and trainable of a config to a row's, with the paper's most frequent sizes: a clinical
    LoRA of rank 16 and alpha 32, and a downstream LoRA of rank 8 and alpha 16, on the layers `targets`.

    Raises:
      UserError: there is no such row.
    """
    if name not in ROWS:
        raise UserError(f"no row {name!r}{nearest(name, ROWS)}")
    row = ROWS[name]
    sizes = {"clinical": adapter(16, 32, targets=targets), "downstream": adapter(8, 16, targets=targets)}
    config.adapters = ConfigDict({n: sizes[n] for n in row.adapters})
    config.active, config.trainable = row.active, row.trainable


def title_of(active: tuple[str, ...], trainable: tuple[str, ...], adapters: tuple[str, ...]) -> str:
    """Returns the title of the row that these settings are, or a title made of them."""
    for row in (*ROWS.values(), TFIDF):
        same = (set(row.active), set(row.trainable), set(row.adapters))
        if same == (set(active), set(trainable), set(adapters)):
            return row.title
    return f"active {' + '.join(active) or 'none'}; trainable {' + '.join(trainable)}"
