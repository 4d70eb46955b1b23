"""The command line: which command does what, and exit codes.

Heavy libraries are imported only by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from brainstage.pipeline.errors import BrainstageError, ExitCode, UsageError
from brainstage.workflows.arguments import PRIVATE_UMASK, build_parser


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as from a scheduler whose time is up: the command ends as after Ctrl-C."""


def terminate(number: int, frame: object) -> None:  # noqa: ARG001 - as signal handlers are called
    """End the command like Ctrl-C; a second signal ends it at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; those of the process when absent.
    """
    arguments = [_hyphenated(token) for token in (sys.argv[1:] if argv is None else argv)]
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        options = build_parser().parse_args(arguments)
        os.umask(getattr(options, "umask", int(PRIVATE_UMASK, 8)))
        return int(HANDLERS[options.command](options))
    except BrainstageError as error:
        where = f"{error.scan}: " if error.scan else ""
        sys.stderr.write(f"brainstage: {where}{error.message}\n")
        return int(error.exit_code)
    except SystemExit as stop:  # argparse: --help and --version
        return int(stop.code or 0) if isinstance(stop.code, int | None) else int(ExitCode.WRONG_USAGE)
    except KeyboardInterrupt as stop:
        sys.stderr.write("brainstage: interrupted; run the same command again to go on where it stopped\n")
        return int(ExitCode.TERMINATED if isinstance(stop, Terminated) else ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.IO_ERROR)
    except Exception:  # noqa: BLE001 - the last resort: whoever reports it needs the whole story
        traceback.print_exc()
        sys.stderr.write("brainstage: a defect of brainstage, please report it with the lines above\n")
        return int(ExitCode.DEFECT)


def _hyphenated(token: str) -> str:
    """Return an option with hyphens: ``--participant_label`` becomes ``--participant-label``; a value is kept.

    >>> _hyphenated("--participant_label=a_b")
    '--participant-label=a_b'
    """
    if not token.startswith("--"):
        return token
    name, separator, value = token.partition("=")
    return name.replace("_", "-") + separator + value


def _run(options: argparse.Namespace) -> int:
    from brainstage.workflows.progress import standard_progress
    from brainstage.workflows.run import RunOptions, run

    with standard_progress() as progress:
        return run(
            RunOptions(
                bids_dir=options.bids_dir,
                out_dir=options.out_dir,
                level=options.level,
                participants=tuple(options.participant_label),
                sessions=tuple(options.session_label),
                filter_file=options.bids_filter_file,
                manifest=options.manifest,
                qc_decisions=options.qc_decisions,
                model_dir=options.model,
                atlas=options.atlas,
                norms_dir=options.norms,
                config_file=options.config,
                overrides=_overrides(options),
                processes=options.nprocs,
                threads=options.omp_nthreads,
                memory_gb=options.mem_gb,
                engine=options.engine,
                dask_scheduler=options.dask_scheduler,
                allow_open_ports=options.allow_open_ports,
                slurm_partition=options.slurm_partition,
                slurm_walltime=options.slurm_walltime,
                slurm_directives=tuple(options.slurm_directive),
                stage_timeout_min=options.stage_timeout,
                umask=options.umask,
                work_dir=options.work_dir,
                retry_failed=options.retry_failed,
                reports_only=options.reports_only,
                stop_on_first_crash=options.stop_on_first_crash,
                validate=not options.skip_bids_validation,
                accept_dataset=options.accept_dataset,
                deterministic=options.deterministic,
                command=_shown_command(options),
            ),
            progress,
        )


def _train(options: argparse.Namespace) -> int:
    from brainstage.workflows.learning.training_options import TrainOptions
    from brainstage.workflows.train import train

    train(
        options.out_dir,
        options.model_dir,
        TrainOptions(
            classes=tuple(options.classes) if options.classes else None,
            label_column=options.label_column,
            target=options.target,
            qc_decisions=options.qc_decisions,
            weights=options.weights,
            strides=options.strides,
            finetune=options.finetune,
            head=options.head,
            augment=None if options.augment is None else tuple(options.augment),
            imbalance=options.imbalance,
            predictor=options.predictor,
            folds_by=options.folds_by,
            harmonise=options.harmonise,
            covariates=tuple(options.covariates),
            folds=options.folds,
            epochs=options.epochs,
            patience=options.patience,
            seed=options.seed,
            device=options.device,
            tensorboard=options.tensorboard,
            reference_class=options.reference_class,
        ),
        _say,
    )
    return ExitCode.DONE


def _evaluate(options: argparse.Namespace) -> int:
    from brainstage.workflows.evaluate import EvaluateOptions, evaluate

    evaluate(
        options.model_dir,
        options.out_dir,
        options.result_dir,
        EvaluateOptions(label_column=options.label_column, seed=options.seed, device=options.device),
        _say,
    )
    return ExitCode.DONE


def _explain(options: argparse.Namespace) -> int:
    from brainstage.workflows.explain import ExplainOptions, explain

    return explain(
        options.model_dir,
        options.out_dir,
        ExplainOptions(
            method=options.method,
            atlas=options.atlas,
            participants=tuple(options.participant_label),
            device=options.device,
        ),
        _say,
    )


def _norms(options: argparse.Namespace) -> int:
    from brainstage.workflows.norms import NormsOptions, make_norms

    make_norms(
        options.out_dir,
        options.norms_dir,
        NormsOptions(
            label_column=options.label_column,
            labels=tuple(options.label),
            qc_decisions=options.qc_decisions,
        ),
        _say,
    )
    return ExitCode.DONE


def _manifest(options: argparse.Namespace) -> int:
    from brainstage.workflows.dataset_manifest import make_manifest

    count = make_manifest(
        options.bids_dir,
        options.output,
        label_column=options.label_column,
        validate=not options.skip_bids_validation,
        say=_say,
    )
    _say(f"{options.output}: {count} scans")
    return ExitCode.DONE


def _status(options: argparse.Namespace) -> int:
    from brainstage.workflows.status import read_status, status_table

    _say(status_table(read_status(options.out_dir)))
    return ExitCode.DONE


def _fetch(options: argparse.Namespace) -> int:
    from brainstage.workflows.fetch import fetch

    if options.sha256 is not None and len(options.assets) > 1:
        raise UsageError(f"--sha256 is of one file, and {len(options.assets)} ASSETs were given: name one")
    for asset in options.assets:
        fetch(asset, say=_say, sha256=options.sha256)
    return ExitCode.DONE


def _demo(options: argparse.Namespace) -> int:
    from brainstage.workflows.demo import run_demo

    return run_demo(options.directory, _say)


def _doctor(options: argparse.Namespace) -> int:
    from brainstage.workflows.doctor import examine

    return examine(_say, options.model)


def _overrides(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what the command line says about the configuration: section to key to value."""
    given = {
        ("brain_extraction", "method"): options.skull_strip,
        ("bias_field", "method"): options.bias_field,
        ("registration", "method"): options.registration,
        ("registration", "resolution_mm"): float(options.resolution) if options.resolution else None,
        ("reports", "keep_face"): options.keep_face or None,
    }
    overrides: dict[str, dict[str, Any]] = {}
    for (section, key), value in given.items():
        if value is not None:
            overrides.setdefault(section, {})[key] = value
    return overrides


HANDLERS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = MappingProxyType(
    {
        "run": _run,
        "train": _train,
        "evaluate": _evaluate,
        "explain": _explain,
        "norms": _norms,
        "manifest": _manifest,
        "status": _status,
        "fetch": _fetch,
        "demo": _demo,
        "doctor": _doctor,
    }
)
"""Command to what does it."""

_UNSHOWN: Final = frozenset(
    {
        *("command", "bids_dir", "out_dir", "level", "engine", "dask_scheduler", "slurm_partition"),
        *("slurm_walltime", "slurm_directive", "allow_open_ports", "stage_timeout", "umask"),
    }
)
"""What says nothing about the results; some of it is about this machine."""


def _shown_command(options: argparse.Namespace) -> str:
    """Return the options of a run for its reports: no path, only names."""
    words = ["brainstage run"] + ([options.level] if options.level else [])
    for name, value in sorted(vars(options).items()):
        if name in _UNSHOWN or value in (None, False, []):
            continue
        shown = (
            " ".join(value)
            if isinstance(value, list)
            else ""
            if value is True
            else str(getattr(value, "name", value))
        )
        words.append(f"--{name.replace('_', '-')} {shown}".rstrip())
    return " ".join(words)


def _say(line: str) -> None:
    # A name in a path may hold bytes that are no text, and a terminal may know few characters.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
