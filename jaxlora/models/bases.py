"""The models that a base can be: LLaMA and its kin, and BERT. A shape says which."""

from collections.abc import Mapping

from flax import nnx

from jaxlora.errors import UserError
from jaxlora.models.bert import Bert, BertConfig
from jaxlora.models.llama import Llama
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.techniques import Spec

Shape = LlamaConfig | BertConfig
Model = Llama | Bert


def build(shape: Shape, specs: Mapping[str, Spec], labels: int, *, rngs: nnx.Rngs) -> Model:
    """Returns a model of random weights.

    Args:
      specs: adapters by name. labels: number of labels of the head; 0 builds none.

    Raises:
      UserError: a BERT without a head.
    """
    if isinstance(shape, LlamaConfig):
        return Llama(shape, specs, labels, rngs=rngs)
    if not labels:
        raise UserError(
            "config.base is a BERT, which predicts no next word; give a dataset with labels, or a LLaMA's directory"
        )
    return Bert(shape, specs, labels, rngs=rngs)
