"""The backbones: Vision Transformers and ResNets."""
