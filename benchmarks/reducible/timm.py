"""At least one network of every model file of timm, small ones and on small pictures.

``name:96`` is called with pictures of 96 by 96 (64 where nothing is said), and built for them if its
constructor takes a size. ``name:64:4`` is built with a depth of 4: of some files even the smallest is large.
All are classifiers: where only features are returned, every one of them must stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch
from torch import nn

from reducible.architecture import Architecture, Built

FILES = {
    "beit": "beit_base_patch16_224:64:4 beitv2_base_patch16_224:64:3",
    "byoanet": "botnet26t_256:256 eca_botnext26ts_256:256 sebotnet33ts_256:256 halonet26t:256 "
    "haloregnetz_b:224 halo2botnet50ts_256:256 lambda_resnet26t:128 lambda_resnet26rpt_256:256",
    "byobnet": "gernet_s repvgg_a0 mobileone_s0 resnet51q resnet33ts resnext26ts seresnext26ts gcresnext26ts "
    "eca_resnext26ts bat_resnext26ts:256 regnetz_b16 regnetz_b16_evos resnet50_clip_gap test_byobnet",
    "cait": "cait_xxs24_224:64:6",
    "coat": "coat_tiny coat_lite_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto convnext_zepto_rms convnextv2_atto convnext_tiny_hnf "
    "test_convnext test_convnext2 test_convnext3",
    "cpubone": "cpubone_nano cpubone_b1_dwnorm",
    "crossvit": "crossvit_tiny_240:240 crossvit_9_dagger_240:240",
    "csatv2": "csatv2:512",
    "cspnet": "cspresnet50 cspresnext50 cspdarknet53 darknet17 sedarknet21 darknetaa53 cs3darknet_s "
    "cs3darknet_focus_s cs3sedarknet_l",
    "cspnext": "cspnext_tiny cspnext_s",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m:70:2",
    "deit": "deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224",
    "densenet": "densenet121 densenetblur121d densenet169",
    "dla": "dla46_c dla60x_c dla34 dla60_res2net",
    "dpn": "dpn48b dpn68 dpn68b",
    "edgenext": "edgenext_xx_small edgenext_small_rw",
    "efficientformer": "efficientformer_l1:224",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "efficientnet_b0 efficientnet_b0_gn efficientnet_es efficientnet_lite0 "
    "efficientnet_cc_b0_4e efficientnet_blur_b0 tf_efficientnetv2_b0 gc_efficientnetv2_rw_t "
    "mixnet_s tinynet_e fbnetc_100 "
    "mnasnet_small semnasnet_050 spnasnet_100 mobilenetv1_100 mobilenetv2_035 mobilenet_edgetpu_v2_xs "
    "test_efficientnet test_efficientnet_evos test_efficientnet_gn test_efficientnet_ln",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0 efficientvit_l1",
    "efficientvit_msra": "efficientvit_m0:224 efficientvit_m2:224",
    "eva": "eva02_tiny_patch14_224:56 vit_pe_core_tiny_patch16_384 vit_small_patch16_dinov3 "
    "vit_small_patch16_rope_224 vit_small_patch16_rope_mixed_224",
    "fasternet": "fasternet_t0 fasternet_t1",
    "fastvit": "fastvit_t8 fastvit_sa12 fastvit_mci0",
    "focalnet": "focalnet_tiny_srf focalnet_tiny_lrf",
    "gcvit": "gcvit_xxtiny:224",
    "gemma4_vit": "gemma4_vit_167m:96:3",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "hardcorenas": "hardcorenas_a hardcorenas_d",
    "hgnet": "hgnetv2_b0 hgnet_tiny",
    "hiera": "hiera_tiny_224:224",
    "hieradet_sam2": "hieradet_small:128",
    "hrnet": "hrnet_w18_small hrnet_w18_small_v2 hrnet_w18_ssld",
    "iformer": "iformer_t iformer_m_distilled",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2:96",
    "inception_v3": "inception_v3:96",
    "inception_v4": "inception_v4:96",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s levit_conv_128s levit_192",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto mambaout_kobe test_mambaout",
    "maxxvit": "coatnet_pico_rw_224 coatnet_nano_cc_224 coatnext_nano_rw_224 maxvit_pico_rw_256 "
    "maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 test_coatnet test_maxvit",
    "metaformer": "poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18",
    "mlp_mixer": "mixer_s32_224 mixer_s16_224 gmixer_12_224 resmlp_12_224 gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050 mobilenetv3_large_075 lcnet_035 fbnetv3_b mobilenetv4_conv_small "
    "mobilenetv4_hybrid_medium",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs mobilevit_s mobilevitv2_050",
    "mvitv2": "mvitv2_tiny mvitv2_small_cls",
    "naflexvit": "naflexvit_base_patch16_gap:64:4 naflexvit_base_patch16_map:64:3",
    "nasnet": "nasnetalarge:96",
    "nest": "nest_tiny:224 nest_tiny_jx:224",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0 nf_resnet26 nf_ecaresnet26 nf_seresnet26 nfnet_l0 eca_nfnet_l0 test_nfnet",
    "pit": "pit_ti_224 pit_ti_distilled_224",
    "pnasnet": "pnasnet5large:96",
    "pvt_v2": "pvt_v2_b0 pvt_v2_b1 pvt_v2_b2_li",
    "qwen3_vit": "qwen3_vit_88m:64:4",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002 regnety_002 regnetv_040 regnetz_005",
    "repghost": "repghostnet_050 repghostnet_100",
    "repvit": "repvit_m1 repvit_m0_9",
    "res2net": "res2net50_14w_8s res2net50d res2next50",
    "resnest": "resnest14d resnest26d resnest50d_1s4x24d",
    "resnet": "resnet10t resnet18 resnet26d resnetblur18 resnetaa34d seresnet18 ecaresnet26t ecaresnetlight "
    "resnet50_gn resnetrs50 resnext50_32x4d seresnext26d_32x4d test_resnet",
    "resnetv2": "resnetv2_18 resnetv2_50x1_bit resnetv2_50d_gn resnetv2_50d_evos",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42 selecsls42b",
    "senet": "legacy_seresnet18 legacy_seresnext26_32x4d",
    "sequencer": "sequencer2d_s:224",
    "shvit": "shvit_s1 shvit_s4",
    "sknet": "skresnet18 skresnext50_32x4d",
    "starnet": "starnet_s050 starnet_s1",
    "swiftformer": "swiftformer_xs:224 swiftformer_s:224",
    "swin_transformer": "swin_tiny_patch4_window7_224 swin_s3_tiny_224:224",
    "swin_transformer_v2": "swinv2_tiny_window8_256:128",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224:128 swinv2_cr_tiny_ns_224:128",
    "tiny_vit": "tiny_vit_5m_224 tiny_vit_11m_224",
    "tnt": "tnt_s_patch16_224 tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m tresnet_v2_l",
    "twins": "twins_pcpvt_small twins_svt_small",
    "vgg": "vgg11 vgg13_bn",
    "visformer": "visformer_tiny visformer_small",
    "vision_transformer": "vit_tiny_patch16_224 vit_small_patch32_224 vit_small_patch14_dinov2:56 "
    "vit_medium_patch16_reg1_gap_256 vit_medium_patch32_clip_224 vit_dpwee_patch16_reg1_gap_256 "
    "vit_base_patch32_siglip_256:64:3 flexivit_small:60 test_vit test_vit2 test_vit3 test_vit4",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224 vit_small_r26_s32_224",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224 vit_relpos_medium_patch16_cls_224 "
    "vit_relpos_small_patch16_rpn_224 vit_srelpos_small_patch16_224 test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224:64:4",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim eca_vovnet39b vovnet39a",
    "xception": "legacy_xception",
    "xception_aligned": "xception41 xception41p",
    "xcit": "xcit_nano_12_p16_224 xcit_nano_12_p8_224",
}


def architecture(file: str, words: str) -> Architecture:
    """One network from ``name:size:depth``."""
    name, *numbers = words.split(":")
    size = int(numbers[0]) if numbers else 64
    more = {"depth": int(numbers[1])} if len(numbers) > 1 else {}

    def model() -> nn.Module:
        torch.manual_seed(0)
        try:
            return timm.create_model(name, num_classes=1000, img_size=size, **more)
        except TypeError:  # works on pictures of any size
            return timm.create_model(name, num_classes=1000, **more)

    def build(batch: int) -> Built:
        return Built(model(), (torch.randn(batch, 3, size, size),))

    label = name + (f" of depth {numbers[1]}" if more else "")
    return Architecture(label, "timm", file, build)


def _all() -> Iterator[Architecture]:
    for file, words in FILES.items():
        for word in words.split():
            yield architecture(file, word)


ARCHITECTURES: tuple[Architecture, ...] = tuple(_all())
