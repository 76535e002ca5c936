# Characters, the predecessor's sizes: 8 layers, 8 heads, 512 wide, block 1024.
#     python data/lyric_char/prepare.py && python train.py config/train_lyric_char.py
out_dir = 'out-lyric-char'
dataset = 'lyric_char'

n_layer = 8
n_head = 8
n_embd = 512
block_size = 1024
dropout = 0.2

batch_size = 64  # 64 sequences * 1,024 tokens = 65,536 tokens a step
max_iters = 20000
learning_rate = 2.5e-3
min_lr = 1e-4
warmup_iters = 100
beta2 = 0.99
eval_interval = 250
