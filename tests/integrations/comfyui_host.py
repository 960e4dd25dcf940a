"""A small ComfyUI: enough of `comfy_api.latest` and `comfy` to load a custom node, check its schema, and run it.

Names, arguments and checks are those of ComfyUI's public interface (comfy_api/latest/_io.py, nodes.py, execution.py), so what
the real one refuses is refused here. `real_comfyui.py` runs the same nodes in the real one.
"""

import asyncio
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


class InterruptProcessingException(Exception):  # noqa: N818 - ComfyUI's name
    pass


class Input:
    def __init__(
        self, id: str, *, display_name: str | None = None, optional: bool = False, tooltip: str | None = None
    ) -> None:
        self.id, self.display_name, self.optional, self.tooltip = id, display_name, optional, tooltip

    def check(self, value: Any) -> None:
        """ValueError for what the prompt's validation refuses."""


class Widget(Input):
    kind: type = object

    def __init__(self, id: str, *, default: Any = None, **words: Any) -> None:
        super().__init__(id, **words)
        self.default = default

    @property
    def widgets(self) -> int:
        """How many values a saved workflow holds for it."""
        return 2 if getattr(self, "control_after_generate", None) else 1


class Number(Widget):
    def __init__(self, id: str, *, min: Any = None, max: Any = None, step: Any = None, **words: Any) -> None:
        super().__init__(id, **words)
        self.min, self.max, self.step = min, max, step

    def check(self, value: Any) -> None:
        if not isinstance(value, (int, self.kind)) or isinstance(value, bool):
            raise ValueError(f"{self.id}: {value!r} is no {self.kind.__name__}")
        if (self.min is not None and value < self.min) or (self.max is not None and value > self.max):
            raise ValueError(f"{self.id}: {value} is not from {self.min} to {self.max}")


class IntInput(Number):
    kind = int

    def __init__(self, id: str, *, control_after_generate: bool | None = None, **words: Any) -> None:
        super().__init__(id, **words)
        self.control_after_generate = control_after_generate


class FloatInput(Number):
    kind = float

    def __init__(self, id: str, *, round: float | None = None, **words: Any) -> None:
        super().__init__(id, **words)
        self.round = round


class StringInput(Widget):
    kind = str

    def __init__(self, id: str, *, multiline: bool = False, placeholder: str | None = None, **words: Any) -> None:
        super().__init__(id, **words)

    def check(self, value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError(f"{self.id}: {value!r} is no text")


class BooleanInput(Widget):
    kind = bool

    def check(self, value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"{self.id}: {value!r} is no switch")


class ComboInput(Widget):
    kind = str

    def __init__(self, id: str, *, options: list[str], **words: Any) -> None:
        super().__init__(id, **words)
        self.options = options

    def check(self, value: Any) -> None:
        if value not in self.options:
            raise ValueError(f"{self.id}: {value!r} is not in {self.options}")


class ImageInput(Input):
    pass


class Output:
    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name, tooltip, is_output_list


def comfy_type(io_type: str, base: type[Input] = Input) -> Any:
    """A class with Input and Output, which know the type's name."""
    members = {
        "Input": type("Input", (base,), {"io_type": io_type}),
        "Output": type("Output", (Output,), {"io_type": io_type}),
    }
    return type(io_type, (), members | {"io_type": io_type})


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self) -> None:
        for number, output in enumerate(self.outputs):
            output.id = output.id or f"_{number}_{output.io_type}_"
        ids = [one.id for one in (*self.inputs, *self.outputs)]
        if len(set(ids)) < len(ids):
            raise ValueError(f"ids must be unique: {ids}")


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs: Any) -> Any:
        raise NotImplementedError


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args = args


class ComfyExtension:
    async def on_load(self) -> None:
        pass

    async def get_node_list(self) -> list[type[ComfyNode]]:
        raise NotImplementedError


class Host:
    """Runs nodes; `bars` are the progress bars' values, `calls_until_interrupt` presses Cancel at that check."""

    def __init__(self) -> None:
        self.nodes: dict[str, type[ComfyNode]] = {}
        self.bars: list[tuple[int, list[int]]] = []
        self.freed: list[tuple[int, torch.device]] = []
        self.calls_until_interrupt = -1
        self.web: Path | None = None

    def modules(self) -> dict[str, ModuleType]:
        """What a node imports."""
        io = SimpleNamespace(
            Custom=comfy_type,
            Image=comfy_type("IMAGE", ImageInput),
            Int=comfy_type("INT", IntInput),
            Float=comfy_type("FLOAT", FloatInput),
            String=comfy_type("STRING", StringInput),
            Boolean=comfy_type("BOOLEAN", BooleanInput),
            Combo=comfy_type("COMBO", ComboInput),
            Schema=Schema,
            ComfyNode=ComfyNode,
            NodeOutput=NodeOutput,
        )
        host = self

        class ProgressBar:
            def __init__(self, total: int, node_id: Any = None) -> None:
                self.values: list[int] = []
                host.bars.append((total, self.values))

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                self.values.append(value)

        def free_memory(memory_required: int, device: torch.device) -> None:
            host.freed.append((memory_required, device))

        contents: dict[str, dict[str, Any]] = {
            "comfy_api": {},
            "comfy_api.latest": {"ComfyExtension": ComfyExtension, "io": io},
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": {
                "get_torch_device": lambda: torch.device("cpu"),
                "free_memory": free_memory,
                "throw_exception_if_processing_interrupted": self._check_interrupt,
                "InterruptProcessingException": InterruptProcessingException,
            },
        }
        made = {name: ModuleType(name) for name in contents}
        for name, members in contents.items():
            vars(made[name]).update(members)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, made[name])
        return made

    def load(self, folder: Path) -> None:
        """A folder of custom_nodes/, as ComfyUI's start does it."""
        name = str(folder).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        assert getattr(module, "NODE_CLASS_MAPPINGS", None) is None, "it would hide comfy_entrypoint"
        self.web = folder / module.WEB_DIRECTORY
        extension = asyncio.run(module.comfy_entrypoint())
        assert isinstance(extension, ComfyExtension)
        asyncio.run(extension.on_load())
        listed = asyncio.run(extension.get_node_list())
        assert isinstance(listed, list) and all(issubclass(one, ComfyNode) for one in listed)
        self.nodes |= {self.schema(one).node_id: one for one in listed}

    @staticmethod
    def schema(node: type[ComfyNode]) -> Schema:
        found = node.define_schema()
        found.validate()
        return found

    def run(self, node_id: str, **links: Any) -> tuple[Any, ...]:
        """The node's outputs; widgets that are not given have their defaults."""
        node = self.nodes[node_id]
        schema = self.schema(node)
        assert set(links) <= {one.id for one in schema.inputs}
        values = {one.id: links.get(one.id, getattr(one, "default", None)) for one in schema.inputs}
        for one in schema.inputs:
            if values[one.id] is None and not one.optional:
                raise ValueError(f"{one.id}: required input is missing")
            one.check(values[one.id])
        with torch.inference_mode():  # as ComfyUI does
            found = type(node.__name__, (node,), {}).execute(**values)
        assert isinstance(found, NodeOutput) and len(found.args) == len(schema.outputs)
        for output, value in zip(schema.outputs, found.args, strict=True):
            if output.io_type == "IMAGE":
                check_image(value)
            assert output.io_type != "FLOAT" or isinstance(value, float)
        return found.args

    def _check_interrupt(self) -> None:
        self.calls_until_interrupt -= 1
        if self.calls_until_interrupt == 0:
            raise InterruptProcessingException


def check_image(image: Any) -> None:
    """What every node that takes an IMAGE relies on."""
    assert isinstance(image, torch.Tensor) and image.dtype == torch.float32 and image.device.type == "cpu"
    assert image.ndim == 4 and image.shape[3] in (3, 4)
    assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1
