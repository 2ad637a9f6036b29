"""homeostat: language models trained on homeostatic intrinsic reward, without human labels."""

__version__ = "0.1.0"
