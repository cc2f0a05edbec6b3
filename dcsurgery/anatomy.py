"""What dcsurgery needs to know about a model, read from its config and tensor shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class VisionTower:
    """The image encoder.

    `kind` is the config's model type ("clip_vision_model"); `module` the dotted path suffix of the
    module whose call is one pass over images ("vision_tower"); `blocks` that of its list of blocks
    ("vision_tower.encoder.layers"; a "vision_model." or "model." inside is ignored, some versions
    of transformers have it); `width` channels C; `depth` number of blocks; `prefix_tokens` tokens
    before the patch tokens (CLS, registers); `image_size` and `patch_size` in pixels. `twins` are
    the (module, blocks) of further towers of the same shape that feed the same projector.
    """

    kind: str
    module: str
    blocks: str
    width: int
    depth: int
    prefix_tokens: int
    image_size: int
    patch_size: int
    twins: tuple[tuple[str, str], ...] = ()

    @property
    def grid(self) -> int:
        """Patches along one side of a square image of `image_size` pixels."""
        return self.image_size // self.patch_size

    @property
    def paths(self) -> tuple[tuple[str, str], ...]:
        """(module, blocks) of every tower."""
        return ((self.module, self.blocks), *self.twins)


@dataclass(frozen=True)
class Site:
    """A module whose output is the product of a first matrix of the projector.

    `module` is its dotted path suffix, `weight` the full tensor name of the matrix in the
    checkpoint, `in_features` the channels it reads, `out_features` the last dimension of its
    output (channels for a convolution). `rows` counts what it reads for one image where that is
    another number than the image tokens; 0 where it is the same. Sites that read equally many rows
    read the same ones.
    """

    module: str
    weight: str
    in_features: int
    out_features: int
    rows: int = 0


@dataclass(frozen=True)
class Projector:
    """The map from tower width to language width: its sites (one in most models) and tensors.

    `module` is the path suffix of the module whose call says what `arrange` cannot learn from the
    tower's own call; empty when it needs nothing more. `beside` are tensors that are trained
    wherever the projector is, though it does not hold them (Mini-Gemini's mining).
    """

    sites: tuple[Site, ...]
    tensors: tuple[str, ...]
    module: str = ""
    beside: tuple[str, ...] = ()

    @property
    def out_features(self) -> int:
        """Rows of all first matrices together."""
        return sum(site.out_features for site in self.sites)

    def reading(self, *rows: int) -> Projector:
        """Return a copy whose sites read that many rows for one image, site by site."""
        sites = zip(self.sites, rows, strict=True)
        return replace(self, sites=tuple(replace(site, rows=count) for site, count in sites))


@dataclass(frozen=True)
class Anatomy:
    """Tower, projector and the wire between them.

    `feature_layers` are the hidden states the projector reads today, non-negative, in the order in
    which their channels are joined (one entry in most models); `feature_width` the channels of one
    hidden state where the first matrix reads it (a multiple of the tower's width when neighbouring
    patches are merged before); `dropped_tokens` leading tokens are cut off before the projector;
    `image_tokens` counts the embeddings of one image (of `image_size` pixels square where the tower
    takes any size; of one tile where the family cuts images into tiles); `language_model` is the
    text config's model type; `dtype` the safetensors dtype of the projector. `first_state` is the
    shallowest state the stock config can name; `normed` means that the feature read today has
    passed the tower's last norm.
    """

    architecture: str
    tower: VisionTower
    projector: Projector
    feature_layers: tuple[int, ...]
    feature_width: int
    dropped_tokens: int
    image_tokens: int
    variable_resolution: bool
    language_model: str
    dtype: str
    first_state: int = 0
    normed: bool = False

    @property
    def feature_layer(self) -> int:
        """The deepest hidden state the projector reads today (the paper's V_L)."""
        return max(self.feature_layers)
