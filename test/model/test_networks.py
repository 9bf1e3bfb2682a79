"""The networks against transformers' own, and against references that share no code with them."""

import numpy as np
import pytest
import torch
from networks import DIM, TEXT_VOCABULARY, VOCABULARY, scramble, tiny_config
from torch.nn import functional as F
from transformers import AutoModel
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

from vljepa_ros.model.config import VLJepaConfig
from vljepa_ros.model.networks import Predictor, XEncoder, YDecoder, YEncoder

pytestmark = pytest.mark.usefixtures("inference")
CONFIG = tiny_config()


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def x_encoder() -> XEncoder:
    return scramble(XEncoder(CONFIG))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return scramble(Predictor(CONFIG), seed=1)


@pytest.fixture(scope="module")
def decoder() -> YDecoder:
    return scramble(YDecoder(CONFIG), seed=2)


def frames(count: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (batch, count, 32, 32, 3), generator=generator, dtype=torch.uint8)


def by_hand(clips: torch.Tensor) -> torch.Tensor:
    """Pixels `[B, T, 3, H, W]` as V-JEPA 2's processor makes them: 0..1, ImageNet statistics."""
    pixels = clips.numpy().astype(np.float64) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(pixels.transpose(0, 1, 4, 2, 3)).float()


# X-encoder


@pytest.mark.parametrize("count", [4, 2], ids=["clip", "one tubelet"])
def test_x_encoder_is_that_of_transformers(x_encoder: XEncoder, count: int):
    theirs = VJEPA2Encoder(CONFIG.x_encoder_config).eval()
    theirs.load_state_dict(x_encoder.encoder.state_dict(), strict=True)
    wanted = theirs(by_hand(frames(count))).last_hidden_state
    got = x_encoder(frames(count))
    assert got.shape == (2, count // 2 * 16, 32)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_uint8_frames_are_normalised_inside(x_encoder: XEncoder):
    wanted = x_encoder.encoder(by_hand(frames(4))).last_hidden_state
    torch.testing.assert_close(x_encoder(frames(4)), wanted, atol=1e-5, rtol=0)


def test_attention_uses_the_baked_rotary_tables():
    """Not transformers' own positions, which autocast would round to bf16 in training."""
    encoder = scramble(XEncoder(CONFIG))
    before = encoder(frames(4))
    encoder.rotary.cos.fill_(1.0)
    encoder.rotary.sin.fill_(0.0)
    assert (encoder(frames(4)) - before).abs().max() > 1e-3


def test_rotary_tables_are_no_weights(x_encoder: XEncoder):
    assert not [name for name in x_encoder.state_dict() if "rot" in name or "cos" in name]


CHUNKED = tiny_config(x_encoder_chunk=2)


def test_chunks_are_encoded_each_by_itself(x_encoder: XEncoder):
    """Their tokens are those of transformers for a tubelet alone, in the order of the clip."""
    theirs = VJEPA2Encoder(CONFIG.x_encoder_config).eval()
    theirs.load_state_dict(x_encoder.encoder.state_dict())
    chunked = XEncoder(CHUNKED).eval()
    chunked.load_state_dict(x_encoder.state_dict())
    clips = frames(4)
    got = chunked(clips)
    wanted = [theirs(by_hand(clips[:, k : k + 2])).last_hidden_state for k in (0, 2)]
    torch.testing.assert_close(got, torch.cat(wanted, dim=1), atol=1e-5, rtol=0)
    assert (got - x_encoder(clips)).abs().max() > 1e-3


def test_chunks_are_what_attention_that_stays_inside_them_gives(
    x_encoder: XEncoder, monkeypatch: pytest.MonkeyPatch
):
    chunked = XEncoder(CHUNKED).eval()
    chunked.load_state_dict(x_encoder.state_dict())
    wanted, softmax = chunked(frames(4)), F.softmax
    of_tubelet = torch.arange(32) // 16
    outside = of_tubelet[:, None] != of_tubelet[None]

    def masked(scores: torch.Tensor, **how: object) -> torch.Tensor:
        assert scores.shape[-2:] == outside.shape
        return softmax(scores.masked_fill(outside, float("-inf")), **how)

    monkeypatch.setattr(F, "softmax", masked)
    torch.testing.assert_close(x_encoder(frames(4)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_chunk_that_does_not_divide_is_refused(chunk: int):
    with pytest.raises(ValueError, match=f"chunk of {chunk} frames is no multiple of .* 2 that di"):
        XEncoder(tiny_config(x_encoder_chunk=chunk))


# Predictor


def reference(
    weights: dict[str, torch.Tensor], visual: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> np.ndarray:
    """One clip `[N, C]` and one query `[L]` through the predictor, in float64, token by token."""
    w = {name: value.double().numpy() for name, value in weights.items()}
    heads, size, eps = 4, 8, CONFIG.predictor_config.rms_norm_eps

    def rms(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        angle = position * 10000.0 ** (-2 * np.arange(size // 2) / size)
        a, b = x[: size // 2], x[size // 2 :]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
        )

    grid = visual.double().numpy().reshape(2, 4, 4, -1)  # tubelet, row, column, channel
    rows = [
        np.concatenate([grid[t, 2 * r + i, 2 * c + j] for i in (0, 1) for j in (0, 1)])
        for t in range(2) for r in range(2) for c in range(2)
    ]  # fmt: skip
    seen = [w["vis_proj.weight"] @ row + w["vis_proj.bias"] for row in rows]
    x = np.stack([*seen, *(w["embed_tokens.weight"][i] for i in ids.tolist())])
    there = np.array([1] * len(seen) + mask.tolist(), bool)
    for layer in range(CONFIG.predictor_config.num_hidden_layers):
        p = {k.removeprefix(f"layers.{layer}."): v for k, v in w.items()}
        h = rms(x, p["input_layernorm.weight"])
        q, k, v = ((h @ p[f"self_attn.{n}_proj.weight"].T).reshape(-1, heads, size) for n in "qkv")
        mixed = np.zeros_like(q)
        for head in range(heads):
            keys = np.stack([turn(k[j, head], j) for j in range(len(x))])
            for i in range(len(x)):
                scores = keys @ turn(q[i, head], i) / np.sqrt(size)
                scores = np.where(there, np.exp(scores - scores[there].max()), 0)
                mixed[i, head] = scores / scores.sum() @ v[:, head]
        x = x + mixed.reshape(len(x), -1) @ p["self_attn.o_proj.weight"].T
        h = rms(x, p["post_attention_layernorm.weight"])
        gate = h @ p["mlp.gate_proj.weight"].T
        gate = gate / (1 + np.exp(-gate)) * (h @ p["mlp.up_proj.weight"].T)
        x = x + gate @ p["mlp.down_proj.weight"].T
    mean = rms(x, w["norm.weight"])[there].mean(0)
    out = w["out_proj.weight"] @ mean + w["out_proj.bias"]
    return out / np.linalg.norm(out)


def queries() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(10)[None] < torch.tensor([[4], [10], [1]])).long()
    return ids * mask, mask


def visual_tokens(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 32, 32, generator=torch.Generator().manual_seed(3))


def test_predictor_is_the_reference(predictor: Predictor):
    """So no causal mask: with one, a visual token would not see the query."""
    visual, (ids, mask) = visual_tokens(), queries()
    got = predictor(visual, ids, mask)
    assert got.shape == (3, 3, DIM)
    for clip in range(3):
        for query in range(3):
            wanted = reference(predictor.state_dict(), visual[clip], ids[query], mask[query])
            np.testing.assert_allclose(got[clip, query].numpy(), wanted, atol=1e-5)


def test_every_clip_with_every_query_is_clip_by_clip(predictor: Predictor):
    visual, (ids, mask) = visual_tokens(2), queries()
    every = predictor(visual, ids, mask)
    for clip in range(2):
        paired = predictor.paired(visual[clip].expand(3, -1, -1), ids, mask)
        torch.testing.assert_close(every[clip], paired, atol=1e-6, rtol=0)


def test_padding_of_the_query_is_inert(predictor: Predictor):
    visual, (ids, mask) = visual_tokens(), queries()
    wanted = predictor(visual, ids, mask)
    longer, longer_mask = F.pad(ids, (0, 7)), F.pad(mask, (0, 7))
    torch.testing.assert_close(predictor(visual, longer, longer_mask), wanted, atol=1e-6, rtol=0)
    other = torch.where(mask == 1, ids, 7)  # other ids where the mask is 0
    torch.testing.assert_close(predictor(visual, other, mask), wanted, atol=1e-6, rtol=0)


def test_a_token_of_the_query_and_a_visual_token_each_count(predictor: Predictor):
    visual, (ids, mask) = visual_tokens(), queries()
    wanted = predictor(visual, ids, mask)
    other = ids.clone()
    other[0, 3] = 3 + (ids[0, 3] - 3 + 1) % (VOCABULARY - 3)  # the last token of the first query
    assert (predictor(visual, other, mask)[:, 0] - wanted[:, 0]).abs().max() > 1e-3
    torch.testing.assert_close(predictor(visual, other, mask)[:, 1:], wanted[:, 1:])
    moved = visual.clone()
    moved[1, -1] += 1
    changed = (predictor(moved, ids, mask) - wanted).abs().amax(dim=(1, 2))
    assert changed[1] > 1e-3
    assert changed[0] == changed[2] == 0


def test_chunks_get_their_time_in_the_predictor(predictor: Predictor):
    timed, (ids, mask) = Predictor(CHUNKED).eval(), queries()
    assert not timed.embed_times.any()  # at first it changes nothing
    times = torch.randn(2, 32, generator=torch.Generator().manual_seed(6))
    timed.load_state_dict({**predictor.state_dict(), "embed_times": 0 * times})
    visual = visual_tokens()
    torch.testing.assert_close(timed(visual, ids, mask), predictor(visual, ids, mask))
    timed.embed_times.copy_(times)
    merged = timed.merged(visual)
    wanted = timed.vis_proj(merged) + times.repeat_interleave(4, dim=0)
    torch.testing.assert_close(timed.seen(merged), wanted)
    newest = timed.seen(timed.merged(visual[:, 16:]))  # a still is what is seen now
    torch.testing.assert_close(newest, wanted[:, 4:])
    assert (timed(visual, ids, mask) - predictor(visual, ids, mask)).abs().max() > 1e-3
    assert (
        timed.paired(visual, ids, mask) - predictor.paired(visual, ids, mask)
    ).abs().max() > 1e-3


def test_merging_joins_neighbours_of_one_tubelet(predictor: Predictor):
    index = torch.arange(32.0)[None, :, None]  # 2 tubelets of 4 x 4
    joined = predictor.merged(index)
    assert joined.shape == (1, 8, 4)
    assert joined[0, 0].tolist() == [0, 1, 4, 5]
    assert joined[0, 1].tolist() == [2, 3, 6, 7]
    assert joined[0, 2].tolist() == [8, 9, 12, 13]
    assert joined[0, 4].tolist() == [16, 17, 20, 21]


def test_embeddings_have_unit_length(predictor: Predictor):
    y_encoder = scramble(YEncoder(CONFIG))
    for embedding in (predictor(visual_tokens(), *queries()), y_encoder(*sentences())):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(embedding.shape[:-1]))
        assert embedding.dtype == torch.float32


def test_a_merge_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="visual_merge 3 does not divide the 4 patches of a side"):
        Predictor(tiny_config(visual_merge=3))


# Y-encoder


def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, TEXT_VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(12)[None] < torch.tensor([[5], [12], [1]])).long()
    return ids * mask, mask


def test_y_encoder_is_the_masked_mean_of_transformers_model():
    y_encoder = scramble(YEncoder(CONFIG))
    theirs = AutoModel.from_config(CONFIG.y_encoder_config).eval()
    theirs.load_state_dict(y_encoder.model.state_dict(), strict=True)
    weight, bias = y_encoder.projector.weight, y_encoder.projector.bias
    ids, mask = sentences()
    got = y_encoder(ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        states = theirs(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]  # unpadded
        out = weight @ states.mean(0) + bias
        torch.testing.assert_close(got[row], out / out.norm(), atol=1e-5, rtol=0)


# Y-decoder


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    embedding = F.normalize(torch.randn(2, DIM, generator=generator), dim=-1)
    return embedding, torch.randint(3, VOCABULARY, (2, 7), generator=generator)


def test_decoding_with_the_cache_is_one_pass_over_the_text(decoder: YDecoder):
    embedding, ids = texts()
    states, whole = decoder.states(embedding, ids, decoder.empty_cache(2))
    wanted = decoder.logits(states)
    past = decoder.empty_cache(2)
    for step in range(ids.shape[1]):
        logits, past = decoder(embedding, ids[:, step : step + 1], past)
        torch.testing.assert_close(logits, wanted[:, step], atol=1e-5, rtol=0)
    assert past.shape == (2 * 2, 2, 4, 7, 8)
    torch.testing.assert_close(past, whole, atol=1e-5, rtol=0)


def test_decoder_sees_what_came_before_and_nothing_after(decoder: YDecoder):
    embedding, ids = texts()
    before, _ = decoder.states(embedding, ids, decoder.empty_cache(2))
    other = ids.clone()
    other[:, 3] = 3 + (ids[:, 3] - 3 + 1) % (VOCABULARY - 3)
    after, _ = decoder.states(embedding, other, decoder.empty_cache(2))
    changed = (after - before).abs().amax(dim=(0, 2))
    assert (changed[:3] == 0).all()
    assert (changed[3:] > 1e-3).all()


def test_decoder_depends_on_the_embedding_and_on_the_place(decoder: YDecoder):
    embedding, ids = texts()
    same = ids[:, :1].expand(-1, 3)
    states, _ = decoder.states(embedding, same, decoder.empty_cache(2))
    assert (states[:, 1] - states[:, 2]).abs().max() > 1e-3
    other, _ = decoder.states(-embedding, same, decoder.empty_cache(2))
    assert ((states - other).abs().amax(dim=2) > 1e-3).all()


def test_networks_start_finite_from_their_own_initialisation():
    torch.manual_seed(0)
    config: VLJepaConfig = tiny_config(visual_merge=1)
    visual = XEncoder(config).eval()(frames(4))
    assert visual.isfinite().all()
    assert visual.std() > 0.1
    assert Predictor(config).eval()(visual, *queries()).isfinite().all()
