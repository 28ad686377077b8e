"""The model, one file for each kernel file; functions carry the kernel's names."""
