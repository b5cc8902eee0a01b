# The image of every machine of a cluster; a test runs the same script on the same files.
#
#   docker build -t mtil:gpu .                                              # CUDA comes with torch's own wheels
#   docker build -t mtil:cpu --build-arg PIP_EXTRA_INDEX_URL=ADDRESS .      # of PyTorch's CPU builds
FROM python:3.11-slim-bookworm

ARG PIP_EXTRA_INDEX_URL=

# wget is for KubeRay's probes; the rest is for `ray up` with a `docker` section.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

WORKDIR /opt/src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mtil mtil
COPY tune tune
COPY cluster/install.sh cluster/install.sh
RUN cluster/install.sh /opt/venv

ENV PATH=/opt/venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_AUTH_MODE=token \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 \
    RAY_USAGE_STATS_ENABLED=0
USER ray
WORKDIR /home/ray
CMD ["mtil", "doctor"]
