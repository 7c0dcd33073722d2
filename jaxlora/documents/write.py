"""The verb `card`: the documents of one run, into its folder."""

from pathlib import Path

from jaxlora import files
from jaxlora.documents.facts import gather
from jaxlora.documents.model_card import model_card
from jaxlora.documents.tripod import tripod
from jaxlora.errors import UserError


def card(workdir: str) -> list[Path]:
    """Writes `WORKDIR/model-card.md` and `WORKDIR/tripod-ai.md`; returns their paths.

    Raises:
      UserError: the run is in a bucket, or what `gather` raises.
    """
    if workdir.startswith("gs://"):
        raise UserError(f"--workdir: {workdir} is in a bucket; copy the run to a folder here first")
    facts = gather(workdir)
    made = {"model-card.md": model_card(facts), "tripod-ai.md": tripod(facts)}
    for name, text in made.items():
        files.write(Path(workdir) / name, text)
    return [Path(workdir) / name for name in made]
