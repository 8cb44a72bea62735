"""Encoders of text, and models that encode text and decode it."""

from __future__ import annotations

from typing import Any

from reducible.architecture import Architecture
from reducible.pretrained import PLAIN, Answer, both, last, logits, pretrained, tokens

CLASSIFIER = "ForSequenceClassification"


def encoder(name: str, prefix: str, head: str = CLASSIFIER, **sizes: Any) -> Architecture:
    answer: Answer = last if head == "Model" else logits
    return pretrained(name, "encoder", prefix, head, tokens(), answer, **{**PLAIN, **sizes})


def seq2seq(name: str, prefix: str, head: str = "ForConditionalGeneration", **sizes: Any) -> Architecture:
    answer: Answer = last if head == "Model" else logits
    inputs = both(use_cache=False)
    return pretrained(name, "encoder-decoder", prefix, head, inputs, answer, **sizes)


BOTH: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
T5: dict[str, Any] = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}

ENCODERS = (
    encoder("bert", "Bert"),
    encoder("bert_masked", "Bert", "ForMaskedLM"),
    encoder("bert_bare", "Bert", "Model"),
    encoder("bert_tagger", "Bert", "ForTokenClassification"),
    encoder("roberta", "Roberta"),
    encoder("roberta_masked", "Roberta", "ForMaskedLM"),
    encoder("roberta_prenorm", "RobertaPreLayerNorm"),
    encoder("xlm_roberta", "XLMRoberta"),
    encoder("xlm_roberta_xl", "XLMRobertaXL"),
    encoder("camembert", "Camembert"),
    encoder("albert", "Albert", embedding_size=16),
    encoder("albert_masked", "Albert", "ForMaskedLM", embedding_size=16),
    encoder("electra", "Electra", embedding_size=16),
    encoder("electra_discriminator", "Electra", "ForPreTraining", embedding_size=16),
    pretrained(
        "distilbert", "encoder", "DistilBert", CLASSIFIER, tokens(), logits,
        vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64,
    ),
    encoder("deberta", "Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    encoder(
        "deberta_v2", "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=16,
        norm_rel_ebd="layer_norm", share_att_key=True,
    ),
    encoder("mpnet", "MPNet"),
    encoder(
        "mobilebert", "MobileBert", embedding_size=16, intra_bottleneck_size=16, num_feedforward_networks=2,
    ),
    pretrained(
        "nystromformer", "encoder", "Nystromformer", CLASSIFIER, tokens(16), logits, **PLAIN, num_landmarks=4,
        segment_means_seq_len=16, conv_kernel_size=3,
    ),
    encoder("fnet", "FNet"),
    encoder("bigbird", "BigBird", attention_type="original_full"),
    pretrained(
        "bigbird_sparse", "encoder", "BigBird", CLASSIFIER, tokens(32), logits,
        **PLAIN, attention_type="block_sparse", block_size=4, num_random_blocks=1,
    ),
    pretrained(
        "longformer", "encoder", "Longformer", CLASSIFIER, tokens(16), logits, **PLAIN, attention_window=4,
    ),
    pretrained(
        "funnel", "encoder", "Funnel", CLASSIFIER, tokens(), logits,
        vocab_size=99, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64, num_decoder_layers=1,
    ),
    encoder("convbert", "ConvBert", embedding_size=16, head_ratio=2, conv_kernel_size=3),
    encoder("roformer", "RoFormer", embedding_size=32),
    encoder("roformer_masked", "RoFormer", "ForMaskedLM", embedding_size=32),
    pretrained(
        "xlnet", "encoder", "XLNet", CLASSIFIER, tokens(use_mems=False), logits,
        vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=64,
    ),
    encoder("ibert", "IBert"),
    encoder("squeezebert", "SqueezeBert", embedding_size=32, q_groups=2, k_groups=2, v_groups=2,
            post_attention_groups=1, intermediate_groups=2, output_groups=2),
    encoder("modernbert", "ModernBert", pad_token_id=0, global_attn_every_n_layers=2, local_attention=4),
    encoder("modernbert_masked", "ModernBert", "ForMaskedLM", pad_token_id=0),
    encoder("megatron_bert", "MegatronBert"),
    encoder("ernie", "Ernie"),
    encoder("esm", "Esm", pad_token_id=1, position_embedding_type="rotary", emb_layer_norm_before=True),
    encoder("rembert", "RemBert", input_embedding_size=16, output_embedding_size=24),
    encoder("splinter", "Splinter", "Model"),
    encoder("mra", "Mra", block_per_row=1),
    encoder("lilt", "Lilt", channel_shrink_ratio=2, hidden_size=48),
    encoder("xmod", "Xmod", languages=["en_XX"], default_language="en_XX"),
    pretrained("bert_generation", "encoder", "BertGeneration", "Encoder", tokens(), last, **PLAIN),
    encoder("data2vec_text", "Data2VecText"),
    encoder("nomic_bert", "NomicBert"),
    encoder("eurobert", "EuroBert", pad_token_id=0, bos_token_id=1, eos_token_id=2),
    pretrained(
        "xlm", "encoder", "XLM", CLASSIFIER, tokens(), logits, vocab_size=99, emb_dim=32, n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
    ),
    pretrained(
        "flaubert", "encoder", "Flaubert", CLASSIFIER, tokens(), logits, vocab_size=99, emb_dim=32,
        n_layers=2,
        n_heads=4, max_position_embeddings=64,
    ),
    pretrained(
        "reformer", "encoder", "Reformer", CLASSIFIER, tokens(8), logits, vocab_size=99, hidden_size=32,
        num_attention_heads=4, attention_head_size=8, feed_forward_size=64, attn_layers=["local", "local"],
        local_attn_chunk_length=4, axial_pos_shape=[2, 4], axial_pos_embds_dim=[8, 24], is_decoder=False,
        max_position_embeddings=8,
    ),
    pretrained(
        "canine", "encoder", "Canine", CLASSIFIER, tokens(16), logits, **{**PLAIN, "num_hidden_layers": 1},
        num_hash_buckets=16, local_transformer_stride=4, downsampling_rate=2,
    ),
    pretrained(
        "luke", "encoder", "Luke", "Model", tokens(), last, **PLAIN, entity_vocab_size=20, entity_emb_size=16,
    ),
)  # fmt: skip

SEQ2SEQ = (
    seq2seq("t5", "T5", **T5),
    seq2seq("t5_bare", "T5", "Model", **T5),
    seq2seq("t5_gated", "T5", **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    pretrained("t5_encoder", "encoder", "T5", "EncoderModel", tokens(), last, **T5),
    seq2seq("mt5", "MT5", **T5),
    seq2seq("umt5", "UMT5", **T5),
    seq2seq("longt5", "LongT5", **T5, local_radius=4, global_block_size=4),
    seq2seq("switch_transformers", "SwitchTransformers", **T5, num_experts=4, expert_capacity=16),
    seq2seq("t5_silu", "T5", **T5, feed_forward_proj="gated-silu"),
    seq2seq("bart", "Bart", **BOTH),
    seq2seq("bart_bare", "Bart", "Model", **BOTH),
    seq2seq("mbart", "MBart", **BOTH),
    seq2seq("pegasus", "Pegasus", **BOTH),
    seq2seq("pegasus_x", "PegasusX", **BOTH, block_size=8, num_global_tokens=4),
    seq2seq("marian", "Marian", "MTModel", **BOTH, decoder_start_token_id=1),
    seq2seq("m2m100", "M2M100", **BOTH),
    seq2seq("plbart", "PLBart", **BOTH),
    seq2seq("mvp", "Mvp", **BOTH),
    seq2seq("led", "LED", **BOTH, attention_window=4, max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=64),
    seq2seq(
        "prophetnet", "ProphetNet", vocab_size=99, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64,
        num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4,
        num_decoder_attention_heads=4, max_position_embeddings=64,
    ),
    seq2seq("blenderbot", "Blenderbot", **BOTH),
    seq2seq("blenderbot_small", "BlenderbotSmall", **BOTH),
    seq2seq("nllb_moe", "NllbMoe", **BOTH, num_experts=4, expert_capacity=16, encoder_sparse_step=2,
            decoder_sparse_step=2),
    seq2seq("bigbird_pegasus", "BigBirdPegasus", **BOTH, attention_type="original_full"),
    seq2seq("fsmt", "FSMT", **{**BOTH, "pad_token_id": 1}, src_vocab_size=99, tgt_vocab_size=99,
            langs=["en", "de"]),
)  # fmt: skip

ARCHITECTURES = (*ENCODERS, *SEQ2SEQ)
