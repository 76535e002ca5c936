# nanoGPT's recipe for characters, as the predecessor ran it: AdamW, cosine to a fraction, dropout everywhere, windows drawn anywhere.
# To compare with train_lyric_char.py, at the same budget: python train.py config/baseline_lyric_char.py --max_iters=...
out_dir = 'out-baseline-char'
dataset = 'lyric_char'

n_layer = 8
n_head = 8
n_embd = 512
block_size = 1024
dropout = 0.2
attn_dropout = 0.2

batch_size = 64  # 64 sequences * 1,024 tokens = 65,536 tokens a step
max_iters = 20000
order = 'random'
learning_rate = 2.5e-3
min_lr = 1e-4
warmup_iters = 100
beta2 = 0.99
eval_interval = 250
