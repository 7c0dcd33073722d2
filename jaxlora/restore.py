"""A trained run brought back to its devices, ready to predict."""

from flax import nnx

from jaxlora import partition
from jaxlora.config import default, virtual_tokens
from jaxlora.data.loader import Batches
from jaxlora.data.tokens import TokenizedNotes, Tokenizer
from jaxlora.errors import UserError
from jaxlora.eval.predict import make_predict_step, predict
from jaxlora.eval.predictions import Predictions
from jaxlora.train import run_config
from jaxlora.train.assemble import assemble
from jaxlora.train.belonging import belongs_to, check_belongs
from jaxlora.train.checkpoint import Checkpoints
from jaxlora.train.devices import lay_out
from jaxlora.train.mesh import own_rows, start_distributed
from jaxlora.train.objective import Objective


class RestoredRun:
    """A trained run with the parameters of its best (or last, see `config.select`) checkpoint.

    Args:
      workdir: the run.
      base: where the base lies now; "" is where it was trained.
      allow_base_mismatch: takes a base, or a tokenizer, that the run was not trained with.
      head: False leaves the head out, and the unembedding in: what the run's adapters make of a language model.

    Raises:
      UserError: `workdir` is no trained run, or its base or tokenizer has changed.
    """

    def __init__(self, workdir: str, base: str = "", allow_base_mismatch: bool = False, head: bool = True):
        start_distributed()
        self.config = run_config.read(workdir)
        self.config.base = base or self.config.base
        # This machine need not be of the kind that trained.
        self.config.attention.kernel, self.config.attention.block = "auto", default().attention.block
        self.config.mesh.fsdp, self.config.mesh.tensor = 0, 1
        with Checkpoints(workdir) as checkpoints:
            step = checkpoints.choose(self.config.select)
            metadata = checkpoints.metadata(step)
            self.tokenizer = Tokenizer(self.config.base)
            if not allow_base_mismatch:
                found = belongs_to(self.config.base, self.tokenizer)
                check_belongs(workdir, metadata, found)
            self.kind, self.labels = metadata["kind"], tuple(metadata["labels"])
            labels = len(self.labels) if head else 0
            self.mesh = lay_out(self.config, labels)
            model = assemble(self.config, labels, self.mesh, fresh=False)
            definition, state = nnx.split(model)
            stored = partition.stored_partitions(model, self.config.trainable)
            if not head and self.labels and "base" in stored:
                raise UserError(
                    f"--workdir: {workdir} trained its base under a head; it has no language model any more"
                )
            kept = checkpoints.restore_model(step, partition.select(state, stored))
        frozen = partition.select(state, set(partition.partitions(model)) - stored)
        self.model = nnx.merge(definition, nnx.merge_state(kept, frozen))

    def predict(self, notes: TokenizedNotes) -> Predictions:
        """Returns the predictions for a split's notes."""
        definition, state = nnx.split(self.model)
        objective = Objective(self.kind, tuple(self.config.active), loss_chunk=self.config.loss_chunk)
        # The devices of now may not divide the rows of an update, and predictions do not depend on how many there are.
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = -(-self.config.batch_size // devices) * devices
        own, virtual = own_rows(self.mesh, rows), virtual_tokens(self.config)
        batches = Batches(notes, self.config.data.length, rows, seed=None, own=own, virtual=virtual)
        step = make_predict_step(definition, objective, self.mesh)
        return predict(step, state, batches, self.kind, self.labels, self.mesh)
