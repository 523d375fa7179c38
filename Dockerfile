# syntax=docker/dockerfile:1.12
# The worker, its ComfyUI and, when asked for, models: docs/deploy.md. `docker buildx bake` builds the variants.
# Every package is locked, and installed without being resolved again: newer releases change nothing.
#
# Two Pythons: the worker's in /opt/settee/.venv and ComfyUI's in /comfyui/.venv. They share nothing, so that no custom
# node can change what the worker imports; and ComfyUI's folder has an `app` and a `utils` of its own.

# By tag, or by digest: nvidia/cuda@sha256:…
ARG CUDA_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04
# The one that CUDA_IMAGE's distribution has.
ARG PYTHON_VERSION=3.12
# docker/comfyui-TAG.lock and docker/torch-VARIANT.lock must be there: docker/lock-comfyui.sh makes them.
ARG COMFYUI_TAG=v0.33.0
ARG TORCH_VARIANT=cu130
# The index that has this PyTorch where PyPI has it for another CUDA.
ARG TORCH_INDEX=""


# --- what runs need: Python, the libraries that nodes link to, SSH -----------------------------------------------
FROM ${CUDA_IMAGE} AS base
ARG PYTHON_VERSION
# More for custom nodes: "ffmpeg build-essential", say.
ARG APT_PACKAGES=ffmpeg
SHELL ["/bin/bash", "-Eeuo", "pipefail", "-c"]
ENV LANG=C.UTF-8 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1
# Distributions keep no old versions to pin: the image's tag or digest says which there were.
# The host keys that the package makes would be every container's: start.sh makes new ones.
# hadolint ignore=DL3008,SC2086
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libgl1 libglib2.0-0 openssh-server \
        "python${PYTHON_VERSION}" "python${PYTHON_VERSION}-venv" ${APT_PACKAGES} \
    && rm -f /etc/ssh/ssh_host_*


# --- what installs packages: uv, in the stages that build --------------------------------------------------------
FROM base AS installer
ARG PYTHON_VERSION
# Bytecode is made here, so that a cold start does not wait for it. It is not checked at the start: layers round the
# files' times.
ENV PATH=/opt/uv/bin:$PATH \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy
COPY requirements-build.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    "python${PYTHON_VERSION}" -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-deps --require-hashes -r /tmp/requirements-build.lock


# --- the worker --------------------------------------------------------------------------------------------------
FROM installer AS worker
ARG PYTHON_VERSION
WORKDIR /opt/settee
COPY requirements-worker.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    "python${PYTHON_VERSION}" -m venv --without-pip .venv \
    && uv pip install --no-deps --require-hashes -r requirements-worker.lock \
    && uv pip check
COPY LICENSE rp_handler.py utils.py start.sh ./
COPY settee settee
RUN .venv/bin/python -m compileall -q --invalidation-mode unchecked-hash settee rp_handler.py utils.py


# --- ComfyUI -----------------------------------------------------------------------------------------------------
FROM installer AS comfyui
ARG PYTHON_VERSION
ARG COMFYUI_TAG
ARG TORCH_VARIANT
ARG TORCH_INDEX
WORKDIR /comfyui
# PyTorch has a layer of its own: gigabytes that another ComfyUI does not change.
COPY docker/torch-${TORCH_VARIANT}.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/uv \
    "python${PYTHON_VERSION}" -m venv .venv \
    && uv pip install --no-deps ${TORCH_INDEX:+--index "${TORCH_INDEX}"} --index-strategy unsafe-best-match \
        -r "/tmp/torch-${TORCH_VARIANT}.lock"
COPY docker/comfyui-${COMFYUI_TAG}.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --require-hashes -r "/tmp/comfyui-${COMFYUI_TAG}.lock" \
    && uv pip check
ADD https://github.com/comfyanonymous/ComfyUI.git#${COMFYUI_TAG} /comfyui
# Asks no index: fails when the locks do not have all that this ComfyUI wants. Nor may PyTorch be for another CUDA.
RUN uv pip install --no-index -r requirements.txt \
    && .venv/bin/python -c "import torch; cuda = torch.version.cuda; assert 'cu' + cuda.replace('.', '') == '${TORCH_VARIANT}', cuda" \
    && .venv/bin/python -m compileall -q --invalidation-mode unchecked-hash -x '/\.venv/' .


# --- ComfyUI with custom nodes -----------------------------------------------------------------------------------
FROM comfyui AS nodes
ARG COMFYUI_TAG
# https://github.com/OWNER/REPO@COMMIT-OR-TAG, separated by spaces; a branch is refused.
ARG CUSTOM_NODES=""
COPY docker/install-custom-nodes.sh /usr/local/bin/install-custom-nodes
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    if [ -n "${CUSTOM_NODES}" ]; then \
        apt-get update && apt-get install -y --no-install-recommends git \
        && install-custom-nodes /comfyui "/tmp/comfyui-${COMFYUI_TAG}.lock" "${CUSTOM_NODES}"; \
    fi
# For whoever starts main.py by hand; the worker shows them to ComfyUI anyway.
RUN ln -s /opt/settee/settee/comfy_nodes/settee_* custom_nodes/


# --- models, baked in --------------------------------------------------------------------------------------------
FROM worker AS models
# As the worker's MODELS. It can be read in the image's history: no secret may be in it.
ARG MODELS=""
RUN --mount=type=secret,id=hf_token \
    mkdir -p /comfyui/models \
    && if [ -s /run/secrets/hf_token ]; then export HF_TOKEN_FILE=/run/secrets/hf_token; fi \
    && MODELS_DIR=/comfyui/models MODELS="${MODELS}" .venv/bin/python utils.py


# --- the image ---------------------------------------------------------------------------------------------------
FROM base AS final
LABEL org.opencontainers.image.title="settee" \
      org.opencontainers.image.description="A ComfyUI worker for RunPod serverless" \
      org.opencontainers.image.licenses="MIT"
COPY --from=nodes --link /comfyui /comfyui
COPY --from=models --link /comfyui/models /comfyui/models
COPY --from=worker --link /opt/settee /opt/settee
WORKDIR /opt/settee
# The SDK takes DEBUG for unset, at which it logs what handlers return.
ENV COMFY_DIR=/comfyui \
    RUNPOD_LOG_LEVEL=INFO
# ComfyUI's editor (MODE=interactive), the local API (MODE=serve-api), SSH (PUBLIC_KEY)
EXPOSE 8188 8000 22
HEALTHCHECK --interval=30s --timeout=15s --start-period=10m --retries=3 \
    CMD ["/opt/settee/.venv/bin/python", "-m", "settee", "health"]
ENTRYPOINT ["/opt/settee/start.sh"]
