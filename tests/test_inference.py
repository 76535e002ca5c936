"""Scores equal a naive loop, samples obey their settings, and a batch goes on like its prompts one by one."""
import itertools
import math

import numpy as np
import pytest
import torch

import tokenizer as tokenizers
from conftest import SONGS
from inference import generate, next_tokens, score, stream, text_stream, windows


def sequence(length, seed=0):
    return np.random.default_rng(seed).integers(50, size=length)


# --- windows and scores -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('block_size, stride', [(4, 4), (4, 2), (4, 1), (16, 8), (16, 5), (1, 1)])
def test_windows_score_each_target_once_with_the_context_they_promise(block_size, stride):
    for length in range(0, 60):
        targets = []
        for begin, first, end in windows(length, block_size, stride):
            assert 0 <= begin < first < end <= length and end - 1 - begin <= block_size
            assert begin == 0 or first - begin > block_size - stride, 'too little context'
            targets += range(first, end)
        assert targets == list(range(1, length))


@torch.no_grad()
def naive(model, ids, stride):
    """-log p of each token, float64, one target at a time, from the context its window gives it."""
    model, block_size, nll = model.double(), model.config.block_size, []
    for target in range(1, len(ids)):
        if target <= block_size:
            begin = 0
        else:  # the window that scores this target ends where its stride does
            end = min(len(ids), 1 + block_size + stride * math.ceil((target - block_size) / stride))
            begin = end - 1 - block_size
        logits = model(torch.tensor(ids[None, begin:target]))[0, -1]
        nll.append(-logits.log_softmax(-1)[ids[target]].item())
    return np.array(nll)


@pytest.mark.parametrize('stride', [0, 16, 8, 3, 1])
def test_score_equals_a_naive_float64_loop(tiny, stride):
    sequences = [sequence(n, seed=n) for n in (2, 5, 16, 17, 18, 40, 64)]
    got = score(tiny(), sequences, stride, batch_size=3)
    for ids, nll in zip(sequences, got):
        assert nll.dtype == np.float64 and nll.shape == (len(ids) - 1,)
        assert np.allclose(nll, naive(tiny(), ids, stride or 16), atol=1e-4)


def test_scores_do_not_depend_on_the_batch(tiny):
    sequences = [sequence(n, seed=n) for n in (3, 40, 7, 16, 7, 33)]
    alone = [score(tiny(), [ids], 8)[0] for ids in sequences]
    for batch_size in (1, 2, 64):
        for a, b in zip(alone, score(tiny(), sequences, 8, batch_size)):
            assert np.allclose(a, b, atol=1e-5)


def test_sequences_without_a_target_score_nothing(tiny):
    got = score(tiny(), [sequence(0), sequence(1), sequence(2)])
    assert [len(x) for x in got] == [0, 0, 1]
    assert score(tiny(), []) == []


def test_score_reads_uint16_shards_as_they_are(tiny):
    ids = sequence(40)
    assert np.array_equal(score(tiny(), [ids.astype('<u2')])[0], score(tiny(), [ids])[0])


def test_progress_counts_each_token_once(tiny):
    done = []
    score(tiny(), [sequence(40), sequence(9)], 5, progress=done.append)
    assert sum(done) == 39 + 8


def test_scoring_leaves_the_model_and_the_random_stream_as_they_were(tiny):
    model = tiny(dropout=0.5).train()
    before = torch.get_rng_state()
    assert np.array_equal(score(model, [sequence(30)])[0], score(model, [sequence(30)])[0]), 'dropout is off'
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


# --- the next token ---------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def drawn(count=4000, seen=((),), **options):
    """Share of each token among `count` draws from LOGITS."""
    generator = torch.Generator().manual_seed(0)
    tokens = next_tokens(LOGITS.repeat(count, 1), [list(seen[0])] * count, generator, **options)
    return torch.bincount(tokens, minlength=6) / count


def test_plain_sampling_draws_from_the_softmax():
    assert torch.allclose(drawn(40000), LOGITS.softmax(-1), atol=0.01)


def test_temperature_0_is_greedy():
    """nanoGPT divides by zero there."""
    assert drawn(temperature=0).tolist() == [1, 0, 0, 0, 0, 0]
    assert drawn(temperature=0, top_k=3, top_p=0.5).tolist() == [1, 0, 0, 0, 0, 0]


def test_temperature_scales_the_logits():
    assert torch.allclose(drawn(40000, temperature=0.5), (LOGITS / 0.5).softmax(-1), atol=0.01)
    assert torch.allclose(drawn(40000, temperature=2.0), (LOGITS / 2).softmax(-1), atol=0.01)


@pytest.mark.parametrize('k, kept', [(1, 1), (3, 3), (6, 6), (50, 6), (0, 6)])
def test_top_k_draws_from_the_k_likeliest(k, kept):
    shares = drawn(top_k=k)
    assert (shares[:kept] > 0).all() and (shares[kept:] == 0).all()
    expected = LOGITS.clone()
    expected[kept:] = -torch.inf
    assert torch.allclose(shares, expected.softmax(-1), atol=0.03)


@pytest.mark.parametrize('p, kept', [(0.5, 1), (0.6, 2), (0.8, 3), (0.9, 4), (1.0, 6), (1e-9, 1)])
def test_top_p_draws_from_the_likeliest_that_together_reach_p(p, kept):
    assert LOGITS.softmax(-1).cumsum(-1).tolist() == pytest.approx([0.549, 0.752, 0.874, 0.949, 0.976, 1.0], abs=0.03)
    shares = drawn(top_p=p)
    assert (shares[:kept] > 0).all() and (shares[kept:] == 0).all(), shares


def test_top_k_and_top_p_pick_the_same_tokens_wherever_they_stand():
    shuffled = LOGITS[torch.tensor([5, 0, 3, 1, 4, 2])]
    generator = torch.Generator().manual_seed(0)
    for options in ({'top_k': 2}, {'top_p': 0.6}):
        tokens = next_tokens(shuffled.repeat(500, 1), [[]] * 500, generator, **options)
        assert set(tokens.tolist()) == {1, 3}


def test_a_repetition_penalty_makes_what_stands_already_less_likely():
    shares = drawn(seen=((0, 4, 4),), repetition_penalty=2.0)
    expected = LOGITS.clone()
    expected[0], expected[4] = 2.0 / 2, -1.0 * 2
    assert torch.allclose(shares, expected.softmax(-1), atol=0.03)
    assert drawn(seen=((0,),), repetition_penalty=3.0, temperature=0).tolist() == [0, 1, 0, 0, 0, 0]


def test_a_repetition_penalty_looks_at_each_rows_own_past():
    tokens = next_tokens(LOGITS.repeat(2, 1), [[0], [5]], None, temperature=0, repetition_penalty=3.0)
    assert tokens.tolist() == [1, 0]


# --- generation -------------------------------------------------------------------------------------------------------

@torch.no_grad()
def greedy(model, ids, count):
    """Greedy continuation without a cache, the older half of the context forgotten when the block is full."""
    ids, held, out = list(ids), len(ids), []
    for _ in range(count):
        held = held if held <= model.config.block_size else model.config.block_size // 2
        token = model(torch.tensor([ids[-held:]]))[0, -1].argmax().item()
        ids.append(token)
        out.append(token)
        held += 1
    return out


PROMPTS = [sequence(n, seed=n).tolist() for n in (1, 3, 9, 16, 30)]


def test_greedy_with_a_cache_equals_greedy_without_also_past_block_size(tiny):
    for prompt in PROMPTS:
        assert generate(tiny(), [prompt], 50, temperature=0) == [greedy(tiny(), prompt, 50)]


def test_prompts_of_different_lengths_go_on_in_a_batch_as_one_by_one_also_past_block_size(tiny):
    assert generate(tiny(), PROMPTS, 50, temperature=0) == [greedy(tiny(), prompt, 50) for prompt in PROMPTS]


def test_a_prompt_in_the_batch_that_has_ended_changes_no_other(tiny):
    alone = [generate(tiny(), [p], 50, temperature=0)[0] for p in PROMPTS]
    stop = alone[0][4]  # a token that some rows reach, at different steps
    cut = [ids[:ids.index(stop)] if stop in ids else ids for ids in alone]
    assert generate(tiny(), PROMPTS, 50, temperature=0, stop_id=stop) == cut


def test_the_stop_token_ends_a_row_and_is_left_out(tiny):
    model, prompt = tiny(), PROMPTS[1]
    free = generate(model, [prompt], 20, temperature=0)[0]
    stop = free[7]
    steps = list(stream(model, [prompt], 20, temperature=0, stop_id=stop))
    assert generate(model, [prompt], 20, temperature=0, stop_id=stop) == [free[:free.index(stop)]]
    assert [new[0] for new in steps] == free[:free.index(stop) + 1], 'the stream yields it, as its last'


def test_a_row_that_has_ended_yields_none_until_all_have(tiny):
    model = tiny()
    a, b = (generate(model, [p], 20, temperature=0)[0] for p in PROMPTS[3:])
    stop = next(t for t in a[3:] if t not in b)
    steps = list(stream(model, PROMPTS[3:], 20, temperature=0, stop_id=stop))
    assert len(steps) == 20 and [new[1] for new in steps] == b
    assert [new[0] for new in steps] == a[:a.index(stop) + 1] + [None] * (19 - a.index(stop))


def test_banned_tokens_are_never_drawn(tiny):
    model, banned = tiny(), list(range(0, 50, 2))
    out = generate(model, PROMPTS, 60, generator=torch.Generator().manual_seed(0), temperature=5.0, banned_ids=banned)
    assert not set(itertools.chain(*out)) & set(banned)
    assert not set(generate(model, PROMPTS[:1], 60, temperature=0, banned_ids=banned)[0]) & set(banned)


def test_the_same_seed_gives_the_same_text_and_another_another(tiny):
    def sampled(seed):
        return generate(tiny(), PROMPTS, 20, generator=torch.Generator().manual_seed(seed), top_p=0.9)
    torch.manual_seed(1)
    first = sampled(7)
    torch.manual_seed(2)
    assert sampled(7) == first and sampled(8) != first


def test_max_new_tokens_is_the_length_when_nothing_stops(tiny):
    assert [len(ids) for ids in generate(tiny(), PROMPTS, 7, temperature=0)] == [7] * 5


def test_the_prompts_of_the_caller_are_left_as_they_were(tiny):
    prompts = [[1, 2], [3]]
    generate(tiny(), prompts, 5, temperature=0)
    assert prompts == [[1, 2], [3]]


def test_an_empty_prompt_is_our_mistake(tiny):
    with pytest.raises(AssertionError, match='empty prompt'):
        generate(tiny(), [[1], []], 5)


# --- streams of text --------------------------------------------------------------------------------------------------

def test_a_text_stream_gives_the_whole_text_piece_by_piece(characters):
    pieces = list(text_stream(characters, iter(characters.encode(SONGS[0]) + [characters.eot_id])))
    assert pieces == list(SONGS[0])


def test_a_text_stream_never_splits_a_character():
    from tokenizers.pre_tokenizers import ByteLevel
    t = tokenizers.from_gpt2({c: i for i, c in enumerate([*sorted(ByteLevel.alphabet()), '<|endoftext|>'])}, [])
    text = '风a👧\u200d👧é\n鼎'
    pieces = list(text_stream(t, t.encode(text)))
    assert ''.join(pieces) == text and '\ufffd' not in ''.join(pieces) and len(pieces) == len(text)


def test_a_text_stream_that_ends_half_way_in_a_character_says_so_at_the_end():
    from tokenizers.pre_tokenizers import ByteLevel
    t = tokenizers.from_gpt2({c: i for i, c in enumerate([*sorted(ByteLevel.alphabet()), '<|endoftext|>'])}, [])
    assert ''.join(text_stream(t, t.encode('a风')[:-1])) == 'a\ufffd'


def test_a_text_stream_comes_as_the_tokens_come(characters):
    taken = []

    def tokens():
        for token in characters.encode('纸鹤停'):
            taken.append(token)
            yield token
    pieces = text_stream(characters, tokens())
    assert next(pieces) == '纸' and len(taken) == 1
