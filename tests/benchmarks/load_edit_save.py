"""The usual way, for comparison: load with transformers, edit, save.

Writes what `dcsurgery convert --connector dci` writes: the first matrix padded to all hidden states
up to the feature layer.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForImageTextToText


def main(source: str, target: str) -> None:
    """Load `source`, read 24 hidden states instead of one, save to `target`."""
    model = AutoModelForImageTextToText.from_pretrained(source, dtype="auto")
    depth = model.config.vision_config.num_hidden_layers
    layers = list(range(depth))
    linear = model.model.multi_modal_projector.linear_1
    padding = linear.weight.new_zeros(linear.out_features, linear.in_features * (depth - 1))
    with torch.no_grad():
        linear.weight = torch.nn.Parameter(torch.cat([padding, linear.weight], dim=1))
    linear.in_features = linear.weight.shape[1]
    model.config.vision_feature_layer = layers
    model.save_pretrained(target, max_shard_size="5GB")


if __name__ == "__main__":
    main(*sys.argv[1:])
