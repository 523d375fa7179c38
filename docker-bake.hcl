# The image's variants:  docker buildx bake [cuda13-0 | cuda12-6 | baked]
#
#   IMAGE=registry/name:tag MODELS='org/repo:file.safetensors:checkpoints' docker buildx bake baked --push

variable "IMAGE" {
  default = "settee:dev"
}

# For every variant, see the Dockerfile; empty keeps its default.
variable "CUSTOM_NODES" {
  default = ""
}

# ComfyUI's release; docker/lock-comfyui.sh makes the lock of another one.
variable "COMFYUI_TAG" {
  default = "v0.33.0"
}

# For the variant `baked`; HF_TOKEN, when set, is used for the build and is in no layer.
variable "MODELS" {
  default = ""
}

group "default" {
  targets = ["cuda13-0"]
}

# GitHub's metadata-action writes tags and labels over this one.
target "docker-metadata-action" {
  tags = [IMAGE]
}

target "_common" {
  inherits  = ["docker-metadata-action"]
  context   = "."
  target    = "final"
  platforms = ["linux/amd64"]
  args = {
    COMFYUI_TAG  = COMFYUI_TAG
    CUSTOM_NODES = CUSTOM_NODES
  }
}

# Drivers from 580 on; cards from Turing to Blackwell.
target "cuda13-0" {
  inherits = ["_common"]
  args = {
    CUDA_IMAGE     = "nvidia/cuda:13.0.3-base-ubuntu24.04"
    PYTHON_VERSION = "3.12"
    TORCH_VARIANT  = "cu130"
  }
}

# Drivers from 560 on (525 on data centre cards); cards from Maxwell to Hopper. PyTorch 2.14 is the last for CUDA 12.
target "cuda12-6" {
  inherits = ["_common"]
  args = {
    CUDA_IMAGE     = "nvidia/cuda:12.6.3-base-ubuntu24.04"
    PYTHON_VERSION = "3.12"
    TORCH_VARIANT  = "cu126"
    TORCH_INDEX    = "https://download.pytorch.org/whl/cu126"
  }
}

# The default variant with models in it.
target "baked" {
  inherits = ["cuda13-0"]
  args = {
    MODELS = MODELS
  }
  secret = ["type=env,id=hf_token,env=HF_TOKEN"]
}
