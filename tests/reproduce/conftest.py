"""Small tables with the runs that they are of, and a real browser, spoken to over a pipe."""

import base64
import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxlora.eval import metrics
from jaxlora.eval.predictions import Predictions
from jaxlora.reproduce.results import DIFFERS, PASS, Adapter, Cell, Column, Difference, Pair, Table, TableRow


@dataclasses.dataclass(frozen=True)
class Page:
    """One page at one width: its requests, its complaints, and what its scripts would see."""

    browser: "Browser"
    session: str
    requests: list[str]
    complaints: list[str]

    def value(self, expression: str):
        """The value of a JavaScript expression in the page."""
        asked = {"expression": expression, "returnByValue": True}
        found = self.browser.ask("Runtime.evaluate", asked, self.session)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def roles(self) -> list[str]:
        """The roles that a screen reader is told, in order."""
        self.browser.ask("Accessibility.enable", {}, self.session)
        nodes = self.browser.ask("Accessibility.getFullAXTree", {}, self.session)["nodes"]
        return [node["role"]["value"] for node in nodes if not node["ignored"]]

    def picture(self, path: Path) -> None:
        """Saves the whole page as PNG."""
        asked = {"captureBeyondViewport": True, "format": "png"}
        path.write_bytes(base64.b64decode(self.browser.ask("Page.captureScreenshot", asked, self.session)["data"]))


class Browser:
    """A headless browser without network, with a profile of its own."""

    def __init__(self, program: str, profile: Path):
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        arguments = (
            f"--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={profile}".split()
        )
        # The protocol is spoken on descriptors 3 and 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", program, *arguments, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self._out, self._in = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self._rest, self._number, self._events = b"", 0, []

    def ask(self, method: str, parameters: dict, session: str | None = None) -> dict:
        """Sends one command and returns its result; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._out.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        self._out.flush()
        while True:
            found = self._read()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            self._events.append(found)

    def await_event(self, method: str) -> None:
        """Returns when an event has come."""
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._read())

    def open(self, path: Path, width: int, dark: bool = False) -> Page:
        """Opens a file in a window of a width, and waits until it is loaded."""
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable", {}, session)
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", size, session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", {"features": [scheme]}, session)
        self._events = []
        self.ask("Page.navigate", {"url": path.as_uri()}, session)
        self.await_event("Page.loadEventFired")
        page = Page(self, session, [], [])
        page.value("document.body.getBoundingClientRect().height")  # it is laid out, and has said what it has to say
        for event in self._events:
            method, given = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent":
                page.requests.append(given["request"]["url"])
            if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                page.complaints.append(json.dumps(given))
        return page

    def close(self) -> None:
        self.ask("Browser.close", {})
        self._process.wait(20)
        self._out.close(), self._in.close()

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            more = os.read(self._in.fileno(), 1 << 16)
            assert more, "the browser has gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Browser:
    """Chromium or Chrome, or a skip where there is neither."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


KINDS = {"mor": ("binary", 2), "los": ("multiclass", 3), "diag": ("multilabel", 12)}
TITLES = {
    "bluebert": ("BlueBERT", "BlueBERT"),
    "tfidf": ("TF-IDF + logistic regression (whole notes)", "No language model"),
    "lora": ("+ LoRA", "LLaMA"),
    "frozen": ("+ Clinical (Frozen)", "LLaMA"),
    "frozen_downstream": ("++ Downstream", "LLaMA"),
    "frozen_downstream_as_published": ("++ Downstream, as published (the second adapter is inert)", "LLaMA"),
}


def _predictions(kind: str, count: int, seed: int) -> Predictions:
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed)
    ids = np.array([f"{i:016x}" for i in range(120)])
    patients = np.array([f"{i // 2:016x}" for i in range(120)])
    labels = truth.integers(0, count, 120)
    if kind == "multilabel":
        labels = (truth.random((120, count)) < 0.4 / np.arange(1, count + 1)).astype(np.uint8)
    hot = labels if kind == "multilabel" else np.eye(count)[labels]
    logits = (noise.normal(size=hot.shape) + seed * hot / 2).astype(np.float32)
    names = tuple(f"label {i}" for i in range(count))
    ages = np.where(np.arange(120) < 50, 0, np.where(np.arange(120) < 110, 1, 2))
    groups = {"age": (("under 45", "45 to 64", "over 64"), ages)}
    return Predictions(kind, names, ids, patients, labels, logits, groups=groups)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory) -> tuple[Table, Path]:
    """A table of three tasks and five rows, one of them not run, with the runs that it is of."""
    folder, rows = tmp_path_factory.mktemp("outcomes"), []
    for seed, (name, (title, base)) in enumerate(TITLES.items()):
        cells = []
        for task, (kind, count) in KINDS.items():
            run = folder / task / name
            run.mkdir(parents=True)
            predictions = _predictions(kind, count, seed)
            predictions.save(run / "predictions-test.npz")
            _predictions(kind, count, seed).save(run / "predictions-validation.npz")
            (run / "config.json").write_text(json.dumps({"data": {"name": f"mimic3_admission/{task}"}}))
            value = 100 * metrics.evaluate(predictions)["auroc"]
            verdict = PASS if task == "mor" else DIFFERS
            of = (f"{task}/{name}",)
            cells.append(Cell(task, value, value - 2, value + 2, 3, 0.4, 76.99, None, verdict, of))
        active = name == "frozen_downstream"
        adapters = (Adapter(f"mor/{name}", "downstream", "00", "01" if active else "00", active, active, 0.2 * active),)
        average = Cell("average", 70.0, 69.0, 71.0, 3, 0.2, 58.61, 59.94, DIFFERS)
        rows.append(TableRow(name, title, base, tuple(cells), average, name.endswith("published"), "", adapters))
    missing, why = tuple(Cell(task, printed=55.49) for task in KINDS), "give config.bases.umlsbert <folder>"
    rows.insert(1, TableRow("umlsbert", "UmlsBERT", "UmlsBERT", missing, Cell("average", printed=67.19), not_run=why))
    pairs = [
        _pair("frozen_downstream", "frozen_downstream_as_published", "fused frozen − as published", 4.0),
        _pair("lora", "frozen", "LoRA − frozen", -12.5),
    ]
    counts = {f"mimic3_admission/{task}": {"train": 1000, "test": 120} for task in KINDS}
    columns = tuple(Column(task, f"{task.upper()} (a task)", "percent") for task in KINDS)
    command = "jaxlora reproduce --table=3"
    about = ("Table 3: outcomes", "AUROC in %", "demo", (0, 1, 2), command, columns, tuple(rows))
    return Table(3, *about, "At demo scale there is no verdict.", tuple(pairs), counts, ("A remark.",)), folder


def _pair(one: str, other: str, title: str, value: float) -> Pair:
    tasks = (*KINDS, "average")
    ps = {"p": 0.01, "holm": 0.04 if value < 0 else 0.08}
    differences = tuple(Difference(task, value, value - 3, value + 3.5, **ps) for task in tasks)
    return Pair(
        one,
        other,
        title,
        "LLaMA",
        (dataclasses.replace(differences[0], delong=0.02, delong_holm=0.04), *differences[1:]),
    )


@pytest.fixture(scope="session")
def techniques(tmp_path_factory) -> tuple[Table, Path]:
    """A table of two techniques for a language model, with the runs that it is of."""
    folder, rows = tmp_path_factory.mktemp("techniques"), []
    columns = (
        Column("trainable", "trainable parameters", "count"),
        Column("test_ppl", "test perplexity", "perplexity"),
    )
    columns += (Column("seconds", "wall time", "seconds"),)
    for number, title in enumerate(("LoRA", "Prefix tuning")):
        run = folder / title
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"data": {"name": "clinical_corpus/mimic4"}}))
        log = [{"step": step, "loss": 1 + 3 / step} for step in range(1, 60)]
        log += [{"step": step, "validation/perplexity": 4 + 40 / step} for step in (20, 40, 59)]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        ids = np.array([f"{i:016x}" for i in range(8)])
        tokens = np.full(8, 10, np.float32)
        predictions = Predictions("lm", (), ids, ids, nll=tokens, base_nll=tokens * 2, tokens=tokens)
        predictions.save(run / "predictions-test.npz")
        value = np.e + number / 10
        cells = (
            Cell("trainable", 16_093_696, runs=1, printed=16_093_696, folders=(title,)),
            Cell("test_ppl", value, value - 0.1, value + 0.1, 1, None, 2.244, None, PASS, (title,)),
            Cell("seconds", 3700.0, runs=1, printed=77_862, folders=(title,)),
        )
        rows.append(TableRow(title.lower(), title, "LLaMA", cells))
    ratio = Difference("test_ppl", 1.0371, 1.01, 1.06, 0.001, 0.001)
    pairs = (Pair("prefix tuning", "lora", "Prefix tuning / LoRA", "LLaMA", (ratio,)),)
    counts = {"clinical_corpus/mimic4": {"train": 2_387_834, "test": 265_315}}
    about = ("Table 2: step 1", "perplexity", "full", (0,), "jaxlora reproduce --table=2", columns, tuple(rows))
    return Table(2, *about, "", pairs, counts), folder
