"""The embedded engine against transformers' own generation, token by token in float32."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rollout_server.engines.base import EngineAnswer, EngineFailure, EngineRequest, WeightFile
from rollout_server.engines.hf.batch import DecodeBatch
from rollout_server.engines.hf.cache import PrefillView
from rollout_server.engines.hf.engine import HfEngine
from rollout_server.engines.hf.families.table import FAMILIES
from rollout_server.engines.hf.prompt import Prompt, PromptBuilder
from rollout_server.settings import ServerSettings, limits_for
from shared.errors import ConfigError, EngineFailed, WeightSyncFailed

pytestmark = pytest.mark.slow

SIZES = ((64, 64), (96, 64), (128, 128), (64, 160))


@asynccontextmanager
async def started(checkpoint: Path, max_num_seqs: int = 64) -> AsyncIterator[HfEngine]:
    engine = HfEngine(ServerSettings(str(checkpoint), "hf", limits_for(512, max_num_seqs)))
    await engine.start()
    yield engine
    await engine.close()


async def answers(engine: HfEngine, requests: Sequence[EngineRequest]) -> dict[str, EngineAnswer]:
    async with aclosing(engine.generate(requests)) as results:
        return {result.uid: result async for result in results if isinstance(result, EngineAnswer)}


@pytest.fixture
def requests(prompts, image):
    """Requests of different lengths and image sizes; every fourth has no image."""

    def make(count: int, max_new_tokens: int = 40, **options: object) -> list[EngineRequest]:
        made = []
        for index in range(count):
            ids = prompts.ids(3 + index % 5)
            images: tuple[bytes, ...] = (image(index, *SIZES[index % 4]),)
            if index % 4 == 3:
                ids, images = ids[3:], ()
            sampling = prompts.sampling(max_new_tokens - index % 7, **options)
            made.append(EngineRequest(f"r{index}", ids, images, sampling, seed=index, return_logprobs=index % 2 == 0))
        return made

    return make


class Reference:
    """transformers' generate, one request at a time."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self.prompts = PromptBuilder(self.model, FAMILIES["qwen3_vl"], processor, limits_for(512, 1))

    def answer(self, request: EngineRequest) -> tuple[int, ...]:
        prompt, sampling = self.prompts.build(request), request.sampling
        ids = prompt.token_ids[None]
        vision = {}
        if prompt.pixel_values is not None:
            mask = (ids == self.model.config.image_token_id).int()
            vision = {"pixel_values": prompt.pixel_values, "image_grid_thw": torch.tensor(prompt.image_grid)}
            vision["mm_token_type_ids"] = mask
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=list(sampling.stop_token_ids),
            suppress_tokens=list(sampling.banned_token_ids),
            repetition_penalty=sampling.repetition_penalty,
            **vision,
        )
        return tuple(output[0, ids.shape[1] :].tolist())


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("max_num_seqs", [64, 3])
async def test_greedy_answers_equal_transformers_in_any_company(
    checkpoint, reference, requests, max_num_seqs: int, penalty: float
) -> None:
    asked = requests(9, repetition_penalty=penalty)
    async with started(checkpoint, max_num_seqs) as engine:
        got = await answers(engine, asked)
    expected = {request.uid: reference.answer(request) for request in asked}
    assert {uid: answer.token_ids for uid, answer in got.items()} == expected
    assert len({token_id for ids in expected.values() for token_id in ids}) > 30


@pytest.mark.parametrize("max_num_seqs", [64, 5])
async def test_siblings_are_prefilled_once_and_answered_as_if_alone(
    checkpoint, requests, max_num_seqs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = requests(4, temperature=1.0)
    asked = [
        replace(each, uid=f"{each.uid}#{sample}", seed=sample, return_logprobs=True)
        for each in plain
        for sample in range(3)
    ]
    alone = [replace(each, prompt_token_ids=(*each.prompt_token_ids,)) for each in asked]
    prefilled: list[int] = []
    states = DecodeBatch._prompt_states

    def counting(self: DecodeBatch, prompts: Sequence[Prompt], view: PrefillView) -> torch.Tensor:
        prefilled.append(len(prompts))
        return states(self, prompts, view)

    monkeypatch.setattr(DecodeBatch, "_prompt_states", counting)
    async with started(checkpoint, max_num_seqs) as engine:
        together = await answers(engine, asked)
        num_together, prefilled[:] = sum(prefilled), []
        apart = await answers(engine, alone)
    assert sum(prefilled) == len(alone)
    assert num_together == 4 if max_num_seqs == 64 else 4 <= num_together < len(asked)
    assert {uid: answer.token_ids for uid, answer in together.items()} == {uid: a.token_ids for uid, a in apart.items()}
    assert len({together[f"r0#{sample}"].token_ids for sample in range(3)}) == 3
    for uid, answer in together.items():
        assert answer.token_logprobs == pytest.approx(apart[uid].token_logprobs, abs=1e-4)


async def test_rows_that_join_in_mid_decode_change_nobodys_answer(checkpoint, reference, requests) -> None:
    asked = requests(8)
    async with started(checkpoint) as engine:

        async def join_later(request: EngineRequest, tokens: int) -> dict[str, EngineAnswer]:
            while engine.load().generated_tokens < tokens:  # noqa: ASYNC110 - the decoding thread sets no event
                await asyncio.sleep(0)
            return await answers(engine, [request])

        calls = [join_later(request, 12 * index) for index, request in enumerate(asked)]
        parts = await asyncio.gather(*calls)
    for request, part in zip(asked, parts, strict=True):
        assert part[request.uid].token_ids == reference.answer(request)


async def test_a_seed_gives_the_same_sample_alone_and_in_a_batch_of_17(checkpoint, requests) -> None:
    asked = requests(17, temperature=1.0, top_p=0.95)
    async with started(checkpoint) as engine:
        together = await answers(engine, asked)
        for request in asked[::4]:
            alone = await answers(engine, [request])
            assert alone[request.uid].token_ids == together[request.uid].token_ids


async def test_logprobs_are_those_of_a_forward_over_the_whole_answer(checkpoint, reference, requests) -> None:
    request = requests(1)[0]
    async with started(checkpoint) as engine:
        answer = (await answers(engine, [request]))["r0"]
    prompt = reference.prompts.build(request)
    ids = torch.cat([prompt.token_ids, torch.tensor(answer.token_ids)])[None]
    with torch.no_grad():
        logits = reference.model(
            input_ids=ids,
            pixel_values=prompt.pixel_values,
            image_grid_thw=torch.tensor(prompt.image_grid),
            mm_token_type_ids=(ids == reference.model.config.image_token_id).int(),
        ).logits[0, prompt.num_tokens - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
    assert answer.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)


async def test_new_weights_are_what_transformers_decodes_with_them(checkpoint, requests, tmp_path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    changed = {name: tensor.roll(1, 0) * 1.1 if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    reference = Reference(checkpoint)
    reference.model.load_state_dict(changed, strict=False)
    save_file(
        {**changed, "lm_head.weight": changed["model.language_model.embed_tokens.weight"].clone()}, tmp_path / "w"
    )
    asked = requests(5)
    async with started(checkpoint) as engine:
        before = await answers(engine, asked)
        await engine.load_weights(WeightFile(tmp_path / "w"))
        after = await answers(engine, asked)
    for request in asked:
        assert after[request.uid].token_ids == reference.answer(request)
        assert after[request.uid].token_ids != before[request.uid].token_ids


async def test_what_broken_weights_have_left_in_the_cache_harms_no_later_answer(checkpoint, requests, tmp_path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    broken = {name: tensor * float("nan") for name, tensor in tensors.items() if "layers.0.mlp.down_proj" in name}
    save_file(broken, tmp_path / "broken")
    asked = requests(8, max_new_tokens=12)
    async with started(checkpoint) as engine:
        before = await answers(engine, asked)
        await engine.load_weights(WeightFile(tmp_path / "broken"))
        async with aclosing(engine.generate(asked)) as results:
            got = [result async for result in results]
        assert {result.code for result in got} == {"engine_error"}
        await engine.load_weights(WeightFile(checkpoint / "model.safetensors"))
        after = await answers(engine, asked[::-1])
    assert {uid: answer.token_ids for uid, answer in after.items()} == {
        uid: answer.token_ids for uid, answer in before.items()
    }


async def test_a_file_that_cannot_be_loaded_is_a_failed_sync(checkpoint, tmp_path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.language_model.embed_tokens.weight"
    save_file({"lm_head.weight": tensors[name] + 1, name: tensors[name]}, tmp_path / "contradiction")
    save_file({name: tensors[name][:1, :1].clone().repeat(3, 7)}, tmp_path / "shape")
    (tmp_path / "cut").write_bytes((tmp_path / "shape").read_bytes()[:-5])
    async with started(checkpoint) as engine:
        for file, reason in (("contradiction", "tied"), ("shape", "failed"), ("cut", "failed"), ("none", "failed")):
            with pytest.raises(WeightSyncFailed, match=reason):
                await engine.load_weights(WeightFile(tmp_path / file))


async def test_a_tied_head_is_named_as_tied(checkpoint) -> None:
    async with started(checkpoint) as engine:
        tensors = engine.tensors()
    assert tensors.tied == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    assert set(tensors.shapes) == set(load_file(checkpoint / "model.safetensors"))


async def test_an_image_that_would_be_resized_is_refused(checkpoint, prompts, image) -> None:
    large = EngineRequest("large", prompts.ids(), (image(0, 640, 640),), prompts.sampling())
    async with started(checkpoint) as engine, aclosing(engine.generate([large])) as results:
        failure = await anext(results)
    assert isinstance(failure, EngineFailure)
    assert failure.code == "bad_image"
    assert "resize 640×640" in failure.message


async def test_an_error_in_decoding_ends_the_engine_and_every_open_call(checkpoint, requests) -> None:
    async with started(checkpoint) as engine:
        # A model whose layers do not fit together any more: the next step raises.
        layer = engine._checkpoint.model.model.language_model.layers[0].mlp.down_proj
        layer.weight = torch.nn.Parameter(layer.weight[:, :3].clone())
        with pytest.raises(EngineFailed, match="decoding failed"):
            await answers(engine, requests(2))
        assert not engine.health().live
        with pytest.raises(EngineFailed):
            await answers(engine, requests(1))


@pytest.mark.parametrize("content", [None, '{"model_type": "bert"}'])
async def test_a_directory_without_a_model_of_a_known_family_is_a_config_error(
    tmp_path: Path, content: str | None
) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model\.model"):
        async with started(tmp_path):
            pass
