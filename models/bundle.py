"""The member ``network`` of a model as a MONAI bundle, for those who build with MONAI."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from brainstage.models.choices import Strides
from brainstage.models.features import pooled_features
from brainstage.models.heads import HeadModule, head_module
from brainstage.models.med3d import build_med3d
from brainstage.models.model_store import StoredModel
from brainstage.models.weights import state_bytes
from brainstage.pipeline.files import write_bytes, write_json

WEIGHTS_FILE: Final = "models/model.safetensors"


class EnsembleClassifier(nn.Module):
    """Networks, heads and temperatures of all folds in one module.

    Parameters
    ----------
    architecture, strides : str
    classes, folds, features : int
    channels : int
        Of all stages together where heads have an attention; 0 otherwise.
    shared : bool
        One network for all folds, because none was trained further.
    """

    temperatures: Tensor

    def __init__(
        self,
        architecture: str,
        strides: Strides,
        classes: int,
        folds: int,
        features: int,
        channels: int,
        shared: bool,
    ) -> None:
        super().__init__()
        networks = [build_med3d(architecture, strides) for _ in range(1 if shared else folds)]
        self.networks = nn.ModuleList(networks)
        self.heads = nn.ModuleList([HeadModule(features, classes, channels) for _ in range(folds)])
        self.register_buffer("temperatures", torch.ones(folds, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return calibrated probabilities (B, C) of network inputs (B, 1, D, H, W)."""
        features = [pooled_features(network, image) for network in self.networks]
        if len(features) == 1:
            features *= len(self.heads)
        logits = [head(own) for head, own in zip(self.heads, features, strict=True)]
        return torch.softmax((torch.stack(logits) / self.temperatures).mean(dim=0), dim=1)


def ensemble_classifier(model: StoredModel) -> EnsembleClassifier:
    """Return the network of a stored model as one PyTorch module, in evaluation mode."""
    description, heads = model.description, [head_module(head) for head in model.heads]
    shared = len({id(network) for network in model.networks}) == 1
    classes, features = heads[0].weight.shape
    module = EnsembleClassifier(
        architecture=description.backbone.architecture,
        strides=description.backbone.strides,
        classes=classes,
        folds=len(heads),
        features=features,
        channels=heads[0].channels,
        shared=shared,
    )
    for own, network in zip(module.networks.children(), model.networks, strict=False):
        own.load_state_dict({key: value.cpu() for key, value in network.state_dict().items()})
    for own, head in zip(module.heads.children(), heads, strict=True):
        own.load_state_dict(head.state_dict())
    temperatures = [fold.temperatures["network"] for fold in description.predictor.folds]
    module.temperatures.copy_(torch.tensor(temperatures).reshape(-1, 1, 1))
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
    head = head_module(model.heads[0])
    classes, features = head.weight.shape
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "brainstage.models.bundle.EnsembleClassifier",
            "architecture": model.description.backbone.architecture,
            "strides": model.description.backbone.strides,
            "classes": classes,
            "folds": len(module.heads),
            "features": features,
            "channels": head.channels,
            "shared": len(module.networks) == 1,
        },
        "weights": {
            "_target_": "safetensors.torch.load_file",
            "filename": f"$@bundle_root + '/{WEIGHTS_FILE}'",
        },
        "initialize": "$@network_def.load_state_dict(@weights)",
        "network": "$@network_def.to(@device).eval()",
        "inferer": {"_target_": "SimpleInferer"},
    }


def _what_is_missing(model: StoredModel) -> str:
    """Say in what the bundle's probabilities differ from those of ``predictions.csv``."""
    description = model.description
    others = sorted({name for fold in description.predictor.folds for name in fold.weights} - {"network"})
    columns = ", ".join(description.covariate_columns)
    missing = [f"what its members {' and '.join(others)} say"] if others else []
    missing += [f"the columns {columns}"] if columns else []
    if not missing:
        return ""
    return f" The published probabilities of the model also rest on {' and on '.join(missing)}, not in this bundle."


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
        "description": f"Med3D ResNet ({model.description.finetune}) with {model.description.head} heads, an "
        f"ensemble of cross-validation folds.{_what_is_missing(model)}",
        "authors": "made with brainstage",
        "copyright": "of those who trained it",
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
