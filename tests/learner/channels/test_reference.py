"""Loss and gradient against loops that do everything the long way, with transformers' own forward."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.channels.channel import Objective
from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass, SinglePass
from learner.model.batch import Layout
from learner.packing.collate import collate
from learner.training.learner import Learner
from learner.training.opening import checkpoint_activations
from learner.training.optim import StepOptimizer
from shared.config.stage2 import Stage2Section
from shared.config.training import TrainingSection, TunerSection

WEIGHTS = Stage2Section(
    coord_gate_weight=0.7, coord_soft_ce_weight=0.4, coord_w1_weight=0.9, softctx_temperature=0.8, target_sigma=3.0
)


def plain_logits(bench: Any, sample: Any, embeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All logits [tokens, vocabulary] of one target alone, by transformers' own forward; and its input embeddings."""
    model, ids = bench.loaded.model, torch.tensor([sample.target.token_ids])
    image = torch.from_numpy(sample.image.pixel_values)
    grid = torch.tensor([sample.image.grid])
    types = (ids == bench.loaded.image_token_id).int()
    positions, _ = model.model.get_rope_index(ids, types, image_grid_thw=grid)
    mask = ids == bench.loaded.image_token_id
    vision = model.model.visual(image, grid_thw=grid, return_dict=True)
    if embeds is None:
        words = model.get_input_embeddings()(ids)
        embeds = words.masked_scatter(mask[..., None], vision.pooler_output)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions,
        visual_pos_masks=mask,
        deepstack_visual_embeds=vision.deepstack_features,
    ).last_hidden_state
    return model.lm_head(hidden)[0], embeds


def plain_loss(bench: Any, samples: Sequence[Any], num_passes: int, weights: Stage2Section) -> Tensor:
    """The step's loss, sample by sample, slot by slot."""
    ids = bench.coordinate_ids
    num_boxes = sum(len(sample.target.boxes) for sample in samples)
    answer_weights = sum(sample.target.ce_denominator for sample in samples)
    total = torch.zeros(())
    for sample in samples:
        scores, embeds = plain_logits(bench, sample)
        for _ in range(num_passes - 1):
            softened = embeds.clone()
            for places, _ in sample.target.boxes:
                for place in places:
                    p = torch.softmax(scores[place - 1, ids] / weights.softctx_temperature, -1).detach()
                    softened[0, place] = p @ bench.loaded.model.get_input_embeddings()(ids).detach()
            scores, _ = plain_logits(bench, sample, softened)
        target = sample.target
        for place, weight in zip(target.ce_positions, target.ce_weights, strict=True):
            ce = functional.cross_entropy(scores[place - 1], torch.tensor(target.token_ids[place]))
            total = total + weight * ce / answer_weights
        for places, bins in target.boxes:
            total = total + plain_box_loss(scores[[p - 1 for p in places]], bins, ids, weights) / num_boxes
    return total


def plain_box_loss(scores: Tensor, bins: tuple[int, ...], ids: Tensor, weights: Stage2Section) -> Tensor:
    p = torch.softmax(scores[:, ids] / weights.softctx_temperature, -1)
    k = torch.arange(1000)
    c, t = (p * k / 999).sum(-1), torch.tensor(bins) / 999
    x1, x2 = sorted((c[0], c[2]))
    y1, y2 = sorted((c[1], c[3]))
    width = (torch.minimum(x2, t[2]) - torch.maximum(x1, t[0])).clamp(min=0)
    height = (torch.minimum(y2, t[3]) - torch.maximum(y1, t[1])).clamp(min=0)
    union = (x2 - x1) * (y2 - y1) + (t[2] - t[0]) * (t[3] - t[1]) - width * height
    hull = (torch.maximum(x2, t[2]) - torch.minimum(x1, t[0])) * (torch.maximum(y2, t[3]) - torch.minimum(y1, t[1]))
    giou = width * height / union - (hull - union) / hull
    coordinate = torch.zeros(())
    for slot, bin in enumerate(bins):
        mass = torch.softmax(scores[slot], -1)[ids].sum()
        gaussian = torch.exp(-((k - bin) ** 2) / (2 * weights.target_sigma**2))
        soft = -(gaussian / gaussian.sum() * p[slot].log()).sum()
        w1 = (p[slot].cumsum(0) - (k >= bin).float()).abs().sum() / 999
        coordinate = coordinate - weights.coord_gate_weight * mass.log()
        coordinate = coordinate + weights.coord_soft_ce_weight * soft + weights.coord_w1_weight * w1
    return weights.bbox_l1_weight * (c - t).abs().mean() + weights.bbox_giou_weight * (1 - giou) + coordinate / 4


def gradients(bench: Any, loss: Tensor) -> dict[str, Tensor]:
    bench.loaded.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in bench.loaded.model.named_parameters() if p.grad is not None}


def packed_loss(bench: Any, objective: Objective, packs: Any, totals: Any, layout: Layout) -> Tensor:
    batches = [collate(pack, bench.loaded, pad_token_id=bench.tokenizer.pad_token_id, layout=layout) for pack in packs]
    return torch.stack([objective(bench.loaded, batch, totals).total for batch in batches]).sum()


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= tolerance * float(gradient.norm()), name


def samples_of(bench: Any, **weights: Any) -> list[Any]:
    """Five targets of unlike lengths; the last has no object, the one before it another image size."""
    made = [bench.sample(seed, count, **weights) for seed, count in enumerate((3, 1, 2))]
    return [*made, bench.sample(3, 2, grid=(1, 4, 8), **weights), bench.sample(4, 0, **weights)]


@pytest.mark.parametrize("num_passes", [1, 2, 3])
@pytest.mark.parametrize("layout", ["rows", "flat"])
def test_channel_a_equals_a_loop_with_full_logits_and_full_recompute(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any, num_passes: int, layout: Layout
) -> None:
    ours, plain = workbench_of(), workbench_of("eager")
    samples = samples_of(ours, desc_ce_weight=4.0)
    objective = Expectation(LastPass(WEIGHTS, ours.coordinate_ids), num_passes)
    loss = packed_loss(ours, objective, [pack_of(*samples)], step_totals_of(*samples), layout)
    expected = plain_loss(plain, samples, num_passes, WEIGHTS)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(ours, loss), gradients(plain, expected))


TUNERS = {
    "full": TunerSection(),
    "lora": TunerSection(train_type="lora", lora_rank=4, lora_alpha=8),
    "dora": TunerSection(train_type="lora", lora_rank=4, lora_alpha=8, use_dora=True),
}


def made_different(bench: Any, is_tied: bool) -> None:
    """Adapters that change something and, if not tied, a head of its own; the same on every call."""
    random, model = torch.Generator().manual_seed(5), bench.loaded.model
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    if not is_tied:
        weight = model.lm_head.weight
        rows = torch.randn(weight.shape, generator=random) / weight.shape[1] ** 0.5
        model.lm_head.weight = nn.Parameter(rows, requires_grad=weight.requires_grad)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("tuner", TUNERS)
def test_channel_a_equals_the_loop_however_the_model_is_trained(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any, tuner: str, is_tied: bool, checkpointed: bool
) -> None:
    ours, plain = workbench_of(tuner=TUNERS[tuner]), workbench_of("eager", tuner=TUNERS[tuner])
    for bench in (ours, plain):
        made_different(bench, is_tied)
    assert (ours.loaded.model.lm_head.weight is ours.loaded.model.get_input_embeddings().weight) == is_tied
    if checkpointed:
        checkpoint_activations(ours.loaded.model)
    samples = [ours.sample(0, 2), ours.sample(1, 1, grid=(1, 4, 8))]
    for num_passes in (1, 2, 3):
        objective = Expectation(LastPass(WEIGHTS, ours.coordinate_ids), num_passes)
        loss = packed_loss(ours, objective, [pack_of(*samples)], step_totals_of(*samples), "flat")
        expected = plain_loss(plain, samples, num_passes, WEIGHTS)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        found = gradients(ours, loss)
        assert any(".lora_" in name for name in found) == (tuner != "full")
        assert_same_gradients(found, gradients(plain, expected))


@pytest.mark.parametrize("attn_impl", ["auto", "sdpa", "eager"])
def test_loss_and_gradient_do_not_depend_on_packing_or_order(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any, attn_impl: str
) -> None:
    bench = workbench_of(attn_impl)
    a, b, c, d, e = samples = samples_of(bench)
    totals = step_totals_of(*samples)
    objective = Expectation(LastPass(WEIGHTS, bench.coordinate_ids), 2)
    layings: list[tuple[list[Any], Layout]] = [
        ([pack_of(each) for each in samples], "rows"),
        ([pack_of(*samples)], "rows"),
        ([pack_of(*samples)], "flat"),
        ([pack_of(e, c), pack_of(d), pack_of(b, a)], "flat"),
        ([pack_of(d, a, c), pack_of(b, e)], "rows"),
    ]
    losses = [packed_loss(bench, objective, packs, totals, layout) for packs, layout in layings]
    expected = gradients(bench, losses[0])
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=1e-6)
        assert_same_gradients(gradients(bench, loss), expected)


def test_plain_teacher_forcing_is_the_expectation_with_one_pass(
    workbench: Any, pack_of: Any, step_totals_of: Any
) -> None:
    samples = samples_of(workbench, coord_ce_weight=1.0)
    last_pass = LastPass(WEIGHTS, workbench.coordinate_ids)
    packs, totals = [pack_of(*samples)], step_totals_of(*samples)
    loss = packed_loss(workbench, SinglePass(last_pass), packs, totals, "rows")
    assert loss.equal(packed_loss(workbench, Expectation(last_pass, 1), packs, totals, "rows"))
    torch.testing.assert_close(loss, plain_loss(workbench, samples, 1, WEIGHTS), rtol=1e-5, atol=1e-6)


def test_bfloat16_compute_stays_close_and_leaves_float32_gradients(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any
) -> None:
    exact, fast = workbench_of(), workbench_of(dtype="bfloat16")
    samples = samples_of(exact)
    objective = Expectation(LastPass(WEIGHTS, exact.coordinate_ids), 2)
    losses = [packed_loss(b, objective, [pack_of(*samples)], step_totals_of(*samples), "rows") for b in (exact, fast)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    close = gradients(fast, losses[1])
    assert all(gradient.dtype is torch.float32 for gradient in close.values())
    assert_same_gradients(close, gradients(exact, losses[0]), tolerance=0.1)


@pytest.mark.slow
def test_fifty_steps_draw_the_curve_of_fifty_plain_steps(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any
) -> None:
    """Fixed batches in turn, AdamW and clipping on both sides."""
    ours, plain = workbench_of(), workbench_of("eager")
    batches = [[ours.sample(2 * turn, 2), ours.sample(2 * turn + 1, 1)] for turn in range(4)]
    training = TrainingSection(output_dir=Path("unused"), learning_rate=3e-4, lr_scheduler_type="constant")
    optimizer = StepOptimizer(ours.loaded, training, 50)
    learner = Learner(ours.loaded, optimizer, pad_token_id=ours.tokenizer.pad_token_id)
    objective = Expectation(LastPass(WEIGHTS, ours.coordinate_ids), 2)
    parameters = list(plain.loaded.model.parameters())
    adamw = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=training.weight_decay)
    curves: list[tuple[float, float]] = []
    for step in range(50):
        samples = batches[step % len(batches)]
        learner.accumulate(learner.lay_out(pack_of(*samples)), objective, step_totals_of(*samples))
        adamw.zero_grad()
        expected = plain_loss(plain, samples, 2, WEIGHTS)
        expected.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        curves.append((learner.update().loss, expected.item()))
    assert curves[-1][0] < 0.7 * curves[0][0]
    for found, loss in curves:
        assert found == pytest.approx(loss, rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("attn_impl", "dtype", "tolerance"),
    [
        ("sdpa", "float32", 1e-4),
        ("sdpa", "bfloat16", 0.1),
        ("varlen", "bfloat16", 0.1),
        ("flash_attention_2", "bfloat16", 0.1),
    ],
)
def test_a_flat_pack_on_a_gpu_has_the_gradient_of_padded_rows_on_a_cpu(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any, attn_impl: str, dtype: str, tolerance: float
) -> None:
    if attn_impl == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="needs flash-attn")
    exact, fast = workbench_of(), workbench_of(attn_impl, dtype, device="cuda")
    samples, found = samples_of(exact), []
    for bench in (exact, fast):
        optimizer = StepOptimizer(bench.loaded, TrainingSection(output_dir=Path("unused")), 1)
        learner = Learner(bench.loaded, optimizer, pad_token_id=bench.tokenizer.pad_token_id)
        objective = Expectation(LastPass(WEIGHTS, bench.coordinate_ids.to(bench.loaded.device)), 2)
        learner.accumulate(learner.lay_out(pack_of(*samples)), objective, step_totals_of(*samples))
        found.append({name: p.grad.cpu() for name, p in bench.loaded.model.named_parameters() if p.grad is not None})
    assert_same_gradients(found[1], found[0], tolerance)
