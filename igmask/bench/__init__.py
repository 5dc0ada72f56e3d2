"""The engine against Captum, the kernels against PyTorch."""
