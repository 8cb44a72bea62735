"""Numbers as people read them: three or four digits, an SI prefix, and "unknown" for what is unknown."""

from __future__ import annotations

import math

_PREFIXES = (
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


def number(value: float, digits: int = 4) -> str:
    """Format without prefix: integers with thin spaces, others with ``digits`` significant digits.

    >>> number(1234567), number(0.98765432), number(2.0), number(float("nan"))
    ('1 234 567', '0.9877', '2', 'unknown')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if math.isnan(value):
        return "unknown"
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", " ").replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """Format with an SI prefix.

    >>> si(2_293_000, "MACs"), si(0.00123, "s"), si(999.9, "B"), si(0, "s"), si(float("nan"), "s")
    ('2.29 MMACs', '1.23 ms', '1.00 kB', '0 s', 'unknown')
    """
    if math.isnan(value):
        return "unknown"
    if value == 0 or math.isinf(value):
        return f"{number(value)} {unit}".rstrip()
    rounded = float(f"{value:.{digits - 1}e}")  # 999.9 has to become 1.00 k, not 1000
    size, prefix = next((p for p in _PREFIXES if abs(rounded) >= p[0]), _PREFIXES[-1])
    scaled = rounded / size
    if prefix == "" and not unit and float(value).is_integer():
        return number(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled))))
    return f"{scaled:.{decimals}f} {prefix}{unit}".replace("-", "−").rstrip()


def factor(before: float, after: float) -> str:
    """How many times smaller ``after`` is; larger values come out below 1.

    >>> factor(6.0, 2.0), factor(1.0, 0.0), factor(1.0, float("nan"))
    ('3.00×', '∞', 'unknown')
    """
    if math.isnan(before) or math.isnan(after):
        return "unknown"
    if after == 0:
        return "∞" if before else "1.00×"
    ratio = before / after
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×"


def percent(share: float, decimals: int = 1) -> str:
    """Format a share of one.

    >>> percent(0.9873), percent(float("nan"))
    ('98.7 %', 'unknown')
    """
    return "unknown" if math.isnan(share) else f"{100 * share:.{decimals}f} %".replace("-", "−")


def printable(text: str) -> str:
    """Replace control characters, which could reach the terminal or break the page; keep line ends and tabs.

    >>> printable("conv\\x1b[2J") == "conv\\ufffd[2J"
    True
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
