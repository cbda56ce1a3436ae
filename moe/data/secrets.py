"""Masks keys, passwords and e-mail addresses in text and code.

The patterns are those of well-known issuers, which have prefixes of their own: what has none, such as a password in a
variable, is not found.
"""

from __future__ import annotations

import re

KEY, EMAIL, PASSWORD = "<KEY>", "<EMAIL>", "<PASSWORD>"
# Each with the words of which a key has one: looking for those first is a hundred times faster.
_KEYS = {
    re.compile(pattern, re.DOTALL): marks
    for pattern, *marks in (
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "AKIA", "ASIA"),  # Amazon
        (r"\bgh[pousr]_[A-Za-z0-9]{36,}\b", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),  # GitHub
        (r"\bgithub_pat_[A-Za-z0-9_]{50,}\b", "github_pat_"),
        (r"\bglpat-[A-Za-z0-9_-]{20,}", "glpat-"),  # GitLab
        (r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}", "xox"),  # Slack
        (r"\bAIza[0-9A-Za-z_-]{35}", "AIza"),  # Google
        (r"\bsk-[A-Za-z0-9_-]{32,}", "sk-"),  # OpenAI, Anthropic
        (r"\b[rs]k_live_[0-9A-Za-z]{24,}\b", "k_live_"),  # Stripe
        (r"\bhf_[A-Za-z0-9]{34,}\b", "hf_"),  # Hugging Face
        (r"\bnpm_[A-Za-z0-9]{36}\b", "npm_"),
        (r"\bpypi-[A-Za-z0-9_-]{50,}", "pypi-"),
        (r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", "SG."),  # SendGrid
        (r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", "eyJ"),  # JSON web tokens
        (
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)",
            "PRIVATE KEY-----",
        ),
    )
}
_PASSWORD = re.compile(r"(?<=://)([\w.+-]{1,64}):([^\s:@/'\"{}$<>%]{3,64})@(?=[\w.-])")
# With one of these endings only: code such as `x@self.weight` looks like an address.
_ENDINGS = "com|org|net|edu|gov|info|io|dev|ai|co|me|eu|de|uk|fr|nl|it|es|pl|cz|ch|at|se|no|fi|dk|ru|cn|jp|kr|in|br|au"
_EMAIL = re.compile(
    rf"\b[A-Za-z0-9][\w.+-]{{0,63}}@(?!(?:[\w-]+\.)*example\.)(?:[A-Za-z0-9-]{{1,63}}\.)+(?:{_ENDINGS})\b(?![\w(\[]|\.\w)"
)


def mask(text: str) -> tuple[str, int]:
    """The text with keys, passwords of URLs and e-mail addresses replaced by marks, and how many there were."""
    found = 0
    for pattern, marks in _KEYS.items():
        if any(mark in text for mark in marks):
            text, count = pattern.subn(KEY, text)
            found += count
    for pattern, mark, put in ((_PASSWORD, "://", rf"\1:{PASSWORD}@"), (_EMAIL, "@", EMAIL)):
        if mark in text:
            text, count = pattern.subn(put, text)
            found += count
    return text, found
