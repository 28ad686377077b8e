"""The model, one file for each kernel file; functions carry the kernel's names.

Docstrings name the rules of the specification that a function implements: `ksm-merge F4`, or `F4` for short, since each
letter belongs to one file. `python tests/test_rules.py` lists where each rule lives.
"""
