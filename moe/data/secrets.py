"""Masks keys, passwords and e-mail addresses in text and code.

The patterns are those of well-known issuers, which have prefixes of their own: what has none, such as a password in a
variable, is not found.
"""

from __future__ import annotations

import re

KEY, EMAIL, PASSWORD = "<KEY>", "<EMAIL>", "<PASSWORD>"
_KEYS = re.compile(
    "|".join(
        (
            r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # Amazon
            r"\bgh[pousr]_[A-Za-z0-9]{36,}\b",  # GitHub
            r"\bgithub_pat_[A-Za-z0-9_]{50,}\b",
            r"\bglpat-[A-Za-z0-9_-]{20,}",  # GitLab
            r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
            r"\bAIza[0-9A-Za-z_-]{35}",  # Google
            r"\bsk-[A-Za-z0-9_-]{32,}",  # OpenAI, Anthropic
            r"\b[rs]k_live_[0-9A-Za-z]{24,}\b",  # Stripe
            r"\bhf_[A-Za-z0-9]{34,}\b",  # Hugging Face
            r"\bnpm_[A-Za-z0-9]{36}\b",
            r"\bpypi-[A-Za-z0-9_-]{50,}",
            r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",  # SendGrid
            r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",  # JSON web tokens
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)",
        )
    ),
    re.DOTALL,
)
_PASSWORD = re.compile(r"(?<=://)([\w.+-]{1,64}):([^\s:@/'\"{}$<>%]{3,64})@(?=[\w.-])")
# With one of these endings only: code such as `x@self.weight` looks like an address.
_ENDINGS = "com|org|net|edu|gov|info|io|dev|ai|co|me|eu|de|uk|fr|nl|it|es|pl|cz|ch|at|se|no|fi|dk|ru|cn|jp|kr|in|br|au"
_EMAIL = re.compile(
    rf"\b[A-Za-z0-9][\w.+-]{{0,63}}@(?!(?:[\w-]+\.)*example\.)(?:[A-Za-z0-9-]{{1,63}}\.)+(?:{_ENDINGS})\b(?![\w(\[]|\.\w)"
)


def mask(text: str) -> tuple[str, int]:
    """The text with keys, passwords of URLs and e-mail addresses replaced by marks, and how many there were."""
    text, keys = _KEYS.subn(KEY, text)
    text, passwords = _PASSWORD.subn(rf"\1:{PASSWORD}@", text)
    text, addresses = _EMAIL.subn(EMAIL, text)
    return text, keys + passwords + addresses
