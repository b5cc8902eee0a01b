"""Detect files with secrets, by name, by folder or by content."""

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePath

from cluster import credentials

_SECRET_FOLDERS = {
    ".aws", ".azure", ".docker", ".gnupg", ".kube", ".oci", ".password-store", ".ray", ".ssh",
    "gcloud", ".huggingface", ".kaggle",
}  # fmt: skip
_SECRET_NAMES = (
    ".env", ".env.*", "*.env", ".envrc", ".flaskenv", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", "*.key", "*.ppk", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.keytab",
    "*.ovpn", ".netrc", "_netrc", ".pgpass", "pgpass.conf", ".my.cnf", ".git-credentials",
    ".pypirc", ".npmrc", ".dockercfg", ".dockerconfigjson", "kubeconfig*", "*.kubeconfig",
    "credentials", "credentials.*", "*-credentials.json", "*_credentials.json", "*credentials*.csv",
    "*accesskeys*.csv", "client_secret*.json", "*service*account*.json", "adc.json",
    "secret.*", "secrets.*", ".secrets*", ".htpasswd", ".s3cfg", ".boto", ".rclone.conf",
    "rclone.conf", "auth_token", ".vault-token", ".vault_pass*", "*.tfstate", "*.tfstate.backup",
    "*.tfvars", ".databrickscfg", "kaggle.json", ".terraformrc", "token.json", ".token",
)  # fmt: skip
_TEMPLATES = ("*.example", "*.sample", "*.template", "*.dist", "*.pub", "*.tmpl")
_CODE_SUFFIXES = (
    ".py",
    ".pyi",
    ".c",
    ".cc",
    ".cpp",
    ".h",
    ".go",
    ".js",
    ".ts",
    ".rs",
    ".java",
    ".md",
)
"""Suffixes of code and docs: `credentials.py` deals with secrets but contains no secrets."""
_SECRET_CONTENT = re.compile(
    rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----\s*\n|PuTTY-User-Key-File-"
    rb"|\"private_key\"\s*:\s*\"-----BEGIN|\"type\"\s*:\s*\"authorized_user\""
    rb"|^\s*(?:aws_secret_access_key|aws_session_token)\s*=\s*[\w/+]{16,}"
    rb"|^\s*(?:machine|default)\s+.*\s*(?:login\s+\S+\s+)?password\s+\S+"
    rb"|^\s*(?:client-key-data|token):\s*[\w+/.=-]{40,}|:?_authToken\s*=\s*[\w-]{8,}",
    re.MULTILINE,
)
_MAX_SEARCHED_BYTES = 1 << 20
"""Largest file searched for secrets. Larger files are data."""


def find_secret_files(
    folder: Path, files: Iterable[Path], given: Mapping[str, str]
) -> Iterator[str]:
    """Yield the names of files with secrets, each with the reason in brackets.

    Args:
        folder: base of the returned names.
        files: files inside the folder, or links in the folder.
        given: the environment. No file may contain the value of a secret variable.
    """
    secrets = [(name, value.encode()) for name, value in credentials.list_secret_values(given)]
    for path in files:
        name = path.relative_to(folder)
        # A link is uploaded as the file behind the link, so check both names.
        if is_secret_file(name) or (path.is_symlink() and is_secret_file(path.resolve())):
            yield f"{name} (by its name)"
        elif reason := _find_secret(path, secrets):
            yield f"{name} ({reason})"


def is_secret_file(path: PurePath) -> bool:
    """Return whether a file holds secrets, by the names of the file and its folders."""
    name = path.name.lower()
    if any(part.lower() in _SECRET_FOLDERS for part in path.parts[:-1]):
        return True
    if any(fnmatch(name, template) for template in _TEMPLATES) or path.suffix in _CODE_SUFFIXES:
        return False
    return any(fnmatch(name, form) for form in _SECRET_NAMES)


def _find_secret(path: Path, secrets: list[tuple[str, bytes]]) -> str | None:
    """Return a description of a secret in a file, or None."""
    if path.stat().st_size > _MAX_SEARCHED_BYTES:
        return None
    content = path.read_bytes()
    if _SECRET_CONTENT.search(content):
        return "a private key or a login is in it"
    variable = next((name for name, value in secrets if value in content), None)
    return None if variable is None else f"the value of {variable} is in it"
