"""Tokens and keys never leave this machine: a push that would send one is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dcsurgery.errors import PublishError
from dcsurgery.publishing.changes import Content
from dcsurgery.publishing.failures import NOTHING

# Weights are not read, and no text of a model is longer.
LONGEST = 64 * 1024 * 1024
_NAMES = {
    r"\.?env(\..+)?|.*\.env": "environment variables",
    r"\.?_?netrc|\.git-credentials|\.pypirc|\.npmrc|\.htpasswd": "passwords",
    r"id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|key|p12|pfx|jks|ppk|kdbx)": "a private key",
    r"kaggle\.json": "a Kaggle key",
    r"(client_)?secrets?(\..+)?|credentials(\..+)?|\.?token": "credentials",
}
_AT = r"(?<![A-Za-z0-9_-])"
_TEXTS = {
    rf"{_AT}((hf|api_org)_[A-Za-z0-9]{{30,}}|hf_(oauth|jwt)_[\w.-]{{30,}})": "a Hugging Face token",
    rf"{_AT}sk-((proj|ant|svcacct|admin|or)-[\w-]{{20,}}|[A-Za-z0-9]{{32,}})":
        "an API key (OpenAI, Anthropic or alike)",
    rf"{_AT}(AKIA|ASIA)[0-9A-Z]{{16}}(?![0-9A-Za-z])": "an AWS access key",
    rf"{_AT}(gh[pousr]_[A-Za-z0-9]{{36,}}|github_pat_\w{{22,}})": "a GitHub token",
    rf"{_AT}glpat-[\w-]{{20,}}": "a GitLab token",
    rf"{_AT}xox[abeoprs]-[\w-]{{10,}}|hooks\.slack\.com/services/T\w+/B\w+/\w{{20,}}":
        "a Slack token",
    rf"{_AT}[rs]k_live_[A-Za-z0-9]{{20,}}": "a Stripe key",
    rf"{_AT}gsk_[A-Za-z0-9]{{40,}}": "an API key (Groq)",
    rf"{_AT}(r8_[A-Za-z0-9]{{37}}|npm_[A-Za-z0-9]{{36}}|pypi-AgEI[\w-]{{20,}}|dapi[0-9a-f]{{32}})"
    r"(?![A-Za-z0-9])": "a token of npm, PyPI, Replicate or Databricks",
    rf"{_AT}eyJ[\w-]{{15,}}\.eyJ[\w-]{{15,}}\.[\w-]{{20,}}": "a signed token (JWT)",
    r"(?i)\bbearer (?=\S*\d)[\w.~+/-]{30,}": "an access token",
    r"wandb login (-\S+ )*[0-9a-f]{40}\b": "a key of Weights & Biases",
    r"(?i)\b(account|sharedaccess)key=[A-Za-z0-9+/]{40,}=": "an Azure key",
    r"(?<!\d)\d{8,10}:AA[\w-]{33}(?![\w-])": "a Telegram token",
    rf"{_AT}AIza[\w-]{{35}}": "a Google API key",
    r"-----BEGIN ([A-Z]+ )*PRIVATE KEY( BLOCK)?-----": "a private key",
    r'"private_key_id"\s*:|"type"\s*:\s*"service_account"': "a Google service account's key",
    r"(?i)\b\w*(api_?key|secret(_access)?_key|access_token|password)[\"']?\s*[=:]\s*"
    r"[\"']?(?=\S*\d)(?=\S*[a-z])[\w/+-]{20,}": "a key or password",
    r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']+:[^\s/@\"']{6,}@": "a password in a URL",
}  # fmt: skip
_BY_NAME = [(re.compile(pattern, re.IGNORECASE), kind) for pattern, kind in _NAMES.items()]
_BY_TEXT = [(re.compile(pattern.encode()), kind) for pattern, kind in _TEXTS.items()]


def refuse_secrets(files: Mapping[str, Content]) -> None:
    """Raise PublishError for a file that looks like a token or key; its content is never shown."""
    for path, content in files.items():
        kind = _kind(path, content)
        if kind is not None:
            raise PublishError(
                f"{path} looks like it holds {kind}; {NOTHING}",
                hint="remove it from the file or the folder and push again; if it was ever public, "
                "revoke it",
            )


def _kind(path: str, content: Content) -> str | None:
    name = path.rpartition("/")[2]
    by_name = next((kind for pattern, kind in _BY_NAME if pattern.fullmatch(name)), None)
    if by_name is not None:
        return by_name
    if path.endswith(".safetensors") or content.size > LONGEST:
        return None
    source = content.source
    raw = source.read_bytes() if isinstance(source, Path) else source
    # UTF-16, as some editors of Windows write it.
    raw = raw.decode("utf-16", "ignore").encode() if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else raw
    return next((kind for pattern, kind in _BY_TEXT if pattern.search(raw)), None)
