"""Names of storage in the earlier work's options (`kv_storage`, `kv_bits`), as storage formats."""

STORAGES = {"bf16": (16,), "i8_scale": (8,), "mxfp": (8, 4)}  # bits that each has


def kv_format(storage: str, bits: int, scale: object) -> str:
    """Return the storage format of K or V for a name, its bits and its scales (see `store.make_store`).

    i8_scale is int8. mxfp is mxfp8 or mxfp4 with block scales, and otherwise e4m3 or int4. The bits of bf16 are 16
    whatever is given. Raises ValueError for another name or number of bits.
    """
    if storage not in STORAGES:
        raise ValueError(f"kv_storage {storage!r} is unknown; expected one of {', '.join(STORAGES)}")
    if storage == "bf16":
        return "bf16"
    if bits not in STORAGES[storage]:
        expected = " or ".join(map(str, STORAGES[storage]))
        raise ValueError(f"kv_bits is {bits} with kv_storage {storage}; expected {expected}")
    if storage == "i8_scale":
        return "int8"
    has_blocks = isinstance(scale, str) and scale == "block"
    return {8: ("e4m3", "mxfp8"), 4: ("int4", "mxfp4")}[bits][has_blocks]
