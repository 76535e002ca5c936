"""The network is a GPT-2: the same logits as transformers', with a cache and without, alone and in a batch."""
import pytest
import torch
from torch.nn import functional as F

import checkpoint
from kernels import LinearCrossEntropy, for_generating, one_query, packable, plain_attention
from model import GPT, GPTConfig, KVCache


def ids(*shape, vocab=50, seed=1):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def no_pads(rows):
    return torch.zeros(rows, dtype=torch.long)


def cached_logits(model, x, steps, size=None):
    """Logits of x (B, T) fed through a KVCache in pieces of the lengths `steps`."""
    cache = KVCache(model.config, no_pads(len(x)), size or x.size(1), 'cpu', torch.float32)
    return torch.cat([model(piece, cache=cache) for piece in x.split(list(steps), dim=1)], dim=1)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('steps', [[16], [1] * 16, [5, 1, 1, 9], [1, 15], [15, 1]])
@torch.no_grad()
def test_cache_equals_no_cache(tiny, steps, bias):
    model, x = tiny(bias=bias), ids(3, 16)
    assert torch.allclose(cached_logits(model, x, steps), model(x), atol=1e-5)


@torch.no_grad()
def test_a_padded_batch_in_a_cache_equals_its_rows_one_by_one(tiny):
    model, lengths = tiny(), [1, 4, 9, 10]
    rows = [ids(n, seed=n) for n in lengths]
    more = ids(4, 6, seed=9)
    pads = torch.tensor([max(lengths) - n for n in lengths])
    x = torch.stack([torch.cat([torch.zeros(int(p), dtype=torch.long), row]) for p, row in zip(pads, rows)])
    cache = KVCache(model.config, pads, 16, 'cpu', torch.float32)
    logits = [model(x, cache=cache)] + [model(more[:, i:i + 1], cache=cache) for i in range(5)] + [model(more[:, 5:], cache=cache)]
    logits = torch.cat(logits, dim=1)
    assert logits.isfinite().all()
    for row, pad, rest, got in zip(rows, pads, more, logits):
        alone = model(torch.cat([row, rest])[None])[0]
        assert torch.allclose(got[pad:], alone, atol=1e-5)


@torch.no_grad()
def test_what_stands_in_an_empty_place_changes_nothing(tiny):
    model, pads = tiny(), torch.tensor([3, 0])
    x = ids(2, 8)
    y = x.clone()
    y[0, :3] = 7
    a, b = (model(z, cache=KVCache(model.config, pads, 16, 'cpu', torch.float32)) for z in (x, y))
    assert torch.equal(a[0, 3:], b[0, 3:]) and torch.equal(a[1], b[1])


@torch.no_grad()
def test_no_token_sees_a_later_one(tiny):
    model, x = tiny(), ids(2, 16)
    before = model(x)
    for place in (1, 8, 15):
        y = x.clone()
        y[:, place] = (y[:, place] + 1) % 50
        after = model(y)
        assert torch.equal(after[:, :place], before[:, :place]), f'a change at {place} shows before it'
        assert not torch.allclose(after[:, place:], before[:, place:])


@torch.no_grad()
def test_every_earlier_token_is_seen(tiny):
    model, x = tiny(), ids(1, 16)
    last = model(x)[:, -1]
    for place in range(16):
        y = x.clone()
        y[:, place] = (y[:, place] + 1) % 50
        assert not torch.equal(model(y)[:, -1], last), f'token {place} changes nothing'


@torch.no_grad()
def test_last_only_gives_the_last_of_all_logits(tiny):
    model, x = tiny(), ids(3, 9)
    assert torch.allclose(model(x, last_only=True), model(x)[:, -1:], atol=1e-6)


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_and_minus_100_does_not_count(tiny):
    model, x, y = tiny(), ids(2, 9), ids(2, 9, seed=2)
    logp = model(x).double().log_softmax(-1).gather(2, y[..., None]).squeeze(2)
    assert torch.allclose(model(x, y).double(), -logp.mean(), atol=1e-6)
    assert torch.allclose(model(x, y, reduction='none').view(2, 9).double(), -logp, atol=1e-5)
    y[0, 4:] = -100
    assert torch.allclose(model(x, y).double(), -torch.cat([logp[0, :4], logp[1]]).mean(), atol=1e-6)


def test_too_many_tokens_are_our_mistake_with_the_numbers_in_it(tiny):
    model = tiny()
    with pytest.raises(AssertionError, match='17 tokens in a block of 16'):
        model(ids(1, 17))
    cache = KVCache(model.config, no_pads(1), 4, 'cpu', torch.float32)
    model(ids(1, 3), cache=cache)
    with pytest.raises(AssertionError, match='3 . 2 tokens in a cache of 4'):
        model(ids(1, 2), cache=cache)


def test_input_and_output_embedding_are_one_parameter_unless_untied(tiny):
    model = tiny()
    assert model.lm_head.weight is model.transformer.wte.weight
    untied = tiny(tied=False)
    assert untied.lm_head.weight is not untied.transformer.wte.weight
    assert untied.count_parameters() == model.count_parameters() + 50 * 16


def test_a_fresh_model_guesses_evenly():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=32)).eval()
    assert abs(model(ids(4, 16), ids(4, 16, seed=2)).item() - 3.912) < 0.1  # log 50


def test_dropout_acts_in_training_alone(tiny):
    model, x = tiny(dropout=0.5), ids(2, 9)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_attention_dropout_acts_in_training_alone(tiny):
    model, x = tiny(attn_dropout=0.5), ids(2, 9)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_gradient_checkpointing_changes_no_gradient(tiny):
    gradients = []
    for checkpointing in (False, True):
        model = tiny(dropout=0.2).train()
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(3)
        model(ids(2, 9), ids(2, 9, seed=2)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


# --- transformers -----------------------------------------------------------------------------------------------------

def random_gpt2(tied=True, seed=0):
    """A tiny random GPT-2 of transformers, biases and norms random too."""
    import transformers
    torch.manual_seed(seed)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return theirs


@pytest.mark.parametrize('tied', [True, False])
@torch.no_grad()
def test_a_hugging_face_gpt2_gives_the_same_logits_here(tmp_path, characters, tied):
    theirs = random_gpt2(tied)
    theirs.save_pretrained(tmp_path)
    weights = checkpoint.read_weights(str(tmp_path))
    config = checkpoint.gpt_config(theirs.config.to_dict(), 'config.json')
    ours = checkpoint.model_from(weights, config, str(tmp_path)).eval()
    assert ours.config.tied is tied
    x = ids(3, 16)
    expected = theirs(x).logits
    assert (ours(x) - expected).abs().max() < 1e-4
    assert expected.std() > 0.5, 'the logits differ enough for the comparison to mean something'


@pytest.mark.parametrize('fields', [{}, {'bias': False}, {'tied': False}])
@torch.no_grad()
def test_our_model_gives_the_same_logits_in_transformers(tmp_path, tiny, characters, fields):
    import transformers
    ours = tiny(vocab_size=characters.vocab_size, **fields)
    checkpoint.save_model(str(tmp_path), ours, characters)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    x = ids(3, 16, vocab=characters.vocab_size)
    assert (theirs(x).logits - ours(x)).abs().max() < 1e-4


@torch.no_grad()
def test_transformers_cache_and_ours_go_on_alike(tmp_path, tiny, characters):
    import transformers
    ours = tiny(vocab_size=characters.vocab_size)
    checkpoint.save_model(str(tmp_path), ours, characters)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    from inference import generate
    prompt = characters.encode('纸鹤停')
    greedy = theirs.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, suppress_tokens=None,
                             pad_token_id=0, eos_token_id=None)[0, 3:].tolist()
    assert generate(ours, [prompt], 10, temperature=0) == [greedy]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_cross_entropy_in_pieces_equals_that_of_all_logits(dtype):
    """1,100 rows of 9,000 logits are three pieces. Loss and both gradients are torch's; -100 counts nowhere."""
    torch.manual_seed(0)
    x, weight = (torch.randn(1100, 8) * 3).requires_grad_(), torch.randn(9000, 8, requires_grad=True)
    targets = torch.randint(9000, (1100,))
    targets[[0, 511, 512, 1099]] = -100
    F.cross_entropy(x @ weight.T, targets, ignore_index=-100).backward()
    right, x.grad, weight.grad = (x.grad, weight.grad), None, None
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
        loss = LinearCrossEntropy.apply(x, weight, targets, True, True)
        (3 * loss).backward()
        with torch.no_grad():
            each = LinearCrossEntropy.apply(x, weight, targets, False, False)
    off = 1e-5 if dtype == torch.float32 else 0.03  # bfloat16 has three digits
    assert (each - F.cross_entropy(x @ weight.T, targets, reduction='none')).norm() < off * each.norm()
    assert loss.item() == pytest.approx(each.sum().item() / 1096, rel=1e-5)
    for got, grad in zip((x.grad, weight.grad), right):
        assert (got / 3 - grad).norm() < off * grad.norm()


def test_a_loss_beyond_what_a_softmax_can_hold_is_told_as_it_is():
    x, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [0.0]])
    assert LinearCrossEntropy.apply(x, weight, torch.tensor([1]), True, False).item() == 200


def test_attention_in_pieces_is_attention():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, requires_grad=True) for _ in range(3))
    right = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum(), (q, k, v))
    for a, b in zip(torch.autograd.grad(plain_attention(q, k, v, size=8).square().sum(), (q, k, v)), right):
        assert torch.allclose(a, b, atol=1e-4)


def test_attention_of_one_token_is_what_torchs_own_kernel_says():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (1, 20, 20))
    mask = torch.rand(2, 1, 1, 20) < 0.7
    for looks_at in (None, mask):
        assert torch.allclose(one_query(q, k, v, looks_at), F.scaled_dot_product_attention(q, k, v, attn_mask=looks_at), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize('width, bias', [(64, True), (64, False), (36, False)])  # the int8 kernel reads 16 weights at a time
@pytest.mark.parametrize('dtype, lost', [(torch.float32, 1e-9), (torch.bfloat16, 0.004), (torch.int8, 0.01)])
def test_a_model_for_generating_gives_nearly_the_same_logits_with_a_cache_and_without(tiny, width, bias, dtype, lost):
    model, x = tiny(n_embd=width, n_head=4, bias=bias), ids(2, 16)
    right = model(x).log_softmax(-1)
    fast = for_generating(tiny(n_embd=width, n_head=4, bias=bias), dtype)
    kinds = {type(m).__name__ for m in fast.modules() if 'Linear' in type(m).__name__}
    assert kinds == {'Int8Linear' if dtype == torch.int8 else 'PackedLinear' if packable(dtype) else 'Linear'}
    cache = KVCache(fast.config, no_pads(2), 16, 'cpu', fast.transformer.wte.weight.dtype)
    stepwise = torch.cat([fast(piece, cache=cache) for piece in x.split(1, dim=1)], dim=1)
    for got in (fast(x), stepwise):  # 32 rows at once, and two
        assert (right.exp() * (right - got.float().log_softmax(-1))).sum(-1).mean() < lost, 'nats lost'


def test_where_torch_comes_without_onednn_generating_takes_the_plain_layers(tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    monkeypatch.setattr(torch.ops, 'mkldnn', None)  # its operations are not there either
    for dtype in (torch.float32, torch.bfloat16):
        assert isinstance(for_generating(tiny(), dtype).lm_head, torch.nn.Linear)
