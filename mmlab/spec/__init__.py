"""The specification: the rules that the model follows, as Markdown files, and `mmlab.spec.rules`, which finds one."""
