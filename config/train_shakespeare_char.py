# nanoGPT's first example: python data/shakespeare_char/prepare.py && python train.py config/train_shakespeare_char.py
# On a CPU, smaller: --n_layer=4 --n_head=4 --n_embd=128 --block_size=64 --batch_size=12 --max_iters=2000 --dropout=0
out_dir = 'out-shakespeare-char'
dataset = 'shakespeare_char'

n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
dropout = 0.2

batch_size = 64  # 64 sequences * 256 tokens = 16,384 tokens a step
max_iters = 5000
learning_rate = 1e-3
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
eval_interval = 250
