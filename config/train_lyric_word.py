# Words (SentencePiece BPE), the predecessor's sizes: 8 layers, 8 heads, 512 wide, block 512.
#     python data/lyric_word/prepare.py && python train.py config/train_lyric_word.py
out_dir = 'out-lyric-word'
dataset = 'lyric_word'

n_layer = 8
n_head = 8
n_embd = 512
block_size = 512
dropout = 0.2

batch_size = 64  # 64 sequences * 512 tokens = 32,768 tokens a step
max_iters = 20000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 100
beta2 = 0.99
eval_interval = 250
