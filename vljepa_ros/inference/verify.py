"""Whether a bundle in a folder is whole: its files, its tokenizers, its graphs.

Invariant: a graph or tokenizer whose file is not what the manifest promises is never parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vljepa_ros.bundle.manifest import read_manifest
from vljepa_ros.bundle.spec import file_problems, parse, tokenizers
from vljepa_ros.errors import VLJepaError


def verify_bundle(path: str | Path) -> list[str]:
    """Every problem of the bundle in the folder `path`, a sentence each; empty: none.

    Checks the manifest, the hash of every file, that the tokenizers load, and each graph's inputs
    and outputs as ONNX Runtime reads them.
    """
    from vljepa_ros.inference.backends import open_engine
    from vljepa_ros.inference.text import TextTokenizer

    folder = Path(path)
    try:
        manifest, digest = read_manifest(folder)
        bundle = parse(folder, manifest, digest)
        problems = file_problems(bundle)
    except VLJepaError as error:
        return [str(error)]
    if problems:  # do not hand altered graphs to a parser
        return problems
    checks: list[Callable[[], object]] = [
        *(partial(TextTokenizer, *tokenizer) for tokenizer in tokenizers(bundle)),
        *(
            partial(open_engine, graph, "onnxruntime-cpu", precision=precision)
            for graph in bundle.graphs.values()
            for precision in ("fp32", *(v for v in graph.variants if v == "int8"))
        ),
    ]
    for check in checks:
        try:
            check()
        except VLJepaError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))
