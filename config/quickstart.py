# A first model on the embedded songs.  python train.py config/quickstart.py
out_dir = 'out-quickstart'
dataset = 'lyric_char'

n_layer = 4
n_head = 4
n_embd = 192
block_size = 128
dropout = 0.1

batch_size = 16  # 16 sequences * 128 tokens = 2,048 tokens a step
max_iters = 600
learning_rate = 3e-3
min_lr = learning_rate / 10
warmup_iters = 30
eval_interval = 100
