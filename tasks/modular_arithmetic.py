"""Modular arithmetic, without and with brackets (Delétang et al., 2022, https://arxiv.org/abs/2207.02098; Grazzi
et al., 2024, https://arxiv.org/abs/2411.12537): the value of the expression so far, at every token.

    tokens   3 + 4 * ( 2 - 3 ) * 2      modulo 5
    targets  3 3 2 2 2 1 1 4 4 4 0

An expression goes on without end and is cut at `length`. What is incomplete does not count: operators and opening
brackets at the end are left out, and brackets that are open are closed. Products come before sums. The papers ask
for the value of a whole expression, at its end only.
"""

import torch
from torch import Tensor

from tasks.draws import Draws
from tasks.sized import Sized, at_least, latest

OPERATORS = ("+", "-", "*", "(", ")")  # the tokens from `modulus` on; below are the numbers
BRACKET = 1 / 3  # how often a bracket is opened, or closed, where one may be


def expressions(n: int, length: int, modulus: int, depth: int, seed: int) -> Tensor:
    """(n, length) int64: n beginnings of expressions of at most `depth` open brackets."""
    draws = Draws(n, seed)
    numbers = draws.integers(0, modulus, length)
    operators = draws.integers(modulus, modulus + 3, length)
    brackets = draws.uniform(length) < BRACKET
    tokens, level, operand = [], torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    for number, operator, bracket in zip(numbers.T, operators.T, brackets.T, strict=True):
        opens, closes = operand & bracket & (level < depth), ~operand & bracket & (level > 0)
        token = number.where(operand, operator).masked_fill(opens, modulus + 3).masked_fill(closes, modulus + 4)
        tokens.append(token)
        level = level + opens.long() - closes.long()
        operand = operand ^ ~(opens | closes)  # a bracket is followed by what could have been in its place
    return torch.stack(tokens, 1)


def evaluate(tokens: Tensor, modulus: int, depth: int) -> Tensor:
    """tokens (n, length) -> the values modulo `modulus` of their beginnings, (n, length) int64.

    Within a bracket the value so far is total + factor * x, where x is what comes next; the whole is
    outer + scale * (the innermost bracket's value).
    """
    n = len(tokens)
    total, factor, outer, scale = (torch.full((n,), start) for start in (0, 1, 0, 1))
    inner, whole = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    stack, level = torch.zeros(4, n, depth + 1, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    values = []
    for token in tokens.T:
        number = token < modulus
        plus, minus, times, opens, closes = (token == modulus + i for i in range(5))
        level = level - closes.long()
        saved = stack.gather(2, level.expand(4, n)[..., None])[..., 0]
        current = torch.stack([total, factor, outer, scale])
        stack = stack.scatter(2, level.expand(4, n)[..., None], current.where(opens, saved)[..., None])
        total, factor, outer, scale = saved.where(closes, current)
        operand = token.where(number, inner)
        inner = (total + factor * operand).where(number | closes, inner) % modulus
        whole = (outer + scale * inner).where(number, whole) % modulus
        outer, scale = (
            (outer + scale * total).where(opens, outer) % modulus,
            (scale * factor).where(opens, scale) % modulus,
        )
        factor = (inner - total).where(times, factor).masked_fill(plus | opens, 1).masked_fill(minus, -1)
        total = inner.where(plus | minus, total).masked_fill(opens, 0)
        level = level + opens.long()
        values.append(whole)
    return torch.stack(values, 1)


def modular_arithmetic(n: int, length: int, modulus: int, depth: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64.

    Numbers are the tokens 0 ... modulus - 1, then come + - * ( and ). depth: how many brackets may be open at
    once, 0 for none. Raises ValueError for an empty length, a modulus below 2 and a depth below 0.
    """
    at_least(1, length=length)
    at_least(2, modulus=modulus)
    at_least(0, depth=depth)
    tokens = expressions(n, length, modulus, depth, seed)
    return tokens, evaluate(tokens, modulus, depth)


class ModularArithmetic(Sized):
    """train, validation, test: lists of {length, n}; depth: 0 for no brackets."""

    loss_on = "all"

    def __init__(self, *, modulus: int, depth: int, **common):
        super().__init__(**common)
        self.modulus, self.depth = modulus, depth

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return modular_arithmetic(n, length, self.modulus, self.depth, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any number; the last number: nothing is computed."""
        return {
            "chance": 1 / self.modulus,
            "the most frequent answer": self.most_frequent(),
            "the last number": self.accuracy(lambda tokens: latest(tokens, tokens < self.modulus)),
        }
