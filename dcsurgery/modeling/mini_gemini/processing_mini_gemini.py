"""Mini-Gemini's processor: prompts with images become token ids and pictures."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import BatchFeature, ProcessorMixin


class MiniGeminiProcessor(ProcessorMixin):
    """Image processor and tokenizer in one.

    Every `image_token` in a prompt becomes as many as one image has patches of `patch_size` pixels
    in all its low-resolution views.
    """

    # transformers 5.0 reads the kinds from here, later versions from the names of the arguments.
    attributes: ClassVar = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        image_token: str = "<image>",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.patch_size = patch_size
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def image_seq_length(self) -> int:
        """Image tokens of one image."""
        side = self.image_processor.size // self.patch_size
        return int(self.image_processor.views * side**2)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Return input_ids and attention_mask for `text`, pixel values for `images`, or both.

        Keywords are the tokenizer's. Raises ValueError when prompts and images do not match.
        """
        tensors = kwargs.pop("return_tensors", None)
        values: dict[str, Any] = {}
        if images is not None:
            values |= self.image_processor(self.image_processor.fetch_images(images))
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            places = sum(prompt.count(self.image_token) for prompt in prompts)
            if images is not None and places != len(values["pixel_values"]):
                raise ValueError(
                    f"the prompts have {places} times {self.image_token}, for "
                    f"{len(values['pixel_values'])} images"
                )
            many = self.image_token * self.image_seq_length
            kwargs.pop("common_kwargs", None)
            kwargs = {**kwargs, **kwargs.pop("text_kwargs", {})}
            kwargs.pop("images_kwargs", None)
            values |= self.tokenizer([p.replace(self.image_token, many) for p in prompts], **kwargs)
        return BatchFeature(values, tensor_type=tensors)

    @property
    def model_input_names(self) -> list[str]:
        """Return what the model takes."""
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        return list(dict.fromkeys(names))
