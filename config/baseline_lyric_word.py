# nanoGPT's recipe for words, as the predecessor ran it: AdamW, cosine to a fraction, dropout everywhere, windows drawn anywhere.
# To compare with train_lyric_word.py, at the same budget: python train.py config/baseline_lyric_word.py --max_iters=...
out_dir = 'out-baseline-word'
dataset = 'lyric_word'

n_layer = 8
n_head = 8
n_embd = 512
block_size = 512
dropout = 0.2
attn_dropout = 0.2

batch_size = 64  # 64 sequences * 512 tokens = 32,768 tokens a step
max_iters = 20000
order = 'random'
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 100
beta2 = 0.99
eval_interval = 250
