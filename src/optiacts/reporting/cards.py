"""GPUs by the names that they are sold under, and the memory that their drivers report."""

from __future__ import annotations

MIB = 2**20

# MiB: "memory.total" of nvidia-smi (with ECC where it is on as delivered), "vram" of rocm-smi.
CARDS: dict[str, int] = {
    "a10": 23028,
    "a100-40gb": 40960,
    "a100-80gb": 81920,
    "a6000": 49140,
    "b200": 183359,
    "h100-80gb": 81559,
    "h200": 143771,
    "l4": 23034,
    "l40s": 46068,
    "mi300x": 196592,
    "p100": 16384,
    "rtx-3060": 12288,
    "rtx-3090": 24576,
    "rtx-4060": 8188,
    "rtx-4080": 16376,
    "rtx-4090": 24564,
    "rtx-5080": 16303,
    "rtx-5090": 32607,
    "rtx-6000-ada": 49140,
    "t4": 15360,
    "v100-16gb": 16384,
    "v100-32gb": 32768,
}


def card(name: str) -> int | None:
    """The bytes of the card called ``name``, in any spelling of it; None if there is no such card here."""
    sought = _plain(name)
    for known, size in CARDS.items():
        if _plain(known) == sought:
            return size * MIB
    return None


def sizes_of(name: str) -> list[str]:
    """The cards whose names go on after ``name``: "a100" is sold with 40 and with 80 GB."""
    return [known for known in CARDS if _plain(known).startswith(_plain(name))] if _plain(name) else []


def _plain(name: str) -> str:
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    for maker in ("nvidia", "geforce", "amd", "tesla", "instinct"):
        plain = plain.removeprefix(maker)
    return plain
