"""How the references write a conversation, restated from their conversation.py by separator style.

`talk` is a list of (question, answer); the last answer is None where it is to be generated.
haotian-liu/LLaVA, dvlab-research/MGM, HJYao00/DenseConnector and LLaVA-VL/LLaVA-NeXT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Talk = Sequence[tuple[str, str | None]]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA = (
    "You are a helpful language and vision assistant. You are able to understand the visual content"
    " that the user provides, and assist the user with a variety of tasks using natural language."
)


def two(talk: Talk, system: str | None) -> str:
    """Style TWO with " " and "</s>": conv_vicuna_v1."""
    text = (VICUNA if system is None else system) + " "
    for question, answer in talk:
        text += f"USER: {question} "
        text += "ASSISTANT:" if answer is None else f"ASSISTANT: {answer}</s>"
    return text


def mpt(default: str) -> Callable[[Talk, str | None], str]:
    """Style MPT with "<|im_end|>": conv_chatml_direct, conv_mpt."""

    def write(talk: Talk, system: str | None) -> str:
        text = f"<|im_start|>system\n{default if system is None else system}<|im_end|>"
        for question, answer in talk:
            text += f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n"
            text += "" if answer is None else f"{answer}<|im_end|>"
        return text

    return write


def qwen(talk: Talk, system: str | None) -> str:
    """Style CHATML: conv_qwen."""
    text = f"<|im_start|>system\n{system or 'You are a helpful assistant.'}<|im_end|>\n"
    for question, answer in talk:
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        text += "" if answer is None else f"{answer}<|im_end|>\n"
    return text


def llama_2(sep: str, default: str = "") -> Callable[[Talk, str | None], str]:
    """Style LLAMA_2: conv_mistral_instruct (sep "" in LLaVA, "<s>" in MGM), conv_llava_llama_2."""

    def write(talk: Talk, system: str | None) -> str:
        text = ""
        for at, (question, answer) in enumerate(talk):
            words = default if system is None else system
            first = f"<<SYS>>\n{words}\n<</SYS>>\n\n" if words and at == 0 else ""
            text += f"{sep}[INST] {first}{question} [/INST]"
            text += "" if answer is None else f" {answer} </s>"
        return text.removeprefix(sep)

    return write


def llama_3(answering: str) -> Callable[[Talk, str | None], str]:
    """Style LLAMA_3, behind Llama 3's first token; MGM and DenseConnector answer as "system"."""

    def write(talk: Talk, system: str | None) -> str:
        def turn(role: str, words: str | None) -> str:
            head = f"<|start_header_id|>{role}<|end_header_id|>\n\n"
            return head if words is None else f"{head}{words}<|eot_id|>"

        text = "<|begin_of_text|>" + turn("system", LLAMA if system is None else system)
        for question, answer in talk:
            text += turn("user", question) + turn(answering, answer)
        return text

    return write


def gemma(talk: Talk, system: str | None) -> str:
    """Style GEMMA with "" and "<eos>": MGM's conv_gemma."""
    text = system or ""
    for question, answer in talk:
        text += f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
        text += "" if answer is None else f"{answer}<end_of_turn>\n<eos>"
    return text


def single(talk: Talk, system: str | None) -> str:
    """Style SINGLE with "###": conv_llava_v0."""
    text = (VICUNA.replace("user", "human") if system is None else system) + "###"
    for question, answer in talk:
        text += f"Human: {question}###"
        text += "Assistant:" if answer is None else f"Assistant: {answer}###"
    return text


REFERENCE: dict[str, Callable[[Talk, str | None], str]] = {
    "v0": single,
    "v1": two,
    "chatml_direct": mpt("Answer the questions."),
    "mpt": mpt(
        "A conversation between a user and an LLM-based AI assistant. "
        "The assistant gives helpful and honest answers."
    ),
    "qwen_1_5": qwen,
    "mistral_instruct": llama_2(""),
    "mgm_mistral_instruct": llama_2("<s>"),
    "llava_llama_2": llama_2("<s>", LLAMA),
    "llama_3": llama_3("system"),
    "llava_llama_3": llama_3("assistant"),
    "gemma": gemma,
}
