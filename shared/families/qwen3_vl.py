"""Qwen3-VL: a vision tower whose mergers also feed the first decoder layers, and interleaved multimodal rotary axes."""

from shared.families.facts import FamilyFacts

_IMAGES = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"

QWEN3_VL = FamilyFacts(
    model_type="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    transformers_module="transformers.models.qwen3_vl.modeling_qwen3_vl",
    vllm_module="vllm.model_executor.models.qwen3_vl",
    image_processor=f"{_IMAGES}:Qwen2VLImageProcessorPil",
    image_resize=f"{_IMAGES}:smart_resize",
    image_placeholder="<|image_pad|>",
    placeholders=("<|image_pad|>", "<|video_pad|>"),
    special_texts=(
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
        *("<|image_pad|>", "<|video_pad|>", "<|object_ref_start|>", "<|object_ref_end|>"),
        *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    ),
    vit=("visual",),
    aligner=("merger", "deepstack_merger_list"),
    fused=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
)
