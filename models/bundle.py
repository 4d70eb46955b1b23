"""The same network as a MONAI bundle, for whoever builds with MONAI."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from brainstage.models.features import pooled_features
from brainstage.models.med3d import build_med3d
from brainstage.models.model_store import StoredModel
from brainstage.models.weights import state_bytes
from brainstage.pipeline.files import write_bytes, write_json

WEIGHTS_FILE: Final = "models/model.safetensors"


class EnsembleClassifier(nn.Module):
    """Backbone, linear heads of all folds and temperature in one module.

    Parameters
    ----------
    architecture : str
    classes, folds, features : int
        Sizes C, K and F of the buffers that the weights file fills.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    temperature: Tensor

    def __init__(self, architecture: str, classes: int, folds: int, features: int) -> None:
        super().__init__()
        self.backbone = build_med3d(architecture)
        self.register_buffer("mean", torch.zeros(folds, features))
        self.register_buffer("scale", torch.ones(folds, features))
        self.register_buffer("weight", torch.zeros(folds, classes, features))
        self.register_buffer("bias", torch.zeros(folds, classes))
        self.register_buffer("temperature", torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        """Return calibrated probabilities (B, C) of network inputs (B, 1, D, H, W)."""
        features = pooled_features(self.backbone, image)
        standardised = (features[:, None] - self.mean) / self.scale
        logits = torch.einsum("bkf,kcf->bkc", standardised, self.weight) + self.bias
        return torch.softmax(logits.mean(dim=1) / self.temperature, dim=1)


def ensemble_classifier(model: StoredModel) -> EnsembleClassifier:
    """Return a stored model as one PyTorch module, in evaluation mode."""
    description, heads = model.description, model.heads
    classes, features = heads[0].weight.shape
    module = EnsembleClassifier(description.backbone.architecture, classes, len(heads), features)
    module.backbone.load_state_dict(
        {key: value.cpu() for key, value in model.extractor.network.state_dict().items()}
    )
    for name in ("mean", "scale", "weight", "bias"):
        getattr(module, name).copy_(torch.from_numpy(np.stack([getattr(head, name) for head in heads])))
    module.temperature.fill_(description.temperature)
    return module.eval()


def write_bundle(folder: Path, model: StoredModel) -> None:
    """Write ``configs/metadata.json``, ``configs/inference.json`` and the weights of a MONAI bundle.

    The bundle's input is the network's image, as brainstage's own preprocessing makes it.
    """
    module = ensemble_classifier(model)
    write_bytes(folder / WEIGHTS_FILE, state_bytes(module.state_dict()))
    write_json(folder / "configs/inference.json", _inference_config(module, model))
    write_json(folder / "configs/metadata.json", _metadata(model))


def _inference_config(module: EnsembleClassifier, model: StoredModel) -> dict[str, Any]:
    folds, classes, features = module.weight.shape
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "brainstage.models.bundle.EnsembleClassifier",
            "architecture": model.description.backbone.architecture,
            "classes": classes,
            "folds": folds,
            "features": features,
        },
        "weights": {
            "_target_": "safetensors.torch.load_file",
            "filename": f"$@bundle_root + '/{WEIGHTS_FILE}'",
        },
        "initialize": "$@network_def.load_state_dict(@weights)",
        "network": "$@network_def.to(@device).eval()",
        "inferer": {"_target_": "SimpleInferer"},
    }


def _without_covariates(model: StoredModel) -> str:
    columns = ", ".join(model.description.covariate_columns)
    return (
        f" The model also looks at {columns}; that is not in this bundle: it takes the image."
        if columns
        else ""
    )


def _metadata(model: StoredModel) -> dict[str, Any]:
    classes = model.classes
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"written by brainstage for model {model.model_id}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "brainstage": version("brainstage"),
            "safetensors": version("safetensors"),
        },
        "name": f"brainstage {model.model_id}",
        "task": f"Classification of T1w MRI into {', '.join(classes)}",
        "description": "Frozen Med3D ResNet with linear heads, an ensemble of cross-validation folds."
        + _without_covariates(model),
        "authors": "made with brainstage",
        "copyright": "of whoever trained it",
        "intended_use": "Research only; not a diagnosis.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": 1,
                    "spatial_shape": list(model.network_grid["shape"]),
                    "dtype": "float32",
                    "value_range": [-10.0, 10.0],
                    "is_patch_data": False,
                    "channel_def": {"0": "T1w"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classification",
                    "num_channels": len(classes),
                    "spatial_shape": [1],
                    "dtype": "float32",
                    "value_range": [0.0, 1.0],
                    "is_patch_data": False,
                    "channel_def": {str(index): name for index, name in enumerate(classes)},
                }
            },
        },
    }
