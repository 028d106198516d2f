"""Computes the number of an ioctl from its parts: include/uapi/asm-generic/ioctl.h."""

from __future__ import annotations

__all__ = ["read_write"]

_READ_WRITE = 3


def read_write(kind: int, number: int, size: int) -> int:
    """_IOWR(kind, number, an argument of `size` bytes), as x86, arm and riscv count."""
    return _READ_WRITE << 30 | size << 16 | kind << 8 | number
