"""Construction of variants by their names, wherever they run: in this process, in vLLM, behind an API."""

from collections.abc import Sequence

from benchmarks.decoding.engines import engine_variant
from benchmarks.decoding.remote_base import remote_variant
from benchmarks.decoding.trios import Trio
from benchmarks.decoding.variants import (
    GENERATE,
    NAMES,
    REMOTE,
    VLLM_NAMES,
    Options,
    Variant,
    VariantError,
    close_all,
    local_variant,
    plain_name,
)


def new_variants(trio: Trio, names: Sequence[str], options: Options) -> list[Variant]:
    """Return the variants of these names, ours in their own order; those with a pair need an adapter, and are left out.

    Raises:
        VariantError: A name is unknown, or needs what is not there.
    """
    known = [*NAMES, GENERATE, *VLLM_NAMES, REMOTE]
    for name in names:
        if plain_name(name) not in known:
            raise VariantError(f"variant {name!r} is unknown: take some of {', '.join(known)}.")
    ordered = sorted(names, key=lambda name: known.index(plain_name(name)))
    ordered = [name for name in ordered if trio.adapted is not None or not name.startswith("pair")]
    num_engines = sum(name.startswith("vllm") for name in ordered)
    variants: list[Variant] = []
    try:
        for name in ordered:
            variants.append(_new_variant(name, trio, options, num_engines))
    except BaseException:
        close_all(variants)
        raise
    return variants


def _new_variant(name: str, trio: Trio, options: Options, num_engines: int) -> Variant:
    if plain_name(name) == REMOTE:
        return remote_variant(name, trio, options)
    if plain_name(name) in VLLM_NAMES:
        return engine_variant(name, trio, options, num_engines)
    return local_variant(name, trio, options)
