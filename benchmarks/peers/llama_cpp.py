"""llama.cpp's server: 32 bits with its defaults, token-exact, 16-bit weights, and our drafter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.peer import LOADS, Peer, ServerPeer
from benchmarks.peers.place import DRAFTER_DSPARK, DRAFTER_PUBLISHED, Conversion, Place

HOME = "llama.cpp"
SERVER, PYTHON, CONVERTER = "bin/llama-server", "bin/python", "source/convert_hf_to_gguf.py"
CONTEXT = 1024
# What makes it write the tokens of fp32: its flash attention rounds, whatever the cache holds.
EXACT = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")


def _converted(outtype: str) -> Conversion:
    def command(place: Place, to: Path) -> list[str]:
        return [*_converter(place), str(place.verifier), "--outfile", str(to), "--outtype", outtype]

    return Conversion(f"verifier-{outtype}.gguf", command)


def _converted_drafter(kind: str, layout: Conversion) -> Conversion:
    def command(place: Place, to: Path) -> list[str]:
        target = ["--target-model-dir", str(place.verifier)]
        drafter = str(layout.path(place))
        return [*_converter(place), drafter, *target, "--outfile", str(to), "--outtype", "f32"]

    return Conversion(f"{kind}-f32.gguf", command)


def _converter(place: Place) -> list[str]:
    home = (place.peers / HOME).absolute()
    return [str(home / PYTHON), str(home / CONVERTER)]


F32, F16 = _converted("f32"), _converted("f16")
DFLASH = (DRAFTER_PUBLISHED, _converted_drafter("dflash", DRAFTER_PUBLISHED))
DSPARK = (DRAFTER_DSPARK, _converted_drafter("dspark", DRAFTER_DSPARK))


def _peer(
    name: str, weights: Conversion, *flags: str, drafter: tuple[Conversion, ...] = ()
) -> Peer:
    def arguments(place: Place, port: int) -> list[str]:
        threads, slots = str(place.num_threads), max(LOADS)
        drafts = ["-md", str(drafter[-1].path(place))] if drafter else []
        return [
            *("-m", str(weights.path(place)), "--host", "127.0.0.1", "--port", str(port)),
            *("-c", str(CONTEXT * slots), "-np", str(slots), "-t", threads, "-tb", threads),
            *("-td", threads, "-tbd", threads, "--no-ui", *drafts, *flags),
        ]

    return ServerPeer(
        name=f"llama.cpp, {name}",
        home=HOME,
        needs=(SERVER, PYTHON, CONVERTER),
        conversions=(weights, *drafter),
        bans_eos=True,
        arguments=arguments,
        fields=_fields,
    )


def _drafting(kind: str, length: int) -> tuple[str, ...]:
    return "--spec-type", f"draft-{kind}", "--spec-draft-n-max", str(length)


def _fields(place: Place) -> Mapping[str, object]:
    return {"temperature": 0.0, "ignore_eos": True, "cache_prompt": False}


PEERS = (
    _peer("F32", F32),
    _peer("F32 exact", F32, *EXACT),
    _peer("F16", F16),
    _peer("F32 exact, DFlash 7", F32, *EXACT, *_drafting("dflash", 7), drafter=DFLASH),
    _peer("F16, DFlash 7", F16, *_drafting("dflash", 7), drafter=DFLASH),
    _peer("F16, DSpark 7", F16, *_drafting("dspark", 7), drafter=DSPARK),
    _peer("F16, DSpark 3", F16, *_drafting("dspark", 3), drafter=DSPARK),
)
