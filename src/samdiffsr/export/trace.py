"""A network of torch as an ONNX file that repeats its output."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from samdiffsr.errors import ConfigError

OPSET = 18
TOLERANCE = 1e-4  # of a network's output, as a share of its largest value or of 1
REPORT = "nothing is written: please report it with the versions of torch, onnx, onnxscript and onnxruntime"


@dataclass(frozen=True)
class Graph:
    """The content of one ONNX file.

    Attributes:
        shapes, examples: hold more names than `inputs`.
        defaults: inputs that may be left out, and the value that they then have.
        tolerance: of the difference between file and network; None: `TOLERANCE`.
    """

    name: str
    network: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, dict[int, Any]]
    examples: list[dict[str, Tensor]]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)
    tolerance: float | None = None

    def example(self, number: int) -> dict[str, Tensor]:
        return {name: self.examples[number][name] for name in self.inputs}


@torch.no_grad()
def trace(graph: Graph) -> bytes:
    """The ONNX file; without the exporter's notes, which quote the source and its place on this machine."""
    try:
        with _quiet():
            program = torch.onnx.export(
                graph.network,
                tuple(graph.example(0).values()),  # of two images: traced with one, the batch would be a constant
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamic_shapes=tuple(graph.shapes[name] for name in graph.inputs),
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(f"torch {torch.__version__} cannot make {graph.name} of this model; {REPORT}.") from error
    assert program is not None  # it is None only for the older exporter
    model = program.model_proto
    for tensor in model.graph.input:
        for axis in graph.shapes[tensor.name]:
            if not tensor.type.tensor_type.shape.dim[axis].dim_param:
                raise ConfigError(f"{tensor.name} of {graph.name} came out with a fixed size of axis {axis}; {REPORT}.")
    del model.metadata_props[:]
    parts = (model.graph.node, model.graph.input, model.graph.output, model.graph.value_info, model.graph.initializer)
    for part in (model.graph, *(entry for entries in parts for entry in entries)):
        del part.metadata_props[:]
        part.doc_string = ""
    # An initializer of an input's name is its default: onnxruntime lists such an input as one that may be left out.
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in graph.defaults.items())
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@torch.no_grad()
def compare(graph: Graph, content: bytes) -> None:
    """Run the file and the network on all examples; a ConfigError says by how much they differ if it is too much."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of inputs that have defaults
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for number in range(len(graph.examples)):
        inputs = graph.example(number)
        expected = graph.network(*inputs.values())
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for name, ours, theirs in zip(
            graph.outputs, found, expected if isinstance(expected, tuple) else (expected,), strict=True
        ):
            reference = theirs.numpy()
            difference = float(np.abs(ours - reference).max() / max(1.0, np.abs(reference).max()))
            most = TOLERANCE if graph.tolerance is None else graph.tolerance
            if not difference <= most:
                raise ConfigError(
                    f"{name} of {graph.name} differs by {difference:.2g} from the model's, "
                    f"more than {most:g}; {REPORT}."
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: that torchvision is absent, which nothing needs, and torch's own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
