"""What looks like a secret, and what does not."""

import pytest

from cluster.credentials import found, is_secret_name, values


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "WANDB_API_KEY",
        "WANDB_KEY", "GITHUB_PAT", "DB_PASS", "DB_PWD", "HF_TOKEN", "API_KEY", "password",
        "aws_secret_access_key", "GOOGLE_CREDENTIALS",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE", "PWD", "KEY", "PATH",
        "TOKENIZERS_PARALLELISM", "ssh_private_key", "HttpTokens", "KeyName", "key", "MAX_TOKENS",
        "secretName", "topologyKey", "sort_key", "COMPASS", "PASS_THROUGH_MODE",
    ],
)  # fmt: skip
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7",
        "export AWS_SECRET_ACCESS_KEY='wJalrXUtnFEMI/K7MDENG'",
        'env AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMI/K7MDENG" mtil',
        "aws configure set aws_secret_access_key wJalrXUtnFEMI/K7MDENGbPxRfi",
        "AWS_SECRET_ACCESS_KEY=/wJalrXUtnFEMI+K7MDENG",
        "export WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
        "huggingface-cli login --token hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
        "wandb login --password=open-sesame-now",
        "echo ghp_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789 > t",
        "curl -H 'Authorization: Bearer abcdefghijklmnop0123'",
        "curl https://x/?key=AIzaSyA0123456789abcdefghijklmnopqrstuv",
        "pip install git+https://me:letmein@host/x",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_texts_with_a_secret(text: str) -> None:
    assert list(found(text))


@pytest.mark.parametrize(
    "text",
    [
        "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0; ray start --head --port=6379",
        "export HF_TOKEN=$(cat ~/.hf) WANDB_API_KEY=$KEY DB_PASS=`cat p`",
        "cp token ~/.ray/auth_token",
        "mtil circle --data s3://bucket/data --train.batch-size 32",
        "docker login --password-stdin registry.example.com",
        "ssh -i ~/.ssh/mtil host",
        "export AWS_SHARED_CREDENTIALS_FILE=/home/ubuntu/.aws/credentials",
        "export RAY_AUTH_TOKEN=/run/secrets/auth",
        "python x.py --max-tokens 100000000 --token 100000000",
    ],
)
def test_texts_without_one(text: str) -> None:
    assert list(found(text)) == []


def test_short_values_are_no_evidence() -> None:
    given = {
        "HF_TOKEN": "abcdefgh",
        "SHORT_TOKEN": "run",
        "RUN": "s3://bucket",
        "PWD": "/home/me/x",
    }
    assert dict(values(given)) == {"HF_TOKEN": "abcdefgh"}
