"""The engine's figures, each beside the peer's in the same run: `make bench` writes runs/bench/report.json and .md.

Throughput is timed in stretches of updates, ours and the peer's in turn, so that whatever else the machine does falls
on both; a figure is the median of the stretches, with the least and the largest. Perplexity and AUROC are of one whole
run each, with the commands of `configs/public_notes.py`. The sections flops, plan, together and gpu are the programs
of these names beside this one; the last needs a GPU. For example::

    python benchmarks/bench.py --shared ../shared/data --out runs/bench --only dense notes1
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
DENSE_PARAMETERS = 8 * (4 * 512 * 512 + 3 * 512 * 1376) + 512 * 32000  # of the products; the embedding is a look-up
GOALS = {"dense": 1.5, "notes1": 5.0, "notes2": 4.0}
UPDATES = {"dense": (2, 2), "notes1": (30, 30), "notes2": (60, 60)}  # in a stretch: ours, the peer's
CONFIGS = {"notes1": "clinical", "notes2": "frozen_downstream"}
PROGRAMS = ("flops", "plan", "together", "gpu")


class Worker:
    """A process that has compiled its step and trains a stretch whenever it is told to."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = self._answer("ready")["ready"]

    def stretch(self):
        """Train a stretch; return what was done."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer("seconds")

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self, field):
        for line in self.process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if field in answer:
                    return answer
        sys.exit(f"{self.process.args} ended without an answer")


def spread(values):
    """Return the median, the least and the largest of some values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def throughput(work, options):
    """Time stretches of both sides in turn; return the tokens per second of each, and their ratio."""
    paths = options.base, options.aci_bench, options.mts_dialog
    fields = f"base={options.base}", f"data.dir={options.out / 'data'}"
    config = () if work == "dense" else (options.config, CONFIGS[work], *fields)
    ours, theirs = UPDATES[work]
    sides = {
        "ours": Worker(HERE / "bench_ours.py", work, ours, *config),
        "peer": Worker(HERE / "bench_peer.py", work, theirs, options.threads, *(() if work == "dense" else paths)),
    }
    rates, shares = {name: [] for name in sides}, []
    for _ in range(options.repeats):
        for name, side in sides.items():
            done = side.stretch()
            rates[name].append(done["tokens"] / done["seconds"])
            if "matmul" in done:
                shares.append(4 * DENSE_PARAMETERS * rates[name][-1] / done["matmul"])
    for side in sides.values():
        side.close()
    ratios = [a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)]
    report = {name: spread(values) for name, values in rates.items()}
    report |= {"ratio": spread(ratios), "goal": GOALS[work], "updates": {"ours": ours, "peer": theirs}}
    report["versions"] = {"jax": sides["ours"].version, "torch": sides["peer"].version}
    return report | ({"share of the matmul rate by 4P": spread(shares)} if shares else {})


def jaxlora(options, verb, run, workdir):
    """Run a verb of the command line on a config of the public notes."""
    command = [sys.executable, "-m", "jaxlora.cli", verb, f"--workdir={options.out / workdir}"]
    if verb != "evaluate":
        fields = {"base": options.base, "aci_bench": options.aci_bench, "mts_dialog": options.mts_dialog}
        fields |= {"data.dir": options.out / "data", "clinical": options.out / "clinical"}
        command += [f"--config={options.config}:{run}", *(f"--config.{name}={value}" for name, value in fields.items())]
    subprocess.run(command, check=True)


def quality(options):
    """Train both steps on both sides once; return the perplexity and the AUROC of each."""
    for run, workdir in (("clinical", "clinical"), ("frozen_downstream", "downstream")):
        jaxlora(options, "train", run, workdir)
        jaxlora(options, "evaluate", run, workdir)
    lm, cls = (
        json.loads((options.out / name / "metrics-test.json").read_text()) for name in ("clinical", "downstream")
    )
    paths = {"base": options.base, "aci-bench": options.aci_bench, "mts-dialog": options.mts_dialog}
    command = [sys.executable, HERE / "peer_public_notes.py", "--out", options.out / "peer.json", "--seeds", "1"]
    command += [part for name, path in paths.items() for part in (f"--{name}", path)]
    # Ours is constant too; with linear decay the peer's perplexity is worse.
    command += ["--rows", "lora_over_step1", "--schedule", "constant_with_warmup"]
    subprocess.run([*map(str, command)], check=True)
    peer = json.loads((options.out / "peer.json").read_text())
    return {
        "perplexity": {"ours": lm["perplexity"], "peer": peer["language_model"]["perplexity_after"]},
        "macro AUROC, seed 0": {"ours": cls["auroc"], "peer": peer["section_header"][0]["macro_auroc"]},
    }


def arguments(name, options):
    """Return the arguments of another benchmark."""
    out = {"plan": "--output", "gpu": "--out", "together": "--out", "flops": "--out"}[name]
    given = [out, options.out / f"{name}.json"]
    if name == "together":
        paths = {"base": options.base, "aci-bench": options.aci_bench, "mts-dialog": options.mts_dialog}
        given += [part for flag, path in paths.items() for part in (f"--{flag}", path)]
        given += ["--directory", options.out / "together"]
    return [str(part) for part in given]


def program(name, options):
    """Run another benchmark; return its exit status, its time and its figures."""
    if name == "gpu" and not shutil.which("nvidia-smi"):
        return {"left out": "no NVIDIA GPU is at hand"}
    start, result = time.perf_counter(), options.out / f"{name}.json"
    result.unlink(missing_ok=True)
    with (options.out / f"{name}.txt").open("w") as log:
        command = [sys.executable, HERE / f"{name}.py", *arguments(name, options)]
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    figures = json.loads(result.read_text()) if result.exists() else {}
    return {"exit status": status, "seconds": round(time.perf_counter() - start, 1), "figures": figures}


def markdown(report):
    """Return the report as Markdown."""
    lines = [f"# Figures of {report['date']}, {report['cores']} cores, {report['repeats']} stretches a side", ""]
    lines += ["| tokens/s (real) | ours | peer | ratio | goal |", "|---|---|---|---|---|"]
    for work in GOALS:
        if work in report:
            of = report[work]
            cells = [f"{of[s]['median']:,.0f} ({of[s]['min']:,.0f} to {of[s]['max']:,.0f})" for s in ("ours", "peer")]
            ratio = f"{of['ratio']['median']:.2f} ({of['ratio']['min']:.2f} to {of['ratio']['max']:.2f})"
            lines.append(f"| {work} | {cells[0]} | {cells[1]} | {ratio} | {of['goal']} |")
    if "dense" in report:
        share = report["dense"]["share of the matmul rate by 4P"]["median"]
        lines += ["", f"dense: {share:.0%} of the measured matmul rate by the 4P count (goal 50 %)"]
    for name, values in report.get("quality", {}).items():
        lines += ["", f"{name}: ours {values['ours']:.3f}, peer {values['peer']:.3f}"]
    for name in PROGRAMS:
        if name in report:
            lines += ["", *of_program(name, report[name])]
    return "\n".join(lines) + "\n"


def of_program(name, done):
    """Return the lines of another benchmark."""
    if "left out" in done:
        return [f"{name}: {done['left out']}"]
    lines = [f"{name}: exit status {done['exit status']}, {done['seconds']} s"]
    for target, values in done["figures"].items():
        told = {k: v for k, v in values.items() if k != "report"} if isinstance(values, dict) else values
        lines.append(f"- {target}: {json.dumps(told)}")
    return lines


def main():
    """Run the sections and write the report after each."""
    sections = (*GOALS, "quality", *PROGRAMS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=HERE / "../../shared/data", help="the public test material")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", nargs="*", choices=sections, default=sections)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.config, options.threads = HERE / "../configs/public_notes.py", len(os.sched_getaffinity(0))
    options.base = options.shared / "tinyllama260k/hf"
    options.aci_bench, options.mts_dialog = (
        options.shared / "clinical-visit-note-corpus" / name for name in ("aci-bench", "mts-dialog")
    )
    report = {"date": time.strftime("%Y-%m-%d"), "cores": options.threads, "repeats": options.repeats}
    if set(options.only) & {"notes1", "notes2", "quality"} and not (options.out / "data").exists():
        jaxlora(options, "prepare", "clinical", "data")
    for section in options.only:
        if section in GOALS:
            report[section] = throughput(section, options)
        elif section == "quality":
            report[section] = quality(options)
        else:
            report[section] = program(section, options)
        (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / "report.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
