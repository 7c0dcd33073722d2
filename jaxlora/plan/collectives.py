"""What the devices of a compiled program send each other, read from its optimised HLO.

A collective inside a loop counts as often as the loop turns; the scan over layers is such a loop. XLA for TPU writes
some collectives in other words, which are read as what they are: a reduce-scatter as a fusion named
`all-reduce-scatter` around an all-reduce, and a collective that runs beside the computation as a chain of fusions,
each with a copy of it that bears the chain's number.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(_KINDS)})(-start)?\((?!.*\bcalls=)", re.ASCII)
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TURNS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_BOUND = re.compile(r" = s(?:32|64)\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange of a program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "collective-permute" or "all-to-all".
      count: how often an update does it. size: devices that take part.
      received: bytes that a device must receive of the others in an update, all of them together.
    """

    kind: str
    size: int
    count: int
    received: float


def collectives(hlo: str) -> list[Collective]:
    """Returns the exchanges of a program by kind and number of devices, the largest first.

    Args:
      hlo: the text of the optimised program, as `compiled.as_text()` gives it.
    """
    lines, entry = _computations(hlo)
    times = _times(lines, entry)
    counts, received, seen = Counter(), Counter(), set()
    for name, body in lines.items():
        for line in body if times[name] else ():
            found = _INSTRUCTION.match(line)
            size = _group(line, found[2]) if found else 1
            if size < 2 or _seen_before(line, found[1], seen):
                continue
            kind, result = found[2], _bytes(found[1], found[2], bool(found[3]))
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind, result = "reduce-scatter", result / size  # its result is the whole, of which a part is kept
            counts[kind, size] += times[name]
            received[kind, size] += times[name] * _received(kind, result, size)
    found = [Collective(kind, size, count, received[kind, size]) for (kind, size), count in counts.items()]
    return sorted(found, key=lambda each: -each.received)


def _seen_before(line: str, shape: str, seen: set) -> bool:
    """Whether a collective is a further copy of one whose parts are spread over the fusions of a chain."""
    chain = re.search(r'chain_id="(\d+)"', line)
    channel = re.search(r"channel_id=(\d+)", line)
    key = (chain[1], channel and channel[1], shape.split("{")[0]) if chain else None
    before = key in seen
    if key:
        seen.add(key)
    return before


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the first."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header[2]
            entry = name if header[1] else entry
            lines[name] = []
        elif name and line.startswith(" "):
            lines[name].append(line)
    return lines, entry


def _times(lines: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Returns how often each computation runs."""
    calls: dict[str, list[tuple[str, int]]] = {name: [] for name in lines}
    for name, body in lines.items():
        for line in body:
            loop = _LOOP.search(line)
            if loop:
                calls[name].append((loop[2], _turns(line, lines.get(loop[1], []))))
                continue
            calls[name].extend((called, 1) for called in _CALLED.findall(line) if called in lines)
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                calls[name].extend((called.strip(" %"), 1) for called in branches.split(","))
    times: dict[str, int] = defaultdict(int)

    def walk(name: str, factor: int) -> None:
        times[name] += factor
        for called, often in calls.get(name, ()):
            walk(called, factor * often)

    walk(entry, 1)
    return times


def _turns(line: str, condition: list[str]) -> int:
    """How often a loop turns: as it says, or as the constant says that its counter is compared with."""
    known = _TURNS.search(line)
    if known:
        return int(known[1])
    bounds = [int(found[1]) for each in condition if (found := _BOUND.search(each))]
    return max(bounds, default=1)


def _group(line: str, kind: str) -> int:
    """How many devices exchange with each other: the forms of replica groups are a list of lists, a shape that is
    transposed, and axes of a mesh."""
    if kind == "collective-permute":
        return 2 if "source_target_pairs={{" in line else 1
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=", line)
    if tiled:
        return int(tiled[1].split(",")[-1])
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)  # with or without device_ids
    if meshed:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", meshed[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", meshed[2]))
    return 1


def _bytes(shape: str, kind: str, started: bool) -> float:
    """Bytes of the result of a collective on one device; one that is only started has its operands before it, and
    a collective-permute two numbers after it."""
    sizes = [
        math.prod(int(side) for side in sides.split(",") if side) * _bits(dtype) / 8
        for dtype, sides in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape))
        if sides
    ]
    if started and kind != "all-reduce":
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)


def _bits(dtype: str) -> int:
    return _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])


def _received(kind: str, size: float, devices: int) -> float:
    """Bytes that a device receives at the least, of a result of `size` bytes."""
    others = (devices - 1) / devices
    return {
        "all-gather": size * others,
        "all-reduce": 2 * size * others,
        "reduce-scatter": size * (devices - 1),
        "all-to-all": size * others,
        "collective-permute": size,
    }[kind]
