"""Fused CPU kernels behind the recurrent ops, for float32 and bfloat16: one C file each, and beside it what calls it.

Every module has `serves`, which says whether these inputs are what the kernel takes, and a function that is called
like its op. The rest (other dtypes, what only some mixers ask for) is the torch engine's.
"""
