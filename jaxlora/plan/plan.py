"""The verb `plan`: a config and a slice in; what a device needs, what an update costs, and what fits instead out."""

import itertools
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files
from jaxlora.checks import check_ranges
from jaxlora.chips import GIB, Slice, parse_slice
from jaxlora.errors import UserError
from jaxlora.interop.huggingface import read_shape
from jaxlora.models.bert import BertConfig
from jaxlora.plan.collectives import Collective, collectives
from jaxlora.plan.markdown import markdown
from jaxlora.plan.program import Aim, Program, aim_of, compiled
from jaxlora.plan.roofline import bound
from jaxlora.plan.search import Refusal, cheapest, fitting, nearest_first
from jaxlora.plan.setting import Estimate, Estimator, Setting, per_token, setting_of
from jaxlora.plan.topology import devices_of
from jaxlora.train.devices import lay_out
from jaxlora.train.mesh import check_batch, make_mesh

_TRIES, _OFFERED = 8, 2  # compilations of a search, and settings offered where the given one does not fit


def plan(
    config: ConfigDict, topology: str, hbm_gib: float = 0.0, search: bool = False, output: str = ""
) -> tuple[str, bool]:
    """Compiles the step of a config for a TPU slice and says what it needs.

    Args:
      topology: the slice, such as "v5e:2x4". hbm_gib: memory of a device in GiB; 0 is the chip's own.
      search: takes the setting with the least time of an update that fits, in place of the given one.
      output: a folder for plan.json and plan.md; "" writes none.

    Returns:
      The report, in Markdown, and whether the run fits.

    Raises:
      UserError: a slice that does not exist or libtpu missing, a mesh that does not fit the slice, rows that do not
        divide, or a field that is missing or wrong.
    """
    report = planned(config, topology, hbm_gib, search)
    text = markdown(report)
    if output:
        files.write_json(f"{output}/plan.json", report)
        files.write(f"{output}/plan.md", text)
    return text, report["fits"]


def planned(config: ConfigDict, topology: str, hbm_gib: float = 0.0, search: bool = False) -> dict[str, Any]:
    """Returns the report of `plan`, whose arguments these are, as JSON data."""
    slice_ = parse_slice(topology)
    if not config.base:
        raise UserError("config.base is not set; a folder with the config.json of the base is enough")
    if isinstance(read_shape(config.base), BertConfig):
        raise UserError("config.base is a BERT, which fits any TPU and has no plan; `jaxlora train` is enough")
    check_ranges(config)
    if hbm_gib < 0:
        raise UserError(f"--hbm-gib is {hbm_gib:g}; it is the memory of a device in GiB, 0 for the chip's own")
    devices, limit = devices_of(slice_), (hbm_gib or slice_.chip.device_gib) * GIB
    aim = aim_of(config)
    mesh = lay_out(config, aim.labels, config.trainable, devices, int(limit))
    check_batch(mesh, config.batch_size, config.accumulate)
    given = setting_of(config, mesh.shape["fsdp"])
    estimator, refused = Estimator(config, aim, devices, slice_.chip), []

    def compile_(setting: Setting) -> Program:
        changes = " ".join(setting.changes(given)) or "the config as it is"
        with tqdm(desc=f"compiling {changes}", bar_format="{desc}", leave=False):
            mesh = make_mesh(setting.fsdp, config.mesh.tensor, devices)
            return compiled(setting.applied(config), aim, mesh)

    def first(estimates: list[Estimate], count: int) -> list[tuple[Estimate, Program]]:
        return list(itertools.islice(fitting(estimates, limit, compile_, refused, _TRIES), count))

    own, others = estimator.of(given), []
    found = first(cheapest(estimator, given) if search else [own], 1)
    if not found and not search:
        others = first(nearest_first(estimator, given), _OFFERED)
    estimate, program = found[0] if found else (own, None)
    report = _run(estimate.setting.applied(config), aim, slice_, len(devices), limit)
    report["flags"] = estimate.setting.changes(given)
    report |= {"fits": bool(found), **_memory(estimate, program, refused, limit)}
    if program:
        report |= _costs(estimate.setting.applied(config), aim, slice_, len(devices), program)
    report["refused"] = [
        {"flags": each.estimate.setting.changes(given), "gib": each.needed / GIB}
        for each in refused
        if each.estimate.setting != estimate.setting
    ]
    report["suggestions"] = [
        {"flags": other.setting.changes(given), "gib": fits.total / GIB, "update_seconds": other.bound.seconds}
        for other, fits in others
    ]
    return report


def _run(config: ConfigDict, aim: Aim, slice_: Slice, devices: int, limit: float) -> dict[str, Any]:
    """What is planned, and for what."""
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    return {
        "slice": slice_.name,
        "chips": slice_.chips,
        "devices": devices,
        "device_gib": limit / GIB,
        "mesh": {"data": devices // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor},
        "kind": aim.kind,
        "labels": aim.labels,
        "kind_source": aim.source,
        "rows": config.batch_size,
        "length": config.data.length,
        **{name: config[name] for name in ("accumulate", "remat", "dtype", "quantize")},
    }


def _memory(estimate: Estimate, program: Program | None, refused: list[Refusal], limit: float) -> dict[str, Any]:
    """What a device needs, by kind where the compiler has said so."""
    if program is None:
        told = [each.needed for each in refused if each.estimate == estimate]
        needed = told[0] if told else estimate.bytes
        return {"needed_gib": needed / GIB, "spare_gib": (limit - needed) / GIB, "at_least": not told}
    kinds = {
        **program.kinds,
        "padding of these": program.arguments - sum(program.kinds.values()),
        "temporaries": program.temporaries,
        "outputs beside the state": program.outputs - program.aliased,
        "program": program.code,
    }
    return {
        "needed_gib": program.total / GIB,
        "spare_gib": (limit - program.total) / GIB,
        "memory_gib": {name: size / GIB for name, size in kinds.items()},
        "compile_seconds": program.seconds,
    }


def _costs(config: ConfigDict, aim: Aim, slice_: Slice, devices: int, program: Program) -> dict[str, Any]:
    """What an update computes, sends and takes at the least."""
    flops, sent = per_token(config, aim), collectives(program.hlo)
    tokens = config.batch_size * config.data.length
    read = 2 * config.accumulate * program.kinds["base"] * config.mesh.fsdp
    least = bound(slice_.chip, flops.hardware * tokens / devices, read, sum(each.received for each in sent))
    return {
        "flops_per_token": {"model": flops.model, "hardware": flops.hardware},
        "flops_of_the_program": program.flops,
        "collectives": [_exchange(each) for each in sent],
        "update_seconds": {
            **{name: getattr(least, name) for name in ("compute", "memory", "links")},
            "bound": least.seconds,
            "by": least.limit,
        },
        "tokens_per_second_at_most": tokens / least.seconds,
    }


def _exchange(each: Collective) -> dict[str, Any]:
    return {"kind": each.kind, "devices": each.size, "count": each.count, "received_gib": each.received / GIB}
