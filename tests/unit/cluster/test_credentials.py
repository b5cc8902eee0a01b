"""Recognition of secrets in names and texts."""

import pytest

from cluster.credentials import find_secrets, is_secret_name, list_secret_values


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
        "curl -u me:letmein https://host/x",
        "curl -sSLu me:letmein https://host/x -o x",
        "bash -c 'curl --user me:letmein https://host/x | tar x'",
        "curl -u 'me:let me in' https://host",
        "curl -x proxy:3128 --proxy-user=me:letmein https://host",
        "wget --user me --password letmein99 https://host",
        "http -a me:letmein https://host/x",
        "curl -H 'Authorization: Basic bWU6bGV0bWVpbg==' https://host",
        "curl -H 'X-Api-Key: 0123456789abcdef' https://host",
        "curl 'https://a.blob.core.windows.net/c/b?sv=1&sig=abcdefghijklmnopqrstuvwxyz0123%3D'",
        "sshpass -p letmein ssh host",
        "mysql -u me -pletmein db",
        "PGPASSWORD=letmein99 psql -h host",
        "redis-cli -h host -a letmein get x",
        "docker login -u me -p letmein registry.example.com",
        "kubectl create secret generic x --from-literal=password=letmein99",
        "openssl enc -d -in x -pass pass:letmein",
        "curl -H 'Cookie: x' -b eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdef https://host",
    ],
)
def test_texts_with_a_secret(text: str) -> None:
    assert list(find_secrets(text))


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
        "curl -u me:$PASS https://host/x",
        "bash -c 'curl -u $LOGIN https://host/x'",
        "curl -sSL https://host:8443/x -o out.tar",
        "curl -s http://127.0.0.1:8265/api/version",
        "docker run -u 1000:1000 -p 8265:8265 image:tag",
        "docker login -u me --password-stdin registry.example.com",
        "ssh -p 2222 host; mkdir -p data; cp -a a:b c",
        "mysql -u me -p db < x.sql",
        "Basic training of the network",
    ],
)
def test_texts_without_one(text: str) -> None:
    assert list(find_secrets(text)) == []


def test_short_values_are_no_evidence() -> None:
    given = {
        "HF_TOKEN": "abcdefgh",
        "SHORT_TOKEN": "run",
        "RUN": "s3://bucket",
        "PWD": "/home/me/x",
    }
    assert dict(list_secret_values(given)) == {"HF_TOKEN": "abcdefgh"}
