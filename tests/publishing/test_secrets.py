"""A push never sends a token or a key, and never prints one."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

import dcsurgery
from dcsurgery.errors import PublishError
from dcsurgery.publishing.changes import Content, left_behind, local_files
from dcsurgery.publishing.push import push_checkpoint
from dcsurgery.publishing.secrets import refuse_secrets
from dcsurgery.tiny import write_tiny_llava
from tests.checkpoint.folders import write

_DRAW = random.Random(0)


def drawn(count: int, letters: str = string.ascii_letters + string.digits) -> str:
    """Made here, so that no scanner of this repository finds anything."""
    return "".join(_DRAW.choice(letters) for _ in range(count))


UPPER = string.ascii_uppercase + string.digits
SECRETS = {
    "a Hugging Face token": "hf_" + drawn(34),
    "an API key": "sk-" + drawn(48),
    "an API key (OpenAI": "sk-proj-" + drawn(60),
    "an API key (OpenAI, Anthropic": "sk-ant-" + "api03-" + drawn(60),
    "an AWS access key": "AKIA" + drawn(16, UPPER),
    "a GitHub token": "ghp_" + drawn(36),
    "a GitHub tok": "github_pat_" + drawn(60),
    "a GitLab token": "glpat-" + drawn(20),
    "a Slack token": "xoxb-" + drawn(30),
    "a Google API key": "AIza" + drawn(35),
    "a private key": "-----BEGIN OPENSSH PRIVATE" + " KEY-----",
    "a private": "-----BEGIN PRIVATE" + " KEY-----",
    "a Google service account": '"private_key_id": "' + drawn(40) + '"',
    "a key or password": "WANDB_API_KEY=" + "a1" + drawn(38, "0123456789abcdef"),
    "a password in a URL": "https://me:" + drawn(12) + "@example.org/x",
    "a password in a": "postgresql+psycopg://me:" + drawn(12) + "@db:5432/x",
    "a Hugging Face": "hf_oauth_" + drawn(50),
    "a Hugging": "hf_jwt_eyJ" + drawn(30),
    "a key of Weights & Biases": "wandb login --relogin " + drawn(40, "0123456789abcdef"),
    "a Slack": "https://hooks.slack.com/services/T" + drawn(8, UPPER) + "/B1/" + drawn(24),
    "a Stripe key": "sk_live_" + drawn(24),
    "an API key (Groq": "gsk_" + drawn(52),
    "a token of": "r8_" + drawn(37),
    "a token": "npm_" + drawn(36),
    "a token of npm, PyPI": "pypi-AgEIcHlwaS5vcmc" + drawn(40),
    "a token of npm": "dapi" + drawn(32, "0123456789abcdef"),
    "a signed token": "eyJ" + drawn(30) + ".eyJ" + drawn(40) + "." + drawn(43),
    "an access token": "Authorization: Bearer " + drawn(40),
    "an Azure": "AccountKey=" + drawn(86) + "==",
    "a Telegram": "123456789:AA" + drawn(33),
}
FILES = ("notes.txt", "README.md", "config.json", "sub/train.jsonl", "run.py", "a.yaml", "odd")


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("name", FILES)
def test_a_secret_is_found_and_not_shown(kind: str, name: str, tmp_path: Path) -> None:
    secret = SECRETS[kind]
    for encoding in ("utf-8", "utf-16"):
        write(tmp_path, {name: f'{{"x": "y {secret}"}}\n'.encode(encoding)})
        with pytest.raises(PublishError) as caught:
            refuse_secrets(local_files(tmp_path))
        said = f"{caught.value.message} {caught.value.hint}"
        assert name in said and kind in said and secret not in said
    with pytest.raises(PublishError, match=r"card\.md"):
        refuse_secrets({"card.md": Content(secret.encode())})


@pytest.mark.parametrize(
    "name",
    ["env", "prod.env", "id_rsa", "id_ed25519", "server.pem", "deploy.key", "kaggle.json",
     "credentials.json", "client_secret.json", "sub/secrets.yaml", "token", "netrc", "a.p12"],
)  # fmt: skip
def test_files_of_keys_are_known_by_name(name: str, tmp_path: Path) -> None:
    write(tmp_path, {name: b"x"})
    with pytest.raises(PublishError, match=name.split("/")[-1]):
        refuse_secrets(local_files(tmp_path))


def test_hidden_files_of_keys_stay_and_are_said(tmp_path: Path) -> None:
    hidden = (".env", ".netrc", ".npmrc", ".ssh/id_rsa", ".cache/huggingface/token", ".git/config")
    write(tmp_path, {**dict.fromkeys(hidden, b"x"), "config.json": b"{}", ".dcsurgery.json": b"{}"})
    assert set(local_files(tmp_path)) == {"config.json"}
    assert set(left_behind(tmp_path)) == {".env", ".netrc", ".npmrc", ".ssh/id_rsa"}


def test_what_models_hold_is_no_secret(tmp_path: Path) -> None:
    folder = write_tiny_llava(tmp_path / "model")
    words = {
        "vocab.json": b'{"sk-": 1, "hf_": 2, "AKIA": 3, "task-specific-learning-long": 4}',
        "tokenizer_config.json": b'{"eos_token": "<|im_end|>", "image_token": "<image>",'
        b' "add_bos_token": true, "hf_token_of_the_vocabulary": "PASSWORD"}',
        "README.md": b"Set `HF_TOKEN=hf_...`; api_key = your_key_goes_here_in_this_place;"
        b" https://user:pw@host is a pattern; sk-learn; risk-averse-and-so-on-and-so-forth",
        "config.json": b'{"sha256": "' + b"0123456789abcdef" * 4 + b'"}',
        "model.safetensors": ("hf_" + drawn(34)).encode(),
    }
    refuse_secrets(local_files(folder))
    refuse_secrets({name: Content(value) for name, value in words.items()})


def test_a_push_is_refused_before_the_hub_is_asked(tmp_path: Path) -> None:
    write_tiny_llava(tmp_path / "base")
    dcsurgery.convert(tmp_path / "base", tmp_path / "OUT")
    secret = "hf_" + drawn(34)
    (tmp_path / "OUT" / "train.py").write_text(f"login('{secret}')\n")
    with pytest.raises(PublishError, match=r"train\.py looks like it holds a Hugging") as caught:
        push_checkpoint(tmp_path / "OUT", "me/model", token="unused")
    assert secret not in str(caught.value) and "nothing was committed" in caught.value.message
