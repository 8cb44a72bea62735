"""The schemas of torchvision's own operators, for a torchvision whose extension does not load.

The wheel on the package index is linked against CUDA. Beside a CPU build of torch its extension cannot be
loaded, and the import stops at operators that nobody has declared. None of them is called by the networks
that are tried here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_ROI = "Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width"
_BACK = "Tensor grad, Tensor rois, {} float spatial_scale, int pooled_height, int pooled_width, {}"
_SIZES = "int batch_size, int channels, int height, int width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, int stride_w, "
    "int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups, bool use_mask"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    f"ps_roi_align({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    f"roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"ps_roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"deform_conv2d({_DEFORM}) -> Tensor",
    f"_roi_align_backward({_BACK.format('', _SIZES)}, int sampling_ratio, bool aligned) -> Tensor",
    f"_ps_roi_align_backward({_BACK.format('Tensor mapping,', 'int sampling_ratio, ' + _SIZES)}) -> Tensor",
    f"_roi_pool_backward({_BACK.format('Tensor argmax,', _SIZES)}) -> Tensor",
    f"_ps_roi_pool_backward({_BACK.format('Tensor mapping,', _SIZES)}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_declared: list[torch.library.Library] = []  # schemas live as long as this does


def declare() -> None:
    """Let ``import torchvision`` succeed; nothing happens where its extension loads, or it is missing."""
    found = importlib.util.find_spec("torchvision")
    if _declared or found is None or found.origin is None:
        return
    extensions = sorted(Path(found.origin).parent.glob("_C*"))
    try:
        if extensions:
            torch.ops.load_library(str(extensions[0]))
            return
    except OSError:
        pass
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)
