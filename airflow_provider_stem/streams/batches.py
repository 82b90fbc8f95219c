"""The batch of a site, which depends on its id alone; for the listing of sites in batches."""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def batch_index(site_id: str, batches: int) -> int:
    """
    Return the number of a site's batch, from 0.

    It is Iceberg's own bucket of the id. With ``batches`` a multiple of the buckets of an Iceberg table, all sites of a
    batch are therefore in one bucket, and an object of the batch becomes one file for each day.

    :param site_id: any string; lone surrogates are accepted.
    :param batches: number of batches, 1 or more.
    """
    return (murmur3(site_id.encode(errors="backslashreplace")) & 0x7FFFFFFF) % batches


def murmur3(data: bytes) -> int:
    """Return the MurmurHash3 of bytes: the variant x86, 32 bits, with seed 0, as an unsigned integer."""
    blocks = len(data) // 4
    state = 0
    for number in range(blocks):
        state ^= _scrambled(int.from_bytes(data[4 * number : 4 * number + 4], "little"))
        state = (_rotated(state, 13) * 5 + 0xE6546B64) & _MASK
    state ^= _scrambled(int.from_bytes(data[4 * blocks :], "little")) ^ len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B & _MASK
    state = (state ^ state >> 13) * 0xC2B2AE35 & _MASK
    return state ^ state >> 16


def _scrambled(block: int) -> int:
    return _rotated(block * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _MASK
