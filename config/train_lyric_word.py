# Words (SentencePiece BPE), the predecessor's sizes: 8 layers, 8 heads, 512 wide, block 512.
#     python data/lyric_word/prepare.py && python train.py config/train_lyric_word.py
# The recipe won at 4 layers, 256 wide (README, "A better recipe"); at this size it has not run to its end.
out_dir = 'out-lyric-word'
dataset = 'lyric_word'

n_layer = 8
n_head = 8
n_embd = 512
block_size = 512
dropout = 0.2  # many passes over one corpus

batch_size = 16
gradient_accumulation_steps = 4  # 4 * 16 sequences * 512 tokens = 32,768 tokens a step, in the memory of 16 sequences
max_iters = 10000  # the predecessor took 20,000
optimizer = 'muon'
learning_rate = 4e-3
min_lr = 0.0
decay = 'linear'
warmup_iters = 100
beta2 = 0.99
eval_interval = 250
patience = 8  # words are few a corpus: they are learned by heart sooner
