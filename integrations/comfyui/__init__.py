"""ComfyUI nodes that enlarge pictures with samdiffsr. ComfyUI imports this folder from its custom_nodes/."""

from comfy_api.latest import ComfyExtension, io

from .nodes import LoadSamDiffSRModel, UpscaleWithSamDiffSR

WEB_DIRECTORY = "./web"
"""Its docs/ has the help page of each node, by the node's identity."""


class SamDiffSRExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadSamDiffSRModel, UpscaleWithSamDiffSR]


async def comfy_entrypoint() -> SamDiffSRExtension:
    """ComfyUI calls this when it starts."""
    return SamDiffSRExtension()
