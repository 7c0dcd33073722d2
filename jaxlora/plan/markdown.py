"""A plan as Markdown."""

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """Returns the report of `plan.planned` as text."""
    blocks = [_head(report), _verdict(report), _memory(report)]
    if "flops_per_token" in report:
        blocks += [_costs(report), _collectives(report)]
    return "\n\n".join(block for block in [*blocks, _others(report)] if block) + "\n"


def _head(r: dict[str, Any]) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in r["mesh"].items())
    task = "a language model" if r["kind"] == "lm" else f"{r['kind']}, {r['labels']} labels"
    kernels = f", kernels in {r['quantize']}" if r["quantize"] else ""
    parts = f" in {r['accumulate']} parts" if r["accumulate"] > 1 else ""
    devices = f", {r['devices']} devices" if r["devices"] != r["chips"] else ""
    return (
        f"# {r['slice']}: {r['chips']} chips{devices}\n\n"
        f"Mesh {mesh}; {r['rows']} rows of {r['length']} tokens{parts}; {r['dtype']}{kernels}; remat {r['remat']}.\n"
        f"Task: {task} ({r['kind_source']})."
    )


def _verdict(r: dict[str, Any]) -> str:
    flags = f" with {' '.join(r['flags'])}" if r["flags"] else ""
    has = f"of {r['device_gib']:.2f} GiB a device"
    if r["fits"]:
        return f"**Fits**{flags}: {r['needed_gib']:.2f} {has}, {r['spare_gib']:.2f} to spare."
    least = "at least " if r.get("at_least") else ""
    source = "by arithmetic, nothing was compiled" if least else "says the compiler"
    return f"**Does not fit**: {least}{r['needed_gib']:.2f} {has}, {-r['spare_gib']:.2f} too much ({source})."


def _memory(r: dict[str, Any]) -> str:
    if "memory_gib" not in r:
        return ""
    rows = [[name, f"{size:.3f}"] for name, size in r["memory_gib"].items()]
    return _table(["a device's memory", "GiB"], [*rows, ["together", f"{r['needed_gib']:.3f}"]])


def _costs(r: dict[str, Any]) -> str:
    flops, seconds = r["flops_per_token"], r["update_seconds"]
    rows = [[name, f"{seconds[name]:.4f}"] for name in ("compute", "memory", "links")]
    return (
        f"{flops['model'] / 1e9:.2f} GFLOP a token, {flops['hardware'] / 1e9:.2f} with what is computed again; "
        f"compiled in {r['compile_seconds']:.0f} s.\n\n"
        + _table(["an update takes at least", "s"], rows)
        + f"\n\nBound by {seconds['by']}: at most {r['tokens_per_second_at_most']:,.0f} tokens/s. A bound and no "
        "forecast: each line is what the chips could do at their stated best."
    )


def _collectives(r: dict[str, Any]) -> str:
    if not r["collectives"]:
        return "The devices send each other nothing."
    rows = [
        [each["kind"], str(each["devices"]), str(each["count"]), f"{each['received_gib']:.3f}"]
        for each in r["collectives"]
    ]
    return _table(["exchange", "devices", "times an update", "GiB a device receives"], rows)


def _others(r: dict[str, Any]) -> str:
    lines = [f"- does not fit ({each['gib']:.2f} GiB): {_flags(each)}" for each in r["refused"]]
    lines += [
        f"- fits ({each['gib']:.2f} GiB; an update takes at least {each['update_seconds']:.3f} s): {_flags(each)}"
        for each in r["suggestions"]
    ]
    parts = ["Also compiled:\n\n" + "\n".join(lines)] if lines else []
    if not r["fits"] and not r["suggestions"]:
        parts.append("Nothing that was tried fits: take a larger slice, fewer rows or shorter ones.")
    return "\n\n".join(parts)


def _flags(each: dict[str, Any]) -> str:
    return f"`{' '.join(each['flags'])}`" if each["flags"] else "the config as it is"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
