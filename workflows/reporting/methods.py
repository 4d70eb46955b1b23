"""A description of what was done that can be pasted into a paper, with versions and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from brainstage.models.norms_directory import NormsDescription
from brainstage.pipeline.config import Config
from brainstage.workflows.reporting.markdown import markdown_environment


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A publication or an archived program.

    Attributes
    ----------
    text : str
        Authors, year, title, place.
    doi : str
        Without the resolver in front of it.
    """

    text: str
    doi: str


@dataclass(frozen=True, kw_only=True)
class MethodStep:
    """One step in words."""

    title: str
    text: str
    references: tuple[Reference, ...] = ()


BIDS: Final = Reference(
    text="Gorgolewski KJ et al. 2016. The brain imaging data structure, a format for organizing and describing "
    "outputs of neuroimaging experiments. Scientific Data 3:160044",
    doi="10.1038/sdata.2016.44",
)
NIBABEL: Final = Reference(text="Brett M et al. nipy/nibabel. Zenodo", doi="10.5281/zenodo.591597")
DEEPBET: Final = Reference(
    text="Fisch L et al. 2024. deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural "
    "Networks. Computers in Biology and Medicine 179:108845",
    doi="10.1016/j.compbiomed.2024.108845",
)
N4: Final = Reference(
    text="Tustison NJ et al. 2010. N4ITK: Improved N3 bias correction. IEEE Transactions on Medical Imaging "
    "29:1310-1320",
    doi="10.1109/TMI.2010.2046908",
)
WHITESTRIPE: Final = Reference(
    text="Shinohara RT et al. 2014. Statistical normalization techniques for magnetic resonance imaging. "
    "NeuroImage: Clinical 6:9-19",
    doi="10.1016/j.nicl.2014.08.008",
)
ANTS: Final = Reference(
    text="Avants BB et al. 2011. A reproducible evaluation of ANTs similarity metric performance in brain image "
    "registration. NeuroImage 54:2033-2044",
    doi="10.1016/j.neuroimage.2010.09.025",
)
SYN: Final = Reference(
    text="Avants BB et al. 2008. Symmetric diffeomorphic image registration with cross-correlation. Medical Image "
    "Analysis 12:26-41",
    doi="10.1016/j.media.2007.06.004",
)
TEMPLATE: Final = Reference(
    text="Fonov V et al. 2011. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage "
    "54:313-327",
    doi="10.1016/j.neuroimage.2010.07.033",
)

HIPPOCAMPI: Final = Reference(
    text="Simpson AL et al. 2019. A large annotated medical image dataset for the development and evaluation of "
    "segmentation algorithms. arXiv:1902.09063",
    doi="10.48550/arXiv.1902.09063",
)
DECATHLON: Final = Reference(
    text="Antonelli M et al. 2022. The Medical Segmentation Decathlon. Nature Communications 13:4128",
    doi="10.1038/s41467-022-30695-9",
)
PERCENTILE_LIMITS: Final = Reference(
    text="Crawford JR, Garthwaite PH. 2002. Investigation of the single case in neuropsychology: confidence limits on "
    "the abnormality of test scores and test score differences. Neuropsychologia 40:1196-1208",
    doi="10.1016/S0028-3932(01)00224-X",
)

_EXTRACTION: Final = {
    "auto": "Scans that came without their skull were recognised and left as they were; in all others the brain was "
    "found by the neural networks of deepbet{deepbet} or, where they found none that is plausible, by registration of "
    "the template with ANTs; which it was stands beside each mask (BrainExtractionMethod).",
    "deepbet": "The brain was found by the neural networks of deepbet{deepbet}.",
    "ants": "The brain was found by registration of the template with ANTs (antspyx{antspyx}).",
    "none": "The scans came without their skull; their non-zero voxels were taken as the brain.",
}
_NORMALISATION: Final = {
    "zscore": "Intensities inside the brain mask were scaled to mean 0 and standard deviation 1.",
    "percentile": "Intensities inside the brain mask were scaled so that their 2nd and 98th percentile became 0 and 1.",
    "whitestripe": "Intensities inside the brain mask were scaled so that the peak of white matter became 0 and the "
    "spread around it 1.",
}


def method_steps(
    config: Config,
    versions: Mapping[str, str],
    *,
    model_id: str | None = None,
    number: str | None = None,
    norms: NormsDescription | None = None,
) -> tuple[MethodStep, ...]:
    """Describe the processing, step by step, as the configuration has it.

    Parameters
    ----------
    config : Config
    versions : mapping
        Package name, as on the package index, to version; an absent one is left out of the text.
    model_id : str, optional
        The model that made predictions; None when there was none.
    number : str, optional
        The column that the model predicts; None for a model of classes.
    norms : NormsDescription, optional
        What volumes were compared with; None when there were none.
    """
    steps = [
        _reading(versions),
        _extraction(config, versions),
        _bias_field(config, versions),
        _normalisation(config),
        _registration(config, versions),
        _quality(),
        _volumes(versions),
    ]
    if norms is not None:
        steps.append(_norms(norms))
    if model_id is not None:
        steps.append(_prediction(config, versions, model_id, number))
    return tuple(steps)


def render_methods(
    config: Config,
    versions: Mapping[str, str],
    preprocessing_id: str,
    *,
    n_scans: int,
    n_failed: int = 0,
    model_id: str | None = None,
    number: str | None = None,
    norms: NormsDescription | None = None,
    account: Sequence[str] = (),
    otherwise: Mapping[str, tuple[int, Sequence[tuple[str, str, str]]]] | None = None,
) -> str:
    """Return ``methods.md``.

    Parameters
    ----------
    config : Config
    versions : mapping
        Package name to version; ``brainstage`` and ``python`` among them.
    preprocessing_id : str
    n_scans, n_failed : int
        Scans of the run, and how many of them a stage could not handle.
    model_id : str, optional
    norms : NormsDescription, optional
    account : sequence of str
        What became of the dataset's participants, files and labels.
    otherwise : mapping, optional
        Other ``preprocessing_id`` among the scans to their number, and to key, value there and value here of what
        differs.
    """
    steps = method_steps(config, versions, model_id=model_id, number=number, norms=norms)
    return markdown_environment(trimmed=True).get_template("methods.md.j2").render(
        steps=steps,
        references=references_of(steps),
        versions=dict(sorted(versions.items())),
        version=versions.get("brainstage", ""),
        preprocessing_id=preprocessing_id,
        n_scans=n_scans,
        n_failed=n_failed,
        account=account,
        otherwise=otherwise or {},
    )  # fmt: skip


def references_of(steps: Sequence[MethodStep]) -> list[Reference]:
    """Return every reference of some steps once, by author."""
    references = {reference for step in steps for reference in step.references}
    return sorted(references, key=lambda reference: reference.text)


def _version(versions: Mapping[str, str], name: str) -> str:
    return f" {versions[name]}" if name in versions else ""


def _reading(versions: Mapping[str, str]) -> MethodStep:
    return MethodStep(
        title="Reading",
        text=f"T1-weighted volumes were read from a BIDS dataset with nibabel{_version(versions, 'nibabel')}, each "
        "file whole and to its checksum, and turned to RAS orientation without interpolation. Files that are "
        "damaged, or whose header leaves left and right open, were refused and are listed as failed.",
        references=(BIDS, NIBABEL),
    )


def _extraction(config: Config, versions: Mapping[str, str]) -> MethodStep:
    method = config.brain_extraction.method
    low, high = config.brain_extraction.volume_bounds_ml
    names = {name: _version(versions, name) for name in ("deepbet", "antspyx")}
    references = {"none": (), "ants": (ANTS,)}.get(method, (DEEPBET,))
    return MethodStep(
        title="Brain extraction",
        text=f"{_EXTRACTION[method].format(**names)} Masks outside {low:g} to {high:g} ml count as failed.",
        references=references,
    )


def _bias_field(config: Config, versions: Mapping[str, str]) -> MethodStep:
    bias = config.bias_field
    if bias.method == "none":
        return MethodStep(title="Bias field", text="No bias field correction was applied.")
    if bias.method == "ants":
        text = (
            f"Intensity non-uniformity was corrected with N4 as ANTs runs it "
            f"(antspyx{_version(versions, 'antspyx')})."
        )
    else:
        text = (
            f"Intensity non-uniformity was corrected with the N4 algorithm, estimated inside the brain mask on a "
            f"grid of {bias.grid_mm:g} mm ({bias.levels} levels of B-spline resolution, at most {bias.iterations} "
            f"iterations each, tolerance {bias.tolerance:g}); the field was "
            "evaluated on the native grid and divided out."
        )
    return MethodStep(title="Bias field", text=text, references=(N4,))


def _normalisation(config: Config) -> MethodStep:
    method = config.intensity.method
    return MethodStep(
        title="Intensity normalisation",
        text=_NORMALISATION[method],
        references=(WHITESTRIPE,) if method == "whitestripe" else (),
    )


def _registration(config: Config, versions: Mapping[str, str]) -> MethodStep:
    deformation = (
        ", refined by a symmetric diffeomorphic deformation (SyN),"
        if config.registration.method == "syn"
        else ""
    )
    return MethodStep(
        title="Registration",
        text="The brain was brought to the MNI152NLin2009aSym template, in the copy that nilearn"
        f"{_version(versions, 'nilearn')} carries, by an affine transform{deformation} estimated with ANTs "
        f"(antspyx{_version(versions, 'antspyx')}), and resampled once from native space to voxels of "
        f"{config.registration.resolution_mm:g} mm.",
        references=(ANTS, TEMPLATE, *((SYN,) if deformation else ())),
    )


def _quality() -> MethodStep:
    return MethodStep(
        title="Quality control",
        text="Each scan was judged automatically by measures of its brain mask, registration, contrast, noise and "
        "header against fixed bounds, with the verdict pass, warn or fail. "
        "Predictions of scans that fail are withheld.",
    )


def _volumes(versions: Mapping[str, str]) -> MethodStep:
    return MethodStep(
        title="Volumes",
        text="Volumes were measured in native space. Grey matter, white matter and cerebrospinal fluid inside the "
        "brain mask are those of a mixture of normal distributions with the tissue probabilities of the template; the "
        "lateral ventricles with their temporal horns are the fluid that is connected to those of the template; the "
        f"hippocampi were found by a 3D U-Net (MONAI{_version(versions, 'monai')}) that was trained on hand-drawn "
        "crops of the Medical Segmentation Decathlon. The intracranial volume is that of the brain mask, fluid around "
        "the brain included. An outline that did not meet the bounds of its own quality was withheld.",
        references=(DECATHLON, HIPPOCAMPI),
    )


def _norms(norms: NormsDescription) -> MethodStep:
    ages = [age for norm in norms.reference.norms for age in norm.ages or ()]
    return MethodStep(
        title="Norms",
        text=f"Volumes, in per cent of the intracranial volume, and that volume itself were compared with norms "
        f"{norms.norms_id} of {norms.people} people of {min(ages):.0f} to {max(ages):.0f} years"
        f"{f' ({norms.dataset})' if norms.dataset else ''}: regressions of the logarithm by age and sex, and "
        "percentiles with the 95 % interval that the size of that sample leaves. Outside these ages nothing is said.",
        references=(PERCENTILE_LIMITS,),
    )


def _prediction(config: Config, versions: Mapping[str, str], model_id: str, number: str | None) -> MethodStep:
    grid = config.network_grid
    shape = " x ".join(str(n) for n in grid.shape)
    tiers = config.prediction
    about = (
        "Probabilities are calibrated and come with a class-conditional conformal prediction set. Confidence is called "
        f"high above {tiers.high_confidence:g}, for review from {tiers.review_confidence:g}, and low below. "
        if number is None
        else f"It predicts {number}, a number, with an interval from the errors that its folds made on scans that they "
        "had not seen (CV+). "
    )
    return MethodStep(
        title="Prediction",
        text=f"The registered brain was resampled to {shape} voxels of {grid.spacing_mm:g} mm (background: "
        f"{grid.background}) and given to a 3-D residual network (MONAI{_version(versions, 'monai')}, PyTorch"
        f"{_version(versions, 'torch')}; model {model_id}). {about}"
        "For research; not a diagnosis.",
    )
