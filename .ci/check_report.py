"""Checks that the demo's report has its shape and shows the method at work: check_report.py runs/demo"""

import json
import math
import sys
from pathlib import Path

ROWS = (
    "LLaMA (head only)",
    "LLaMA + LoRA",
    "+ Clinical (frozen)",
    "+ Clinical (frozen) + Downstream",
    "+ Clinical (trainable)",
    "+ Clinical (trainable) + Downstream",
)
TRAINED = tuple(row for row in ROWS if row not in ("LLaMA (head only)", "+ Clinical (frozen)"))


def main(workdir: Path) -> None:
    """Exits with the first thing that is wrong."""
    report = json.loads((workdir / "report.json").read_text())
    markdown = (workdir / "report.md").read_text()
    perplexity, tasks = report["perplexity"], report["tasks"]

    assert list((workdir / "figures").glob("*.png")), "figures/ holds no PNG"
    assert report["seconds"] > 0, f"seconds is {report['seconds']}"
    assert len(tasks) == 2, f"two tasks expected, got {sorted(tasks)}"
    assert perplexity["clinical"] < perplexity["base"], f"the clinical LoRA did not lower the perplexity: {perplexity}"
    for task, rows in tasks.items():
        assert set(rows) == set(ROWS), f"{task}: rows {sorted(rows)}"
        assert task in markdown, f"{task} is not in report.md"
        for row, values in rows.items():
            assert row in markdown, f"{row} is not in report.md"
            assert values["n"] > 0, f"{task}, {row}: n is {values['n']}"
            for metric in ("auroc", "auprc"):
                value = values[metric]
                assert math.isfinite(value) and 0 <= value <= 1, f"{task}, {row}: {metric} is {value}"
        # Which of them finds something on so few notes differs with a machine's rounding; that one does should not.
        weak, strong = rows["LLaMA (head only)"]["auroc"], max(rows[row]["auroc"] for row in TRAINED)
        assert strong > weak, f"{task}: AUROC {strong} with a trained LoRA at best, {weak} with the head alone"
    print(f"perplexity {perplexity['base']:.2f} -> {perplexity['clinical']:.2f}; {len(tasks)} tasks × {len(ROWS)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
