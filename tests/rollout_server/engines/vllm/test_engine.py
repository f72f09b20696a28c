"""Real vLLM on the CPU: the same answers as the transformers engine, and what only vLLM can do wrong."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rollout_server.engines.base import Engine, EngineAnswer, EngineRequest, WeightFile
from rollout_server.engines.hf.families.table import FAMILIES
from rollout_server.engines.hf.prompt import PromptBuilder
from rollout_server.engines.table import build_engine
from rollout_server.settings import ServerSettings, limits_for
from shared.errors import WeightSyncFailed
from shared.wire import RepeatTerminate

pytest.importorskip("vllm", reason="vLLM is not installed")
# vLLM's core is a fork of this process and keeps its filters; an old name that it meets at its start would end it.
pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("default")]

LOGPROB_TOLERANCE = 1e-4
Answers = dict[str, EngineAnswer]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(checkpoint: Path) -> AsyncIterator[Engine]:
    """Started where torch has computed with several threads, of which its core, a fork, has none."""
    engine = build_engine(ServerSettings(str(checkpoint), "vllm", limits_for(256, 16)))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.ones(2**20).exp().isfinite().all()
    with pytest.MonkeyPatch.context() as patch, anyio.fail_after(120):
        patch.setenv("OMP_NUM_THREADS", "2")
        await engine.start()
    torch.set_num_threads(num_threads)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hf(checkpoint: Path) -> AsyncIterator[Engine]:
    engine = build_engine(ServerSettings(str(checkpoint), "hf", limits_for(256, 16)))
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def requests_for(prompts) -> Callable[..., list[EngineRequest]]:
    """So many image prompts of several lengths, each with an image of its own."""

    def build(count: int, **sampling: object) -> list[EngineRequest]:
        return [
            EngineRequest(
                uid=str(index),
                prompt_token_ids=prompts.ids(1 + index % 7),
                images=(prompts.image(index, 64 + 32 * (index % 3), 64),),
                sampling=prompts.sampling(**{"max_new_tokens": 24, **sampling}),
                seed=index,
                return_logprobs=True,
            )
            for index in range(count)
        ]

    return build


async def answers(engine: Engine, requests: Sequence[EngineRequest]) -> Answers:
    async with aclosing(engine.generate(requests)) as results:
        got = {result.uid: result async for result in results}
    assert all(isinstance(answer, EngineAnswer) for answer in got.values()), got
    return got


REPEATS = {"max_consecutive_token_repeats": 3, "ngram_size": 2, "ngram_repeats": 2}


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"repetition_penalty": 1.3},
        {"repeat_terminate": RepeatTerminate(max_consecutive_token_repeats=2)},
        {"repeat_terminate": RepeatTerminate(**REPEATS)},
        {"repeat_terminate": RepeatTerminate(**REPEATS, min_new_tokens=9)},
    ],
    ids=["greedy", "penalty", "repeats", "two kinds of repeats", "repeats after a while"],
)
async def test_answers_are_those_of_transformers(
    vllm: Engine, hf: Engine, requests_for: Callable[..., list[EngineRequest]], sampling: dict[str, object]
) -> None:
    requests = requests_for(32, **sampling)
    ours, theirs = await answers(vllm, requests), await answers(hf, requests)
    for uid, answer in ours.items():
        other = theirs[uid]
        assert (answer.token_ids, answer.finish_reason) == (other.token_ids, other.finish_reason)
        assert (answer.num_prompt_tokens, answer.image_grid) == (other.num_prompt_tokens, other.image_grid)
    assert len({answer.token_ids for answer in ours.values()}) > 8
    if "repeat_terminate" in sampling:
        assert {answer.finish_reason for answer in ours.values()} >= {"repetition"}


async def test_log_probabilities_are_those_of_transformers(
    vllm: Engine, hf: Engine, checkpoint: Path, tmp_path: Path, requests_for: Callable[..., list[EngineRequest]]
) -> None:
    from learner.model.tiny import build_tiny

    build_tiny(tmp_path, seed=3)  # the shared checkpoint's large weights make large logits, and large errors of them
    requests = requests_for(16, repetition_penalty=1.2)
    try:
        for engine in (vllm, hf):
            await engine.load_weights(WeightFile(tmp_path / "model.safetensors"))
        ours, theirs = await answers(vllm, requests), await answers(hf, requests)
    finally:
        for engine in (vllm, hf):
            await engine.load_weights(WeightFile(checkpoint / "model.safetensors"))
    for uid, answer in ours.items():
        assert answer.token_ids == theirs[uid].token_ids
        assert answer.token_logprobs == pytest.approx(theirs[uid].token_logprobs, abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
async def test_log_probabilities_of_samples_are_the_models_own(
    vllm: Engine, checkpoint: Path, tmp_path: Path, requests_for: Callable[..., list[EngineRequest]], temperature: float
) -> None:
    """At temperature 1 and no penalty that is what the answer was sampled by: importance weights are taken from it."""
    from learner.model.tiny import build_tiny

    build_tiny(tmp_path, seed=3)
    first, *_ = requests_for(1, temperature=temperature)
    siblings = [replace(first, uid=f"0#{sample}", seed=sample) for sample in range(4)]
    try:
        await vllm.load_weights(WeightFile(tmp_path / "model.safetensors"))
        got = await answers(vllm, siblings)
    finally:
        await vllm.load_weights(WeightFile(checkpoint / "model.safetensors"))
    assert len({answer.token_ids for answer in got.values()}) == 4
    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    prompt = PromptBuilder(model, FAMILIES["qwen3_vl"], processor, limits_for(256, 1)).build(first)
    for answer in got.values():
        ids = torch.cat([prompt.token_ids, torch.tensor(answer.token_ids)])[None]
        types = (ids == model.config.image_token_id).int()
        grids = torch.tensor(prompt.image_grid)
        with torch.no_grad():
            scores = model(
                input_ids=ids, pixel_values=prompt.pixel_values, image_grid_thw=grids, mm_token_type_ids=types
            ).logits[0, prompt.num_tokens - 1 : -1]
        chosen = torch.tensor(answer.token_ids)[:, None]
        expected = scores.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        assert answer.token_logprobs == pytest.approx(expected, abs=LOGPROB_TOLERANCE)


@pytest_asyncio.fixture(loop_scope="module")
async def sayer(
    vllm: Engine, checkpoint: Path, tmp_path: Path
) -> AsyncIterator[Callable[[set[int]], Awaitable[Engine]]]:
    """vLLM with weights that say, after one of some ids, nothing but these ids, each as likely as the other."""

    async def that_says(ids: set[int]) -> Engine:
        weights = {name: torch.zeros(shape) for name, shape in vllm.tensors().shapes.items()}
        weights["model.language_model.norm.weight"] += 1
        weights["model.language_model.embed_tokens.weight"][sorted(ids)] = 1
        save_file(weights, tmp_path / "weights.safetensors")
        await vllm.load_weights(WeightFile(tmp_path / "weights.safetensors"))
        return vllm

    yield that_says
    await vllm.load_weights(WeightFile(checkpoint / "model.safetensors"))


async def test_the_object_cap_ends_an_answer_at_the_key_that_is_too_many(
    sayer: Callable[[set[int]], Awaitable[Engine]],
    checkpoint: Path,
    requests_for: Callable[..., list[EngineRequest]],
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    key = tokenizer.encode('"object_', add_special_tokens=False)
    options = {"repeat_terminate": RepeatTerminate(max_object_keys=1), "temperature": 1.0, "max_new_tokens": 180}
    requests = [
        replace(request, prompt_token_ids=(*request.prompt_token_ids, key[0]))
        for request in requests_for(16, **options)
    ]
    said = await answers(await sayer(set(key)), requests)
    ended = [answer for answer in said.values() if answer.finish_reason == "object_limit"]
    assert len(ended) > 8
    for answer in ended:
        assert tokenizer.decode(answer.token_ids).count('"object_') == 2
        assert tokenizer.decode(answer.token_ids[:-1]).count('"object_') == 1
        assert len(answer.token_logprobs) == len(answer.token_ids)
    assert all(tokenizer.decode(said[uid].token_ids).count('"object_') <= 2 for uid in said)


async def test_a_seed_gives_the_same_sample_alone_and_in_company(
    vllm: Engine, requests_for: Callable[..., list[EngineRequest]]
) -> None:
    requests = requests_for(12, temperature=1.0, top_p=0.9)
    together = await answers(vllm, requests)
    for request in requests[::4]:
        alone = await answers(vllm, [request])
        assert alone[request.uid].token_ids == together[request.uid].token_ids
    reseeded = await answers(vllm, [replace(request, seed=request.seed + 1000) for request in requests])
    assert any(reseeded[uid].token_ids != together[uid].token_ids for uid in together)


async def test_an_image_that_vllms_own_processor_refuses_fails_alone(
    vllm: Engine, requests_for: Callable[..., list[EngineRequest]], prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.images.MAX_ASPECT_RATIO", 10_000)
    bad, good = requests_for(2)
    bad = replace(bad, images=(prompts.image(0, 6432, 32),))
    async with aclosing(vllm.generate([bad, good])) as results:
        got = {result.uid: result async for result in results}
    assert isinstance(got[good.uid], EngineAnswer)
    assert (got[bad.uid].code, "ratio" in got[bad.uid].message) == ("bad_image", True)


async def test_what_vllm_keeps_as_one_tensor_is_named(vllm: Engine) -> None:
    fused = vllm.tensors().fused
    layer = "model.language_model.layers.0"
    assert frozenset(f"{layer}.self_attn.{part}_proj.weight" for part in "qkv") in fused
    assert frozenset(f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up")) in fused
    assert all(name in vllm.tensors().shapes for group in fused for name in group)


async def test_names_and_shapes_are_those_of_the_transformers_engine(vllm: Engine, hf: Engine) -> None:
    assert dict(vllm.tensors().shapes) == dict(hf.tensors().shapes)
    assert dict(vllm.tensors().tied) == dict(hf.tensors().tied)


async def test_a_load_that_fails_half_way_is_told_and_a_whole_one_heals(
    vllm: Engine, checkpoint: Path, tmp_path: Path, requests_for: Callable[..., list[EngineRequest]]
) -> None:
    requests = requests_for(8)
    before = await answers(vllm, requests)
    weights = load_file(checkpoint / "model.safetensors")
    last = max(name for name in weights if name.endswith("mlp.down_proj.weight"))
    broken = {name: value * 2 for name, value in weights.items()} | {last: weights[last][:, :-1].contiguous()}
    save_file(broken, tmp_path / "broken.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightSyncFailed, match=r"broken\.safetensors"):
        await vllm.load_weights(WeightFile(tmp_path / "broken.safetensors"))
    assert vllm.health().live
    await answers(vllm, requests[:1])  # nothing is missing that would kill the engine
    await vllm.load_weights(WeightFile(checkpoint / "model.safetensors"))
    after = await answers(vllm, requests)
    assert {uid: each.token_ids for uid, each in after.items()} == {uid: each.token_ids for uid, each in before.items()}


async def test_two_workers_that_share_the_weights_answer_as_one_does(
    vllm: Engine, checkpoint: Path, tmp_path: Path, requests_for: Callable[..., list[EngineRequest]]
) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: value * 0.9 for name, value in weights.items()}, tmp_path / "w.safetensors", {"format": "pt"})
    requests, said = requests_for(8), []
    settings = ServerSettings(str(checkpoint), "vllm", limits_for(256, 16), tensor_parallel_size=2)
    two = build_engine(settings)
    await two.start()
    try:
        for file in (checkpoint / "model.safetensors", tmp_path / "w.safetensors"):
            if said:
                await two.load_weights(WeightFile(file))
            await vllm.load_weights(WeightFile(file))
            ours, others = await answers(two, requests), await answers(vllm, requests)
            said.append({uid: each.token_ids for uid, each in ours.items()})
            assert said[-1] == {uid: each.token_ids for uid, each in others.items()}
    finally:
        await two.close()
        await vllm.load_weights(WeightFile(checkpoint / "model.safetensors"))
    assert said[0] != said[1]
