"""Detect secrets in texts, by the name of the variable or option, or by the form of the value."""

import itertools
import re
from collections.abc import Iterator, Mapping

_SECRET_WORDS = {
    "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "TOKEN", "CREDENTIAL",
    "CREDENTIALS", "PAT", "KEY", "APIKEY", "ACCESSKEY",
}  # fmt: skip
_KEY_PREFIXES = {"API", "ACCESS", "PRIVATE", "SECRET", "ACCOUNT", "SIGNING", "ENCRYPTION", "MASTER"}
_HARMLESS_ENDINGS = {
    "PATH", "FILE", "FILES", "DIR", "URL", "URI", "MODE", "NAME", "TYPE", "TTL", "SECONDS",
    "LENGTH", "LIMIT", "SIZE", "STDIN", "COUNT", "ARN", "ENDPOINT", "USERNAME",
}  # fmt: skip
_SECRET_ENDINGS = (
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "AUTHTOKEN",
    "APIKEY",
    "ACCOUNTKEY",
)
_SECRET_NAMES = {"SSHPASS", "REDISCLI_AUTH", "SHAREDACCESSKEY", "SSHPASSWORD", "NETRC"}
_HARMLESS_NAMES = {"PWD", "OLDPWD", "SSH_PRIVATE_KEY"}
_SECRET_FORMS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"
    r"|\bhf_[A-Za-z0-9]{16,}|\bAIza[\w-]{30,}|\bsk-[\w-]{20,}|\bxox[abps]-[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bsk_live_\w{10,}|\bnpm_\w{30,}|\bdckr_pat_[\w-]{20,}|\bpypi-[\w-]{30,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|[?&](?:sig|X-Amz-Signature)=[\w%+/=-]{20,}"
    r"|\bBearer\s+[\w.~+/-]{16,}|\bAuthorization:\s*Basic\s+[\w+/]{8,}"
    r"|://[^/\s:@$]+:[^/\s:@$]{3,}@"
)
_ASSIGNED = re.compile(
    r"(?<![\w-])(?:-{0,2}([A-Za-z][\w-]*)\s*[=:]|--([A-Za-z][\w-]*)\s|(aws_\w+)\s)\s*"
    r"""(?:"([^"]*)"|'([^']*)'|([^\s"';&|]+))"""
)
_LITERAL_ARGUMENT = r"[\s=]*['\"]?[^\s'\"$`<{-][^\s'\"]{2,}"
_PASSWORD_OPTIONS = re.compile(
    r"\b(?:"
    r"(?:curl|wget|https?|xh|lftp|aria2c)\b[^;&|\n]*?[\s'\"](?:-[A-Za-z#]*[uUa]|--(?:proxy-)?user|--auth)"
    r"[\s=]*['\"]?[^\s:'\"$`<{/]+:[^\s'\"$`<{][^\s'\"]*"
    rf"|sshpass\s+-p{_LITERAL_ARGUMENT}"
    rf"|(?:mysql|mysqldump|mysqladmin|mariadb)\b[^;&|\n]*?\s-p[^\s'\"$`<{{-][^\s'\"]{{2,}}"
    rf"|redis-cli\b[^;&|\n]*?\s-a{_LITERAL_ARGUMENT}"
    rf"|ldap\w+\b[^;&|\n]*?\s-w{_LITERAL_ARGUMENT}"
    rf"|mongo\w*\b[^;&|\n]*?\s-p{_LITERAL_ARGUMENT}"
    rf"|(?:docker|podman|nerdctl|oras|skopeo|crane|helm|az)\b[^;&|\n]*?\blogin\b[^;&|\n]*?\s-p{_LITERAL_ARGUMENT}"
    r"|smbclient\b[^;&|\n]*?\s-U\s*[^\s%$]+%[^\s$`<{]{2,}"
    rf"|openssl\b[^;&|\n]*?\s-pass(?:in|out)?\s+pass:[^\s$`<{{]{{2,}}"
    r")"
)
"""Password options of common programs, whose names do not show a password."""
_LITERAL = re.compile(r"[^\s$`<{~/][^\s$`<{]{7,}|/[^\s$`<{]*[+=][^\s$`<{]*")
"""A literal value. A value with a leading slash counts only if it has + or =, unlike paths."""


def is_secret_name(name: str) -> bool:
    """Return whether a variable, field or option with the name holds a secret."""
    words = name.upper().replace("-", "_").strip("_").split("_")
    if "_".join(words) in _HARMLESS_NAMES or words[-1] in _HARMLESS_ENDINGS:
        return False
    is_plain = set(words) & (_SECRET_WORDS - {"KEY"}) or words[-1].endswith(_SECRET_ENDINGS)
    is_plain = is_plain or "_".join(words) in _SECRET_NAMES
    pairs = itertools.pairwise(words)
    return bool(
        is_plain
        or any(first in _KEY_PREFIXES and second == "KEY" for first, second in pairs)
        or (words[-1] == "KEY" and len(words) > 1 and name.isupper())
    )


def is_literal_value(value: object) -> bool:
    """Return whether a value is literal text instead of a variable, a path or a placeholder."""
    return isinstance(value, str) and bool(value) and not value.startswith(("$", "~/", "`", "<"))


def find_secrets(text: str) -> Iterator[str]:
    """Yield a description of each apparent secret in a text, by name or by form."""
    if form := _SECRET_FORMS.search(text):
        yield f"{form[0][:6]}…"
    if login := _PASSWORD_OPTIONS.search(text):
        yield f"a password for {login[0].split(maxsplit=1)[0]}"
    for match in _ASSIGNED.finditer(text):
        name, value = (
            next(filter(None, part), "") for part in (match.groups()[:3], match.groups()[3:])
        )
        # Such as `--from-literal=password=…` of kubectl.
        if "=" in value and name.startswith("from-"):
            yield from find_secrets(value)
        if is_secret_name(name) and _LITERAL.fullmatch(value) and not value.isdigit():
            yield name


def list_secret_values(
    environment: Mapping[str, str], *, shortest: int = 8
) -> Iterator[tuple[str, str]]:
    """Yield names and values of an environment's secrets with at least `shortest` characters."""
    # Shorter values cannot be distinguished from ordinary words in a text.
    for name, value in environment.items():
        if is_secret_name(name) and len(value) >= shortest and is_literal_value(value):
            yield name, value
