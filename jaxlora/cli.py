"""The command line: one verb, one function, no logic. `jaxlora --help` imports nothing of JAX."""

import os
import sys
from collections.abc import Sequence

from absl import flags, logging

from jaxlora.arguments import Verb, help_of, parse
from jaxlora.errors import UserError, nearest


def _demo(flag: flags.FlagValues) -> None:
    """the whole idea on a generated cohort: notes in, two adapters, a table out"""
    from jaxlora.demo import demo

    demo(flag.config, flag.workdir)


def _prepare(flag: flags.FlagValues) -> None:
    """read tables of notes, split them by patient, write them to the workdir for training"""
    from jaxlora.data.prepare import prepare

    prepare(flag.config, flag.workdir)


def _verify_data(flag: flags.FlagValues) -> int:
    """compare tables and prepared datasets with the published counts, a line each; exits with 1 where one differs"""
    from jaxlora.audit.verify import verify_data

    return 0 if verify_data(flag.config, flag.workdir, flag.full) else 1


def _audit(flag: flags.FlagValues) -> None:
    """look for leaks in prepared datasets: outcomes told by the notes, notes of another release, shared patients"""
    from jaxlora.audit.audit import audit

    print(audit(flag.config, flag.workdir, flag.smallest))


def _synthesize(flag: flags.FlagValues) -> None:
    """write a generated MIMIC with the quirks of the real one, and the answers to what can be counted in it"""
    from jaxlora.data.synthetic import synthesize

    synthesize(flag.tables, flag.output, flag.patients, flag.seed, flag.notes, flag.source)


def _train(flag: flags.FlagValues) -> None:
    """train the adapters and the head of a config; goes on where the workdir stopped"""
    from jaxlora.pipeline import train_run

    train_run(flag.config, flag.workdir, flag.allow_base_mismatch, flag.profile)


def _sweep(flag: flags.FlagValues) -> None:
    """train the runs of config.sweep as one program, or search as config.search says; goes on where it stopped"""
    from jaxlora.search.search import search_run
    from jaxlora.sweep import sweep_run

    run = search_run if flag.config.search.method else sweep_run
    run(flag.config, flag.workdir, flag.allow_base_mismatch)


def _evaluate(flag: flags.FlagValues) -> None:
    """predict a split with the run in the workdir and save predictions and metrics"""
    from jaxlora.pipeline import evaluate_run

    values = evaluate_run(flag.workdir, flag.split, flag.base, flag.allow_base_mismatch)
    width = max(map(len, values)) + 2
    for name, value in values.items():
        print(f"{name:<{width}}{value:.4f}" if isinstance(value, float) else f"{name:<{width}}{value}")


def _predict(flag: flags.FlagValues) -> None:
    """score a table of new notes with the run in the workdir"""
    from jaxlora.pipeline import predict_run

    count = predict_run(flag.workdir, flag.input, flag.output, flag.id, flag.text, flag.base, flag.allow_base_mismatch)
    print(f"{count} notes scored in {flag.output}")


def _report(flag: flags.FlagValues) -> None:
    """join every evaluated run under the workdir into report.md, report.json and figures"""
    from jaxlora.eval.report import report

    print(report(flag.workdir))


def _card(flag: flags.FlagValues) -> None:
    """write the model card and the TRIPOD+AI checklist of the evaluated run in the workdir"""
    from jaxlora.documents.write import card

    for path in card(flag.workdir):
        print(path)


def _reproduce(flag: flags.FlagValues) -> None:
    """make a table of the paper: its missing runs, then the table beside the printed figures"""
    from jaxlora.reproduce.markdown import write
    from jaxlora.reproduce.reproduce import reproduce

    changed = tuple(flag["config"].override_values)
    chosen = (flag.table, flag.tasks, flag.rows, flag.seeds, flag.scale)
    print(write(reproduce(flag.config, flag.workdir, *chosen, changed)))


def _plan(flag: flags.FlagValues) -> int:
    """compile a config's training step for a TPU slice, without a TPU: does it fit (if not, exits with 1), its cost"""
    from jaxlora.plan.topology import leave_accelerators

    leave_accelerators()
    from jaxlora.plan.plan import plan

    text, fits = plan(flag.config, flag.topology, flag.hbm_gib, flag.search, flag.output)
    print(text)
    return 0 if fits else 1


def _generate(flag: flags.FlagValues) -> None:
    """go on with a prompt, or with each text of a table, as the base or the run in the workdir would"""
    from jaxlora.generation import Sampling, complete_prompt, complete_table

    sampling = Sampling(flag.new_tokens, flag.temperature, flag.top_p, flag.seed)
    source = (flag.workdir, flag.base, flag.config, flag.allow_base_mismatch)
    if flag.prompt:
        print(complete_prompt(flag.prompt, sampling, *source))
    else:
        for name in ("input", "output"):
            if not flag[name].value:
                raise UserError(f"--{name} is not set; give it, or --prompt")
        count = complete_table(flag.input, flag.output, flag.text, sampling, *source)
        print(f"{count} texts written to {flag.output}")


def _import_adapter(flag: flags.FlagValues) -> None:
    """make a run of a PEFT adapter, to train on, to predict with, or to export again"""
    from jaxlora.exchange import import_adapter

    print(import_adapter(flag.adapter, flag.base, flag.name, flag.workdir, flag.allow_base_mismatch))


def _export_adapter(flag: flags.FlagValues) -> None:
    """write the active adapters of the run in the workdir, as one, to a PEFT directory"""
    from jaxlora.exchange import export_adapter

    try:
        weights = [float(weight) for weight in flag.weights]
    except ValueError:
        raise UserError(f"--weights: {','.join(flag.weights)!r} are no numbers; give one for each adapter") from None
    print(export_adapter(flag.workdir, flag.output, flag.adapters, flag.combine, weights, flag.rank, flag.base))


def _export_model(flag: flags.FlagValues) -> None:
    """merge the adapters of the run in the workdir into the base, to a Hugging Face directory"""
    from jaxlora.exchange import export_model

    print(export_model(flag.workdir, flag.output, flag.base, flag.allow_base_mismatch))


_BASE = ("base", "allow_base_mismatch")
VERBS = {
    "demo": Verb(_demo, ("config", "workdir"), ("base",)),
    "prepare": Verb(_prepare, ("config", "workdir")),
    "verify-data": Verb(_verify_data, ("config", "workdir"), ("full",)),
    "audit": Verb(_audit, ("config", "workdir"), ("smallest",)),
    "synthesize": Verb(_synthesize, ("tables", "output"), ("patients", "seed", "notes", "source")),
    "train": Verb(_train, ("config", "workdir"), (*_BASE, "profile")),
    "sweep": Verb(_sweep, ("config", "workdir"), _BASE),
    "evaluate": Verb(_evaluate, ("workdir",), ("split", *_BASE)),
    "predict": Verb(_predict, ("workdir", "input", "output"), ("id", "text", *_BASE)),
    "report": Verb(_report, ("workdir",)),
    "card": Verb(_card, ("workdir",)),
    "reproduce": Verb(_reproduce, ("table", "config", "workdir"), ("tasks", "rows", "seeds", "scale")),
    "plan": Verb(_plan, ("config", "topology"), ("base", "hbm_gib", "search", "output")),
    "generate": Verb(
        _generate,
        (),
        "prompt input output text new_tokens temperature top_p seed workdir config".split() + [*_BASE],
    ),
    "import-adapter": Verb(_import_adapter, ("adapter", "base", "workdir"), ("name", "allow_base_mismatch")),
    "export-adapter": Verb(_export_adapter, ("workdir", "output"), ("adapters", "combine", "weights", "rank", "base")),
    "export-model": Verb(_export_model, ("workdir", "output"), _BASE),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code, or 2 after one line on standard error for a mistake of the user's."""
    arguments = list(sys.argv if argv is None else argv)[1:]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help())
        return 0
    try:
        verb = arguments[0]
        if verb not in VERBS:
            raise UserError(f"no verb {verb!r}{nearest(verb, VERBS)}")
        if {"--help", "-h"} & set(arguments):
            print(help_of(verb, VERBS[verb]))
            return 0
        flag = parse(VERBS[verb], arguments)
        _quiet_libraries()
        return VERBS[verb].run(flag) or 0
    except UserError as error:
        print(f"jaxlora: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.strerror is None:
            raise
        print(f"jaxlora: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        return 2
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("jaxlora: a path on gs:// needs gcsfs: pip install gcsfs", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\njaxlora: interrupted; `prepare`, `train`, `sweep` and `reproduce` go on from there", file=sys.stderr)
        return 130


def _help() -> str:
    verbs = "\n".join(f"  {name:<16}{verb.run.__doc__}" for name, verb in VERBS.items())
    return (
        f"usage: jaxlora VERB --flag=value ...\n\n{verbs}\n\n"
        "`jaxlora VERB --help` tells a verb's flags. configs/ holds one file an experiment; each opens with its exact "
        "command."
    )


def _quiet_libraries() -> None:
    """Keeps transformers off the network and off the subject of PyTorch, which is not needed, and Orbax from logging
    what is raised anyway."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.set_verbosity(logging.FATAL)


if __name__ == "__main__":
    sys.exit(main())
