# The image's variants:  docker buildx bake [cuda12-8 | cuda12-6 | cuda12-4 | baked]
#
#   IMAGE=registry/name:tag MODELS='org/repo:file.safetensors:checkpoints' docker buildx bake baked --push

variable "IMAGE" {
  default = "settee:dev"
}

# For every variant, see the Dockerfile; empty keeps its default.
variable "CUSTOM_NODES" {
  default = ""
}

# For the variant `baked`; HF_TOKEN, when set, is used for the build and is in no layer.
variable "MODELS" {
  default = ""
}

group "default" {
  targets = ["cuda12-8"]
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
    CUSTOM_NODES = CUSTOM_NODES
  }
}

# Drivers from 570 on; Blackwell cards need it.
target "cuda12-8" {
  inherits = ["_common"]
  args = {
    CUDA_IMAGE          = "nvidia/cuda:12.8.1-base-ubuntu24.04"
    PYTHON_VERSION      = "3.12"
    TORCH_VERSION       = "2.8.0"
    TORCHVISION_VERSION = "0.23.0"
    TORCHAUDIO_VERSION  = "2.8.0"
    TORCH_CUDA          = "12.8"
  }
}

# Drivers from 560 on. PyTorch 2.7 is what PyPI has for it.
target "cuda12-6" {
  inherits = ["_common"]
  args = {
    CUDA_IMAGE          = "nvidia/cuda:12.6.3-base-ubuntu24.04"
    PYTHON_VERSION      = "3.12"
    TORCH_VERSION       = "2.7.1"
    TORCHVISION_VERSION = "0.22.1"
    TORCHAUDIO_VERSION  = "2.7.1"
    TORCH_CUDA          = "12.6"
  }
}

# Drivers from 550 on. PyTorch 2.6 is the last that was built for it.
target "cuda12-4" {
  inherits = ["_common"]
  args = {
    CUDA_IMAGE          = "nvidia/cuda:12.4.1-base-ubuntu22.04"
    PYTHON_VERSION      = "3.10"
    TORCH_VERSION       = "2.6.0"
    TORCHVISION_VERSION = "0.21.0"
    TORCHAUDIO_VERSION  = "2.6.0"
    TORCH_CUDA          = "12.4"
  }
}

# The default variant with models in it.
target "baked" {
  inherits = ["cuda12-8"]
  args = {
    MODELS = MODELS
  }
  secret = ["type=env,id=hf_token,env=HF_TOKEN"]
}
