"""Models of sound, of several kinds of input at once, and of time series."""

from __future__ import annotations

from typing import Any

import torch

from reducible.architecture import Architecture
from reducible.pretrained import (
    PLAIN,
    Inputs,
    features,
    joined,
    last,
    logits,
    named,
    pixels,
    pretrained,
    sound,
    tokens,
)

WAVE: dict[str, Any] = {
    **PLAIN,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "classifier_proj_size": 16,
}
SPEECH: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 16,
    "pad_token_id": 0,
}


def wave(name: str, prefix: str, head: str = "ForCTC", **sizes: Any) -> Architecture:
    answer = last if head == "Model" else logits
    return pretrained(name, "audio", prefix, head, sound(400), answer, **{**WAVE, **sizes})


def decoded(length: int) -> Inputs:
    return lambda batch: {"decoder_input_ids": torch.randint(4, 99, (batch, length)), "use_cache": False}


AUDIO = (
    wave("wav2vec2", "Wav2Vec2"),
    wave("wav2vec2_bare", "Wav2Vec2", "Model"),
    wave("wav2vec2_classifier", "Wav2Vec2", "ForSequenceClassification"),
    wave("wav2vec2_layer_norm", "Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True),
    wave("wav2vec2_conformer", "Wav2Vec2Conformer", conv_depthwise_kernel_size=5),
    wave("hubert", "Hubert"),
    wave("wavlm", "WavLM", num_buckets=16, max_bucket_distance=32),
    wave("unispeech", "UniSpeech", num_codevectors_per_group=16, codevector_dim=16, proj_codevector_dim=16),
    wave("unispeech_sat", "UniSpeechSat", num_codevectors_per_group=16, codevector_dim=16,
        proj_codevector_dim=16),
    wave("sew", "SEW", squeeze_factor=2),
    wave("sew_d", "SEWD", squeeze_factor=2, position_buckets=16, max_position_embeddings=64),
    wave("data2vec_audio", "Data2VecAudio", num_conv_pos_embeddings=2, conv_pos_kernel_size=3),
    pretrained(
        "wav2vec2_bert", "audio", "Wav2Vec2Bert", "ForCTC", features(20, 16), logits,
        **PLAIN, feature_projection_input_dim=16, conv_depthwise_kernel_size=5, pad_token_id=0,
    ),
    pretrained(
        "whisper", "audio", "Whisper", "ForConditionalGeneration", joined(features(16, 40), decoded(6)),
        logits,
        **SPEECH, max_source_positions=20, max_target_positions=16, decoder_start_token_id=1, bos_token_id=1,
        eos_token_id=2,
    ),
    pretrained(
        "whisper_classifier", "audio", "Whisper", "ForAudioClassification", features(16, 40), logits,
        **SPEECH, max_source_positions=20, max_target_positions=16, classifier_proj_size=16,
    ),
    pretrained(
        "speech_to_text", "audio", "Speech2Text", "ForConditionalGeneration",
        joined(features(40, 16), decoded(6)), logits, **SPEECH, input_feat_per_channel=16, conv_channels=32,
        max_source_positions=64, max_target_positions=16,
    ),
    pretrained(
        "speecht5_asr", "audio", "SpeechT5", "ForSpeechToText", joined(sound(400), decoded(6)), logits,
        vocab_size=99, hidden_size=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, conv_dim=[16, 16], conv_kernel=[10,
        3],
        conv_stride=[5, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, mask_time_prob=0.0,
    ),
    pretrained(
        "ast", "audio", "AST", "ForAudioClassification", features(24, 16, name="input_values"), logits,
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, patch_size=8,
        frequency_stride=8, time_stride=8, max_length=24, num_mel_bins=16,
    ),
    pretrained(
        "moonshine", "audio", "Moonshine", "ForConditionalGeneration", joined(sound(1600), decoded(6)),
        logits,
        vocab_size=99, hidden_size=32, intermediate_size=64, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
    ),
)  # fmt: skip

TEXT: dict[str, Any] = {
    **PLAIN,
    "projection_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
PAIR = joined(tokens(), pixels(3, 32, 32))
MATCHED = named("logits_per_image", "logits_per_text")


def four_texts(batch: int) -> dict[str, Any]:
    """Four texts for each video: one cosine alone may be near zero, and rounding large beside it."""
    return tokens()(4 * batch)


def pair(name: str, prefix: str, text: dict[str, Any] = TEXT, **sizes: Any) -> Architecture:
    sizes = {"text_config": text, "vision_config": VISION, "projection_dim": 16, **sizes}
    return pretrained(name, "multimodal", prefix, "Model", PAIR, MATCHED, **sizes)


MULTIMODAL = (
    pair("clip", "CLIP"),
    pretrained("siglip", "multimodal", "Siglip", "Model", PAIR, MATCHED, text_config=TEXT,
        vision_config=VISION),
    pair("chinese_clip", "ChineseCLIP"),
    pair("altclip", "AltCLIP", {**TEXT, "project_dim": 32}),
    pair("metaclip_2", "MetaClip2"),
    pair("blip", "Blip", {**TEXT, "encoder_hidden_size": 32}, image_text_hidden_size=16),
    pair(
        "groupvit", "GroupViT", vision_config={
            **VISION, "depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4],
        }, projection_intermediate_dim=32,
    ),
    pretrained(
        "owlvit", "multimodal", "OwlViT", "Model", joined(tokens(), pixels(3, 32, 32)), MATCHED,
        text_config={**TEXT, "max_position_embeddings": 16}, vision_config=VISION, projection_dim=16,
    ),
    pretrained(
        "owlvit_detection", "multimodal", "OwlViT", "ForObjectDetection", joined(tokens(), pixels(3, 32, 32)),
        named("logits", "pred_boxes"), vision_config=VISION, projection_dim=32,
        text_config={**TEXT, "max_position_embeddings": 16, "projection_dim": 32},
    ),
    pretrained(
        "x_clip", "multimodal", "XCLIP", "Model", joined(four_texts, pixels(2, 3, 32, 32)),
        named("logits_per_video", "logits_per_text"), text_config=TEXT,
        vision_config={**VISION, "mit_hidden_size": 32, "mit_intermediate_size": 64,
        "mit_num_hidden_layers": 1,
                       "mit_num_attention_heads": 4, "num_frames": 2},
        projection_dim=32, prompt_layers=1, prompt_num_attention_heads=4,
    ),
    pretrained(
        "clipseg", "multimodal", "CLIPSeg", "ForImageSegmentation", PAIR, logits, text_config=TEXT,
        vision_config={**VISION, "num_hidden_layers": 4}, projection_dim=16, reduce_dim=16,
        decoder_num_attention_heads=4, decoder_intermediate_size=32, extract_layers=[1, 2, 3],
    ),
    pretrained(
        "clap", "multimodal", "Clap", "Model",
        joined(tokens(), features(1, 64, 16), lambda batch: {"is_longer": torch.zeros(batch, 1,
            dtype=torch.bool)}),
        named("logits_per_audio", "logits_per_text"), text_config={**TEXT, "projection_dim": 16},
        audio_config={
            "spec_size": 32, "patch_size": 4, "patch_stride": [4, 4], "patch_embeds_hidden_size": 16,
            "depths": [1, 1], "num_attention_heads": [2, 4], "window_size": 4, "num_mel_bins": 16,
            "hidden_size": 32, "projection_dim": 16, "enable_fusion": False, "num_hidden_layers": 2,
        },
        projection_dim=16,
    ),
    pretrained(
        "vilt", "multimodal", "Vilt", "ForQuestionAnswering", PAIR, logits, **{**PLAIN, "image_size": 32,
        "patch_size": 8, "max_image_length": 16},
    ),
    pretrained(
        "flava", "multimodal", "Flava", "Model", PAIR, named("multimodal_embeddings"),
        text_config=PLAIN, image_config={**PLAIN, "image_size": 32, "patch_size": 8}, multimodal_config=PLAIN,
        hidden_size=32, projection_dim=16,
    ),
    pretrained(
        "bridgetower", "multimodal", "BridgeTower", "Model",
        joined(PAIR, lambda batch: {"attention_mask": torch.ones(batch, 9, dtype=torch.long)}),
        named("pooler_output"), text_config=TEXT,
        vision_config={**VISION, "hidden_size": 64, "image_size": 32}, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4,
    ),
    pretrained(
        "layoutlm", "multimodal", "LayoutLM", "ForSequenceClassification",
        joined(tokens(), lambda batch: {"bbox": torch.randint(1, 60, (batch, 9, 2)).repeat(1, 1, 2)}),
        logits, **PLAIN, max_2d_position_embeddings=64,
    ),
    pretrained(
        "layoutlmv3", "multimodal", "LayoutLMv3", "ForSequenceClassification",
        joined(PAIR, lambda batch: {"bbox": torch.randint(1, 60, (batch, 9, 2)).repeat(1, 1, 2)}),
        logits, **PLAIN, max_2d_position_embeddings=64, coordinate_size=4, shape_size=8, input_size=32,
        patch_size=8,
    ),
    pretrained(
        "visual_bert", "multimodal", "VisualBert", "Model",
        joined(tokens(), features(3, 16, name="visual_embeds")), last, **PLAIN, visual_embedding_dim=16,
    ),
    pretrained(
        "lxmert", "multimodal", "Lxmert", "Model",
        joined(tokens(), features(3, 16, name="visual_feats"), features(3, 4, name="visual_pos")),
        named("pooled_output"), **PLAIN, visual_feat_dim=16, l_layers=1, x_layers=1, r_layers=1,
    ),
    pretrained(
        "blip_captions", "multimodal", "Blip", "ForConditionalGeneration", PAIR, logits,
        text_config={**TEXT, "encoder_hidden_size": 32}, vision_config=VISION, projection_dim=16,
    ),
    pretrained(
        "git", "multimodal", "Git", "ForCausalLM", joined(PAIR, lambda batch: {"use_cache": False}), logits,
        **PLAIN,
        vision_config=VISION,
    ),
)  # fmt: skip

SERIES: dict[str, Any] = {
    "prediction_length": 4,
    "context_length": 12,
    "input_size": 1,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "use_cache": False,
}


def series(batch: int) -> dict[str, Any]:
    return {
        "past_values": torch.randn(batch, 14),
        "past_time_features": torch.randn(batch, 14, 1),
        "past_observed_mask": torch.ones(batch, 14),
        "future_values": torch.randn(batch, 4),
        "future_time_features": torch.randn(batch, 4, 1),
    }


def channels(batch: int) -> dict[str, Any]:
    return {"past_values": torch.randn(batch, 16, 2)}


FORECASTS = (
    pretrained("time_series_transformer", "time series", "TimeSeriesTransformer", "Model", series, last,
        **SERIES),
    pretrained("informer", "time series", "Informer", "Model", series, last, **SERIES),
    pretrained("autoformer", "time series", "Autoformer", "Model", series, last, **SERIES, moving_average=3),
    pretrained(
        "patchtst", "time series", "PatchTST", "ForPrediction", channels, named("prediction_outputs"),
        num_input_channels=2, context_length=16, patch_length=4, patch_stride=4, num_hidden_layers=2,
        d_model=32,
        num_attention_heads=4, ffn_dim=64, prediction_length=4,
    ),
    pretrained(
        "patchtsmixer", "time series", "PatchTSMixer", "ForPrediction", channels, named("prediction_outputs"),
        num_input_channels=2, context_length=16, patch_length=4, patch_stride=4, num_layers=2, d_model=16,
        prediction_length=4,
    ),
    pretrained(
        "decision_transformer", "time series", "DecisionTransformer", "Model",
        lambda batch: {
            "states": torch.randn(batch, 5, 4), "actions": torch.randn(batch, 5, 2),
            "rewards": torch.randn(batch, 5, 1), "returns_to_go": torch.randn(batch, 5, 1),
            "timesteps": torch.arange(5).repeat(batch, 1), "attention_mask": torch.ones(batch, 5),
        },
        named("action_preds"), state_dim=4, act_dim=2, hidden_size=32, max_ep_len=16, n_layer=2, n_head=4,
        vocab_size=1,
    ),
)  # fmt: skip

ARCHITECTURES = (*AUDIO, *MULTIMODAL, *FORECASTS)
