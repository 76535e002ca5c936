# Characters, the predecessor's sizes: 8 layers, 8 heads, 512 wide, block 1024.
#     python data/lyric_char/prepare.py && python train.py config/train_lyric_char.py
# The recipe won at 4 layers, 256 wide (README, "A better recipe"); at this size it has run for some steps only. Some 1,100 tokens/s
# on two cores of an AMD EPYC: a step takes a minute there, the whole is for a GPU.
out_dir = 'out-lyric-char'
dataset = 'lyric_char'

n_layer = 8
n_head = 8
n_embd = 512
block_size = 1024
dropout = 0.2  # many passes over one corpus

batch_size = 8
gradient_accumulation_steps = 8  # 8 * 8 sequences * 1,024 tokens = 65,536 tokens a step, in the memory of 8 sequences
max_iters = 10000  # the predecessor took 20,000
optimizer = 'muon'
learning_rate = 4e-3
min_lr = 0.0
decay = 'linear'
warmup_iters = 100
beta2 = 0.99
eval_interval = 250
