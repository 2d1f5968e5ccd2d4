"""Triton's interpreter made fit for flash-linear-attention's kernels: import this before fla.

The interpreter runs kernels on CPU tensors by numpy. What it lacks, on the versions of constraints.txt: loop variables
of `range` are plain integers where kernels use them as tensors; names that a module gave to functions of
triton.language stay the compiler's; masks may be integers; and bfloat16, which numpy has not, is kept as bits. Nothing
is tuned: the first configuration of a kernel serves.
"""

import ast
import functools
import os

os.environ |= {"TRITON_INTERPRET": "1", "FLA_CACHE_RESULTS": "0", "FLA_DISABLE_BACKEND_DISPATCH": "1"}

import numpy as np
import triton.language as tl
from triton.runtime import autotuner, interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

autotuner.Autotuner._bench = lambda self, *arguments, **more: [0.0, 0.0, 0.0]


def visit_For(self, node: ast.For) -> ast.For:
    node = self.generic_visit(node)
    counted = isinstance(node.iter, ast.Call) and getattr(node.iter.func, "id", "") == "range"
    if counted and isinstance(node.target, ast.Name):
        name = node.target.id
        node.body = ast.parse(f"{name} = interpreter_semantic.to_tensor({name}, False)").body + node.body
    return node


interpreter.ASTTransformer.visit_For = visit_For


def rewritten(compile_and_exec):
    @functools.wraps(compile_and_exec)
    def wrapped(self, tree):
        function = compile_and_exec(self, tree)
        names = self.fn.__globals__
        for key, value in list(names.items()):
            own = getattr(value, "__name__", "")
            if getattr(value, "__triton_builtin__", False) and hasattr(tl, own):
                names[key] = later(own)
        return function

    return wrapped


def later(name: str):
    """triton.language's function as it is when it is called: the interpreter replaces them while a kernel runs."""
    return lambda *arguments, **more: getattr(tl, name)(*arguments, **more)


interpreter.FunctionRewriter._compile_and_exec = rewritten(interpreter.FunctionRewriter._compile_and_exec)


def masked(function, at: int):
    def wrapped(self, *arguments):
        mask = arguments[at]
        mask = TensorHandle(mask.data.astype(np.bool_), tl.int1)
        return function(self, *arguments[:at], mask, *arguments[at + 1 :])

    return wrapped


def widen(x: TensorHandle) -> TensorHandle:
    if getattr(getattr(x, "dtype", None), "scalar", None) != tl.bfloat16:
        return x
    bits = np.ascontiguousarray(x.data).view(np.uint16).astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32).reshape(x.data.shape), tl.float32)


def narrow(x: TensorHandle) -> TensorHandle:
    bits = np.ascontiguousarray(x.data.astype(np.float32)).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return TensorHandle(rounded.astype(np.uint16).reshape(x.data.shape), tl.bfloat16)


def in_float32(function):
    """Arithmetic of bfloat16; comparisons stay comparisons."""

    def wrapped(self, *arguments):
        wide = [widen(x) for x in arguments]
        result = function(self, *wide)
        halves = any(a is not b for a, b in zip(arguments, wide, strict=True))
        return narrow(result) if halves and result.dtype.scalar == tl.float32 else result

    return wrapped


def dotted(function):
    return lambda self, a, b, *more: function(self, widen(a), widen(b), *more)


InterpreterBuilder.create_masked_load = masked(InterpreterBuilder.create_masked_load, 1)
InterpreterBuilder.create_masked_store = masked(InterpreterBuilder.create_masked_store, 2)
InterpreterBuilder.get_bf16 = lambda self, value: narrow(TensorHandle(np.array([value], np.float32), tl.float32))
InterpreterBuilder.create_dot = dotted(InterpreterBuilder.create_dot)
for name in ("binary_op", "unary_op", "ternary_op"):
    setattr(InterpreterBuilder, name, in_float32(getattr(InterpreterBuilder, name)))
