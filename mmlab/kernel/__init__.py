"""The model: one file for each kernel file, or for a part of mm/ksm.c; functions carry the kernel's names.

Docstrings name the rules of the specification that a function implements: `ksm-merge F4`, or `F4` for short, since each
letter belongs to one file. `mmlab rule F4` prints a rule, its home here and what shows it.

From the bottom up: `versions` and `state` are the tables, and `jit` compiles; `list`, `rbtree`, `pgtable`,
`unstable_tree`, `folio` and `timer` stand alone; `huge_memory`, `swap` and `memory` split, reclaim and map pages;
`stable_tree`, `rmap_item`, `advisor` and `ksm` are ksmd; `khugepaged`, `madvise` and `migrate` stand beside it; `mmap`
has the system calls, and `pagemap` what can be seen of the pages. A name with an underscore is its module's own.
"""
