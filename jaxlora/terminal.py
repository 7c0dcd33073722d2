"""What the user is told, once for all hosts."""

import sys

import jax


def tell(text: str) -> None:
    """Prints something that was asked for, or found."""
    if jax.process_index() == 0:
        print(text)


def warn(line: str) -> None:
    """Tells the user, on standard error, of something that went wrong and does not end the run."""
    if jax.process_index() == 0:
        print(f"jaxlora: {line}", file=sys.stderr)
