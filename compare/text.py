"""Numbers and words as a reader wants them."""


def si(value: float) -> str:
    """1234567 -> "1.23 M"."""
    return _scaled(value, 1000, ("", " k", " M", " G", " T"))


def binary(value: float) -> str:
    """2048 -> "2 KiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    steps = 0
    while abs(value) >= base - 0.5 and steps < len(units) - 1:
        value, steps = value / base, steps + 1
    return f"{value:.3g}{units[steps]}" if abs(value) < 999.5 else f"{value:.0f}{units[steps]}"


def short(value: str, limit: int = 40) -> str:
    return value if len(value) <= limit else f"{value[: limit - 1]}…"


def p_value(p: float) -> str:
    """0.0123 -> "= 0.012"; what is smaller than a reader cares for, "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def values_text(values: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())
