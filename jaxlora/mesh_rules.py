"""Which mesh axis a logical axis of a parameter is laid over: what `config.mesh.rules` may hold, and how it is read."""

from collections.abc import Mapping

from jaxlora.errors import UserError, nearest

# Logical axis of a parameter -> the mesh axis that it is laid over, or "" for none.
RULES = {"vocab": "tensor", "embed": "fsdp", "heads": "tensor", "mlp": "tensor", "layers": "", "rank": "", "labels": ""}
MESH_AXES = ("data", "fsdp", "tensor")


def mesh_axes(logical: tuple[str | None, ...], rules: Mapping[str, str]) -> tuple[str | None, ...]:
    """Returns the mesh axis of each dimension of an array, None where it is whole, from the logical axes of its
    dimensions.

    Raises:
      UserError: two dimensions of the array lie over the same mesh axis.
    """
    axes = tuple(name and rules.get(name) or None for name in logical)
    cut = {}
    for name, axis in zip(logical, axes, strict=True):
        if axis and axis in cut:
            raise UserError(
                f"config.mesh.rules: {cut[axis]} and {name} are both laid over {axis}, but some parameter has both; "
                f"give one of them another axis, or '' for none"
            )
        cut[axis] = name
    return axes


def check_rules(rules: Mapping[str, str]) -> None:
    """Checks that a table has logical axes and mesh axes that exist.

    Raises:
      UserError: one does not; it is named.
    """
    for name, axis in rules.items():
        if name not in RULES:
            raise UserError(f"config.mesh.rules: no logical axis {name!r}{nearest(name, RULES)}")
        if axis not in ("", *MESH_AXES):
            raise UserError(f"config.mesh.rules.{name}: no mesh axis {axis!r}; valid: {', '.join(MESH_AXES)}, ''")
