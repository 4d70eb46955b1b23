"""What the command line takes."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from brainstage import __version__
from brainstage.models.choices import (
    FOLDS_BY,
    HARMONISE,
    HEADS,
    IMBALANCE,
    MED3D_ASSETS,
    PREDICTORS,
    REGIMES,
    STRIDES,
)
from brainstage.pipeline.errors import UsageError

EXIT_CODES: Final = """exit codes:
  0 done; 1 some scan failed (its row in predictions.csv says why); 16 not a BIDS dataset;
  18 the filters select nothing; 64 wrong usage; 65 bad data file (manifest, config, model, weights);
  66 input missing; 70 a defect of brainstage; 73 cannot create output; 74 I/O error such as a full disk;
  75 temporary, run again

For research; never a diagnosis."""

PRIVATE_UMASK: Final = "077"
"""Nobody else reads what is written about participants."""


def _path(text: str) -> Path:
    """Return a path; a shell leaves the ``~`` of ``--option=~/x`` alone."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user: then it is a name
        return Path(text)


_PARTICIPANTS: Final[dict[str, Any]] = {
    "nargs": "+", "default": [], "metavar": "LABEL", "help": "with or without sub-; default: all",
}  # fmt: skip
_DEVICE: Final[dict[str, Any]] = {
    "choices": ("auto", "cpu", "cuda"), "default": "auto", "help": "for the network; default: auto",
}  # fmt: skip
_ATLAS: Final[dict[str, Any]] = {"type": _path, "metavar": "FILE"}
_ATLAS_HELP: Final = "labels in MNI152 space on any grid, FILE.nii.gz, and their names in FILE.tsv beside it"
_NO_VALIDATION: Final[dict[str, Any]] = {
    "action": "store_true", "help": "do not ask for a dataset_description.json",
}  # fmt: skip


def _model_dir(text: str) -> Path:
    """Return a model directory, also where its ``model.json`` was given."""
    path = _path(text)
    return path.parent if path.name == "model.json" else path


def _norms_dir(text: str) -> Path:
    """Return a norms directory, also where its ``norms.json`` was given."""
    path = _path(text)
    return path.parent if path.name == "norms.json" else path


class _Parser(argparse.ArgumentParser):
    """Takes hyphen and underscore spellings, and raises instead of exiting."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        shown: dict[str, Any] = {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "epilog": EXIT_CODES,
        }
        super().__init__(allow_abbrev=False, **shown | options)
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - as argparse has it
        """Keep what was given, for the messages."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{self._suggestion(message)}; see {self.prog} --help")

    def _suggestion(self, message: str) -> str:
        greedy = [
            name
            for action in self._actions
            if action.nargs == "+"
            for name in action.option_strings
            if name in self._given
        ]
        if greedy and message.startswith("the following arguments are required: "):
            missing = message.partition(": ")[2]
            return f" ({greedy[0]} takes every word after it: give {missing} before it)"
        if not message.startswith("unrecognized arguments: "):
            return ""
        known = [name for action in self._known_actions() for name in action.option_strings]
        close = difflib.get_close_matches(message.split()[2].partition("=")[0], known, n=1)
        return f" (did you mean {close[0]}?)" if close else ""

    def _known_actions(self) -> list[argparse.Action]:
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - argparse has no public name for it
                for parser in action.choices.values():
                    actions += parser._actions  # noqa: SLF001 - likewise
        return actions


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="brainstage",
        description="From a BIDS directory of T1w MRI to QC reports and calibrated predictions.",
    )
    parser.add_argument("--version", action="version", version=f"brainstage {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_explain(commands)
    _add_norms(commands)
    _add_manifest(commands)
    _add_status(commands)
    _add_fetch(commands)
    _add_demo(commands)
    _add_doctor(commands)
    return parser


def _add_run(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    run = commands.add_parser(
        "run",
        help="preprocess a BIDS directory, judge its quality, and predict",
        description="Preprocess every T1w scan of a BIDS directory, judge its quality, predict with a model where "
        "one is given, and write reports and tables. Finished work is kept: the same command goes on where it "
        "stopped, and does nothing where there is nothing to do.",
    )
    run.add_argument("bids_dir", type=_path, metavar="BIDS_DIR", help="nothing is ever written into it")
    run.add_argument("out_dir", type=_path, metavar="OUT_DIR", help="made where it is not there")
    run.add_argument(
        "level",
        nargs="?",
        choices=("participant", "group"),
        help="participant: the scans; group: the tables and pages over them; without it one after the other",
    )
    scans = run.add_argument_group("which scans")
    scans.add_argument("--participant-label", **_PARTICIPANTS)
    scans.add_argument(
        "--session-label", nargs="+", default=[], metavar="LABEL", help="with or without ses-; default: all"
    )
    scans.add_argument(
        "--bids-filter-file",
        type=_path,
        metavar="FILE",
        help='JSON such as {"t1w": {"acquisition": "mprage"}}',
    )
    scans.add_argument(
        "--manifest",
        type=_path,
        metavar="FILE",
        help="data_manifest.csv: only its scans, its labels, its hashes",
    )
    scans.add_argument(
        "--qc-decisions",
        type=_path,
        metavar="FILE",
        help="qc_decisions.tsv of the cohort page: what a person decided stands over quality control",
    )
    scans.add_argument("--skip-bids-validation", **_NO_VALIDATION)
    scans.add_argument(
        "--accept-dataset",
        action="store_true",
        help="OUT_DIR takes BIDS_DIR although it belongs to another dataset, or the dataset was changed",
    )
    what = run.add_argument_group("what is done")
    what.add_argument(
        "--model", type=_model_dir, metavar="MODEL_DIR", help="predict with a model of brainstage train"
    )
    what.add_argument("--atlas", **_ATLAS, help="measure its regions, too: " + _ATLAS_HELP)
    what.add_argument(
        "--norms",
        type=_norms_dir,
        metavar="NORMS_DIR",
        help="compare volumes with norms of brainstage norms: percentiles for age and sex in volumes.csv and reports",
    )
    what.add_argument("--config", type=_path, metavar="FILE", help="TOML; options given here win over it")
    what.add_argument(
        "--skull-strip",
        choices=("auto", "deepbet", "ants", "none"),
        help="how the brain is found; default: auto",
    )
    what.add_argument(
        "--bias-field", choices=("fast", "ants", "none"), help="how the bias field is removed; default: fast"
    )
    what.add_argument(
        "--registration",
        choices=("affine", "syn"),
        help="how the brain comes to the template; default: affine",
    )
    what.add_argument("--resolution", choices=("1", "1.5", "2"), help="template voxels in mm; default: 1")
    what.add_argument(
        "--keep-face",
        action="store_true",
        help="show the whole head in the reports, not only the brain and a narrow rim",
    )
    what.add_argument(
        "--deterministic",
        action="store_true",
        help="one thread per scan, so that the same volumes come out, byte for byte, every time; slower",
    )
    how = run.add_argument_group("how it is done")
    how.add_argument(
        "--nprocs", type=_count, metavar="N", help="scans at a time; default: what the machine holds"
    )
    how.add_argument(
        "--omp-nthreads",
        type=_count,
        metavar="N",
        help="threads for each scan; default: the processors, shared out",
    )
    how.add_argument(
        "--mem-gb",
        type=_amount,
        metavar="G",
        help="memory for all scans together; a worker that grows beyond its share is stopped; default: what is free",
    )
    how.add_argument(
        "-w", "--work-dir", type=_path, metavar="DIR", help="scratch space; default: the system's"
    )
    how.add_argument(
        "--engine",
        choices=("local", "dask", "slurm"),
        default="local",
        help="workers on this machine, of a Dask scheduler, or as SLURM jobs; default: local",
    )
    how.add_argument("--dask-scheduler", metavar="URL", help="address for --engine dask")
    how.add_argument(
        "--allow-open-ports",
        action="store_true",
        help="also use a Dask scheduler whose ports answer without keys: names and ages travel in clear, and whoever "
        "reaches a port can run code as you",
    )
    how.add_argument("--slurm-partition", metavar="NAME", help="for --engine slurm; default: the cluster's")
    how.add_argument(
        "--slurm-walltime",
        type=_walltime,
        default="08:00:00",
        metavar="HH:MM:SS",
        help="of each job; default: 08:00:00",
    )
    how.add_argument(
        "--slurm-directive",
        action="append",
        default=[],
        metavar="TEXT",
        help="further option of sbatch, such as --slurm-directive=--account=lab; may be given again",
    )
    how.add_argument(
        "--stage-timeout",
        type=_amount,
        default=60,
        metavar="MIN",
        help="stop a stage that takes longer; default: 60",
    )
    how.add_argument(
        "--umask",
        type=_umask,
        default=PRIVATE_UMASK,
        metavar="OCTAL",
        help="of new files, so that nobody else reads them; default: 077",
    )
    how.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    how.add_argument(
        "--reports-only", action="store_true", help="draw pictures and reports again, compute nothing"
    )
    how.add_argument(
        "--stop-on-first-crash", action="store_true", help="end the run at the first failed scan"
    )
    how.add_argument(
        "--version", action="version", version=f"brainstage {__version__}", help="print the version"
    )


def _add_train(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    train = commands.add_parser(
        "train",
        help="train a model on the scans of a finished run",
        description="Train a model of classes, or of a number (--target), on the scans of a finished run, with "
        "cross-validation by participant, and write a model directory with its card. Scans whose split is test are "
        "kept out.",
    )
    train.add_argument("out_dir", type=_path, metavar="OUT_DIR", help="output directory of brainstage run")
    train.add_argument("model_dir", type=_path, metavar="MODEL_DIR", help="appears whole or not at all")
    train.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="two or more, in the order of the probabilities; default: the labels that are there",
    )
    train.add_argument(
        "--label-column",
        default="diagnosis",
        metavar="NAME",
        help="column of the run's data_manifest.csv; default: diagnosis",
    )
    train.add_argument(
        "--target",
        metavar="NAME",
        help="column of numbers, such as age or mmse, to predict instead of classes, with intervals",
    )
    train.add_argument(
        "--qc-decisions",
        type=_path,
        metavar="FILE",
        help="qc_decisions.tsv of the cohort page: learn from what a person passed, not from what one failed",
    )
    train.add_argument(
        "--weights",
        default=MED3D_ASSETS[0],
        metavar="WEIGHTS",
        help=f"{', '.join(MED3D_ASSETS)}, a path, or random; default: {MED3D_ASSETS[0]}",
    )
    train.add_argument(
        "--strides",
        choices=STRIDES,
        default="med3d",
        help="of the network: as the weights were trained, or as MONAI builds it; default: med3d",
    )
    train.add_argument(
        "--finetune",
        choices=REGIMES,
        default="frozen",
        help="what is trained: a head on features computed once, the network's last stage as well, or all; "
        "default: frozen",
    )
    train.add_argument(
        "--head",
        choices=HEADS,
        default="linear",
        help="what makes logits of features: a linear map, or one behind attention over channels; default: linear",
    )
    train.add_argument(
        "--augment",
        nargs="*",
        metavar="NAME",
        help="recipes for training images where the network is trained: pose, flip, left-right, bias-field, gamma, "
        "noise, ghosting, low-resolution; none after the option for no recipe; default: pose, left-right, "
        "bias-field, gamma, noise",
    )
    train.add_argument(
        "--imbalance",
        choices=IMBALANCE,
        default="weights",
        help="how classes of different size are made to count the same; default: weights",
    )
    train.add_argument(
        "--predictor",
        choices=PREDICTORS,
        default="auto",
        help="whose probabilities, or numbers, are published: one member's, those of all weighted together (stack), or "
        "what inner folds find best (auto); default: auto",
    )
    train.add_argument(
        "--covariates",
        nargs="+",
        default=[],
        metavar="NAME",
        help="columns of data_manifest.csv, such as age sex, that the model looks at besides the image",
    )
    train.add_argument(
        "--reference-class",
        metavar="NAME",
        help="the class whose volumes a report compares a scan with; default: CN where it is one of the classes",
    )
    train.add_argument(
        "--folds-by",
        choices=FOLDS_BY,
        default="participant",
        help="what is left out at a time: some participants, or a whole site, where --folds is of no account; "
        "default: participant",
    )
    train.add_argument(
        "--harmonise",
        choices=HARMONISE,
        default="none",
        help="site: take out how far each site's values lie and spread, as its scans of the reference class show it "
        "within each training fold; default: none",
    )
    train.add_argument("--folds", type=_count, default=5, metavar="K", help="at least 3; default: 5")
    train.add_argument(
        "--epochs", type=_count, metavar="N", help="at most; default: 300 with a frozen network, 30 otherwise"
    )
    train.add_argument(
        "--patience",
        type=_count,
        metavar="N",
        help="epochs without improvement before training stops; default: 30 with a frozen network, 8 otherwise",
    )
    train.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of folds, random weights, controls and intervals; default: 0",
    )
    train.add_argument("--device", **_DEVICE)
    train.add_argument(
        "--tensorboard",
        type=_path,
        metavar="DIR",
        help="write the curves of fine-tuning there, as they grow; needs the extra brainstage[tensorboard]",
    )


def _add_evaluate(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model on a labelled cohort that it never saw",
        description="Judge the labelled scans of a finished run, of a cohort that the model never saw, as brainstage "
        "run --model does, and write how well it went. Scans that the model was trained on, and other scans of their "
        "participants, are left out and counted.",
    )
    evaluate.add_argument(
        "model_dir", type=_model_dir, metavar="MODEL_DIR", help="a model of brainstage train"
    )
    evaluate.add_argument("out_dir", type=_path, metavar="OUT_DIR", help="output directory of brainstage run")
    evaluate.add_argument("result_dir", type=_path, metavar="RESULT_DIR", help="appears whole or not at all")
    evaluate.add_argument(
        "--label-column",
        metavar="NAME",
        help="column of the run's data_manifest.csv; default: the model's own",
    )
    evaluate.add_argument("--seed", type=int, default=0, metavar="S", help="of the intervals; default: 0")
    evaluate.add_argument("--device", **_DEVICE)


def _add_explain(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    explain = commands.add_parser(
        "explain",
        help="show what a model rests on in each scan",
        description="Map what each prediction of brainstage run --model rests on, say in which regions it lies, and "
        "write the scan's report again with it. Withheld predictions are not explained. What is explained "
        "already is kept; one bad scan does not stop the others.",
    )
    explain.add_argument(
        "model_dir", type=_model_dir, metavar="MODEL_DIR", help="a model of brainstage train"
    )
    explain.add_argument(
        "out_dir", type=_path, metavar="OUT_DIR", help="output directory of brainstage run --model"
    )
    explain.add_argument(
        "--method",
        choices=("auto", "linear", "gradcam", "occlusion"),
        default="auto",
        help="auto explains the members that have a weight in the published probabilities: linear by its exact map, "
        "volumes by what each adds, the network by gradcam; one that is named explains its member in any case. Seconds "
        "a scan, but occlusion, which covers the brain box by box, takes minutes without a GPU; default: auto",
    )
    explain.add_argument("--atlas", **_ATLAS, help=f"{_ATLAS_HELP}; default: coarse regions")
    explain.add_argument("--participant-label", **_PARTICIPANTS)
    explain.add_argument("--device", **_DEVICE)


def _add_norms(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    norms = commands.add_parser(
        "norms",
        help="say what volumes are usual by age and sex, from a healthy cohort that was run",
        description="Fit what is usual by age and sex for every volume, from a finished run of a healthy cohort with "
        "at least 15 people whose age is known, and write it with its card; brainstage run --norms compares scans with "
        "it. Of each person the best scan is taken; scans that failed quality control, whose volumes are withheld, or "
        "whose split is test are left out and counted.",
    )
    norms.add_argument("out_dir", type=_path, metavar="OUT_DIR", help="output directory of brainstage run")
    norms.add_argument("norms_dir", type=_path, metavar="NORMS_DIR", help="appears whole or not at all")
    norms.add_argument(
        "--label",
        nargs="+",
        default=[],
        metavar="NAME",
        help="who is healthy: only scans with this label, such as CN; needed where there are several labels",
    )
    norms.add_argument(
        "--label-column",
        metavar="NAME",
        help="column of the run's data_manifest.csv with the labels; default: diagnosis",
    )
    norms.add_argument(
        "--qc-decisions",
        type=_path,
        metavar="FILE",
        help="qc_decisions.tsv of the cohort page: what a person decided stands over quality control",
    )


def _add_manifest(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    manifest = commands.add_parser(
        "manifest",
        help="write the data_manifest.csv of a BIDS directory",
        description="Write one row per T1w scan, with its hash and what the tables say; edit labels and split, and "
        "give it to brainstage run --manifest.",
    )
    manifest.add_argument("bids_dir", type=_path, metavar="BIDS_DIR", help="nothing is written into it")
    manifest.add_argument(
        "-o",
        "--output",
        type=_path,
        default=Path("data_manifest.csv"),
        metavar="FILE",
        help="where to write; default: data_manifest.csv",
    )
    manifest.add_argument(
        "--label-column",
        default="diagnosis",
        metavar="NAME",
        help="column of participants.tsv; default: diagnosis",
    )
    manifest.add_argument("--skip-bids-validation", **_NO_VALIDATION)


def _add_status(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    status = commands.add_parser(
        "status",
        help="which stage each scan of an output directory has reached",
        description="Print a grid of scans and stages: done, running, FAILED, or - for what is still open. It reads "
        "the names of the markers; whether the outputs are still what the markers say is for the next run to find out.",
    )
    status.add_argument("out_dir", type=_path, metavar="OUT_DIR", help="output directory of brainstage run")


def _add_fetch(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    fetch = commands.add_parser(
        "fetch",
        help="bring pretrained weights; nothing else ever downloads",
        description="Bring pretrained weights once, check them, and keep them as safetensors. Nothing else ever "
        "downloads.",
    )
    fetch.add_argument(
        "assets", nargs="+", choices=MED3D_ASSETS, metavar="ASSET", help=", ".join(MED3D_ASSETS)
    )
    fetch.add_argument(
        "--sha256",
        metavar="HEX",
        help="take the file with this sha256 and no other, and record that you vouch for it; default: the sha256 of "
        "the published file, where this version knows it",
    )


def _add_demo(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    demo = commands.add_parser(
        "demo",
        help="everything once, on a small synthetic cohort",
        description="Make a synthetic BIDS cohort, preprocess it, train, predict, and say where to look.",
    )
    demo.add_argument(
        "directory",
        nargs="?",
        type=_path,
        default=Path("demo"),
        metavar="DIR",
        help="made where it is not there; default: demo",
    )


def _add_doctor(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    parser = commands.add_parser(
        "doctor",
        help="what is installed, what is missing, what to do",
        description="Say what is installed, what is missing and what to do; exit with 0 when brainstage run can work, "
        "and with 66 otherwise.",
    )
    parser.add_argument(
        "--model",
        type=_path,
        metavar="MODEL_DIR",
        help="also show which processor, kernels and versions this model was trained under, beside those here",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _umask(text: str) -> int:
    if len(text) not in (3, 4) or set(text) - set("01234567"):
        raise argparse.ArgumentTypeError(f"{text} is not an octal mask such as 077 or 027")
    return int(text, 8)


def _walltime(text: str) -> str:
    if not re.fullmatch(r"\d{1,3}:[0-5]\d:[0-5]\d", text):
        raise argparse.ArgumentTypeError(f"{text} is not a time such as 08:00:00")
    return text
