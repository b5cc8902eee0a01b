"""What looks like a secret: by the name of what holds it, or by its form."""

import itertools
import re
from collections.abc import Iterator, Mapping

_WORDS = {
    "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "TOKEN", "CREDENTIAL",
    "CREDENTIALS", "PAT", "KEY", "APIKEY", "ACCESSKEY",
}  # fmt: skip
_KEYS_OF = {"API", "ACCESS", "PRIVATE", "SECRET", "ACCOUNT", "SIGNING", "ENCRYPTION", "MASTER"}
_NO_SECRETS = {
    "PATH", "FILE", "FILES", "DIR", "URL", "URI", "MODE", "NAME", "TYPE", "TTL", "SECONDS",
    "LENGTH", "LIMIT", "SIZE", "STDIN", "COUNT", "ARN", "ENDPOINT", "USERNAME",
}  # fmt: skip
_ENDINGS = ("PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "AUTHTOKEN", "APIKEY", "ACCOUNTKEY")
_WHOLE = {"SSHPASS", "REDISCLI_AUTH", "SHAREDACCESSKEY", "SSHPASSWORD", "NETRC"}
_NEITHER = {"PWD", "OLDPWD", "SSH_PRIVATE_KEY"}
_FORMS = re.compile(
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
_WRITTEN = r"[\s=]*['\"]?[^\s'\"$`<{-][^\s'\"]{2,}"
_LOGINS = re.compile(
    r"\b(?:"
    r"(?:curl|wget|https?|xh|lftp|aria2c)\b[^;&|\n]*?[\s'\"](?:-[A-Za-z#]*[uUa]|--(?:proxy-)?user|--auth)"
    r"[\s=]*['\"]?[^\s:'\"$`<{/]+:[^\s'\"$`<{][^\s'\"]*"
    rf"|sshpass\s+-p{_WRITTEN}"
    rf"|(?:mysql|mysqldump|mysqladmin|mariadb)\b[^;&|\n]*?\s-p[^\s'\"$`<{{-][^\s'\"]{{2,}}"
    rf"|redis-cli\b[^;&|\n]*?\s-a{_WRITTEN}"
    rf"|ldap\w+\b[^;&|\n]*?\s-w{_WRITTEN}"
    rf"|mongo\w*\b[^;&|\n]*?\s-p{_WRITTEN}"
    rf"|(?:docker|podman|nerdctl|oras|skopeo|crane|helm|az)\b[^;&|\n]*?\blogin\b[^;&|\n]*?\s-p{_WRITTEN}"
    r"|smbclient\b[^;&|\n]*?\s-U\s*[^\s%$]+%[^\s$`<{]{2,}"
    rf"|openssl\b[^;&|\n]*?\s-pass(?:in|out)?\s+pass:[^\s$`<{{]{{2,}}"
    r")"
)
"""What programs take for a password without calling it one."""
_LITERAL = re.compile(r"[^\s$`<{~/][^\s$`<{]{7,}|/[^\s$`<{]*[+=][^\s$`<{]*")
"""A value that stands for nothing else; of what begins as a path, only what no path has."""


def is_secret_name(name: str) -> bool:
    """Say whether a variable, field or option of that name holds a secret."""
    words = name.upper().replace("-", "_").strip("_").split("_")
    if "_".join(words) in _NEITHER or words[-1] in _NO_SECRETS:
        return False
    plain = set(words) & (_WORDS - {"KEY"}) or words[-1].endswith(_ENDINGS)
    plain = plain or "_".join(words) in _WHOLE
    pairs = itertools.pairwise(words)
    return bool(
        plain
        or any(first in _KEYS_OF and second == "KEY" for first, second in pairs)
        or (words[-1] == "KEY" and len(words) > 1 and name.isupper())
    )


def is_literal(value: object) -> bool:
    """Say whether a value is written out, rather than a path or what a variable holds."""
    return isinstance(value, str) and bool(value) and not value.startswith(("$", "~/", "`", "<"))


def found(text: str) -> Iterator[str]:
    """Yield what in a text looks like a secret: a name before a value, or the form of a value."""
    if form := _FORMS.search(text):
        yield f"{form[0][:6]}…"
    if login := _LOGINS.search(text):
        yield f"a password for {login[0].split(maxsplit=1)[0]}"
    for match in _ASSIGNED.finditer(text):
        name, value = (
            next(filter(None, part), "") for part in (match.groups()[:3], match.groups()[3:])
        )
        if "=" in value and name.startswith("from-"):  # --from-literal=password=…
            yield from found(value)
        if is_secret_name(name) and _LITERAL.fullmatch(value) and not value.isdigit():
            yield name


def values(environment: Mapping[str, str], *, shortest: int = 8) -> Iterator[tuple[str, str]]:
    """Yield the secrets of an environment, those aside that are too short to be told from words."""
    for name, value in environment.items():
        if is_secret_name(name) and len(value) >= shortest and is_literal(value):
            yield name, value
