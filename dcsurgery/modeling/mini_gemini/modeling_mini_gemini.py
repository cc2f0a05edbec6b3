"""Mini-Gemini's model: two vision towers, patch-info mining, projector, transformers' own LM.

One image is `views` low-resolution pictures (grid x grid tiles, row by row, then the whole picture)
and one high-resolution picture. Every patch token of a low-resolution picture asks the part of the
high-resolution feature map that shows the same place (arXiv 2403.18814 section 3.2); what it finds
is added to it before the projector. Image tokens are those of the whole picture, then those of the
tiles, one tile after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModel,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from dcsurgery.modeling.mini_gemini.configuration_mini_gemini import MiniGeminiConfig
from dcsurgery.modeling.mini_gemini.layers_mini_gemini import (
    MiniGeminiMultiModalProjector,
    MiniGeminiPatchInfoMining,
    split_tiles,
)


@dataclass
class MiniGeminiOutput(ModelOutput):
    """What the language model gives, and the projected image tokens [images, tokens, H]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


class MiniGeminiPreTrainedModel(PreTrainedModel):
    """What transformers wants to know about the model."""

    config_class = MiniGeminiConfig
    config: MiniGeminiConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["MiniGeminiPatchInfoMining", "MiniGeminiMultiModalProjector"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class MiniGeminiModel(MiniGeminiPreTrainedModel):
    """Towers, mining, projector and language model, without the head over the vocabulary."""

    def __init__(self, config: MiniGeminiConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.vision_tower_aux = AutoModel.from_config(config.vision_config_aux)
        # Mining reads the stages; the norm after pooling is not part of the checkpoints.
        self.vision_tower_aux.layernorm = nn.Identity()
        self.patch_info_mining = MiniGeminiPatchInfoMining(config)
        self.multi_modal_projector = MiniGeminiMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_low(self, pixel_values: Tensor) -> Tensor:
        """Return patch tokens [B * views, N, C] of pictures [B * views, 3, S, S]."""
        pixels = pixel_values.to(self.vision_tower.dtype)
        states = self.vision_tower(pixels, output_hidden_states=True).hidden_states
        features: Tensor = states[self.config.vision_feature_layer][:, 1:]
        return features

    def encode_high(self, pixel_values_aux: Tensor) -> Tensor:
        """Return maps [B, sum of stage widths, h, w] of pictures [B, 3, S', S'].

        All stages, brought to the size of the first by bilinear interpolation.
        """
        pixels = pixel_values_aux.to(self.vision_tower_aux.dtype)
        states = self.vision_tower_aux(pixels, output_hidden_states=True).hidden_states
        first, *others = states[-len(self.config.vision_config_aux.depths) :]
        size = first.shape[-2:]
        return torch.cat([first, *(_resized(stage, size=size) for stage in others)], dim=1)

    def mine(self, features: Tensor, maps: Tensor) -> Tensor:
        """Return what mining adds to patch tokens [B * views, N, C]; maps are [B, C', h, w]."""
        grid, tiles = self.config.image_grid, len(maps) * self.config.image_grid**2
        mined: list[Tensor] = [self.patch_info_mining(features[:tiles], split_tiles(maps, grid))]
        if self.config.image_global:
            small = _resized(maps, scale_factor=1 / grid)
            mined.append(self.patch_info_mining(features[tiles:], small))
        return torch.cat(mined)

    def views(self, pixel_values: Tensor) -> Tensor:
        """Return pictures [B * views, 3, S, S]: the tiles of all images, then the whole pictures.

        `pixel_values` is [B, views, 3, S, S], or [B, 3, S, S] for a grid of one. Raises ValueError
        for another number of pictures than the config means.
        """
        given = pixel_values if pixel_values.ndim == 5 else pixel_values.unsqueeze(1)
        if given.shape[1] != self.config.views:
            raise ValueError(
                f"an image is {given.shape[1]} low-resolution pictures, but image_grid "
                f"{self.config.image_grid} and image_global {self.config.image_global} mean "
                f"{self.config.views}"
            )
        tiles = self.config.image_grid**2
        return torch.cat([given[:, :tiles].flatten(0, 1), given[:, tiles:].flatten(0, 1)])

    def image_tokens(self, features: Tensor) -> Tensor:
        """Bring patch tokens [B * views, N, C] into the order of image tokens [B, views * N, C].

        The whole picture first, then the tiles.
        """
        tiles = self.config.image_grid**2
        images = len(features) // self.config.views
        local = features[: images * tiles].reshape(images, -1, features.shape[-1])
        return (
            torch.cat([features[images * tiles :], local], 1) if self.config.image_global else local
        )

    def get_image_features(
        self, pixel_values: Tensor, pixel_values_aux: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return projected image tokens as `pooler_output`, one [views * N, H] per image.

        Without high-resolution pictures nothing is mined.
        """
        features = self.encode_low(self.views(pixel_values))
        if pixel_values_aux is not None:
            maps = self.encode_high(pixel_values_aux).to(features.device, features.dtype)
            features = features + self.mine(features, maps)
        tokens = self.multi_modal_projector(self.image_tokens(features))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=list(tokens))

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return word embeddings [B, T, H]; an image token outside the vocabulary counts as 0."""
        words = self.get_input_embeddings()
        if self.config.image_token_id >= self.config.text_config.vocab_size:
            input_ids = input_ids.masked_fill(input_ids == self.config.image_token_id, 0)
        embedded: Tensor = words(input_ids)
        return embedded

    def insert(self, input_ids: Tensor | None, embeds: Tensor, tokens: Tensor) -> Tensor:
        """Put image tokens [all, H] where the prompt has places for them.

        Raises ValueError when there are more places or fewer.
        """
        # Gemma multiplies its words by a constant, in older transformers words and images alike:
        # models were trained with both multiplied.
        scale = getattr(self.get_input_embeddings(), "embed_scale", None)
        tokens = tokens.to(embeds.device, embeds.dtype)
        if scale is not None:
            tokens = tokens * scale.to(tokens)
        if input_ids is None:
            marker = self.embed(torch.tensor(self.config.image_token_id, device=embeds.device))
            mask = (embeds == marker).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        if int(mask.sum()) != len(tokens):
            raise ValueError(
                f"the prompt has {int(mask.sum())} image tokens, the images give {len(tokens)}"
            )
        return embeds.masked_scatter(mask.unsqueeze(-1).to(embeds.device), tokens)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_aux: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> MiniGeminiOutput:
        """Run the language model over words and image tokens.

        Further keywords are the language model's own. Raises ValueError unless exactly one of
        input_ids and inputs_embeds is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds: Any = inputs_embeds if input_ids is None else self.embed(input_ids)
        images = None
        if pixel_values is not None:
            images = torch.stack(self.get_image_features(pixel_values, pixel_values_aux)[1])
            embeds = self.insert(input_ids, embeds, images.flatten(0, 1))
        kwargs["return_dict"] = True
        outputs = self.language_model(inputs_embeds=embeds, **kwargs)
        return MiniGeminiOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=images,
        )


class MiniGeminiForConditionalGeneration(MiniGeminiPreTrainedModel, GenerationMixin):
    """The whole model: answers prompts with images."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: MiniGeminiConfig) -> None:
        super().__init__(config)
        self.model = MiniGeminiModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self, pixel_values: Tensor, pixel_values_aux: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return projected image tokens as `pooler_output`, one [views * N, H] per image."""
        return self.model.get_image_features(pixel_values, pixel_values_aux, **kwargs)

    def forward(  # noqa: PLR0913 - transformers' own arguments
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_aux: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MiniGeminiOutput | tuple[Any, ...]:
        """Return logits [B, T, vocabulary] and, with `labels` [B, T], the mean loss.

        `pixel_values` is [images, views, 3, S, S] ([images, 3, S, S] for a grid of one),
        `pixel_values_aux` [images, 3, S', S'].
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_aux=pixel_values_aux,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **kwargs)
        result = MiniGeminiOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
        return result.to_tuple() if return_dict is False else result

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Return the inputs of one step: images only with the tokens they belong to."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        ids = inputs.get("input_ids")
        if ids is not None and not (ids == self.config.image_token_id).any():
            inputs["pixel_values"] = inputs["pixel_values_aux"] = None
        return inputs


def _resized(maps: Tensor, **size: Any) -> Tensor:
    """Return feature maps [B, C, h, w] of another size, interpolated in fp32."""
    found = functional.interpolate(maps.float(), mode="bilinear", align_corners=False, **size)
    return found.to(maps.dtype)
