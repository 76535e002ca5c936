# The pretrained body with our own words: like finetune_lyric.py, but its vocabulary is replaced by data/lyric_word's.
#     python data/lyric_word/prepare.py && python train.py config/finetune_lyric_word.py
out_dir = 'out-lyric-ft-word'
dataset = 'lyric_word'
init_from = 'uer/gpt2-xlarge-chinese-cluecorpussmall'
new_vocabulary = True

block_size = 1024
dropout = 0.0
batch_size = 1
gradient_accumulation_steps = 32  # 32 sequences * 1,024 tokens = 32,768 tokens a step
max_iters = 800
learning_rate = 1e-4
decay = 'none'
warmup_iters = 0
beta2 = 0.95
eval_interval = 100
log_interval = 1
optimizer = 'adamw8'  # 7 bytes a weight for weights, gradients and states: 10.6 GB; AdamW takes 16, 24.2 GB
gradient_checkpointing = True
