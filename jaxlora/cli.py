"""The command line: one verb, one function, no logic. `jaxlora --help` imports nothing of JAX."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import config_flags

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

    print(write(reproduce(flag.config, flag.workdir, flag.table, flag.tasks, flag.rows, flag.seeds, flag.scale)))


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
    print(export_adapter(flag.workdir, flag.output, flag.adapters, flag.combine, weights, flag.rank))


def _export_model(flag: flags.FlagValues) -> None:
    """merge the adapters of the run in the workdir into the base, to a Hugging Face directory"""
    from jaxlora.exchange import export_model

    print(export_model(flag.workdir, flag.output, flag.base, flag.allow_base_mismatch))


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag: how it is defined, its default, and the words of `--help`."""

    define: Callable
    default: object
    help: str


FLAGS = {
    "workdir": Flag(flags.DEFINE_string, "", "the folder of the run"),
    "base": Flag(flags.DEFINE_string, "", "the Hugging Face directory of the base, if not the one it was trained with"),
    "allow_base_mismatch": Flag(flags.DEFINE_boolean, False, "take a base or a tokenizer that it was not trained with"),
    "profile": Flag(flags.DEFINE_boolean, False, "trace updates 3 to 5 into WORKDIR/profile"),
    "split": Flag(flags.DEFINE_string, "test", "the split to evaluate"),
    "input": Flag(flags.DEFINE_string, "", "a table of notes: CSV, JSON lines or Parquet"),
    "output": Flag(flags.DEFINE_string, "", "what to write"),
    "id": Flag(flags.DEFINE_string, "id", "the column that names a note"),
    "text": Flag(flags.DEFINE_string, "text", "the column of the note"),
    "prompt": Flag(flags.DEFINE_string, "", "a text to go on with; printed"),
    "new_tokens": Flag(flags.DEFINE_integer, 128, "tokens to add at most"),
    "temperature": Flag(flags.DEFINE_float, 0.0, "0 takes the most probable token"),
    "top_p": Flag(flags.DEFINE_float, 1.0, "sample among the tokens that together have this probability"),
    "seed": Flag(flags.DEFINE_integer, 0, "of everything that is drawn"),
    "adapter": Flag(flags.DEFINE_string, "", "the PEFT directory"),
    "name": Flag(flags.DEFINE_string, "clinical", "what the adapter is called here"),
    "adapters": Flag(flags.DEFINE_list, [], "which adapters, instead of all active ones"),
    "combine": Flag(flags.DEFINE_string, "cat", "several to one: cat (exact), linear or svd"),
    "weights": Flag(flags.DEFINE_list, [], "a weight for each adapter"),
    "tables": Flag(flags.DEFINE_string, "", "mimic3, mimic4, or hybrid: the public demo with public notes"),
    "patients": Flag(flags.DEFINE_integer, 1000, "how many to generate; MIMIC-III has 46520"),
    "notes": Flag(flags.DEFINE_string, "sparse", "four short notes an admission, or full: 35 as long as real ones"),
    "source": Flag(flags.DEFINE_string, "", "of hybrid: the folder of mimiciii-demo-1.4 and of the visit notes"),
    "full": Flag(flags.DEFINE_boolean, False, "count the tables of hundreds of millions of rows too"),
    "smallest": Flag(flags.DEFINE_integer, 20, "patients whose notes have a word that is told, at the least"),
    "topology": Flag(flags.DEFINE_string, "", "a TPU slice, such as v5e:2x4"),
    "hbm_gib": Flag(flags.DEFINE_float, 0.0, "memory of a device in GiB, if not what its chip has"),
    "search": Flag(flags.DEFINE_boolean, False, "look for the setting with the least time of an update that fits"),
    "rank": Flag(flags.DEFINE_integer, 0, "of --combine=svd"),
    "table": Flag(flags.DEFINE_string, "", "2, 3 or 4: which table of the paper"),
    "tasks": Flag(flags.DEFINE_list, [], "which tasks, instead of all: pmv, mor, los, diag, proc"),
    "rows": Flag(flags.DEFINE_list, [], "which rows, instead of all"),
    "seeds": Flag(flags.DEFINE_integer, 1, "runs that each cell is the mean of"),
    "scale": Flag(flags.DEFINE_string, "full", "full, or demo: a generated cohort and small bases"),
}


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb: what it runs, the flags it needs, and those it knows beside."""

    run: Callable[[flags.FlagValues], int | None]
    needs: tuple[str, ...]
    knows: tuple[str, ...] = ()


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
    "export-adapter": Verb(_export_adapter, ("workdir", "output"), ("adapters", "combine", "weights", "rank")),
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
            print(_help_of(verb))
            return 0
        flag = parse(arguments)
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
        print("\njaxlora: interrupted; `train` and `prepare` go on from there", file=sys.stderr)
        return 130


def _help() -> str:
    verbs = "\n".join(f"  {name:<16}{verb.run.__doc__}" for name, verb in VERBS.items())
    return (
        f"usage: jaxlora VERB --flag=value ...\n\n{verbs}\n\n"
        "`jaxlora VERB --help` tells a verb's flags. configs/ holds one file an experiment; each opens with its exact "
        "command."
    )


def _help_of(verb: str) -> str:
    known = VERBS[verb]
    lines = [f"usage: jaxlora {verb} {' '.join(_shown(name) for name in known.needs)}".rstrip(), known.run.__doc__]
    for name in (*known.needs, *known.knows):
        text = "the experiment, of configs/; --config.a.b=v sets a field" if name == "config" else FLAGS[name].help
        default = FLAGS[name].default if name != "config" else None
        lines.append(f"  {_shown(name):<34}{text}{f' ({default})' if default not in (None, '', [], False) else ''}")
    return "\n".join(lines)


def _shown(name: str) -> str:
    return f"--{name.replace('_', '-')}" + ("" if FLAGS.get(name, FLAGS["workdir"]).default is False else "=...")


def parse(arguments: list[str]) -> flags.FlagValues:
    """Reads the arguments from the verb on.

    Raises:
      UserError: a flag, a file or a field of the config that does not exist, a value of the wrong type, or a flag that
        is missing.
    """
    verb, flag = VERBS[arguments[0]], flags.FlagValues()
    has_config = "config" in (*verb.needs, *verb.knows)
    if has_config:
        config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True, flag_values=flag)
        _check_config_exists(arguments)
    for name in (*verb.needs, *verb.knows):
        if name != "config":
            FLAGS[name].define(name, FLAGS[name].default, FLAGS[name].help, flag_values=flag)
    sys.argv = ["jaxlora", *map(_underscored, arguments)]  # config_flags looks for --config.a.b there and nowhere else
    try:
        rest = flag(sys.argv)[2:]
        config = flag.config if has_config else None
        known = getattr(config, "base", None) is not None  # a file that could not be loaded raises here
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(arguments, str(error))) from error
    except (SyntaxError, ImportError, NameError, TypeError, ValueError, OSError) as error:
        raise UserError(f"--config cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if rest:
        raise UserError(f"unexpected {rest[0]!r}; every argument after the verb is --name=value")
    for name in verb.needs:
        if flag[name].value in (None, ""):
            remedy = "give a file of configs/" if name == "config" else f"it is {FLAGS[name].help}"
            raise UserError(f"--{name} is not set; {remedy}")
    if config is not None:
        if not known:
            raise UserError("--config: get_config does not return a config made by jaxlora.config.default()")
        config.base = (flag.base if "base" in flag else "") or config.base
        for field in ("active", "trainable"):
            config[field] = tuple(name for names in config[field] for name in names.split(","))
    return flag


def _underscored(argument: str) -> str:
    """`--top-p=0.9` as absl spells it; the fields of a config are left alone."""
    name, equals, value = argument.partition("=")
    return argument if name.startswith("--config") else name.replace("-", "_").replace("__", "--", 1) + equals + value


def _unknown_field(arguments: list[str], message: str) -> str:
    """Says which --config.a.b is unknown; ml_collections says it in three lines and without the whole name."""
    wrong = re.search(r"'(\w+)", message)
    hint = re.search(r'Did you mean "(\w+)"', message)
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--")
        if name.startswith("config.") and wrong and wrong[1] in name.split("."):
            return f"--{name}: no such field{f'; did you mean {hint[1]!r}?' if hint else ''}"
    return f"--config cannot be read: {' '.join(message.split())}"


def _check_config_exists(arguments: list[str]) -> None:
    given = [
        after if this == "--config" else this.removeprefix("--config=")
        for this, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if this == "--config" or this.startswith("--config=")
    ]
    path = given[0].split(":")[0] if given else ""
    if given and (not path or path.startswith("--")):
        raise UserError("--config is empty; give a file of configs/")
    if given and not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        present = [name for name in os.listdir(folder) if name.endswith(".py")] if os.path.isdir(folder) else []
        raise UserError(f"--config: no file {path}{nearest(os.path.basename(path), present)}")


def _quiet_libraries() -> None:
    """Keeps transformers off the network and off the subject of PyTorch, which is not needed, and Orbax from logging
    what is raised anyway."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.set_verbosity(logging.FATAL)


if __name__ == "__main__":
    sys.exit(main())
