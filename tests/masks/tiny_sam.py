"""Tiny SAM, SAM-HQ and SAM 2 with random weights: real networks of transformers, milliseconds a call."""

import torch
import transformers as t

_SEEDS = {"sam": 44, "sam_hq": 29, "sam2": 89}
"""Of 90 tried those whose masks differ most from point to point: five and more survive suppression."""


def tiny_sam(kind: str) -> torch.nn.Module:
    """`kind` is "sam", "sam_hq" or "sam2"; they see 64 x 64 pixels. Drawn wide, so that masks follow their points."""
    network = {"sam": _sam, "sam_hq": _sam_hq, "sam2": _sam2}[kind]().eval()
    with torch.random.fork_rng():
        torch.manual_seed(_SEEDS[kind])
        for name, parameter in network.named_parameters():
            if "norm" in name:
                continue
            std = 0.5
            if "encoder_conv" in name or "compress_vit" in name:  # SAM-HQ: what does not depend on the points
                std = 0.05
            elif "iou_prediction_head" in name and parameter.dim() > 1:  # SAM 2 ends it with a sigmoid
                std = 1 / parameter.shape[-1] ** 0.5
            elif name.startswith("mask_decoder") and parameter.dim() > 1:
                std = 5 / parameter.shape[-1] ** 0.5
            torch.nn.init.normal_(parameter, std=std)
    return network


def _sizes() -> dict:
    return {"image_size": 64, "patch_size": 8}


def _decoder() -> dict:
    return {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 16}


def _vit() -> dict:
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 32}
    return layers | _sizes() | {"mlp_ratio": 2.0, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 16}


def _sam() -> torch.nn.Module:
    prompt = {"hidden_size": 32, "mask_input_channels": 4} | _sizes()
    config = t.SamConfig(vision_config=_vit(), prompt_encoder_config=prompt, mask_decoder_config=_decoder())
    return t.SamModel(config)


def _sam_hq() -> torch.nn.Module:
    prompt = {"hidden_size": 32, "mask_input_channels": 4} | _sizes()
    decoder = _decoder() | {"vit_dim": 32}
    config = t.SamHQConfig(vision_config=_vit(), prompt_encoder_config=prompt, mask_decoder_config=decoder)
    return t.SamHQModel(config)


def _sam2() -> torch.nn.Module:
    backbone = t.Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 2, 2],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = t.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompt = {"hidden_size": 32, "mask_input_channels": 4, "image_size": 64, "patch_size": 16}
    return t.Sam2Model(t.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=_decoder()))
