"""flash-linear-attention's Triton kernels behind the recurrent ops, on CUDA: a module per op says which kernel serves.

Every module has `serves`, which says whether these inputs are what a kernel takes, and a function that is called like
its op. The rest (float64, a single token, narrow heads, complex numbers) is the torch engine's. float32 products run on
tf32 tensor cores, so that float32 results agree with the definition to about 1e-3, not to 1e-6.

Yang and Zhang, 2024 (https://github.com/fla-org/flash-linear-attention).
"""
